"""Server 0's side of checkpoints: when one is due, its phases over all servers, and the manifest that commits it."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tablebay.client.checkpoint.destination import AlreadyThere, Destination
from tablebay.client.checkpoint.manifest import (
    Manifest,
    ServerEntry,
    StateEntry,
    TableEntry,
    WorkerEntry,
)
from tablebay.client.checkpoint.polling import poll_waits
from tablebay.client.checkpoint.storage import StorageError, Uncertain
from tablebay.client.environment import VERSION
from tablebay.client.errors import CheckpointFailed, TablebayError
from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.checkpoint.retention import remove_unneeded
from tablebay.ps_server.failpoints import failpoint
from tablebay.ps_server.members import Clock
from tablebay.ps_server.peers import Peers
from tablebay.ps_server.telemetry import Events

# For a phase that does no more than ask.
PHASE_S = 10.0
# How often steps are counted where a checkpoint is due by them.
_STEPS_EVERY_S = 0.2
_AFTER_FAILURE_S = 5.0

_EVENTS = Events(__name__)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a checkpoint is due. 0: not by this. timeout_s: for one attempt."""

    every_s: float = 600.0
    every_steps: int = 0
    timeout_s: float = 600.0
    retain_last: int = 5


@dataclass
class _Standing:
    """What `Checkpoint` answers. Tickets count attempts of this life, from 1."""

    ticket: int = 0
    ended: int = 0
    failures: int = 0
    last_error: str = ""
    last_error_ticket: int = 0
    last: tablebay_pb2.CommittedCheckpoint | None = None
    made: Counter[str] = field(default_factory=Counter)


@dataclass
class _State:
    """A worker's state as it comes: entries by name. step: what the worker does next."""

    step: int
    entries: dict[str, bytearray] = field(default_factory=dict)


class Coordinator:
    """Safe in threads. `run` is the loop of a thread of its own.

    steps: the highest step of any ranked client. fenced: told when a newer life of this server has taken over.
    number: of the manifest by which this life fenced older ones off. newest: the one restored.
    """

    def __init__(
        self,
        destination: Destination,
        peers: Peers,
        *,
        epoch: int,
        servers: int,
        job: str,
        generation: int,
        schedule: Schedule,
        number: int,
        newest: Manifest,
        steps: Callable[[], int],
        fenced: Callable[[], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._destination = destination
        self._peers = peers
        self._epoch = epoch
        self._servers = servers
        self._job = job
        self._generation = generation
        self._schedule = schedule
        self._number = number
        self._newest = newest
        self._steps = steps
        self._fenced = fenced
        self._clock = clock
        self._changed = threading.Condition()
        self._standing = _Standing()
        self._standing.last = _committed(newest)
        # The newest attempt whose cut may already have been taken: who asks now gets the one after.
        self._began = 0
        self._full = False
        self._states: dict[tuple[int, int, str], _State] = {}
        self._asked: dict[int, _State] = {}
        self._ending = False
        self._due_at = clock() + schedule.every_s if schedule.every_s else float("inf")
        self._due_step = self._steps() + schedule.every_steps

    # -- what others ask --

    @property
    def newest(self) -> Manifest:
        """The newest complete checkpoint."""
        return self._newest

    def ask(self, *, full: bool, state: _State | None, rank: int | None) -> int:
        """Have a checkpoint made of all that is applied now; its ticket."""
        with self._changed:
            self._standing.ticket = max(self._standing.ticket, self._began + 1)
            self._full = self._full or full
            if state is not None and rank is not None:
                self._asked[rank] = state
            self._changed.notify_all()
            return self._standing.ticket

    def describe(self) -> tablebay_pb2.CheckpointResponse:
        """How it stands."""
        with self._changed:
            standing = self._standing
            return tablebay_pb2.CheckpointResponse(
                enabled=True,
                ended=standing.ended,
                failures=standing.failures,
                last_error=standing.last_error,
                last_error_ticket=standing.last_error_ticket,
                last=standing.last,
                destination=self._destination.name,
                epoch=self._epoch,
            )

    def made(self) -> Counter[str]:
        """How many of each kind, in this life."""
        with self._changed:
            return Counter(self._standing.made)

    # -- the thread --

    def run(self) -> None:
        """Make checkpoints as they come due, until `end`."""
        while True:
            with self._changed:
                self._wait()
                if self._ending:
                    return
                self._began += 1
                ticket = self._began
                self._standing.ticket = max(self._standing.ticket, ticket)
                full, self._full = self._full, False
                asked, self._asked = self._asked, {}
            self._due_step = self._steps() + self._schedule.every_steps
            # Where nothing has changed the newest one has all of it.
            problem = self._try(ticket, full=full, states=asked, unless_unchanged=not full and not asked)
            with self._changed:
                standing = self._standing
                standing.ended = ticket
                wait_s = self._schedule.every_s
                if problem:
                    standing.failures += 1
                    standing.last_error, standing.last_error_ticket = problem, ticket
                    wait_s = min(wait_s, _AFTER_FAILURE_S) if wait_s else 0.0
                self._due_at = self._clock() + wait_s if wait_s else float("inf")
                self._changed.notify_all()

    def end(self) -> None:
        """Let `run` return; an attempt under way goes on in its thread until the process ends."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def wait(self, ticket: int, timeout_s: float) -> bool:
        """Whether the attempt has ended within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._standing.ended >= ticket, timeout_s)

    def _wait(self) -> None:
        """Until an attempt is due, or `end`."""
        while not self._ending and self._standing.ticket <= self._began:
            now = self._clock()
            every_steps = self._schedule.every_steps
            if now >= self._due_at or (every_steps and self._steps() >= self._due_step):
                return
            self._changed.wait(min(self._due_at - now, _STEPS_EVERY_S if every_steps else 3600.0))

    def _try(self, ticket: int, *, full: bool, states: dict[int, _State], unless_unchanged: bool) -> str:
        """One attempt; why it failed, or ""."""
        try:
            self._attempt(ticket, full=full, states=states, unless_unchanged=unless_unchanged)
            return ""
        except AlreadyThere as error:
            _EVENTS.failure("checkpoint.fenced", error, wanted="to be the only server 0 of the job")
            self._fenced()
            return str(error)
        except (TablebayError, StorageError, OSError) as error:
            _EVENTS.warning("checkpoint.failed", ticket=ticket, cause=str(error))
            return f"{error}"
        except Exception as error:  # noqa: BLE001 - the next attempt may do better, and the log says more
            _EVENTS.failure("checkpoint.failed", error, ticket=ticket)
            return f"{type(error).__name__}: {error}"

    def _attempt(self, ticket: int, *, full: bool, states: dict[int, _State], unless_unchanged: bool) -> None:
        began = self._clock()
        number = self._number + 1
        name = self._destination.begin_attempt(number)
        request = tablebay_pb2.CutRequest(
            number=number, attempt=name, coordinator_epoch=self._epoch, full=full
        )
        try:
            held = self._phase(request, "Hold", PHASE_S)
            if unless_unchanged and not any(answer.changed for answer in held):
                self._phase(request, "Abandon", PHASE_S)
                self._destination.remove_attempt(name)
                with self._changed:
                    if self._standing.last is not None:
                        # It answers those who asked for this one.
                        self._standing.last.ticket = ticket
                return
            request.limits.extend(_highest(held))
            taken = self._phase(request, "Take", PHASE_S)
            del request.limits[:]
            state_files = self._write_states(name, states)
            written = self._until_written(request, began + self._schedule.timeout_s)
            manifest = self._manifest(number, written, taken, states, state_files)
            self._require_newest_lives(manifest.servers)
            failpoint("commit.before_manifest")
            self._destination.publish(manifest)
            failpoint("commit.after_manifest")
        except Uncertain:
            # Who reads may find it from now on, so its number is taken and its files stay; but nobody is told that
            # it is durable, and every server's next cut is full.
            self._number = number
            self._abandon(request, keep_files=True)
            raise
        except BaseException:
            self._abandon(request)
            raise
        self._number = number
        self._newest = manifest
        pause_s = max(answer.pause_seconds for answer in taken)
        committed = _committed(manifest)
        committed.ticket = ticket
        committed.seconds = self._clock() - began
        committed.pause_seconds = pause_s
        try:
            self._phase(request, "Commit", PHASE_S)
        except CheckpointFailed as error:
            # It is complete; a server that did not hear of it is gone, or says later what is durable.
            _EVENTS.warning("checkpoint.commit_not_heard", number=number, cause=str(error))
        # Not sooner: who is told that it is made asks each server what is durable, and would have it made again.
        with self._changed:
            self._standing.last = committed
            self._standing.made[manifest.kind] += 1
        _EVENTS.info(
            "checkpoint.complete",
            number=number,
            kind=manifest.kind,
            aligned=manifest.aligned,
            rows=committed.rows,
            bytes=committed.bytes,
            pause_ms=round(1000 * pause_s, 1),
            seconds=round(committed.seconds, 3),
        )
        remove_unneeded(self._destination, self._schedule.retain_last)

    def _phase(
        self, request: tablebay_pb2.CutRequest, phase: str, timeout_s: float
    ) -> list[tablebay_pb2.CutResponse]:
        request.phase = phase
        return self._peers.cut(request, timeout_s)

    def _until_written(self, request: tablebay_pb2.CutRequest, end: float) -> list[tablebay_pb2.CutResponse]:
        waits = poll_waits()
        while True:
            answers = self._phase(request, "Written", PHASE_S)
            if all(answer.written for answer in answers):
                return answers
            if self._clock() > end:
                late = [index for index, answer in enumerate(answers) if not answer.written]
                raise CheckpointFailed(
                    f"servers {late} had not written their files within {self._schedule.timeout_s:g} s"
                )
            time.sleep(next(waits))

    def _abandon(self, request: tablebay_pb2.CutRequest, *, keep_files: bool = False) -> None:
        steps: list[Callable[[], object]] = [lambda: self._phase(request, "Abandon", PHASE_S)]
        if not keep_files:
            steps.append(lambda: self._destination.remove_attempt(request.attempt))
        for what in steps:
            try:
                what()
            except (TablebayError, StorageError, OSError) as error:
                _EVENTS.warning("checkpoint.abandon_failed", number=request.number, cause=str(error))

    def _require_newest_lives(self, servers: Sequence[ServerEntry]) -> None:
        """A server that was replaced since it cut restored something older than this checkpoint would say."""
        for entry in servers:
            newest = self._destination.newest_epoch(entry.index)
            if entry.index == 0 and newest > self._epoch:
                raise AlreadyThere(f"server 0 has begun life {newest}, and this is life {self._epoch}")
            if newest != entry.epoch:
                raise CheckpointFailed(
                    f"server {entry.index} has cut in its life {entry.epoch}, and its life {newest} has begun"
                )

    # -- states and the manifest --

    def put_state(self, request: tablebay_pb2.PutStateRequest, bytes_max: int) -> None:
        """Keep a part of a worker's state. Raises TablebayError where parts do not follow each other."""
        key = (request.client_high, request.client_low, request.state)
        with self._changed:
            for old in [known for known in self._states if known[:2] == key[:2] and known != key]:
                del self._states[old]
            state = self._states.setdefault(key, _State(request.step))
            content = state.entries.setdefault(request.name, bytearray())
            if request.offset + len(request.data) <= len(content):
                return
            if request.offset != len(content):
                raise CheckpointFailed(
                    f"state: '{request.name}': a part at {request.offset}, and {len(content)} bytes have come"
                )
            held = sum(len(one) for other in self._states.values() for one in other.entries.values())
            if held + len(request.data) > bytes_max:
                raise CheckpointFailed(
                    f"state: '{request.name}': {held + len(request.data)} bytes of states, wanted at most "
                    f"{bytes_max}"
                )
            content += request.data

    def take_state(self, client: tuple[int, int], name: str) -> _State:
        """What was sent under a name. Raises CheckpointFailed where it was not, or to an earlier life."""
        with self._changed:
            state = self._states.pop((*client, name), None)
        if state is None:
            raise CheckpointFailed(
                "the state that goes with the checkpoint is not here; it must be sent again"
            )
        return state

    def _write_states(self, attempt: str, states: dict[int, _State]) -> dict[int, dict[str, StateEntry]]:
        return {
            rank: {
                name: self._destination.write_state(attempt, rank, number, content)
                for number, (name, content) in enumerate(state.entries.items())
            }
            for rank, state in states.items()
        }

    def _manifest(
        self,
        number: int,
        written: Sequence[tablebay_pb2.CutResponse],
        taken: Sequence[tablebay_pb2.CutResponse],
        states: dict[int, _State],
        state_files: dict[int, dict[str, StateEntry]],
    ) -> Manifest:
        contents = [json.loads(answer.link) for answer in written]
        servers = tuple(ServerEntry.from_json(content["server"]) for content in contents)
        tables: dict[int, TableEntry] = {}
        for content in contents:
            for item in content["tables"]:
                entry = TableEntry.from_json(item)
                tables.setdefault(entry.id, entry)
        workers: dict[int, WorkerEntry] = {}
        for content in contents:
            for item in content["workers"]:
                worker = WorkerEntry.from_json(item)
                known = workers.get(worker.rank)
                if known is None or worker.next_step < known.next_step:
                    workers[worker.rank] = worker
        for older in self._newest.workers:
            # A state stays until another takes its place, though its worker may not have come since.
            if older.state:
                worker = workers.get(older.rank, older)
                workers[older.rank] = replace(worker, state=older.state, state_step=older.state_step)
        for rank, files in state_files.items():
            before = workers.get(rank, WorkerEntry(rank=rank, next_step=states[rank].step, cursor=b""))
            workers[rank] = replace(before, state=files, state_step=states[rank].step)
        full = all(entry.chain[-1].parent is None for entry in servers)
        return Manifest(
            number=number,
            kind="Full" if full else "Delta",
            job=self._job,
            generation=self._generation,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            version=VERSION,
            aligned=all(answer.aligned for answer in taken),
            servers=servers,
            tables=tuple(tables[id] for id in sorted(tables)),
            workers=tuple(workers[rank] for rank in sorted(workers)),
            run=self._destination.run,
        )


def _highest(held: Sequence[tablebay_pb2.CutResponse]) -> list[tablebay_pb2.ClientStep]:
    highest: dict[tuple[int, int], int] = {}
    for answer in held:
        for one in answer.begun:
            client = (one.client_high, one.client_low)
            highest[client] = max(highest.get(client, 0), one.next)
    return [
        tablebay_pb2.ClientStep(client_high=high, client_low=low, next=following)
        for (high, low), following in highest.items()
    ]


def _committed(manifest: Manifest) -> tablebay_pb2.CommittedCheckpoint:
    newest = [file for server in manifest.servers for link in server.chain[-1:] for file in link.files]
    return tablebay_pb2.CommittedCheckpoint(
        number=manifest.number,
        kind=manifest.kind,
        created=datetime.datetime.fromisoformat(manifest.created).timestamp(),
        bytes=sum(file.bytes for file in newest),
        rows=sum(file.rows for file in newest),
        aligned=manifest.aligned,
    )
