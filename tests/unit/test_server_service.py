"""The service without gRPC: bytes in, bytes out."""

from __future__ import annotations

import contextlib
import random
import struct
from typing import Any, TypeVar

import numpy as np
import pytest
from google.protobuf.message import Message

from tablebay.client.environment import VERSION
from tablebay.client.errors import (
    BadRequest,
    Fenced,
    NotRegistered,
    ResourceExhausted,
    ServerLost,
    TablebayError,
    TableMismatch,
    Unavailable,
    Unimplemented,
    VersionMismatch,
)
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tables import SGD, Adagrad, Add, TableSpec, Zeros
from tablebay.native import _core
from tablebay.ps_server.service import DATA_METHODS, RESERVED_METHODS, Service

_Answer = TypeVar("_Answer", bound=Message)
USER = TableSpec("user", 2, optimizer=SGD(1.0), initializer=Zeros())


class Peer:
    """One client that speaks to a service in messages."""

    def __init__(self, service: Service, **hello: Any) -> None:
        self.service = service
        self.step = 0
        request = tablebay_pb2.HelloRequest(protocol_major=1, nonce=random.getrandbits(64), **hello)
        self.welcome = self.ask("Hello", request, tablebay_pb2.HelloResponse)

    @property
    def who(self) -> dict[str, int]:
        answer = self.welcome
        return {
            "client_high": answer.client_high,
            "client_low": answer.client_low,
            "incarnation": answer.incarnation,
        }

    def ask(self, method: str, request: Message, answer: type[_Answer]) -> _Answer:
        result = answer()
        result.MergeFromString(self.service.handle(method, request.SerializeToString()))
        return result

    def push(self, spec: TableSpec, keys: list[int], rows: Any) -> tablebay_pb2.PushResponse:
        part = tablebay_pb2.Part(
            table_id=_core.table_id(spec.name),
            dim=spec.dim,
            keys=struct.pack(f"<{len(keys)}Q", *keys),
            rows=np.asarray(rows, np.float32 if spec.dtype == "float32" else np.int64).tobytes(),
        )
        sender = tablebay_pb2.Sender(**self.who)
        request = tablebay_pb2.PushRequest(sender=sender, step=self.step, oldest_step=self.step, part=part)
        self.step += 1
        return self.ask("Push", request, tablebay_pb2.PushResponse)

    def pull(self, spec: TableSpec, keys: list[int]) -> Any:
        part = tablebay_pb2.Part(
            table_id=_core.table_id(spec.name), dim=spec.dim, keys=struct.pack(f"<{len(keys)}Q", *keys)
        )
        answer = self.ask("Pull", tablebay_pb2.PullRequest(part=part), tablebay_pb2.PullResponse)
        return np.frombuffer(answer.rows, np.float32).reshape(len(keys), spec.dim)

    def create(self, spec: TableSpec) -> tablebay_pb2.Table:
        return self.ask(
            "CreateTable", tablebay_pb2.CreateTableRequest(spec=spec.message()), tablebay_pb2.Table
        )


def test_hello_says_all_that_a_client_needs() -> None:
    """Job, place, epoch, shard map, limits, versions."""
    service = Service(index=0, servers=3, job="flights", epoch=77, message_bytes_max=1 << 20)
    answer = Peer(service).welcome
    assert (answer.job, answer.server_index, answer.server_count, answer.epoch) == ("flights", 0, 3, 77)
    assert (answer.protocol_major, answer.protocol_minor, answer.server_version) == (1, 0, VERSION)
    assert answer.message_bytes_max == 1 << 20
    owners = np.frombuffer(answer.shard_map.owners, "<u2")
    assert (answer.shard_map.version, answer.shard_map.servers, owners.shape) == (1, 3, (1024,))
    assert sorted(set(owners.tolist())) == [0, 1, 2]
    assert (
        Peer(service).ask("GetShardMap", tablebay_pb2.GetShardMapRequest(), tablebay_pb2.ShardMap)
        == answer.shard_map
    )


def test_each_life_of_a_server_has_an_epoch_of_its_own() -> None:
    """A later one has a larger one."""
    assert Service().epoch < Service().epoch


def test_a_table_made_twice_is_the_same_table() -> None:
    """Rows stay; the answer describes it."""
    peer = Peer(Service())
    first = peer.create(USER)
    peer.push(USER, [5], [[1.0, 2.0]])
    again = peer.create(USER)
    assert (first.table_id, first.rows, again.rows) == (_core.table_id("user"), 0, 1)
    assert TableSpec.from_message(again.spec) == USER
    assert (again.row_bytes, again.state_bytes, list(again.state_names)) == (8, 0, [])
    assert peer.pull(USER, [5]).tolist() == [[-1.0, -2.0]]


def test_a_table_that_differs_is_refused_field_by_field() -> None:
    """Each difference with the value found and the value wanted, and the table stays as it was."""
    peer = Peer(Service())
    peer.create(USER)
    other = TableSpec("user", 4, optimizer=Adagrad(0.5), initializer=Zeros(), seed=3, non_finite="Zero")
    with pytest.raises(TableMismatch, match="table 'user' exists and differs") as raised:
        peer.create(other)
    for said in (
        "dim: found 2, wanted 4",
        "optimizer: found SGD",
        "seed: found 0, wanted 3",
        "non_finite: found 'Reject'",
    ):
        assert said in str(raised.value)
    with pytest.raises(TableMismatch, match="optimizer.learning_rate: found 1.0, wanted 2.0"):
        peer.create(TableSpec("user", 2, optimizer=SGD(2.0), initializer=Zeros()))
    assert peer.create(USER).rows == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "name"),
        ({"name": "User", "dim": 1}, "name is 'User'"),
        ({"name": "u", "dim": 0}, "dim is 0"),
        ({"name": "u", "dim": 2**32 - 1}, "dim is 4294967295"),
        ({"name": "u", "dim": 1, "dtype": "float64"}, "dtype is 'float64'"),
        ({"name": "u", "dim": 1, "optimizer": "adamm"}, "optimizer is 'adamm', wanted one of SGD"),
        ({"name": "u", "dim": 1, "optimizer": "SGD", "optimizer_parameters": {"rate": 1.0}}, "rate"),
        (
            {
                "name": "u",
                "dim": 1,
                "optimizer": "SGD",
                "optimizer_parameters": {"learning_rate": float("nan")},
            },
            "learning_rate",
        ),
        ({"name": "u", "dim": 1, "non_finite": "Maybe"}, "non_finite is 'Maybe'"),
        ({"name": "u", "dim": 1, "dtype": "int64", "optimizer": "SGD"}, "an int64 table wants Add"),
    ],
)
def test_a_senseless_table_is_refused(fields: dict[str, Any], said: str) -> None:
    """Naming the field; nothing is made."""
    peer = Peer(Service())
    request = tablebay_pb2.CreateTableRequest(spec=tablebay_pb2.TableSpec(**fields))
    with pytest.raises(BadRequest, match=said):
        peer.ask("CreateTable", request, tablebay_pb2.Table)
    assert not peer.ask(
        "DescribeTables", tablebay_pb2.DescribeTablesRequest(), tablebay_pb2.DescribeTablesResponse
    ).tables


def update(peer: Peer, name: str, **parameters: float) -> tablebay_pb2.Table:
    """Change a table's optimizer."""
    request = tablebay_pb2.UpdateTableRequest(name=name, optimizer_parameters=parameters)
    return peer.ask("UpdateTable", request, tablebay_pb2.Table)


def test_the_learning_rate_may_change_live() -> None:
    """The next push feels it; whoever declares the table as before still gets it."""
    peer = Peer(Service())
    peer.create(USER)
    peer.push(USER, [1], [[1.0, 1.0]])
    update(peer, "user", learning_rate=0.5)
    peer.push(USER, [1], [[1.0, 1.0]])
    assert peer.pull(USER, [1]).tolist() == [[-1.5, -1.5]]
    assert peer.create(USER).rows == 1


def test_the_weight_decay_may_change_live_and_with_the_rate_or_not_at_all() -> None:
    """A request of which one value cannot be changes neither."""
    peer = Peer(Service())
    peer.create(USER)
    peer.push(USER, [1], [[1.0, 1.0]])
    with pytest.raises(BadRequest, match="weight_decay"):
        update(peer, "user", learning_rate=0.5, weight_decay=-1.0)
    update(peer, "user", weight_decay=0.5)
    peer.push(USER, [1], [[1.0, 1.0]])
    assert peer.pull(USER, [1]).tolist() == [[-1.5, -1.5]], "1 + (1 - 0.5), at the rate of 1"
    assert peer.create(USER).rows == 1


def test_nothing_else_of_a_table_may_change_live() -> None:
    """Each field that may not is named."""
    service = Service()
    peer = Peer(service)
    peer.create(TableSpec("adagrad", 2, optimizer=Adagrad(0.1)))
    peer.create(TableSpec("sums", 1, "int64", Add(), Zeros()))
    with pytest.raises(
        BadRequest, match="adagrad': found dim, epsilon to change; only learning_rate and weight_decay"
    ):
        update(peer, "adagrad", learning_rate=0.1, epsilon=1.0, dim=3)
    with pytest.raises(BadRequest, match="found nothing to change"):
        update(peer, "adagrad")
    with pytest.raises(BadRequest, match="optimizer Add has no learning_rate"):
        update(peer, "sums", learning_rate=0.1)
    with pytest.raises(BadRequest, match="learning_rate is -1"):
        update(peer, "adagrad", learning_rate=-1.0)
    with pytest.raises(
        NotRegistered, match="table 'nope' does not exist on server 0: its tables are adagrad, sums"
    ):
        update(peer, "nope", learning_rate=0.1)


def test_an_unknown_table_is_named_with_those_that_exist() -> None:
    """In control calls by name, in data calls by number."""
    peer = Peer(Service())
    with pytest.raises(NotRegistered, match="it has no tables"):
        peer.pull(USER, [1])
    peer.create(USER)
    peer.create(TableSpec("item", 1))
    with pytest.raises(NotRegistered, match=r"no table has the id .*: its tables are item, user"):
        peer.pull(TableSpec("other", 2), [1])
    request = tablebay_pb2.DescribeTablesRequest(names=["item", "nope"])
    with pytest.raises(
        NotRegistered, match="table 'nope' does not exist on server 0: its tables are item, user"
    ):
        peer.ask("DescribeTables", request, tablebay_pb2.DescribeTablesResponse)
    with pytest.raises(NotRegistered, match="'x{80}' does not exist"):
        peer.ask("Scan", tablebay_pb2.ScanRequest(table="x" * 5000, rows_max=1), tablebay_pb2.ScanResponse)


def test_a_scan_gives_every_row_once() -> None:
    """A part at a time, to the end."""
    peer = Peer(Service())
    peer.create(USER)
    keys = list(range(1000))
    peer.push(USER, keys, -np.arange(2000, dtype=np.float32).reshape(1000, 2))
    found: dict[int, tuple[float, ...]] = {}
    position = 0
    while True:
        request = tablebay_pb2.ScanRequest(table="user", position=position, rows_max=37)
        answer = peer.ask("Scan", request, tablebay_pb2.ScanResponse)
        rows = np.frombuffer(answer.rows, np.float32).reshape(-1, 2)
        found.update(
            zip(np.frombuffer(answer.keys, np.uint64).tolist(), map(tuple, rows.tolist()), strict=True)
        )
        assert len(rows) <= 37
        position = answer.position
        if position == 0:
            break
    assert found == {key: (2.0 * key, 2.0 * key + 1) for key in keys}


def test_tables_declared_for_the_job_are_there_at_the_start() -> None:
    """With the specs that the job has; a clash among them is an error at the start."""
    peer = Peer(Service(tables=[USER, TableSpec("item", 3)]))
    found = peer.ask(
        "DescribeTables", tablebay_pb2.DescribeTablesRequest(), tablebay_pb2.DescribeTablesResponse
    )
    assert [TableSpec.from_message(table.spec) for table in found.tables] == [USER, TableSpec("item", 3)]
    with pytest.raises(TableMismatch):
        Service(tables=[USER, TableSpec("user", 3)])


def test_stats_count_what_was_done() -> None:
    """Rows and bytes by table, the core's counters, epoch and version."""
    service = Service(epoch=5)
    peer = Peer(service)
    peer.create(USER)
    peer.push(USER, [1, 2], [[1.0, 1.0], [1.0, 1.0]])
    peer.step = 0
    assert peer.push(USER, [1, 2], [[1.0, 1.0], [1.0, 1.0]]).duplicate_shards > 0
    found = peer.ask("Stats", tablebay_pb2.StatsRequest(), tablebay_pb2.StatsResponse)
    assert (found.epoch, found.version, found.instruction_set) == (5, VERSION, _core.instruction_set())
    assert (found.counters["pushes_applied"], found.counters["duplicates"], found.counters["rows"]) == (
        1,
        1,
        2,
    )
    assert [(table.spec.name, table.rows) for table in found.tables] == [("user", 2)]


@pytest.mark.parametrize("method", [*RESERVED_METHODS, "Nonsense", "", "handle", "_hello", "x" * 10_000])
def test_a_method_that_is_not_there_is_unimplemented(method: str) -> None:
    """Reserved ones say so; no name reaches anything else of the server."""
    with pytest.raises(
        Unimplemented, match="reserved" if method in RESERVED_METHODS else "is no method"
    ) as raised:
        Service().handle(method, b"")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "method",
    [
        "Hello",
        "CreateTable",
        "UpdateTable",
        "DescribeTables",
        "GetShardMap",
        "Scan",
        "Barrier",
        "Report",
        "Progress",
        "Stats",
    ],
)
def test_bytes_that_are_no_message_are_refused(method: str) -> None:
    """Cut short, of no wire type, nested ten thousand deep, text that is no UTF-8: BadRequest, or nothing is asked."""
    service = Service()
    senseless = [
        b"\xff" * 50,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x7f",
        b"\x0b" * 10_000,
        b"\x0a\x02\xff\xfe",
    ]
    refused = 0
    for request in senseless:
        with contextlib.suppress(VersionMismatch, ServerLost, NotRegistered):
            try:
                service.handle(method, request)
            except BadRequest:
                refused += 1
    assert refused >= 4
    assert service.handle("Stats", b"")


@pytest.mark.parametrize(
    "method", ["Hello", "Barrier", "Report", "Scan", "CreateTable", "Pull", "Push", "Step"]
)
def test_random_bytes_never_do_harm(method: str) -> None:
    """Each call is answered or refused with an error of ours, and the table is as before."""
    service = Service(tables=[USER])
    peer = Peer(service)
    peer.push(USER, [1], [[1.0, 2.0]])
    for seed in range(500):
        chance = random.Random(seed)
        request = chance.randbytes(chance.randint(0, 200))
        try:
            service.handle(method, request)
        except TablebayError:
            continue
        except Exception as error:  # noqa: BLE001 - whatever it is, its seed is told
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
    assert peer.pull(USER, [1]).tolist() == [[-1.0, -2.0]]


def test_a_draining_server_begins_nothing_and_still_tells() -> None:
    """Data calls, Hello, tables and barriers are Unavailable, which clients send again; figures can be read."""
    service = Service(tables=[USER])
    peer = Peer(service)
    peer.push(USER, [1], [[1.0, 1.0]])
    assert peer.ask("Drain", tablebay_pb2.DrainRequest(), tablebay_pb2.DrainResponse).in_flight == 0
    assert service.draining
    barrier = tablebay_pb2.BarrierRequest(name="end", workers=1, **peer.who)
    for refused in (
        lambda: peer.pull(USER, [1]),
        lambda: peer.push(USER, [1], [[1.0, 1.0]]),
        lambda: Peer(service),
        lambda: peer.create(TableSpec("item", 1)),
        lambda: update(peer, "user", learning_rate=1.0),
        lambda: peer.ask("Barrier", barrier, tablebay_pb2.BarrierResponse),
    ):
        with pytest.raises(Unavailable, match="server 0 is draining"):
            refused()
    report = tablebay_pb2.ReportRequest(number=1, values={"loss": 1.0}, **peer.who)
    peer.ask("Report", report, tablebay_pb2.ReportResponse)
    assert (
        len(peer.ask("Progress", tablebay_pb2.ProgressRequest(), tablebay_pb2.ProgressResponse).workers) == 1
    )
    assert peer.ask("Stats", tablebay_pb2.StatsRequest(), tablebay_pb2.StatsResponse).counters["rows"] == 1


def test_barriers_and_reports_want_a_known_client_on_server_0() -> None:
    """An unknown one is ServerLost, an older process Fenced, another server refuses."""
    service = Service()
    older, newer = Peer(service, rank=0), Peer(service, rank=0)
    with pytest.raises(Fenced):
        older.ask(
            "Barrier",
            tablebay_pb2.BarrierRequest(name="e", workers=1, **older.who),
            tablebay_pb2.BarrierResponse,
        )
    with pytest.raises(Fenced):
        older.ask("Report", tablebay_pb2.ReportRequest(number=1, **older.who), tablebay_pb2.ReportResponse)
    request = tablebay_pb2.BarrierRequest(name="e", workers=1, **newer.who)
    assert newer.ask("Barrier", request, tablebay_pb2.BarrierResponse).released
    unknown = tablebay_pb2.ReportRequest(number=1, client_high=1, client_low=2, incarnation=1)
    with pytest.raises(ServerLost):
        newer.ask("Report", unknown, tablebay_pb2.ReportResponse)
    second = Service(index=1, servers=2)
    for method in ("Barrier", "Report", "Progress"):
        with pytest.raises(BadRequest, match=f"{method} came to server 1, wanted server 0"):
            second.handle(method, b"")


def test_an_older_process_pushes_nothing_once_a_newer_one_said_hello() -> None:
    """The rows' side is told before Hello is answered."""
    service = Service(tables=[USER])
    older = Peer(service, rank=0)
    older.push(USER, [1], [[1.0, 1.0]])
    newer = Peer(service, rank=0)
    with pytest.raises(Fenced):
        older.push(USER, [1], [[1.0, 1.0]])
    newer.push(USER, [2], [[1.0, 1.0]])
    assert newer.pull(USER, [1, 2]).tolist() == [[-1.0, -1.0], [-1.0, -1.0]]


def test_a_client_that_only_pushes_is_not_idle() -> None:
    """Data calls count as a sign of life, so that a long run does not lose its identity to newcomers."""
    now = [0.0]
    service = Service(tables=[USER], clients_max=1, clock=lambda: now[0])
    peer = Peer(service)
    for _ in range(5):
        now[0] += 3000.0
        peer.push(USER, [1], [[1.0, 1.0]])
        with pytest.raises(ResourceExhausted, match="1 anonymous clients"):
            Peer(service)
    now[0] += 3601.0
    Peer(service)
    with pytest.raises(ServerLost, match="does not know the client"):
        peer.push(USER, [1], [[1.0, 1.0]])


def test_every_call_is_counted_with_its_code() -> None:
    """Also the refused ones, which still are not in flight afterwards."""
    service = Service(tables=[USER])
    peer = Peer(service)
    peer.pull(USER, [1])
    with pytest.raises(BadRequest):
        service.handle("Pull", b"\xff")
    with pytest.raises(NotRegistered):
        peer.pull(TableSpec("other", 2), [1])
    service.drain()
    with pytest.raises(Unavailable):
        peer.pull(USER, [1])
    counted = service.snapshot().methods["Pull"]
    assert counted.codes == {"OK": 1, "INVALID_ARGUMENT": 1, "NOT_FOUND": 1, "UNAVAILABLE": 1}
    assert (counted.in_flight, service.in_flight, sum(counted.buckets)) == (0, 0, 4)
    hello = service.snapshot().methods["Hello"]
    assert (hello.codes, hello.in_flight, sum(hello.buckets)) == ({"OK": 1}, 0, 1)
    assert hello.received_bytes > 0
    assert hello.sent_bytes > 0
    assert set(DATA_METHODS) < set(service.snapshot().methods)


def test_memory_that_is_not_there_is_resource_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a fault of the server, and the client is told so."""
    service = Service()

    def fail(request: bytes) -> bytes:
        raise MemoryError

    monkeypatch.setitem(service._data, "Pull", fail)
    with pytest.raises(ResourceExhausted, match="server 0 has no memory left"):
        service.handle("Pull", b"")


def test_the_number_of_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client cannot fill the memory with empty tables."""
    monkeypatch.setattr("tablebay.ps_server.service.TABLES_MAX", 2)
    peer = Peer(Service())
    for name in ("a", "b"):
        peer.create(TableSpec(name, 1))
    with pytest.raises(ResourceExhausted, match="table 'c' cannot be made: server 0 has 2 tables"):
        peer.create(TableSpec("c", 1))
    assert peer.create(TableSpec("a", 1)).rows == 0
