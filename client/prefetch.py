"""A pull that runs while the caller computes, and that sees what this client pushes meanwhile, if it is to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.arrays import Rows
from tablebay.client.native import native
from tablebay.client.session import Part, PushPart, Sent, Session
from tablebay.native import _core

# Each holds its rows until result() is called.
PREFETCHES_MAX = 64


class Prefetch:
    """Made by `client.prefetch(...)`; the requests are on their way. Safe in threads.

    send: False leaves it to `receive()`, or `result()`, to send them.
    """

    def __init__(
        self, session: Session, parts: Sequence[Part], rows: list[Rows], refresh: bool, *, send: bool = True
    ) -> None:
        if session.prefetches >= PREFETCHES_MAX:
            raise errors.ResourceExhausted(
                f"{session.prefetches} prefetches have not given their result, wanted fewer than "
                f"{PREFETCHES_MAX}; call result() or cancel() of the earlier ones"
            )
        self._session = session
        self._parts = parts
        self._rows = rows
        self._refresh = refresh
        self._lock = threading.Lock()
        self._received = self._done = False
        self._cancelled = False
        # Keys pushed since the requests were sent, or just before: their rows may be old in the answers.
        self._noted: list[tuple[int, _core.Plan]] = []
        self._under_way: list[Sent] = []
        if not parts:
            self._received = self._done = True
            return
        for pushed in session.register(self):
            self.note(pushed)
        try:
            self._call, self._outgoing = session.pull_requests(parts)
            if send:
                self._under_way = session.send_first(self._outgoing, session.deadline())
        except BaseException:
            session.unregister(self)
            raise

    def note(self, pushed: Sequence[PushPart]) -> None:
        """A push of this client begins."""
        if not self._refresh:
            return
        tables = {part[0] for part in self._parts}
        self._noted += [(part[0], part[4]) for part in pushed if part[0] in tables]

    def result(self) -> list[NDArray[Any]]:
        """The rows, one array for each table in the order of the prefetch's mapping; waits for them.

        With `refresh`, what this client had pushed when result() was called, in this thread or before, is in them.
        Raises as `pull` does; after Unavailable result() may be called again.
        """
        self._session.check()
        if self._refresh and not self._done:
            self._session.settle()
        with self._lock:
            if self._cancelled:
                raise errors.BadRequest("this prefetch has been cancelled; wanted one that has not")
            if not self._done:
                self._receive()
                if self._refresh:
                    self._pull_again()
                self._session.unregister(self)
                self._done = True
            return list(self._rows)

    @property
    def received(self) -> bool:
        """Whether the rows have come, as they were when they were asked for."""
        return self._received

    def receive(self) -> None:
        """Wait for the rows, so that result() has no more to do than to pull what was pushed meanwhile again.

        For a thread that waits for nothing else. Raises as `pull` does, and may then be called again.
        """
        self._session.check()
        with self._lock:
            if not self._cancelled:
                self._receive()

    def _receive(self) -> None:
        if self._received:
            return
        under_way, self._under_way = self._under_way, []
        self._session.deliver(self._outgoing, self._session.deadline(), under_way or None)
        native(self._call.finish)
        self._received = True

    def cancel(self) -> None:
        """Give up the rows."""
        with self._lock:
            if not self._done:
                self._cancelled = True
                self._session.unregister(self)
                for sent in self._under_way:
                    sent.answer.cancel()

    def _pull_again(self) -> None:
        stale = [self._stale(part) for part in self._parts]
        again: list[tuple[Part, Rows, NDArray[np.uint32]]] = []
        for part, rows, positions in zip(self._parts, self._rows, stale, strict=True):
            if positions.size:
                table_id, dim, row_bytes, flags, plan, _ = part
                fresh = np.empty((positions.size, dim), rows.dtype)
                keys = np.ascontiguousarray(plan.keys()[positions])
                fresh_plan = native(self._session.router.plan, keys)
                again.append(((table_id, dim, row_bytes, flags, fresh_plan, fresh), rows, positions))
        if not again:
            return
        self._session.pull([part for part, _, _ in again], self._session.deadline())
        plans = {part[0]: part[4] for part in self._parts}
        for (table_id, _, _, _, _, fresh), rows, positions in again:
            _replace(rows.reshape(-1, rows.shape[-1]), plans[table_id], positions, fresh)

    def _stale(self, part: Part) -> NDArray[np.uint32]:
        """Positions in a part's plan whose keys this client has pushed meanwhile, each once."""
        positions = [part[4].intersect(plan.keys()) for table_id, plan in self._noted if table_id == part[0]]
        return np.unique(np.concatenate(positions)) if positions else np.empty(0, np.uint32)


def _replace(rows: Rows, plan: _core.Plan, positions: NDArray[np.uint32], fresh: Rows) -> None:
    """Write fresh[i] to every row whose key is the plan's key at positions[i]."""
    fresh_of = np.full(plan.unique, -1, np.int64)
    fresh_of[positions] = np.arange(positions.size)
    source = fresh_of[plan.inverse()]
    stale = source >= 0
    rows[stale] = fresh[source[stale]]
