"""Who may speak to a server: ranks, incarnations, anonymous clients, with a clock set by hand."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from tablebay.client.errors import (
    BadRequest,
    Fenced,
    ResourceExhausted,
    ServerLost,
    Unavailable,
    VersionMismatch,
)
from tablebay.client.proto import tablebay_pb2
from tablebay.native import _core
from tablebay.ps_server.members import IDLE_S, Members, Welcome, ranked_high


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def members(index: int = 0, clock: Clock | None = None, store: Any = None, **options: Any) -> Members:
    """The members of one server of job `flights`, generation 2, over a real store."""
    return Members(
        _core.Store() if store is None else store,
        job="flights",
        generation=2,
        index=index,
        clock=clock or Clock(),
        randomness=random.Random(7),
        **options,
    )


def hello(**fields: Any) -> tablebay_pb2.HelloRequest:
    """Hello of a client of this version."""
    fields = {"protocol_major": 1, "nonce": 1, **fields}
    return tablebay_pb2.HelloRequest(**fields)


def onward(first: Welcome, **fields: Any) -> tablebay_pb2.HelloRequest:
    """Hello to another server, with what server 0 answered."""
    high, low = first.member.client
    return hello(client_high=high, client_low=low, incarnation=first.member.incarnation, **fields)


# -- protocol, job, generation --


@pytest.mark.parametrize("major", [0, 2, 2**32 - 1])
def test_another_major_version_is_refused_with_both(major: int) -> None:
    """The text names the client's and the server's protocol and release."""
    with pytest.raises(
        VersionMismatch, match=rf"protocol {major}\.7 \(version 9\.9\), server 0 1\.0 \(version 0"
    ):
        members().hello(hello(protocol_major=major, protocol_minor=7, client_version="9.9"))


def test_another_minor_version_is_accepted() -> None:
    """It may only add what the other side can do without."""
    assert members().hello(hello(protocol_minor=99)).next_step == 0


def test_a_client_of_another_job_is_refused_with_both_names() -> None:
    """No name means whatever job the server has."""
    with pytest.raises(BadRequest, match="belongs to job 'ads', server 0 to job 'flights'"):
        members().hello(hello(job="ads", generation=2))
    assert members().hello(hello(job="flights", generation=2))
    assert members().hello(hello())


def test_a_client_of_an_older_generation_is_fenced_and_of_a_newer_one_waits() -> None:
    """The older world is gone; a server of it is about to go, so the newer client tries again."""
    with pytest.raises(Fenced, match="generation 1 of job 'flights', server 0 to generation 2"):
        members().hello(hello(job="flights", generation=1))
    with pytest.raises(Unavailable, match="generation 3 .* about to be replaced"):
        members().hello(hello(job="flights", generation=3))


# -- ranks --


def test_a_rank_has_the_documented_id() -> None:
    """The first 8 bytes of BLAKE2b of the job's name, little-endian, and the rank: the same on every server.

    Of every generation, since a job that is made anew goes on with the steps of its checkpoint.
    """
    wanted = int.from_bytes(hashlib.blake2b(b"flights").digest()[:8], "little")
    assert ranked_high("flights") == wanted
    assert members().hello(hello(rank=5)).member.client == (wanted, 5)


def test_each_hello_of_a_rank_raises_its_incarnation_and_fences_the_one_before() -> None:
    """The older process may call nothing any more; the newer one may."""
    group = members()
    first = group.hello(hello(rank=0, nonce=1)).member
    second = group.hello(hello(rank=0, nonce=2)).member
    assert second.incarnation == first.incarnation + 1
    with pytest.raises(
        Fenced, match=f"rank 0: incarnation {first.incarnation} .* {second.incarnation} is known"
    ):
        group.check(first.client, first.incarnation)
    assert group.check(second.client, second.incarnation).rank == 0
    assert len(group) == 1


def test_hello_asked_again_is_answered_the_same() -> None:
    """A lost answer must not fence the client that asks for it again: the nonce shows that it is the same Hello."""
    group = members()
    first = group.hello(hello(rank=3, nonce=77)).member
    again = group.hello(hello(rank=3, nonce=77)).member
    assert (again.client, again.incarnation) == (first.client, first.incarnation)
    one = group.hello(hello(nonce=78)).member
    other = group.hello(hello(nonce=78)).member
    assert (one.client, len(group)) == (other.client, 2)


def test_without_a_nonce_each_hello_is_a_new_one() -> None:
    """A client that draws none cannot be told apart from a second process."""
    group = members()
    first = group.hello(hello(rank=3, nonce=0)).member
    assert group.hello(hello(rank=3, nonce=0)).member.incarnation == first.incarnation + 1
    assert group.hello(hello(nonce=0)).member.client != group.hello(hello(nonce=0)).member.client


def test_another_server_accepts_the_same_hello_and_a_newer_one_only() -> None:
    """Equal number and nonce: the same Hello. A larger number: a newer one. Anything else is an older process."""
    zero, one = members(0), members(1)
    first = zero.hello(hello(rank=0, nonce=1))
    one.hello(onward(first, rank=0, nonce=1))
    assert one.hello(onward(first, rank=0, nonce=1)).member.incarnation == first.member.incarnation
    with pytest.raises(
        Fenced, match=r"rank 0: incarnation 1 says Hello, and incarnation 1 is known to server 1"
    ):
        one.hello(onward(first, rank=0, nonce=2))
    second = zero.hello(hello(rank=0, nonce=2))
    one.hello(onward(second, rank=0, nonce=2))
    with pytest.raises(Fenced):
        one.hello(onward(first, rank=0, nonce=1))
    assert one.check(second.member.client, second.member.incarnation)


def test_a_server_that_missed_incarnations_takes_the_number_it_hears() -> None:
    """Say, one that was restarted."""
    zero, one = members(0), members(1)
    for nonce in range(1, 5):
        last = zero.hello(hello(rank=0, nonce=nonce))
    assert one.hello(onward(last, rank=0, nonce=4)).member.incarnation == 4


def test_a_restarted_server_0_gives_numbers_above_the_old_ones() -> None:
    """Or the other servers would fence the newer process for as long as they live."""
    old, one = members(0, first_incarnation=1000), members(1)
    for nonce in range(1, 20):
        one.hello(onward(old.hello(hello(rank=0, nonce=nonce)), rank=0, nonce=nonce))
    new = members(0, first_incarnation=1030)
    assert one.hello(onward(new.hello(hello(rank=0, nonce=99)), rank=0, nonce=99)).member.incarnation == 1030


def test_a_rank_with_another_ranks_id_is_refused() -> None:
    """The id is a matter of job, generation and rank, not of what a client says."""
    zero, one = members(0), members(1)
    first = zero.hello(hello(rank=0))
    with pytest.raises(BadRequest, match="rank 1 says that its client id is"):
        one.hello(onward(first, rank=1))
    with pytest.raises(BadRequest, match="is no anonymous client's id"):
        one.hello(onward(first))


def test_server_0_decides_and_the_others_are_asked_after_it() -> None:
    """An identity brought to server 0, or none brought to another, says that the order is wrong."""
    with pytest.raises(BadRequest, match="wanted 0 in these fields"):
        members(0).hello(hello(incarnation=1))
    with pytest.raises(BadRequest, match="its index is 1; .* which is asked first"):
        members(1).hello(hello(rank=0))


def test_a_rank_goes_on_where_it_stopped() -> None:
    """Hello answers the lowest step not applied and its cursor, also to a newer incarnation."""
    store = _core.Store()
    group = members(store=store)
    first = group.hello(hello(rank=0, nonce=1))
    assert (first.next_step, first.cursor) == (0, b"")
    high, low = first.member.client
    for step in range(3):
        sender = tablebay_pb2.Sender(client_high=high, client_low=low, incarnation=first.member.incarnation)
        request = tablebay_pb2.StepRequest(
            sender=sender, step=step, oldest_step=step, cursor=b"after %d" % step
        )
        store.handle_step(request.SerializeToString())
    second = group.hello(hello(rank=0, nonce=2))
    assert (second.next_step, second.cursor) == (3, b"after 2")


# -- anonymous clients --


def test_anonymous_clients_are_told_apart() -> None:
    """128 random bits each, never those of a rank, and incarnation 1."""
    group = members()
    clients = {group.hello(hello(nonce=nonce)).member.client for nonce in range(1, 101)}
    assert len(clients) == 100
    assert all(high != ranked_high("flights") for high, _ in clients)
    assert all(group.check(client, 1).rank is None for client in clients)


def test_a_client_that_never_said_hello_is_unknown() -> None:
    """As is one that knows a newer incarnation than the server: the server was restarted since."""
    group = members()
    with pytest.raises(ServerLost, match="server 0 does not know client 0{16}0{15}1, incarnation 1"):
        group.check((0, 1), 1)
    first = group.hello(hello(rank=0)).member
    with pytest.raises(ServerLost):
        group.check(first.client, first.incarnation + 1)


@pytest.mark.parametrize("index", [0, 1])
def test_the_anonymous_client_silent_longest_makes_room(index: int) -> None:
    """Only past the limit, and only once it has been silent for more than an hour; its steps go too."""
    clock, gone = Clock(), list[Any]()
    store = _core.Store()
    group = members(index, clock, store, clients_max=3, forgotten=gone.append)

    def greet(nonce: int) -> Any:
        fields = {} if index == 0 else {"client_high": 1000 + nonce, "client_low": nonce, "incarnation": 1}
        return group.hello(hello(nonce=nonce, **fields)).member.client

    clients = []
    for nonce in (1, 2, 3):
        clients.append(greet(nonce))
        clock.now += 1.0
    with pytest.raises(ResourceExhausted, match=r"knows 3 anonymous clients, .* silent for 3600 s"):
        greet(4)
    clock.now += IDLE_S - 10.0
    group.hear(clients[0])
    clock.now += 10.0
    fourth = greet(4)
    assert gone == [clients[1]]
    with pytest.raises(ServerLost):
        group.check(clients[1], 1)
    for known in (clients[0], clients[2], fourth):
        assert group.check(known, 1)
    before = store.counters()["bytes"]
    clock.now += 2 * IDLE_S
    greet(5)
    assert store.counters()["bytes"] == before


def test_ranks_are_not_forgotten() -> None:
    """However long they are silent, and however many anonymous clients come."""
    clock = Clock()
    group = members(0, clock, clients_max=1)
    ranked = group.hello(hello(rank=0, nonce=1)).member
    for nonce in range(2, 6):
        clock.now += 2 * IDLE_S
        group.hello(hello(nonce=nonce))
    assert group.check(ranked.client, ranked.incarnation)
    assert len(group) == 2


def test_a_refused_hello_changes_nothing() -> None:
    """The client known before is known after, with the same number."""
    group = members(1)
    zero = members(0)
    first, second = (zero.hello(hello(rank=0, nonce=nonce)) for nonce in (1, 2))
    group.hello(onward(second, rank=0, nonce=2))
    with pytest.raises(Fenced):
        group.hello(onward(first, rank=0, nonce=1))
    with pytest.raises(VersionMismatch):
        group.hello(hello(rank=0, nonce=3, protocol_major=2, incarnation=99))
    assert group.check(second.member.client, second.member.incarnation)


def test_many_hellos_at_random_fence_all_but_the_newest() -> None:
    """Three servers, one rank, processes whose Hellos are lost, repeated and interleaved: at most the newest lives."""
    for seed in range(200):
        chance = random.Random(seed)
        servers = [members(index) for index in range(3)]
        alive: list[tuple[int, Welcome]] = []
        for nonce in range(1, 6):
            first = servers[0].hello(hello(rank=0, nonce=nonce))
            if chance.random() < 0.3:
                first = servers[0].hello(hello(rank=0, nonce=nonce))
            alive.append((nonce, first))
            chance.shuffle(alive)
            for known_nonce, welcome in alive:
                for server in servers[1:]:
                    if chance.random() < 0.5:
                        try:
                            server.hello(onward(welcome, rank=0, nonce=known_nonce))
                        except Fenced:
                            continue
        newest = max(alive, key=lambda one: one[1].member.incarnation)
        for server in servers[1:]:
            server.hello(onward(newest[1], rank=0, nonce=newest[0]))
        for nonce, welcome in alive:
            member = welcome.member
            for server in servers:
                if nonce == newest[0]:
                    assert server.check(member.client, member.incarnation), f"seed {seed}"
                else:
                    with pytest.raises(Fenced):
                        server.check(member.client, member.incarnation)
                        pytest.fail(f"seed {seed}: an older process was not fenced")
