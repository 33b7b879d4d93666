"""A server's side of a checkpoint: it holds steps, cuts, writes what it cut, and learns what became of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tablebay.client.checkpoint.manifest import Link, ServerEntry, WorkerEntry
from tablebay.client.errors import BadRequest, CheckpointFailed
from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.checkpoint.save import CutFiles
from tablebay.ps_server.telemetry import Events

# A hold ends by itself after this long, whatever becomes of the coordinator.
HOLD_S = 3.0
# For how long a cut waits for steps that some server has begun to come here as well.
ALIGN_S = 1.0
# For how long an attempt given up is waited for: who still writes would make its directory anew.
GIVE_UP_S = 2.0

_EVENTS = Events(__name__)


class Rows(Protocol):
    """What a participant needs of the rows' side: _core.Store."""

    @property
    def must_be_full(self) -> bool:
        """Whether no delta can be cut: nothing was committed before, or an attempt failed."""

    def hold(self, seconds: float) -> list[tuple[int, int, int]]:
        """Begin no step of a ranked client for so long: each one's highest step begun + 1."""

    def release(self) -> None:
        """End the hold."""

    def take(self, limits: Sequence[tuple[int, int, int]], wait_s: float, full: bool) -> Any:
        """Let steps below the limits through, and cut."""

    def counters(self) -> dict[str, int]:
        """What the native core counts."""


class Participant:
    """One server's. Safe in threads; one attempt at a time.

    write: writes the files of a cut into an attempt's directory; in a thread of this object's.
    full_every: a chain of so many links is followed by a full one. chain: what was restored.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        index: int,
        epoch: int,
        owners: Sequence[int],
        write: Callable[[Any, int, str, int | None], CutFiles],
        full_every: int,
        chain: Sequence[Link] = (),
    ) -> None:
        self._rows = rows
        self._index = index
        self._epoch = epoch
        self._owners = owners
        self._write = write
        self._full_every = full_every
        self._lock = threading.Lock()
        self._chain = tuple(chain)
        self._attempt: _Attempt | None = None
        self._changes = self._counted() if chain else None

    @property
    def chain(self) -> tuple[Link, ...]:
        """Of the newest committed checkpoint, or of the one restored."""
        return self._chain

    def handle(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        """Answer one phase. Raises BadRequest where it does not follow, CheckpointFailed."""
        phases: Mapping[str, Callable[[tablebay_pb2.CutRequest], tablebay_pb2.CutResponse]] = {
            "Greet": lambda _: tablebay_pb2.CutResponse(changed=self.changed()),
            "Hold": self._hold,
            "Take": self._take,
            "Written": self._written,
            "Commit": self._commit,
            "Abandon": self._abandon,
        }
        phase = phases.get(request.phase)
        if phase is None:
            raise BadRequest(
                f"Cut: found the phase '{request.phase[:40]}', wanted one of {', '.join(phases)}"
            )
        with self._lock:
            answer = phase(request)
        answer.epoch = self._epoch
        return answer

    def changed(self) -> bool:
        """Whether anything has changed since the last cut that was committed."""
        return self._changes is None or self._counted() != self._changes

    def _counted(self) -> tuple[int, ...]:
        counters = self._rows.counters()
        names = ("pushes", "steps", "pushes_applied", "rows_created", "rows_deleted", "tables_loaded")
        return tuple(counters.get(name, 0) for name in names)

    def _hold(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        begun = self._rows.hold(HOLD_S)
        return tablebay_pb2.CutResponse(
            changed=self.changed(),
            begun=[
                tablebay_pb2.ClientStep(client_high=high, client_low=low, next=following)
                for high, low, following in begun
            ],
        )

    def _take(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        if self._attempt is not None:
            # Its coordinator is gone, or has given it up without being able to say so.
            self._give_up(self._attempt, "another attempt begins")
        full = request.full or self._rows.must_be_full or not 0 < len(self._chain) < self._full_every
        limits = [(one.client_high, one.client_low, one.next) for one in request.limits]
        changes = self._counted()
        cut = self._rows.take(limits, ALIGN_S, full)
        parent = None if full else self._chain[-1].number
        self._attempt = _Attempt(request.number, request.attempt, cut, parent, changes, self._write)
        return tablebay_pb2.CutResponse(aligned=cut.aligned, pause_seconds=cut.pause_s)

    def _written(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        attempt = self._current(request)
        if not attempt.ended:
            return tablebay_pb2.CutResponse(written=False)
        files = attempt.result()
        link = Link(request.number, request.attempt, attempt.parent, tuple(files.files))
        # Steps are whole in each cut, so those of earlier links are needed no more.
        before = () if attempt.parent is None else map(Link.without_steps, self._chain)
        attempt.chain = (*before, link)
        entry = ServerEntry(self._index, self._epoch, tuple(self._owners), attempt.chain)
        content = {
            "server": entry.to_json(),
            "tables": [table.to_json() for table in files.tables],
            "workers": [worker.to_json() for worker in _workers(attempt.cut)],
        }
        return tablebay_pb2.CutResponse(written=True, link=json.dumps(content))

    def _commit(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        attempt = self._current(request)
        attempt.cut.commit()
        self._chain = attempt.chain
        self._changes = attempt.changes
        self._attempt = None
        return tablebay_pb2.CutResponse()

    def _abandon(self, request: tablebay_pb2.CutRequest) -> tablebay_pb2.CutResponse:
        self._rows.release()
        if self._attempt is not None and self._attempt.name == request.attempt:
            attempt = self._attempt
            self._give_up(attempt, "the coordinator gave it up")
            attempt.wait(GIVE_UP_S)
        return tablebay_pb2.CutResponse()

    def _give_up(self, attempt: _Attempt, why: str) -> None:
        attempt.abandon()
        self._attempt = None
        _EVENTS.info("checkpoint.abandoned", number=attempt.number, why=why)

    def _current(self, request: tablebay_pb2.CutRequest) -> _Attempt:
        if self._attempt is None or self._attempt.name != request.attempt:
            raise BadRequest(
                f"{request.phase}: attempt {request.attempt[:80]} is not under way on server {self._index}"
            )
        return self._attempt


class _Attempt:
    """A cut being written."""

    def __init__(
        self,
        number: int,
        name: str,
        cut: Any,
        parent: int | None,
        changes: tuple[int, ...],
        write: Callable[[Any, int, str, int | None], CutFiles],
    ) -> None:
        self.number = number
        self.name = name
        self.cut = cut
        self.parent = parent
        self.changes = changes
        self.chain: tuple[Link, ...] = ()
        self._files: CutFiles | None = None
        self._error: BaseException | None = None
        self._write = write
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the files are written, or cannot be."""
        return self._files is not None or self._error is not None

    def result(self) -> CutFiles:
        """The files. Raises CheckpointFailed."""
        if self._error is not None:
            raise CheckpointFailed(f"{type(self._error).__name__}: {self._error}") from self._error
        assert self._files is not None
        return self._files

    def abandon(self) -> None:
        """Stop writing. The copier finds no more rows, and ends."""
        self.cut.abandon()

    def wait(self, seconds: float) -> None:
        """Until nothing is written any more, or so long: a disk may not answer at all."""
        self._thread.join(seconds)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._files = self._write(self.cut, self.number, self.name, self.parent)
        except BaseException as error:  # noqa: BLE001 - told to the coordinator, who asks
            self._error = error
            _EVENTS.warning("checkpoint.not_written", number=self.number, cause=str(error))
            return
        _EVENTS.info(
            "checkpoint.written",
            number=self.number,
            rows=sum(file.rows for file in self._files.files),
            bytes=sum(file.bytes for file in self._files.files),
            seconds=round(time.monotonic() - began, 3),
        )


def _workers(cut: Any) -> list[WorkerEntry]:
    return [
        WorkerEntry(rank=rank, next_step=next_step, cursor=cursor)
        for _, _, rank, next_step, cursor in cut.clients
        if rank is not None
    ]
