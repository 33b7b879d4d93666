"""What a server with a destination has beyond one without: its epoch, what it restores, its part in checkpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tablebay.client.checkpoint import restore
from tablebay.client.checkpoint.destination import Destination
from tablebay.client.errors import BadRequest, CheckpointFailed, TablebayError
from tablebay.client.proto import tablebay_pb2
from tablebay.client.routing import ShardMap
from tablebay.client.tables import TableSpec
from tablebay.client.tls import Source
from tablebay.native import _core
from tablebay.ps_server.barriers import Barriers
from tablebay.ps_server.checkpoint import save
from tablebay.ps_server.checkpoint.coordinator import Coordinator, Schedule
from tablebay.ps_server.checkpoint.participant import Participant
from tablebay.ps_server.metrics import CheckpointFigures
from tablebay.ps_server.peers import GrpcPeers, Peers
from tablebay.ps_server.telemetry import Events

STATE_BYTES_MAX = 1024 * 1024 * 1024
LATEST, NEVER = "Latest", "Never"
_POLL_S = 0.05
_ASK_S = 5.0
_GREET_EVERY_S = 2.0
_RESTORES_KEPT = 16

_EVENTS = Events(__name__)

Specs = Callable[[Iterable[TableSpec]], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """destination: a directory. full_every: links of a chain. restore_from: LATEST, NEVER or a directory.

    first_s: for how long a server waits for server 0 to make the job's first checkpoint.
    """

    destination: str
    schedule: Schedule
    full_every: int = 12
    restore_from: str = LATEST
    restore_required: bool = False
    first_s: float = 60.0


class Durability:
    """One server's. Made before the service, since it gives the epoch; then `restore`, then `begin`, then `start`.

    servers: data addresses of all. fenced: told when a newer life of this server has taken over.
    peers: for tests; else over gRPC, with tls if given. Raises TablebayError where the destination cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        servers: Sequence[str],
        index: int,
        job: str,
        generation: int,
        fenced: Callable[[], None],
        peers: Peers | None = None,
        tls: Source | None = None,
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._index = index
        self._job = job
        self._generation = generation
        self._fenced = fenced
        self._peers: Peers = GrpcPeers(servers, index, self.cut, tls) if peers is None else peers
        self._destination = Destination.open(settings.destination, job=job)
        self.epoch = self._destination.take_epoch(index)
        self._restored: restore.Restored | None = None
        self._participant: Participant | None = None
        self._coordinator: Coordinator | None = None
        self._number = 0
        self._specs: Callable[[], list[tuple[TableSpec, int]]] = list
        self._restores: dict[str, _Restore] = {}
        self._restore_s = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    # -- from start to ready --

    def restore(self, store: Any, owners: Sequence[int], take_tables: Specs) -> None:
        """Read this server's rows, of the newest complete checkpoint, into the store.

        Server 0 of a new job makes checkpoint 0 first; the others wait for it. take_tables: told which tables
            the store has then. Raises CheckpointInvalid, CheckpointMismatch, CheckpointFailed, TableMismatch.
        """
        settings = self._settings
        anew = settings.restore_from == NEVER
        if self._index == 0:
            self._number = self._destination.claim(
                epoch=self.epoch,
                servers=len(self._servers),
                job=self._job,
                generation=self._generation,
                anew=anew,
            )
        else:
            # Where a job begins anew, what an earlier generation left is not the first.
            self._await_first(self._generation if anew else 0)
        began = time.monotonic()
        self._restored = restore.restore_newest(
            store,
            self._destination,
            index=self._index,
            servers=len(self._servers),
            owners=owners,
            job=self._job,
        )
        for reason in self._restored.refused:
            _EVENTS.warning("checkpoint.damaged", cause=reason, used=self._restored.manifest.number)
        take_tables(self._restored.specs)
        fresh = self._restored.manifest.kind == "Empty"
        if fresh and settings.restore_from not in (LATEST, NEVER):
            warm = restore.restore_from(
                store,
                Destination.open_source(settings.restore_from),
                index=self._index,
                servers=len(self._servers),
                owners=owners,
            )
            take_tables(warm.specs)
        elif fresh and settings.restore_required:
            raise CheckpointFailed(
                f"{self._destination.name} holds no checkpoint, and one is required (--restore-policy Required)"
            )
        self._restore_s = time.monotonic() - began
        _EVENTS.info(
            "server.restored",
            number=self._restored.manifest.number,
            kind=self._restored.manifest.kind,
            rows=self._restored.rows,
            seconds=round(self._restore_s, 3),
            passed_over=len(self._restored.refused),
        )

    def begin(
        self, store: Any, shard_map: ShardMap, specs: Callable[[], list[tuple[TableSpec, int]]]
    ) -> None:
        """Take part in checkpoints from now on."""
        assert self._restored is not None
        self._specs = specs
        owners = shard_map.shards_of(self._index)

        def write(cut: Any, number: int, attempt: str, parent: int | None) -> save.CutFiles:
            return save.write_cut(
                cut,
                self._destination,
                attempt,
                number=number,
                index=self._index,
                epoch=self.epoch,
                parent=parent,
                specs=specs(),
            )

        self._participant = Participant(
            store,
            index=self._index,
            epoch=self.epoch,
            owners=owners,
            write=write,
            full_every=self._settings.full_every,
            chain=self._restored.chain,
        )
        if self._index == 0:
            self._coordinator = Coordinator(
                self._destination,
                self._peers,
                epoch=self.epoch,
                servers=len(self._servers),
                job=self._job,
                generation=self._generation,
                schedule=self._settings.schedule,
                number=self._number,
                newest=self._restored.manifest,
                steps=store.highest_step,
                fenced=self._fenced,
            )

    def start(self) -> None:
        """Server 0 makes checkpoints as they come due, from now on."""
        if self._coordinator is not None:
            threading.Thread(target=self._coordinator.run, name="checkpoints", daemon=True).start()
        if len(self._servers) > 1:
            threading.Thread(target=self._keep_acquaintance, name="acquaintance", daemon=True).start()

    def _keep_acquaintance(self) -> None:
        while not self._closed.wait(_GREET_EVERY_S):
            self._peers.greet(_ASK_S)

    def _await_first(self, generation: int) -> None:
        end = time.monotonic() + self._settings.first_s
        while not self._destination.has_manifest(generation):
            if time.monotonic() > end:
                raise CheckpointFailed(
                    f"{self._destination.name} holds no checkpoint after {self._settings.first_s:g} s; server 0 "
                    "makes the first"
                )
            time.sleep(_POLL_S)

    # -- what is asked of it --

    def barriers(self) -> Barriers:
        """Server 0's, with those released in earlier lives."""
        if self._index != 0:
            return Barriers()
        return Barriers(
            released=self._destination.released_barriers(), write_down=self._destination.release_barrier
        )

    def cut(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        """A phase of a checkpoint. Raises CheckpointFailed, BadRequest."""
        if self._participant is None:
            raise CheckpointFailed(f"server {self._index} is starting")
        return self._participant.handle(request)

    def ask(
        self, request: tablebay_pb2.CheckpointRequest, rank: int | None
    ) -> tablebay_pb2.CheckpointResponse:
        """How checkpoints stand; with `begin`, and have one made. rank: of the client whose state is named."""
        coordinator = self._coordinator
        if coordinator is None:
            raise CheckpointFailed(f"server {self._index} is starting")
        ticket = 0
        if request.begin:
            client = (request.client_high, request.client_low)
            state = coordinator.take_state(client, request.state) if request.state else None
            ticket = coordinator.ask(full=request.full, state=state, rank=rank)
        answer = coordinator.describe()
        answer.ticket = ticket
        return answer

    def put_state(self, request: tablebay_pb2.PutStateRequest) -> None:
        """Keep a part of a worker's state. Raises CheckpointFailed."""
        if self._coordinator is None:
            raise CheckpointFailed(f"server {self._index} is starting")
        self._coordinator.put_state(request, STATE_BYTES_MAX)

    def get_state(self, request: tablebay_pb2.GetStateRequest) -> tablebay_pb2.GetStateResponse:
        """A part of a worker's state, of the newest checkpoint; without a name the names."""
        if self._coordinator is None:
            return tablebay_pb2.GetStateResponse()
        worker = next(
            (one for one in self._coordinator.newest.workers if one.rank == request.rank and one.state), None
        )
        if worker is None:
            return tablebay_pb2.GetStateResponse()
        entries = [
            tablebay_pb2.StateEntry(name=name, bytes=file.bytes) for name, file in worker.state.items()
        ]
        answer = tablebay_pb2.GetStateResponse(step=worker.state_step, entries=entries)
        if request.name:
            file = worker.state.get(request.name)
            if file is None:
                raise BadRequest(f"rank {request.rank} has no state '{request.name[:80]}'")
            answer.data = self._destination.read_state(file, request.offset, request.bytes_max)
            answer.crc32c = _core.crc32c(answer.data)
        return answer

    def restore_rows(
        self, request: tablebay_pb2.RestoreRequest, store: Any, owners: Sequence[int], take_tables: Specs
    ) -> tablebay_pb2.RestoreResponse:
        """Begin reading rows of a checkpoint, or say how that stands. Raises what became of it."""
        with self._lock:
            work = self._restores.get(request.ticket)
            if work is None:
                while len(self._restores) >= _RESTORES_KEPT:
                    del self._restores[next(iter(self._restores))]

                def read() -> restore.Restored:
                    source = Destination.open_source(request.source) if request.source else self._destination
                    found = restore.restore_from(
                        store,
                        source,
                        index=self._index,
                        servers=len(self._servers),
                        owners=owners,
                        number=request.number if request.HasField("number") else None,
                        tables=tuple(request.tables),
                        rename=dict(request.rename),
                        optimizer_state=request.optimizer_state,
                        here={spec.name: spec for spec, _ in self._specs()},
                    )
                    take_tables(found.specs)
                    return found

                work = self._restores[request.ticket] = _Restore(read)
        return work.answer()

    def figures(self) -> CheckpointFigures:
        """For /metrics."""
        if self._coordinator is None:
            return CheckpointFigures(restore_seconds=self._restore_s)
        standing = self._coordinator.describe()
        last = standing.last
        return CheckpointFigures(
            restore_seconds=self._restore_s,
            made=self._coordinator.made(),
            failures=standing.failures,
            last_created=last.created,
            last_seconds=last.seconds,
            last_pause_seconds=last.pause_seconds,
            last_bytes=last.bytes,
        )

    # -- the end --

    def last(self, timeout_s: float) -> bool:
        """After the last step: have all of it in a checkpoint. Whether that was done in time."""
        end = time.monotonic() + timeout_s
        participant = self._participant
        if participant is None or not participant.changed():
            return True
        try:
            if self._coordinator is not None:
                ticket = self._coordinator.ask(full=False, state=None, rank=None)
                if not self._coordinator.wait(ticket, timeout_s):
                    return False
                return not participant.changed()
            assert isinstance(self._peers, GrpcPeers)
            self._peers.begin_at_coordinator(min(_ASK_S, timeout_s))
            while participant.changed():
                if time.monotonic() > end:
                    return False
                time.sleep(_POLL_S)
            return True
        except TablebayError as error:
            _EVENTS.warning("checkpoint.last_failed", cause=str(error))
            return False

    def close(self) -> None:
        """Make no more checkpoints."""
        if self._coordinator is not None:
            self._coordinator.end()
        self._closed.set()


class _Restore:
    """Rows being read, in a thread."""

    def __init__(self, read: Callable[[], restore.Restored]) -> None:
        self._read = read
        self._found: restore.Restored | None = None
        self._error: TablebayError | None = None
        threading.Thread(target=self._run, name="restore", daemon=True).start()

    def answer(self) -> tablebay_pb2.RestoreResponse:
        """How it stands. Raises what became of it."""
        if self._error is not None:
            raise self._error
        if self._found is None:
            return tablebay_pb2.RestoreResponse(done=False)
        return tablebay_pb2.RestoreResponse(
            done=True,
            number=self._found.manifest.number,
            rows=self._found.rows,
            tables=[spec.name for spec in self._found.specs],
        )

    def _run(self) -> None:
        try:
            self._found = self._read()
        except TablebayError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - told to who asks
            _EVENTS.failure("restore.failed", error)
            self._error = CheckpointFailed(f"{type(error).__name__}: {error}")
