"""The server's methods: a request's bytes in, the answer's bytes out, no gRPC.

Pull, Push and Step go to the native core as they are. No method waits for another client.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import DecodeError, Message

from tablebay.client.environment import PROTOCOL_MAJOR, PROTOCOL_MINOR, VERSION
from tablebay.client.errors import (
    BadRequest,
    CorruptMessage,
    NotRegistered,
    ResourceExhausted,
    TablebayError,
    TableMismatch,
    Unavailable,
    Unimplemented,
    error_named,
    status_code,
)
from tablebay.client.proto import tablebay_pb2
from tablebay.client.routing import ShardMap
from tablebay.client.sweeper import Sweeper
from tablebay.client.tables import LIVE_OPTIONS, TableSpec, differences
from tablebay.native import _core
from tablebay.ps_server.barriers import Barriers
from tablebay.ps_server.durability import Durability
from tablebay.ps_server.members import CLIENTS_MAX, Clock, Member, Members
from tablebay.ps_server.metrics import Counted, Snapshot
from tablebay.ps_server.progress import Progress
from tablebay.ps_server.telemetry import Events

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
KEYS_MAX = 16_777_216
TABLES_MAX = 4096
_NAMES_SHOWN = 50
_EVICT_S = 0.5
_EVENTS_MAX = 1_000_000

# In the order of the core's numbers for them.
DATA_METHODS = ("Pull", "Push", "Step")
RESERVED_METHODS = ("Clock", "Export", "MoveShards", "SubscribeDeltas")

_EVENTS = Events(__name__)


class Service:
    """One server. Safe in threads.

    index, servers: which of how many. epoch: number of this life of the server, by default its start time in
        ns.
    message_bytes_max: of one answer. threads: data calls worked on at once, 0 for no bound. memory_limit: bytes of
        rows, indexes and step windows; 0 is none.
    keys_max: of one part. tables: made now, where they are not restored. durability: with it the rows of the
        job's newest checkpoint are restored now, and it gives the epoch.
    Raises TablebayError where rows cannot be restored or tables be made.
    """

    def __init__(
        self,
        *,
        index: int = 0,
        servers: int = 1,
        job: str = "local",
        generation: int = 0,
        epoch: int | None = None,
        tables: Iterable[TableSpec] = (),
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        memory_limit: int = 0,
        keys_max: int = KEYS_MAX,
        clients_max: int = CLIENTS_MAX,
        threads: int = 0,
        clock: Clock = time.monotonic,
        randomness: random.Random | None = None,
        durability: Durability | None = None,
    ) -> None:
        self._index = index
        self._servers = servers
        self._job = job
        self._message_bytes_max = message_bytes_max
        self._memory_limit = memory_limit
        if durability is not None:
            epoch = durability.epoch
        epoch = time.time_ns() if epoch is None else epoch
        self._durability = durability
        self._store = _core.Store(
            epoch=epoch,
            memory_limit=memory_limit,
            keys_max=keys_max,
            message_bytes_max=message_bytes_max,
            threads=threads,
        )
        self._shard_map = ShardMap.even(servers)
        self._store.set_shard_map(self._shard_map.owners, index, self._shard_map.version)
        self._tables: dict[str, tuple[TableSpec, int]] = {}
        self._tables_lock = threading.Lock()
        self._sweeper = Sweeper(self._store, clock=clock, told=_tell_of_sweep)
        # The thread keeps the store, but not this server.
        weakref.finalize(self, self._sweeper.close)
        # Options that were changed live, by table and name.
        self._live: dict[str, dict[str, float]] = {}
        self._progress = Progress(clock)
        self._barriers = Barriers() if durability is None else durability.barriers()
        self._members = Members(
            self._store,
            job=job,
            generation=generation,
            index=index,
            clock=clock,
            randomness=random.SystemRandom() if randomness is None else randomness,
            clients_max=clients_max,
            first_incarnation=_first_incarnation(epoch, durability is not None),
            forgotten=self._progress.forget,
        )
        self._draining = False
        self._data: dict[str, Callable[[bytes | memoryview], bytes]] = {
            "Pull": self._store.handle_pull,
            "Push": self._store.handle_push,
            "Step": self._store.handle_step,
        }
        self._control: dict[str, Callable[[bytes | memoryview], bytes]] = {
            "Hello": _parsed(tablebay_pb2.HelloRequest, self._hello),
            "CreateTable": _parsed(tablebay_pb2.CreateTableRequest, self._create_table),
            "UpdateTable": _parsed(tablebay_pb2.UpdateTableRequest, self._update_table),
            "DescribeTables": _parsed(tablebay_pb2.DescribeTablesRequest, self._describe_tables),
            "GetShardMap": _parsed(
                tablebay_pb2.GetShardMapRequest, lambda request: self._shard_map_message()
            ),
            "Scan": _parsed(tablebay_pb2.ScanRequest, self._scan),
            "Evict": _parsed(tablebay_pb2.EvictRequest, self._evict),
            "Evicted": _parsed(tablebay_pb2.EvictedRequest, self._evicted),
            "Barrier": _parsed(tablebay_pb2.BarrierRequest, self._barrier),
            "Report": _parsed(tablebay_pb2.ReportRequest, self._report),
            "Progress": _parsed(tablebay_pb2.ProgressRequest, lambda request: self._read_progress()),
            "SetWorkers": _parsed(tablebay_pb2.SetWorkersRequest, self._set_workers),
            "Stats": _parsed(tablebay_pb2.StatsRequest, lambda request: self._stats()),
            "Drain": _parsed(tablebay_pb2.DrainRequest, lambda request: self._drain()),
            "Checkpoint": _parsed(tablebay_pb2.CheckpointRequest, self._checkpoint),
            "PutState": _parsed(tablebay_pb2.PutStateRequest, self._put_state),
            "GetState": _parsed(tablebay_pb2.GetStateRequest, self._get_state),
            "Restore": _parsed(tablebay_pb2.RestoreRequest, self._restore),
            "Cut": _parsed(tablebay_pb2.CutRequest, self._cut),
        }
        self._figures = self._store.figures
        self._numbers = {method: number for number, method in enumerate((*DATA_METHODS, *self._control))}
        if durability is not None:
            durability.restore(self._store, self._owned(), self._take_restored)
        for spec in tables:
            self._declare(spec)
        if durability is not None:
            durability.begin(self._store, self._shard_map, self._current_specs)

    @property
    def epoch(self) -> int:
        """Number of this life of the server."""
        return self._store.epoch

    @property
    def draining(self) -> bool:
        """Whether data calls and whatever begins something are refused."""
        return self._draining

    @property
    def in_flight(self) -> int:
        """Data calls being handled now."""
        return sum(self._figures.in_flight(self._numbers[method]) for method in DATA_METHODS)

    @property
    def counters(self) -> dict[str, int]:
        """What the native core counts."""
        return self._store.counters()

    def handle(self, method: str, request: bytes | memoryview) -> bytes:
        """Answer a request, of which nothing is kept.

        Raises TablebayError, and anything else where there is a fault in the server.
        """
        data = self._data.get(method)
        if data is not None and not self._draining:
            response = self._answer(data, request)
            self._hear(request)
            return response
        number = self._numbers.get(method)
        if number is None:
            raise Unimplemented(_no_such_method(method))
        # What does not reach the core is counted here.
        self._figures.begin(number, len(request))
        began = time.perf_counter()
        code, sent = "OK", 0
        try:
            if data is not None:
                self._refuse_draining()
            response = self._answer(self._control[method], request)
            sent = len(response)
            return response
        except BaseException as error:
            code = status_code(error)
            raise
        finally:
            self._figures.end(number, time.perf_counter() - began, code, sent)

    def drain(self) -> None:
        """Refuse data calls, and whatever begins something, from now on."""
        if not self._draining:
            self._draining = True
            _EVENTS.info("server.draining", in_flight=self.in_flight)

    def snapshot(self) -> Snapshot:
        """All figures, for /metrics."""
        return Snapshot(
            version=VERSION,
            commit=_core.commit(),
            instruction_set=_core.instruction_set(),
            epoch=self.epoch,
            draining=self._draining,
            memory_limit=self._memory_limit,
            clients=len(self._members),
            counters=self._store.counters(),
            tables=[
                (spec.name, info["rows"], info["bytes"], info["evicted"] if spec.eviction else {})
                for spec, table_id in self._known_tables()
                for info in (self._store.table_info(table_id),)
            ],
            checkpoints=None if self._durability is None else self._durability.figures(),
            methods={method: Counted.read(self._figures, number) for method, number in self._numbers.items()},
        )

    def _answer(self, handle: Callable[[bytes | memoryview], bytes], request: bytes | memoryview) -> bytes:
        try:
            return handle(request)
        except _core.StatusError as error:
            raise self._native_error(error) from None
        except MemoryError:
            raise ResourceExhausted(f"server {self._index} has no memory left for this call") from None

    def _native_error(self, error: Exception) -> TablebayError:
        kind, text = error.args
        if kind == "NotRegistered":
            text = f"{text}: {self._table_names()}"
        return error_named(kind, text)

    def _hear(self, request: bytes | memoryview) -> None:
        """Notice who sent a data call, so that it is not idle. The sender is field 1, written first."""
        if len(request) > 2 and request[0] == 0x0A and request[1] < 0x80:
            try:
                sender = tablebay_pb2.Sender.FromString(bytes(request[2 : 2 + request[1]]))
            except DecodeError:
                return
            self._members.hear((sender.client_high, sender.client_low))

    def _refuse_draining(self) -> None:
        raise Unavailable(f"server {self._index} is draining: it takes no new calls")

    # -- clients --

    def _hello(self, request: tablebay_pb2.HelloRequest) -> tablebay_pb2.HelloResponse:
        if self._draining:
            self._refuse_draining()
        welcome = self._members.hello(request)
        high, low = welcome.member.client
        return tablebay_pb2.HelloResponse(
            job=self._job,
            server_index=self._index,
            server_count=self._servers,
            epoch=self.epoch,
            client_high=high,
            client_low=low,
            incarnation=welcome.member.incarnation,
            next_step=welcome.next_step,
            cursor=welcome.cursor,
            shard_map=self._shard_map_message(),
            message_bytes_max=self._message_bytes_max,
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            server_version=VERSION,
            durable=self._durability is not None,
            durable_next=welcome.durable_next,
            workers=self._barriers.expected,
        )

    def _barrier(self, request: tablebay_pb2.BarrierRequest) -> tablebay_pb2.BarrierResponse:
        if self._draining:
            self._refuse_draining()
        member = self._speaker("Barrier", request)
        released, arrived = self._barriers.arrive(request.name, member.client, request.workers, member.rank)
        return tablebay_pb2.BarrierResponse(
            released=released, arrived=arrived, workers=self._barriers.expected
        )

    def _report(self, request: tablebay_pb2.ReportRequest) -> tablebay_pb2.ReportResponse:
        self._progress.report(self._speaker("Report", request), request)
        return tablebay_pb2.ReportResponse(workers=self._barriers.expected)

    def _read_progress(self) -> tablebay_pb2.ProgressResponse:
        self._require_server_0("Progress")
        return self._progress.read(self._barriers.expected)

    def _set_workers(self, request: tablebay_pb2.SetWorkersRequest) -> tablebay_pb2.SetWorkersResponse:
        self._require_server_0("SetWorkers")
        self._barriers.expect(request.workers)
        return tablebay_pb2.SetWorkersResponse()

    def _speaker(
        self, method: str, request: tablebay_pb2.BarrierRequest | tablebay_pb2.ReportRequest
    ) -> Member:
        self._require_server_0(method)
        return self._members.check((request.client_high, request.client_low), request.incarnation)

    def _require_server_0(self, method: str) -> None:
        if self._index != 0:
            raise BadRequest(
                f"{method} came to server {self._index}, wanted server 0, which keeps these things"
            )

    # -- checkpoints --

    def _checkpoint(self, request: tablebay_pb2.CheckpointRequest) -> tablebay_pb2.CheckpointResponse:
        self._require_server_0("Checkpoint")
        if self._durability is None:
            return tablebay_pb2.CheckpointResponse(enabled=False, epoch=self.epoch)
        client = (request.client_high, request.client_low)
        rank = self._members.rank_of(client) if request.state else None
        return self._durability.ask(request, rank)

    def _put_state(self, request: tablebay_pb2.PutStateRequest) -> tablebay_pb2.PutStateResponse:
        self._require_server_0("PutState")
        member = self._members.check((request.client_high, request.client_low), request.incarnation)
        if member.rank is None:
            raise BadRequest(f"{member.name} has no rank; a state belongs to one")
        if _core.crc32c(request.data) != request.crc32c:
            raise CorruptMessage(f"state '{request.name[:80]}': a part was damaged on the way")
        self._require_durability("PutState").put_state(request)
        return tablebay_pb2.PutStateResponse()

    def _get_state(self, request: tablebay_pb2.GetStateRequest) -> tablebay_pb2.GetStateResponse:
        self._require_server_0("GetState")
        if self._durability is None:
            return tablebay_pb2.GetStateResponse()
        return self._durability.get_state(request)

    def _restore(self, request: tablebay_pb2.RestoreRequest) -> tablebay_pb2.RestoreResponse:
        if self._draining:
            self._refuse_draining()
        return self._require_durability("Restore").restore_rows(
            request, self._store, self._owned(), self._take_restored
        )

    def _cut(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        return self._require_durability("Cut").cut(request)

    def _require_durability(self, method: str) -> Durability:
        if self._durability is None:
            raise BadRequest(
                f"{method}: server {self._index} has no destination for checkpoints; wanted --checkpoint, or "
                "`checkpoint` in the job file"
            )
        return self._durability

    def _owned(self) -> list[int]:
        return self._shard_map.shards_of(self._index)

    def _take_restored(self, specs: Iterable[TableSpec]) -> None:
        """Tables that the store has now, of a checkpoint. Raises TableMismatch."""
        with self._tables_lock:
            restored = list(specs)
            for spec in restored:
                self._know(spec, _core.table_id(spec.name))
            for spec in restored:
                # Of a table that came without its counts: they begin anew.
                for companion in spec.companions():
                    if companion.name not in self._tables:
                        self._tables[companion.name] = (companion, self._native_table(companion))

    def _current_specs(self) -> list[tuple[TableSpec, int]]:
        """Tables as they are now: with the options that were set last."""
        return [
            (spec.with_options(self._live.get(spec.name, {})), table_id)
            for spec, table_id in self._known_tables()
        ]

    # -- tables --

    def _create_table(self, request: tablebay_pb2.CreateTableRequest) -> tablebay_pb2.Table:
        if self._draining:
            self._refuse_draining()
        return self._table_message(*self._make_table(TableSpec.from_message(request.spec)))

    def _declare(self, spec: TableSpec) -> None:
        """Make a table that the job declares. One restored keeps the live options that it had last."""
        with self._tables_lock:
            restored = self._tables.get(spec.name)
            if restored is not None:
                had, declared = restored[0].live_options(), spec.live_options()
                kept = {name: value for name, value in had.items() if declared.get(name, value) != value}
                if kept:
                    self._live[spec.name] = kept
                    self._tables[spec.name] = (restored[0].with_options(declared), restored[1])
        self._make_table(spec)

    def _make_table(self, spec: TableSpec) -> tuple[TableSpec, int]:
        with self._tables_lock:
            known = self._tables.get(spec.name)
            if known is None:
                if len(self._tables) >= TABLES_MAX:
                    raise ResourceExhausted(
                        f"table '{spec.name}' cannot be made: server {self._index} has {TABLES_MAX} tables, "
                        "which is the most there can be"
                    )
                for companion in spec.companions():
                    if companion.name not in self._tables:
                        self._tables[companion.name] = (companion, self._native_table(companion))
                table_id = self._native_table(spec)
                self._know(spec, table_id)
                _EVENTS.info("table.created", table=spec.name, dim=spec.dim, optimizer=spec.optimizer.type)
                return spec, table_id
        problems = differences(known[0], spec)
        if problems:
            raise TableMismatch(f"table '{spec.name}' exists and differs: {'; '.join(problems)}")
        return known

    def _know(self, spec: TableSpec, table_id: int) -> None:
        self._tables[spec.name] = (spec, table_id)
        if spec.eviction is not None:
            self._sweeper.add(
                spec.name, table_id, spec.eviction.every_seconds, spec.eviction.decay_every_seconds
            )

    def _native_table(self, spec: TableSpec) -> int:
        try:
            return self._store.create_table(
                *spec.arguments(),
            )
        except _core.StatusError as error:
            raise self._native_error(error) from None

    def _update_table(self, request: tablebay_pb2.UpdateTableRequest) -> tablebay_pb2.Table:
        if self._draining:
            self._refuse_draining()
        spec, table_id = self._table(request.name)
        given = dict(request.optimizer_parameters)
        fixed = sorted(set(given) - set(LIVE_OPTIONS))
        if fixed or not given:
            found = ", ".join(name[:80] for name in fixed[:_NAMES_SHOWN]) or "nothing"
            raise BadRequest(
                f"table '{spec.name}': found {found} to change; only {' and '.join(LIVE_OPTIONS)} may change live"
            )
        missing = sorted(set(given) - set(spec.live_options()))
        if missing:
            raise BadRequest(
                f"table '{spec.name}': its optimizer {spec.optimizer.type} has no {missing[0]} to change"
            )
        # All of them or none: a value that cannot be is refused before the first is set.
        spec.with_options(given)
        setters = {
            "learning_rate": self._store.set_learning_rate,
            "weight_decay": self._store.set_weight_decay,
        }
        try:
            for name, value in given.items():
                setters[name](table_id, value)
                self._live.setdefault(spec.name, {})[name] = value
        except _core.StatusError as error:
            raise self._native_error(error) from None
        _EVENTS.info("table.updated", table=spec.name, **given)
        return self._table_message(spec, table_id)

    def _describe_tables(
        self, request: tablebay_pb2.DescribeTablesRequest
    ) -> tablebay_pb2.DescribeTablesResponse:
        wanted = [self._table(name) for name in request.names] if request.names else self._known_tables()
        return tablebay_pb2.DescribeTablesResponse(tables=[self._table_message(*table) for table in wanted])

    def _scan(self, request: tablebay_pb2.ScanRequest) -> tablebay_pb2.ScanResponse:
        _, table_id = self._table(request.table)
        keys, rows, position = self._store.scan(table_id, request.position, request.rows_max)
        return tablebay_pb2.ScanResponse(keys=keys, rows=rows, position=position)

    def _evict(self, request: tablebay_pb2.EvictRequest) -> tablebay_pb2.EvictResponse:
        if self._draining:
            self._refuse_draining()
        _, table_id = self._table(request.table)
        looked_at, evicted, next_stripe = self._store.evict(table_id, request.stripe, _EVICT_S)
        return tablebay_pb2.EvictResponse(looked_at=looked_at, evicted=evicted, next_stripe=next_stripe)

    def _evicted(self, request: tablebay_pb2.EvictedRequest) -> tablebay_pb2.EvictedResponse:
        spec, table_id = self._table(request.table)
        if spec.eviction is None:
            raise BadRequest(f"table '{spec.name}' has no eviction, so that no row leaves by itself")
        position = request.position if request.epoch == self.epoch else 0
        most = min(request.events_max, _EVENTS_MAX)
        first, keys, times, reasons = self._store.evicted(table_id, position, most)
        return tablebay_pb2.EvictedResponse(
            epoch=self.epoch,
            first=first,
            keys=keys,
            times=times,
            reasons=reasons,
            reason_names=_core.EVICTION_REASONS,
        )

    def _table(self, name: str) -> tuple[TableSpec, int]:
        with self._tables_lock:
            known = self._tables.get(name)
        if known is None:
            raise NotRegistered(
                f"table '{name[:80]}' does not exist on server {self._index}: {self._table_names()}"
            )
        return known

    def _known_tables(self) -> list[tuple[TableSpec, int]]:
        with self._tables_lock:
            return list(self._tables.values())

    def _table_names(self) -> str:
        names = sorted(spec.name for spec, _ in self._known_tables())
        if not names:
            return "it has no tables"
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        return f"its tables are {', '.join(names[:_NAMES_SHOWN])}{more}"

    def _table_message(self, spec: TableSpec, table_id: int) -> tablebay_pb2.Table:
        info = self._store.table_info(table_id)
        return tablebay_pb2.Table(
            spec=spec.message(),
            table_id=table_id,
            rows=info["rows"],
            bytes=info["bytes"],
            row_bytes=info["row_bytes"],
            state_bytes=info["state_bytes"],
            state_names=info["state_names"],
        )

    # -- the server --

    def _shard_map_message(self) -> tablebay_pb2.ShardMap:
        shard_map = self._shard_map
        return tablebay_pb2.ShardMap(
            version=shard_map.version, servers=shard_map.servers, owners=shard_map.pack()
        )

    def _stats(self) -> tablebay_pb2.StatsResponse:
        return tablebay_pb2.StatsResponse(
            epoch=self.epoch,
            tables=[self._table_message(*table) for table in self._known_tables()],
            counters=self._store.counters(),
            version=VERSION,
            instruction_set=_core.instruction_set(),
        )

    def _drain(self) -> tablebay_pb2.DrainResponse:
        self.drain()
        return tablebay_pb2.DrainResponse(in_flight=self.in_flight)


def _tell_of_sweep(table: str, evicted: int, error: Exception | None) -> None:
    if error is not None:
        _EVENTS.warning("table.sweep_failed", table=table, error=str(error))
    else:
        _EVENTS.info("table.swept", table=table, evicted=evicted)


def _first_incarnation(epoch: int, durable: bool) -> int:
    """What server 0 gives a rank that it does not know: above what it gave before a restart.

    A start time is that as long as ranks say Hello less than once a second, a counted epoch as long as they say
    it less than 65,536 times in a life.
    """
    if durable:
        return (epoch % 2**15 << 16) + 1
    return epoch // 1_000_000_000 % 2**31 + 1


def _no_such_method(method: str) -> str:
    what = "is reserved and not implemented" if method in RESERVED_METHODS else "is no method of this server"
    return f"{method[:80]} {what} (tablebay {VERSION})"


def _parsed(message: Any, handle: Callable[[Any], Message]) -> Callable[[bytes | memoryview], bytes]:
    """`handle` of the message that the bytes hold, its answer as bytes. Raises BadRequest where they hold none."""

    def call(request: bytes | memoryview) -> bytes:
        try:
            parsed = message.FromString(bytes(request))
        except DecodeError as error:
            raise BadRequest(
                f"{message.DESCRIPTOR.name}: {len(request)} bytes that are no such message ({error})"
            ) from None
        return handle(parsed).SerializeToString()

    return call
