"""A table in this process whose rule, or first rows, are a function of the caller's: the slow path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from tablebay.client.arrays import Keys, Rows
from tablebay.client.base_table import BaseTable
from tablebay.client.errors import BadRequest, BadType, NonFinite
from tablebay.client.evictions import Some
from tablebay.client.local_table import Table
from tablebay.client.tables import DIM_MAX, Add, TableSpec, Zeros

Update = Callable[[Rows, Rows, dict[str, Rows]], None]
Initialize = Callable[[Keys], Rows]


class PythonTable(BaseTable):
    """The interface of tb.Table, with an update rule in Python: to try one out.

    update: called once for each push, as update(weights, gradients, state), after gradients of a key that repeats were
        summed in order: float32 arrays of shape (n, dim), of n different keys, and a dict of such an array for each of
        `slots`. It changes weights and state in place, and returns None. What it raises, push raises, and nothing has
        changed then.
    slots: the optimizer's state by name, and the number that each begins with.
    initialize: of keys, uint64 (n,): the float32 rows (n, dim) that they begin with; zeros without it. It should be a
        function of the keys alone, as it is called again for a key that has no row yet.

    A gradient, a first row, or a row after its update, with NaN or infinity is NonFinite, and changes nothing. The
    functions run under the table's lock. Servers run no such function: what it is kept for must become an optimizer of
    theirs (docs/decisions/0008-optimizers-and-admission.md). `spec` has Add and Zeros, as the functions have no name.
    """

    def __init__(
        self,
        dim: int,
        update: Update,
        *,
        slots: Mapping[str, float] | None = None,
        initialize: Initialize | None = None,
        name: str = "table",
    ) -> None:
        slots = dict(slots or {})
        if "step" in slots:
            raise BadRequest(
                f"table '{name}': a slot is called 'step', which is a count of updates; wanted another name"
            )
        super().__init__(TableSpec(name, dim, optimizer=Add(), initializer=Zeros()), tuple(slots))
        if dim * (1 + len(slots)) > DIM_MAX:
            raise BadRequest(
                f"table '{name}': dim {dim} with {len(slots)} slots has {dim * (1 + len(slots))} numbers a row, "
                f"wanted at most {DIM_MAX}"
            )
        for what, function in (("update", update), ("initialize", initialize)):
            if function is not None and not callable(function):
                raise BadType(f"table '{name}': {what} is {type(function).__name__}, wanted a function")
        self._update = update
        self._initialize = initialize
        self._begin = np.repeat(np.array(list(slots.values()), np.float32), dim)
        # Weights and state of a key in one row, so that no other thread sees one without the other.
        self._whole = Table(dim * (1 + len(slots)), Add(), Zeros(), name=name, non_finite="Allow")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._whole)

    def _first(self, keys: Keys) -> Rows:
        """Weights and state that keys begin with."""
        rows = np.zeros((len(keys), self._whole.dim), np.float32)
        rows[:, self.dim :] = self._begin
        if self._initialize is not None and len(keys):
            first = self._initialize(keys.copy())
            wanted = (len(keys), self.dim)
            if not isinstance(first, np.ndarray) or first.dtype != np.float32 or first.shape != wanted:
                found = (
                    f"{first.dtype} {first.shape}" if isinstance(first, np.ndarray) else type(first).__name__
                )
                raise BadType(f"table '{self.name}': initialize gave {found}, wanted float32 {wanted}")
            rows[:, : self.dim] = first
            self._require_finite(keys, first, "a first row")
        return rows

    def _rows(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """Weights and state of keys, each named once: what they have or would begin with, and which have some."""
        there = self._whole.contains(keys)
        rows: Rows = self._whole.pull(keys, create=False)
        rows[~there] = self._first(keys[~there])
        return rows, there

    def _require_finite(self, keys: Keys, rows: Rows, what: str) -> None:
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise NonFinite(
                f"table '{self.name}': {what} of key {keys[bad][0]} has a NaN or an infinity; wanted finite numbers"
            )

    def _pull(self, keys: Keys, rows: Rows, create: bool) -> None:
        unique, inverse = np.unique(keys, return_inverse=True)
        with self._lock:
            if create:
                whole, there = self._rows(unique)
                self._whole.assign(unique[~there], whole[~there])
            else:
                whole = self._whole.pull(unique, create=False)
        rows[:] = whole[inverse, : self.dim]

    def _push(self, keys: Keys, gradients: Rows, counts: Rows | None = None) -> None:
        unique, inverse = np.unique(keys, return_inverse=True)
        summed = np.zeros((len(unique), self.dim), np.float32)
        np.add.at(summed, inverse, gradients)
        self._require_finite(unique, summed, "the gradient")
        with self._lock:
            rows, _ = self._rows(unique)
            parts = [
                np.ascontiguousarray(part) for part in np.split(rows, 1 + len(self._state_names), axis=1)
            ]
            state = dict(zip(self._state_names, parts[1:], strict=True))
            result: object = self._update(parts[0], summed, state)
            if result is not None:
                raise BadType(
                    f"table '{self.name}': update returned {type(result).__name__}, wanted None: it changes weights "
                    "and state in place"
                )
            rows = np.concatenate(parts, axis=1)
            self._require_finite(unique, rows, "the row")
            self._whole.assign(unique, rows)

    def _assign(self, keys: Keys, rows: Rows) -> None:
        # Of a key that repeats the last row counts.
        unique, last = np.unique(keys[::-1], return_index=True)
        with self._lock:
            whole, _ = self._rows(unique)
            whole[:, : self.dim] = rows[::-1][last]
            self._whole.assign(unique, whole)

    def _delete(self, keys: Keys) -> None:
        with self._lock:
            self._whole.delete(keys)

    def _contains(self, keys: Keys) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self._whole.contains(keys)
        return found

    def _state(self, keys: Keys) -> NDArray[np.uint8]:
        there = self._whole.contains(keys)
        state = self._whole.pull(keys, create=False)[:, self.dim :]
        state[~there] = self._begin
        return np.ascontiguousarray(state).view(np.uint8)

    def _evict(self) -> int:
        return 0  # never asked: the spec has no eviction

    # Never asked, any of these: the spec has no eviction.
    def _shows(self, keys: Keys) -> NDArray[np.float32]:
        return np.zeros((keys.size, 2), np.float32)

    def _decay(self, epoch: int) -> bool:
        return False

    def _servers(self) -> int:
        return 1

    def _evicted(self, server: int, epoch: int, position: int, most: int) -> Some:
        return Some(1, 0, b"", b"", b"", ())

    def _set(self, values: dict[str, float]) -> None:
        raise BadRequest(
            f"table '{self.name}': its update is a function, which has no {' and no '.join(values)} of the table"
        )

    def _items(self, batch: int) -> Iterator[tuple[Keys, Rows]]:
        for keys, rows in self._whole.items(batch):
            yield keys, np.ascontiguousarray(rows[:, : self.dim])
