"""The client over real sockets: connecting, losing servers, forking, many threads."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tablebay.client import environment, http2_transport
from tablebay.client.client import Client, connect
from tablebay.client.control import Control
from tablebay.client.errors import (
    BadRequest,
    BadType,
    DeadlineExceeded,
    Fenced,
    Forked,
    NonFinite,
    ServerLost,
    TablebayError,
    Unavailable,
    Unimplemented,
)
from tablebay.client.inprocess import local, services
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tables import SGD, Zeros
from tablebay.client.transport import DATA_METHODS, MESSAGE_BYTES_MAX
from tablebay.ps_server.grpc_server import GrpcServer
from tablebay.ps_server.service import Service

pytestmark = pytest.mark.usefixtures("each_transport")


class Slow:
    """A service that begins each data call `delay` seconds late."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.delay = 0.0

    @property
    def in_flight(self) -> int:
        return self._service.in_flight

    def handle(self, method: str, request: bytes) -> bytes:
        if method in DATA_METHODS:
            time.sleep(self.delay)
        return self._service.handle(method, request)


class Port:
    """A server on its data port and its control port."""

    def __init__(
        self,
        service: Service,
        data_port: int,
        message_bytes_max: int = 64 * 2**20,
        requests_max: int = 64,
    ) -> None:
        self._slow = Slow(service)
        self._server = GrpcServer(
            self._slow,  # type: ignore[arg-type]
            host="127.0.0.1",
            data_port=data_port,
            message_bytes_max=message_bytes_max,
            requests_max=requests_max,
        )
        self._server.start()

    @property
    def delay(self) -> float:
        return self._slow.delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._slow.delay = seconds

    def stop(self) -> None:
        self._server.stop(0.0)


def free_ports(count: int) -> list[int]:
    """Data ports whose control ports are free as well."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as data:
            data.bind(("127.0.0.1", 0))
            port = data.getsockname()[1]
        with socket.socket() as control:
            try:
                control.bind(("127.0.0.1", environment.control_port(port)))
            except (OSError, OverflowError):
                continue
        if all(abs(port - other) > 2 for other in ports):
            ports.append(port)
    return ports


class Cluster:
    """Servers on free ports of this machine."""

    def __init__(self, count: int, requests_max: int = 64, **options: Any) -> None:
        self.options = options
        self.data_ports = free_ports(count)
        self.ports = [
            Port(service, port, requests_max=requests_max, **options)
            for service, port in zip(services(count, **options), self.data_ports, strict=True)
        ]

    @property
    def address(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.data_ports)

    def restart(self, server: int) -> None:
        """Exchange a server for one without rows."""
        self.ports[server].stop()
        fresh = services(len(self.ports), **self.options)[server]
        self.ports[server] = Port(fresh, self.data_ports[server], **self.options)

    def stop(self) -> None:
        for port in self.ports:
            port.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters, and stops them in the end."""
    clusters: list[Cluster] = []

    def start(count: int = 2, **options: Any) -> Cluster:
        clusters.append(Cluster(count, **options))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.stop()


def sums_of(client: Client) -> Any:
    """An int64 table, on which each push counts exactly."""
    return client.table("sums", dim=1, dtype="int64")


ONE = np.ones((1, 1), np.int64)


def test_rows_are_those_of_servers_in_this_process(start: Callable[..., Cluster]) -> None:
    """Bit for bit, through pull, push, step and prefetch."""
    keys = np.random.default_rng(5).integers(0, 2**63, 5000)
    gradients = np.random.default_rng(6).normal(size=(5000, 8)).astype(np.float32)
    rows: list[Any] = []
    for client in (connect(start(2).address), local(servers=1)):
        with client:
            user = client.table("user", dim=8)
            user.push(keys, gradients)
            future = client.prefetch({user: keys})
            with client.step() as step:
                (pulled,) = step.pull({user: keys})
                step.push({user: (keys, pulled)}, cursor=b"here")
            rows += [pulled, future.result()[0], user.pull(keys)]
            assert (future.result()[0] == user.pull(keys)).all()
            assert len(user) == len(set(keys.tolist()))
    assert all((one == other).all() for one, other in zip(rows[:3], rows[3:], strict=True))


def test_a_server_error_is_the_same_class_here(start: Callable[..., Cluster]) -> None:
    """With the server's words, and where they come from."""
    cluster = start(1)
    with connect(cluster.address) as client:
        user = client.table("user", dim=1, optimizer=SGD(1.0), initializer=Zeros())
        with pytest.raises(NonFinite, match=rf"table 'user'.*server 0 at 127.0.0.1:{cluster.data_ports[0]}"):
            user.push([1, 1], np.full((2, 1), 3e38, np.float32))
        session = user.session
        with pytest.raises(BadRequest):
            session.transport.call(0, "Push", b"\xff\xff\xff", 5.0).result()
        with pytest.raises(Unimplemented, match="Export"):
            session.transport.call(0, "Export", b"", 5.0).result()
        with pytest.raises(Unimplemented, match="Nonsense"):
            session.transport.call(0, "Nonsense", b"", 5.0).result()


def test_a_wrong_address_is_unavailable_within_the_timeout() -> None:
    """Naming the address; not a moment later, and not for ever."""
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port + 2}"):
        connect(f"127.0.0.1:{port}", timeout=1.0)
    assert 0.5 < time.monotonic() - began < 5.0


def test_an_unknown_host_is_unavailable_within_the_timeout() -> None:
    """A name that DNS does not know is named."""
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no-such-host.invalid:7072"):
        connect("no-such-host.invalid:7070", timeout=1.0)
    assert time.monotonic() - began < 10.0


def test_a_server_that_never_answers_is_deadline_exceeded() -> None:
    """A port that takes connections and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        data_port = silent.getsockname()[1] - 2
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"127.0.0.1:{data_port + 2}"):
            connect(f"127.0.0.1:{data_port}", timeout=0.5)
        assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("", BadRequest, "wanted host:port"),
        ("localhost", BadRequest, "wanted host:port"),
        ("localhost:0", BadRequest, "wanted host:port"),
        ("localhost:65535", BadRequest, "wanted host:port with a data port of 1 to 65533"),
        ([], BadRequest, "found no address"),
    ],
)
def test_what_is_no_address_is_refused_at_once(address: Any, error: type[Exception], message: str) -> None:
    """By the text that was given."""
    with pytest.raises(error, match=message):
        connect(address)


def test_wrong_arguments_of_connect_are_refused_at_once() -> None:
    """Types and ranges."""
    with pytest.raises(BadType, match="timeout: found str"):
        connect("localhost:7070", timeout="30")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="timeout is 0"):
        connect("localhost:7070", timeout=0)
    with pytest.raises(BadType, match="rank: found float"):
        connect("localhost:7070", rank=1.0)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="rank is -1"):
        connect("localhost:7070", rank=-1)
    with pytest.raises(BadRequest, match="workers is 0"):
        connect("localhost:7070", workers=0)


def test_the_addresses_must_be_those_of_one_job_in_order(start: Callable[..., Cluster]) -> None:
    """Too few, or in another order, is said with what the server answered."""
    cluster = start(2)
    first, second = cluster.address.split(",")
    with pytest.raises(BadRequest, match="is one of 2 servers, and 1 addresses were given"):
        connect(first)
    with pytest.raises(BadRequest, match="its index is 1"):
        connect([second, first])


def test_without_an_address_the_environment_is_read(
    start: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers, rank and number of workers; without them the error says what to do."""
    for name in list(os.environ):
        if name.startswith("TABLEBAY_"):
            monkeypatch.delenv(name)
    with pytest.raises(BadRequest, match="TABLEBAY_SERVERS is not set"):
        connect()
    monkeypatch.setenv("TABLEBAY_SERVERS", start(2).address)
    monkeypatch.setenv("TABLEBAY_RANK", "1")
    monkeypatch.setenv("TABLEBAY_WORKERS", "3")
    with connect() as client:
        assert (client.rank, client.workers) == (1, 3)
        with pytest.raises(DeadlineExceeded, match="barrier 'end': 1 of 3 workers have come within 0.1 s"):
            client.barrier("end", timeout=0.1)


def test_a_client_waits_for_servers_that_start_later(start: Callable[..., Cluster]) -> None:
    """Workers of a job may be there first."""
    ports = free_ports(1)
    found: list[Any] = []

    def work() -> None:
        with connect(f"127.0.0.1:{ports[0]}", timeout=30.0) as client:
            sums_of(client).push([1], ONE)
            found.append(sums_of(client).pull([1]).tolist())

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.5)
    port = Port(services(1)[0], ports[0])
    worker.join(30.0)
    port.stop()
    assert found == [[[1]]]


def test_a_restarted_server_is_server_lost(start: Callable[..., Cluster]) -> None:
    """Never a silent zero: address and both epochs are named."""
    cluster = start(2)
    client = connect(cluster.address, timeout=20.0)
    sums = sums_of(client)
    keys = np.arange(100)
    sums.push(keys, np.ones((100, 1), np.int64))
    epoch = client.stats()[1].epoch
    cluster.restart(1)
    with pytest.raises(
        ServerLost,
        match=rf"server 1 at 127.0.0.1:{cluster.data_ports[1]} was restarted: its epoch was {epoch}",
    ):
        sums.push(keys, np.ones((100, 1), np.int64))
    with pytest.raises(ServerLost):
        sums.pull(keys)


def test_pushes_go_on_after_the_connections_are_made_anew(start: Callable[..., Cluster]) -> None:
    """rebuild() in the middle of pushes: what was under way is sent again and applied once."""
    cluster = start(2)
    client = connect(cluster.address)
    sums = sums_of(client)
    keys = np.arange(200)
    for port in cluster.ports:
        port.delay = 0.01
    running = threading.Event()
    running.set()

    def disturb() -> None:
        while running.is_set():
            sums.session.transport.rebuild()
            time.sleep(0.05)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    for _ in range(50):
        sums.push(keys, np.ones((200, 1), np.int64))
    running.clear()
    disturber.join()
    assert (sums.pull(keys) == 50).all()
    assert client.table("sums").session.retries > 0


def test_a_slow_server_is_deadline_exceeded_and_the_push_is_applied_once(
    start: Callable[..., Cluster],
) -> None:
    """The server was about to apply it: the next push sends it again, and it counts once."""
    cluster = start(1)
    client = connect(cluster.address, timeout=0.5)
    sums = sums_of(client)
    cluster.ports[0].delay = 1.0
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="step 0 may or may not be applied"):
        sums.push([1], ONE)
    assert time.monotonic() - began < 3.0
    cluster.ports[0].delay = 0.0
    sums.push([1], ONE)
    time.sleep(1.0)
    assert sums.pull([1]).tolist() == [[2]]


def test_eight_threads_share_a_client(start: Callable[..., Cluster]) -> None:
    """Sums are exact, prefetches and pulls between."""
    client = connect(start(2).address)
    sums = sums_of(client)
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            draw = np.random.default_rng(seed)
            for _ in range(20):
                keys = draw.integers(0, 40, 100)
                future = client.prefetch({sums: keys})
                sums.push(keys, np.ones((100, 1), np.int64))
                assert (future.result()[0] >= 1).all()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wanted = np.zeros(40, np.int64)
    for seed in range(8):
        draw = np.random.default_rng(seed)
        for _ in range(20):
            np.add.at(wanted, draw.integers(0, 40, 100), 1)
    assert (sums.pull(np.arange(40)).ravel() == wanted).all()


def test_a_server_with_too_many_calls_is_asked_again(start: Callable[..., Cluster]) -> None:
    """What gRPC refuses before the server sees it is retried as Unavailable is; every sum is exact."""
    cluster = start(1, requests_max=2)
    cluster.ports[0].delay = 0.01
    client = connect(cluster.address)
    sums = sums_of(client)

    def run() -> None:
        for _ in range(5):
            sums.push([1], ONE)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums.pull([1]).tolist() == [[40]]
    assert sums.session.retries > 0


def test_two_clients_of_one_rank_fence_the_older(start: Callable[..., Cluster]) -> None:
    """Over sockets too, with the class that the server named."""
    cluster = start(2)
    old = connect(cluster.address, rank=0)
    sums_of(old).push([1], ONE)
    new = connect(cluster.address, rank=0)
    assert new.next_step == 1
    with pytest.raises(Fenced):
        sums_of(old).push(np.arange(50), np.ones((50, 1), np.int64))
    sums_of(new).push([1], ONE)
    assert sums_of(new).pull([1]).tolist() == [[2]]


def test_a_message_limit_of_the_servers_is_kept(start: Callable[..., Cluster]) -> None:
    """Larger calls are split, and pieces of 5 MB pass where gRPC's own limit is 4."""
    keys = np.arange(100_000)
    for limit in (64 * 2**20, 200_000):
        with connect(start(1, message_bytes_max=limit).address) as client:
            sums = client.table("sums", dim=8, dtype="int64")
            sums.push(keys, np.ones((100_000, 8), np.int64))
            assert (sums.pull(keys) == 1).all(), f"limit {limit}"
            assert sum(found.size for found, _ in sums.items()) == 100_000


def test_control_calls_need_no_client(start: Callable[..., Cluster]) -> None:
    """By addresses alone: tables, counters, the shard map; one answer a server."""
    cluster = start(2)
    with connect(cluster.address) as client, Control(cluster.address.split(",")) as control:
        sums_of(client).push(np.arange(10), np.ones((10, 1), np.int64))
        client.report(examples=10)
        assert [[table.spec.name for table in tables] for tables in control.describe()] == [
            ["sums"],
            ["sums"],
        ]
        assert sum(table.rows for stats in control.stats() for table in stats.tables) == 10
        assert control.shard_map().servers == 2
        assert dict(control.progress()[0].values) == {"examples": 10.0}
    with Control(f"127.0.0.1:{free_ports(1)[0]}", timeout=0.3) as control, pytest.raises(Unavailable):
        control.stats()


def test_a_forked_child_is_told_so_and_the_parent_goes_on(start: Callable[..., Cluster]) -> None:
    """Every call in the child raises Forked at once, naming both processes; so does a new connection."""
    client = connect(start(2).address)
    sums = sums_of(client)
    sums.push([1], ONE)
    step = client.step()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        answer = "nothing was raised"
        try:
            calls: Sequence[Callable[[], Any]] = (
                lambda: sums.pull([1]),
                lambda: sums.push([1], ONE),
                lambda: len(sums),
                lambda: client.report(loss=1.0),
                lambda: client.prefetch({sums: [1]}),
                step.__enter__,
            )
            messages = []
            for call in calls:
                try:
                    call()
                except Forked as error:
                    messages.append(str(error))
            client.close()
            with pytest.raises(Forked, match="was forked from it, where gRPC cannot be used"):
                connect("127.0.0.1:7070")
            wanted = f"made in process {os.getppid()} and is used in process {os.getpid()}"
            right = len(messages) == len(calls) and all(wanted in message for message in messages)
            answer = "right" if right else repr(messages)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = repr(error)
        finally:
            os.write(writable, answer.encode())
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        assert pipe.read() == "right"
    os.waitpid(child, 0)
    sums.push([1], ONE)
    assert sums.pull([1]).tolist() == [[2]]
    client.close()


def test_ctrl_c_ends_a_push_that_waits(start: Callable[..., Cluster]) -> None:
    """At once, not at the deadline; the step is sent again by the next push."""
    cluster = start(1)
    client = connect(cluster.address)
    sums = sums_of(client)
    cluster.ports[0].delay = 3.0
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sums.push([1], ONE)
    assert time.monotonic() - began < 2.5
    cluster.ports[0].delay = 0.0
    sums.push([1], ONE)
    assert sums.pull([1]).tolist() == [[2]]


def test_a_transport_closes_once_and_for_all(start: Callable[..., Cluster]) -> None:
    """Later calls are Closed, and rebuild() makes nothing."""
    kind = http2_transport.chosen(None, secure=False)
    transport = http2_transport.make(start(1).address.split(","), kind, MESSAGE_BYTES_MAX)
    hello = tablebay_pb2.HelloRequest(protocol_major=1).SerializeToString()
    assert transport.call(0, "Hello", hello, 5.0).result()
    transport.close()
    transport.rebuild()
    transport.close()
    for method in ("Hello", "Pull"):
        with pytest.raises(TablebayError, match="closed"):
            transport.call(0, method, hello, 5.0).result()
