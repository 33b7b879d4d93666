"""Steps: blocks over several tables, exactly once through lost messages, resuming and fencing."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tablebay.client.client import Client, client_over
from tablebay.client.errors import (
    BadRequest,
    BadType,
    CorruptMessage,
    DeadlineExceeded,
    Fenced,
    NonFinite,
    ServerLost,
    Unavailable,
)
from tablebay.client.inprocess import InProcessTransport, local, services
from tablebay.client.ledger import OPEN_STEPS_MAX
from tablebay.client.proto import tablebay_pb2
from tablebay.client.retry import Pace
from tablebay.client.tables import SGD, Zeros
from tablebay.ps_server.service import Service


class Time:
    """A clock that only sleeping moves, so that retries cost nothing."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.pace = Pace(lambda: self.now, self.sleep, random.Random(seed))

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Answered:
    """An answer that is there already: bytes, or an error."""

    def __init__(self, answer: bytes | BaseException) -> None:
        self.answer = answer

    def result(self) -> bytes:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def cancel(self) -> bool:
        return False


Meddle = Callable[[int, str, bytes, Callable[[], bytes]], bytes]


class Meddler:
    """A transport whose data calls go through `meddle(server, method, request, send)` while it is set."""

    def __init__(self, servers: Sequence[Service]) -> None:
        self.inner = InProcessTransport(servers)
        self.meddle: Meddle | None = None
        # Ctrl-C comes before anything of this server is sent.
        self.interrupted_at: int | None = None
        self.sent: list[tuple[int, str, bytes]] = []

    @property
    def addresses(self) -> Sequence[str]:
        return self.inner.addresses

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Any:
        if method not in ("Pull", "Push", "Step"):
            return self.inner.call(server, method, request, timeout)
        if server == self.interrupted_at:
            raise KeyboardInterrupt
        self.sent.append((server, method, request))
        if self.meddle is None:
            return self.inner.call(server, method, request, timeout)
        try:
            return Answered(
                self.meddle(
                    server,
                    method,
                    request,
                    lambda: self.inner.call(server, method, request, timeout).result(),
                )
            )
        except BaseException as error:  # noqa: BLE001 - raised by the answer
            return Answered(error)

    def rebuild(self) -> None:
        self.inner.rebuild()

    def close(self) -> None:
        self.inner.close()


def drop_answers(server: int, method: str, request: bytes, send: Callable[[], bytes]) -> bytes:
    """The server handles the call, and its answer is lost."""
    send()
    raise Unavailable(f"the answer of server {server} was lost")


def refuse_connection(server: int, method: str, request: bytes, send: Callable[[], bytes]) -> bytes:
    """The request does not arrive."""
    raise Unavailable(f"server {server} cannot be reached")


def interrupt(server: int, method: str, request: bytes, send: Callable[[], bytes]) -> bytes:
    """The server handles the call, and Ctrl-C comes before its answer."""
    send()
    raise KeyboardInterrupt


def ranked(servers: Sequence[Service], rank: int = 0) -> tuple[Client, Meddler]:
    """A client of that rank, and its transport."""
    transport = Meddler(servers)
    return client_over(transport, rank=rank, pace=Time(next(SEEDS)).pace), transport


def sums_of(client: Client, name: str = "sums") -> Any:
    """An int64 table, on which each push counts exactly."""
    return client.table(name, dim=1, dtype="int64")


ONE = np.ones((1, 1), np.int64)
# Each process draws another nonce for its Hello.
SEEDS = itertools.count()


def ones(count: int) -> Any:
    """Gradients that add 1 to each of `count` keys."""
    return np.ones((count, 1), np.int64)


# -- blocks --


@pytest.mark.parametrize("servers", [1, 2, 5])
def test_a_block_is_one_step_over_several_tables(servers: int) -> None:
    """One call to each server each way; rows in the mapping's order, in the keys' shapes."""
    transport = Meddler(services(servers))
    client = client_over(transport)
    users = client.table("user", dim=2, optimizer=SGD(1.0), initializer=Zeros())
    items = client.table("item", dim=3, optimizer=SGD(1.0), initializer=Zeros())
    user_keys, item_keys = np.arange(40).reshape(20, 2), np.arange(60)
    transport.sent.clear()
    with client.step() as step:
        assert step.number == 0
        a, b = step.pull({users: user_keys, items: item_keys})
        assert (a.shape, b.shape) == ((20, 2, 2), (60, 3))
        assert len(transport.sent) == servers
        step.push({items: (item_keys, b + 1), users: (user_keys, a + 2)})
    assert len(transport.sent) == 2 * servers
    assert {method for _, method, _ in transport.sent} == {"Step"}
    assert (users.pull(user_keys) == -2).all()
    assert (items.pull(item_keys) == -1).all()
    assert client.next_step == 1


def test_a_block_pulls_as_often_as_it_likes_and_pushes_once() -> None:
    """A second push is BadRequest, and the first stands; outside of the block nothing goes."""
    client = local()
    sums = sums_of(client)
    with client.step() as step:
        step.pull({sums: [1]})
        step.pull({sums: [2, 3]})
        assert step.pull({}) == []
        assert step.pull({sums: []})[0].shape == (0, 1)
        step.push({sums: ([1], ONE)})
        step.pull({sums: [1]})
        with pytest.raises(BadRequest, match="step 0 has been pushed already"):
            step.push({sums: ([1], ONE)})
    assert sums.pull([1]).tolist() == [[1]]
    with pytest.raises(BadRequest, match="step 0 has ended"):
        step.pull({sums: [1]})
    with pytest.raises(BadRequest, match="has begun already"), step:
        pass
    with pytest.raises(BadRequest, match="has not begun"):
        client.step().pull({sums: [1]})


def test_a_block_ended_by_an_exception_gives_its_number_back() -> None:
    """Nothing is pushed, and the next push has the number."""
    client = local()
    sums = sums_of(client)
    step = client.step()

    def fail() -> None:
        with step:
            step.pull({sums: [1]})
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fail()
    assert step.number == client.next_step == 0
    with client.step() as step:
        with pytest.raises(BadType):
            step.push({sums: ([1], np.ones((1, 1)))})
        step.push({sums: ([1], ONE)})
    assert step.number == 0
    assert client.next_step == 1
    assert sums.pull([1]).tolist() == [[1]]


def test_a_block_without_a_push_uses_its_number() -> None:
    """A ranked client tells every server, so that no hole stays."""
    servers = services(3)
    client, transport = ranked(servers)
    sums = sums_of(client)
    transport.sent.clear()
    with client.step() as step:
        step.pull({sums: [1]})
    assert sorted(server for server, method, _ in transport.sent if method == "Step") == [0, 1, 2]
    with client.step() as step:
        step.push({}, cursor=b"read to here")
    assert client.next_step == 2
    again, _ = ranked(servers)
    assert (again.next_step, again.cursor) == (2, b"read to here")


def test_a_block_takes_the_tables_of_its_own_client() -> None:
    """Another client's table, or something else, is refused by name."""
    one, other = local(), local()
    foreign = sums_of(other)
    with one.step() as step:
        with pytest.raises(BadRequest, match="table 'sums' belongs to another client"):
            step.pull({foreign: [1]})
        with pytest.raises(BadType, match="found str as a key of the mapping"):
            step.pull({"sums": [1]})  # type: ignore[dict-item]
        with pytest.raises(BadType, match=r"found list, wanted \(keys, gradients\)"):
            step.push({sums_of(one): [[1], ONE]})  # type: ignore[dict-item]


def test_a_cursor_is_bytes_of_at_most_1_kib() -> None:
    """Refused before anything is sent."""
    client = local()
    with client.step() as step:
        with pytest.raises(BadType, match="cursor: found str, wanted bytes"):
            step.push({}, cursor="here")  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match="cursor: found 1025 bytes, wanted at most 1024"):
            step.push({}, cursor=bytes(1025))
        step.push({}, cursor=bytes(1024))


# -- exactly once --


@pytest.mark.parametrize("rank", [None, 0])
def test_lost_messages_never_apply_a_push_twice(rank: int | None) -> None:
    """Requests and answers are lost at random, and late copies arrive; every sum is exact."""
    for seed in range(40):
        time = Time(seed)
        draw = np.random.default_rng(seed)
        servers = services(int(draw.integers(1, 4)))
        transport = Meddler(servers)
        client = client_over(transport, rank=rank, pace=time.pace, timeout=1e6)
        sums, others = sums_of(client), sums_of(client, "others")
        late: list[tuple[int, str, bytes]] = []

        def meddle(
            server: int,
            method: str,
            request: bytes,
            send: Callable[[], bytes],
            draw: Any = draw,
            late: Any = late,
            servers: Any = servers,
        ) -> bytes:
            if late and draw.random() < 0.3:
                # A copy of an old request comes through at last.
                old_server, old_method, old_request = late.pop(int(draw.integers(len(late))))
                servers[old_server].handle(old_method, old_request)
            fate = draw.random()
            if fate < 0.2:
                raise Unavailable("the request was lost")
            if fate < 0.5 and method != "Pull":
                late.append((server, method, request))
            answer = send()
            if fate < 0.4:
                raise Unavailable("the answer was lost")
            return answer

        transport.meddle = meddle
        wanted = np.zeros((2, 30), np.int64)
        for _ in range(30):
            keys = draw.integers(0, 30, 20)
            if draw.random() < 0.5:
                sums.push(keys, ones(20))
            else:
                with client.step() as step:
                    step.pull({others: keys})
                    step.push({sums: (keys, ones(20)), others: (keys, 2 * ones(20))})
                np.add.at(wanted[1], keys, 2)
            np.add.at(wanted[0], keys, 1)
        transport.meddle = None
        assert (sums.pull(np.arange(30)).ravel() == wanted[0]).all(), f"seed {seed}"
        assert (others.pull(np.arange(30)).ravel() == wanted[1]).all(), f"seed {seed}"
        assert sum(stats.counters["duplicates_changed"] for stats in client.stats()) == 0, f"seed {seed}"


@pytest.mark.parametrize("rank", [None, 0])
@pytest.mark.parametrize("meddle", [drop_answers, refuse_connection])
def test_a_push_whose_deadline_passes_stays_open_and_goes_first(meddle: Meddle, rank: int | None) -> None:
    """It is applied once before the next push, whether it had been or not; the error says so."""
    time = Time()
    transport = Meddler(services(2))
    client = client_over(transport, rank=rank, pace=time.pace, timeout=5.0)
    sums = sums_of(client)
    keys = np.arange(50)
    transport.meddle = meddle
    with pytest.raises(Unavailable, match="step 0 may or may not be applied; it stays open.*sent .* times"):
        sums.push(keys, ones(50))
    assert 5.0 <= time.now < 6.0
    with pytest.raises(Unavailable, match="the call has not begun, since an earlier push left its step open"):
        sums.push(keys, 10 * ones(50))
    assert client.next_step == 1
    transport.meddle = None
    sums.push(keys, 100 * ones(50))
    assert (sums.pull(keys) == 101).all()
    assert client.next_step == 2
    assert sum(stats.counters["duplicates_changed"] for stats in client.stats()) == 0


def test_an_interrupted_push_stays_open_and_goes_first() -> None:
    """Ctrl-C in the middle: KeyboardInterrupt at once, and nothing lost or applied twice."""
    time = Time()
    transport = Meddler(services(2))
    client = client_over(transport, pace=time.pace)
    sums = sums_of(client)
    keys = np.arange(50)
    transport.meddle = interrupt
    with pytest.raises(KeyboardInterrupt):
        sums.push(keys, ones(50))
    # The block's push sends step 0 again first, and is interrupted there: it has not begun.
    with pytest.raises(KeyboardInterrupt), client.step() as step:
        step.push({sums: (keys, 10 * ones(50))})
    assert step.number == client.next_step == 1
    assert client.table("sums").session.unsettled == [0]
    transport.meddle = None
    with client.step() as step:
        step.push({sums: (keys, 100 * ones(50))})
    assert (sums.pull(keys) == 101).all()
    transport.meddle = interrupt
    with pytest.raises(KeyboardInterrupt), client.step() as step:
        step.push({sums: (keys, 1000 * ones(50))})
    assert client.next_step == 3
    transport.meddle = None
    client.barrier("end")
    assert client.table("sums").session.unsettled == []
    assert (sums.pull(keys) == 1101).all()


@pytest.mark.parametrize("server", [0, 1, 2])
def test_an_interrupted_push_keeps_the_gradients_it_was_given(server: int) -> None:
    """Whatever the caller does with its arrays afterwards, and however far the push had come."""
    transport = Meddler(services(3))
    client = client_over(transport, pace=Time().pace)
    sums = sums_of(client)
    keys, gradients = np.arange(60), ones(60)
    transport.interrupted_at = server
    with pytest.raises(KeyboardInterrupt):
        sums.push(keys, gradients)
    transport.interrupted_at = None
    gradients[:] = 1000
    keys[:] = 7
    sums.push([0], ONE)
    assert sums.pull(np.arange(60)).ravel().tolist() == [2] + [1] * 59


def test_closing_sends_what_was_left_open() -> None:
    """And says so if it cannot; leaving a `with` block by an exception does not try."""
    for meddle, sum_wanted in ((None, 1), (refuse_connection, 0)):
        time = Time()
        servers = services(2)
        transport = Meddler(servers)
        client = client_over(transport, pace=time.pace, timeout=5.0)
        sums = sums_of(client)
        transport.meddle = refuse_connection
        with pytest.raises(Unavailable):
            sums.push([1], ONE)
        transport.meddle = meddle
        if meddle is None:
            client.close()
        else:
            with pytest.raises(Unavailable, match="step 0 may or may not be applied"):
                client.close()
        client.close()
        assert sums_of(client_over(InProcessTransport(servers))).pull([1]).tolist() == [[sum_wanted]]
    time = Time()
    transport = Meddler(services(1))
    left_at: list[float] = []

    def fail() -> None:
        with client_over(transport, pace=time.pace) as client:
            sums = sums_of(client)
            transport.meddle = refuse_connection
            with pytest.raises(Unavailable):
                sums.push([1], ONE)
            left_at.append(time.now)
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fail()
    assert left_at == [time.now]


def test_a_damaged_answer_leaves_the_step_open() -> None:
    """The push may have been applied: it is sent again, and applied once."""
    transport = Meddler(services(1))
    client = client_over(transport, pace=Time().pace)
    sums = sums_of(client)

    def damage(server: int, method: str, request: bytes, send: Callable[[], bytes]) -> bytes:
        return send()[:-3]

    transport.meddle = damage
    with pytest.raises(CorruptMessage, match="step 0 may or may not be applied"):
        sums.push([1], ONE)
    transport.meddle = None
    sums.push([1], ONE)
    assert sums.pull([1]).tolist() == [[2]]


def test_a_step_is_sent_again_with_the_same_bytes() -> None:
    """Same number, same content, whatever happened between."""
    transport = Meddler(services(1))
    client = client_over(transport, pace=Time().pace)
    sums = sums_of(client)
    transport.sent.clear()
    fates = iter([True, True, False])

    def meddle(server: int, method: str, request: bytes, send: Callable[[], bytes]) -> bytes:
        if next(fates):
            raise Unavailable("lost")
        return send()

    transport.meddle = meddle
    sums.push([1, 2, 3], ones(3))
    requests = [request for _, _, request in transport.sent]
    assert len(requests) == 3
    assert len(set(requests)) == 1
    assert tablebay_pb2.PushRequest.FromString(requests[0]).step == 0
    assert client.table("sums").session.retries == 2


def test_a_split_step_says_of_how_many_messages_it_is() -> None:
    """So that a server never takes half a step for a whole one, whichever comes last."""
    transport = Meddler(services(2, message_bytes_max=4096))
    client = client_over(transport, rank=0, pace=Time().pace)
    sums = sums_of(client)
    transport.sent.clear()
    with client.step() as step:
        step.push({sums: (np.arange(3000), ones(3000))}, cursor=b"here")
    for server in range(2):
        requests = [tablebay_pb2.PushRequest.FromString(r) for at, _, r in transport.sent if at == server]
        assert len(requests) > 3
        assert [request.piece for request in requests] == list(range(len(requests)))
        assert {request.pieces for request in requests} == {len(requests)}
        assert {request.step for request in requests} == {0}
        assert {request.cursor for request in requests} == {b"here"}
    assert (sums.pull(np.arange(3000)) == 1).all()


def test_no_more_than_64_steps_are_open() -> None:
    """While one thread's push hangs, others go on until the window is full, and every sum is exact."""
    transport = Meddler(services(1))
    client = client_over(transport, timeout=20.0)
    sums = sums_of(client)
    hanging = threading.Event()
    released = threading.Event()

    def meddle(server: int, method: str, request: bytes, send: Callable[[], bytes]) -> bytes:
        answer = send()
        if tablebay_pb2.PushRequest.FromString(request).step == 0:
            hanging.set()
            assert released.wait(20.0)
        return answer

    transport.meddle = meddle
    first = threading.Thread(target=sums.push, args=([0], ONE))
    first.start()
    assert hanging.wait(20.0)
    for _ in range(OPEN_STEPS_MAX - 1):
        sums.push([0], ONE)
    assert client.next_step == OPEN_STEPS_MAX
    client.table("sums").session.timeout = 0.05
    with pytest.raises(DeadlineExceeded, match="step 64 has not begun"):
        sums.push([0], ONE)
    client.table("sums").session.timeout = 20.0
    released.set()
    first.join()
    for _ in range(OPEN_STEPS_MAX):
        sums.push([0], ONE)
    assert sums.pull([0]).tolist() == [[2 * OPEN_STEPS_MAX]]


def test_a_refused_step_leaves_no_hole_behind_a_ranked_client() -> None:
    """One server refuses, another has its part: the number is used, and a restart goes on after it."""
    servers = services(3)
    client, _ = ranked(servers)
    user = client.table("user", dim=1, optimizer=SGD(1.0), initializer=Zeros())
    keys = np.arange(30).repeat(2)
    gradients = np.ones((60, 1), np.float32)
    gradients[:2] = 3e38
    with pytest.raises(NonFinite, match="key 0"):
        user.push(keys, gradients)
    user.push([100], np.ones((1, 1), np.float32))
    assert client.next_step == 2
    again, _ = ranked(servers)
    assert again.next_step == 2


# -- resuming, fencing, losing --


def test_a_restarted_rank_goes_on_where_the_servers_say() -> None:
    """It gets the next step and the cursor before it; a step that was cut off is applied once."""
    for cut_at_server in range(3):
        servers = services(3)
        client, transport = ranked(servers)
        sums = sums_of(client)
        for number in range(5):
            with client.step() as step:
                step.push({sums: (np.arange(100), ones(100))}, cursor=b"%d" % number)

        def meddle(
            server: int, method: str, request: bytes, send: Callable[[], bytes], cut: int = cut_at_server
        ) -> bytes:
            if server >= cut:
                raise KeyboardInterrupt
            return send()

        transport.meddle = meddle
        with pytest.raises(KeyboardInterrupt), client.step() as step:
            step.push({sums: (np.arange(100), ones(100))}, cursor=b"5")
        again, _ = ranked(servers)
        assert (again.next_step, again.cursor) == (5, b"4")
        sums = sums_of(again)
        for number in range(again.next_step, 8):
            with again.step() as step:
                assert step.number == number
                step.push({sums: (np.arange(100), ones(100))}, cursor=b"%d" % number)
        assert (sums.pull(np.arange(100)) == 8).all(), f"cut at server {cut_at_server}"


def test_two_anonymous_clients_each_apply_all_their_pushes() -> None:
    """Two notebooks, or one script run twice: same step numbers, other clients."""
    servers = services(2)
    one, other = (client_over(InProcessTransport(servers)) for _ in range(2))
    for client in (one, other):
        assert client.next_step == 0
        sums_of(client).push([1], ONE)
        sums_of(client).push([1], ONE)
    assert sums_of(one).pull([1]).tolist() == [[4]]
    assert one.rank is None


def test_the_older_of_two_clients_of_one_rank_is_fenced() -> None:
    """With a typed error, from then on and for every call, without a request to a server."""
    servers = services(2)
    old, old_transport = ranked(servers)
    sums = sums_of(old)
    sums.push([1], ONE)
    new, _ = ranked(servers)
    sums_of(new).push([1], ONE)
    with pytest.raises(Fenced, match="incarnation 1"):
        sums.push([1], ONE)
    sent = len(old_transport.sent)
    for call in (
        lambda: sums.push([1], ONE),
        lambda: sums.pull([1]),
        lambda: old.barrier("end"),
        lambda: old.step().__enter__(),
    ):
        with pytest.raises(Fenced, match="sends nothing any more"):
            call()
    assert len(old_transport.sent) == sent
    assert sums_of(new).pull([1]).tolist() == [[2]]
    old.close()


class Restarting(Meddler):
    """A transport whose servers can be exchanged for new ones."""

    def restart(self, server: int, count: int) -> None:
        fresh = services(count)
        inner = list(self.inner._services)
        inner[server] = fresh[server]
        self.inner = InProcessTransport(inner)


@pytest.mark.parametrize("call", ["pull", "push", "len", "items", "step"])
def test_a_restarted_server_is_server_lost(call: str) -> None:
    """Never a silent zero: server and both epochs are named, and each later call raises it again."""
    transport = Restarting(services(2))
    client = client_over(transport, pace=Time().pace)
    sums = sums_of(client)
    keys = np.arange(100)
    sums.push(keys, ones(100))
    before = client.stats()[1].epoch
    transport.restart(1, 2)
    calls: dict[str, Callable[[], Any]] = {
        "pull": lambda: sums.pull(keys),
        "push": lambda: sums.push(keys, ones(100)),
        "len": lambda: len(sums),
        "items": lambda: list(sums.items()),
        "step": lambda: push_in_a_step(client, keys),
    }
    pattern = (
        rf"server 1 at in-process:1 was restarted: its epoch was {before} and is \d+; without checkpoints"
    )
    with pytest.raises(ServerLost, match=pattern):
        calls[call]()
    for again in calls.values():
        with pytest.raises(ServerLost, match=pattern):
            again()


def push_in_a_step(client: Client, keys: Any) -> None:
    """One block with a push."""
    sums = client.table("sums")
    with client.step() as step:
        step.push({sums: (keys, ones(len(keys)))})
