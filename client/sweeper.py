"""Sweeps tables in the background: removes the rows that their eviction names, each table as often as it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tablebay.native import _core

# Of a sweep, between two looks at whether to stop. A stripe is swept whole.
_TURN_S = 0.1


def sweep(store: _core.Store, table_id: int, go_on: Callable[[], bool] = lambda: True) -> tuple[int, int]:
    """Look at every row of a table, and remove those that leave: (rows looked at, rows evicted).

    go_on: asked now and then; where it says no, the rest is left to another sweep. Raises StatusError.
    """
    looked_at, evicted, stripe = 0, 0, 0
    while stripe < _core.STRIPES and go_on():
        looked, left, stripe = store.evict(table_id, stripe, _TURN_S)
        looked_at += looked
        evicted += left
    return looked_at, evicted


class Sweeper:
    """A thread, from the first table that is added until close. Safe in threads.

    clock: seconds; what `every_s` is counted by. told: of each sweep that evicted rows, or failed: the table's
    name, rows evicted, the error or None. thread: False for a caller that asks
    `sweep_due` itself.
    """

    def __init__(
        self,
        store: _core.Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[str, int, Exception | None], None] | None = None,
        thread: bool = True,
    ) -> None:
        self._store = store
        self._clock = clock
        self._told = told
        self._changed = threading.Condition()
        self._tables: dict[int, tuple[str, int, int]] = {}
        self._due: dict[int, float] = {}
        self._closed = False
        self._threaded = thread
        self._thread: threading.Thread | None = None

    def add(self, name: str, table_id: int, every_s: int, day_s: int = 0) -> None:
        """Sweep this table every so many seconds, for the first time after as many. Again: as if it were new.

        day_s: above 0, its shows decay once for each so many seconds of Unix time; which is seen to before a sweep.
        """
        with self._changed:
            self._tables[table_id] = (name, every_s, day_s)
            self._due[table_id] = self._clock() + every_s
            if self._threaded and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="evict", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def sweep_due(self) -> float | None:
        """Sweep the tables whose time has come; seconds until the next one's, or None where there is no table."""
        with self._changed:
            due = [table_id for table_id, at in self._due.items() if at <= self._clock()]
        for table_id in due:
            name, every_s, day_s = self._tables[table_id]
            evicted, error = 0, None
            try:
                if day_s:
                    self._store.decay(table_id, self._store.now() // day_s)
                _, evicted = sweep(self._store, table_id, lambda: not self._closed)
            except (_core.StatusError, MemoryError) as found:
                # Such as no memory for what a checkpoint under way keeps: the next sweep may find some.
                error = found
            if self._told is not None and (evicted or error is not None):
                self._told(name, evicted, error)
            with self._changed:
                self._due[table_id] = self._clock() + every_s
        with self._changed:
            return None if not self._due else max(0.0, min(self._due.values()) - self._clock())

    def close(self) -> None:
        """End; a sweep under way stops soon."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            wait = self.sweep_due()
            with self._changed:
                if not self._closed:
                    self._changed.wait(wait)
                if self._closed:
                    return
