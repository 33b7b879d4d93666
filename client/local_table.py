"""A table in this process: the interface of a remote one, without servers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client.arrays import Keys, Rows
from tablebay.client.base_table import BaseTable
from tablebay.client.evictions import Some
from tablebay.client.native import native
from tablebay.client.sweeper import Sweeper, sweep
from tablebay.client.tables import Dtype, Eviction, Initializer, NonFinite, Optimizer, PushMissing, TableSpec
from tablebay.native import _core


class Table(BaseTable):
    """A table in this process, with the same rows, bit for bit, as a remote one of the same spec.

    name: part of what new rows are drawn from, beside `seed`, key and column.
    """

    def __init__(
        self,
        dim: int,
        optimizer: Optimizer | None = None,
        initializer: Initializer | None = None,
        seed: int = 0,
        dtype: Dtype = "float32",
        name: str = "table",
        non_finite: NonFinite = "Reject",
        push_missing: PushMissing = "Create",
        admit_at: int = 1,
        admit_probability: float = 1.0,
        admit_filter_keys: int = 0,
        eviction: Eviction | None = None,
    ) -> None:
        given: dict[str, Any] = {"optimizer": optimizer, "initializer": initializer}
        given = {field: value for field, value in given.items() if value is not None}
        spec = TableSpec(
            name=name,
            dim=dim,
            dtype=dtype,
            seed=seed,
            non_finite=non_finite,
            push_missing=push_missing,
            admit_at=admit_at,
            admit_probability=admit_probability,
            admit_filter_keys=admit_filter_keys,
            eviction=eviction,
            **given,
        )
        self._store = _core.Store()
        for companion in spec.companions():
            native(self._store.create_table, *companion.arguments())
        self._table_id: int = native(
            self._store.create_table,
            *spec.arguments(),
        )
        if eviction is not None:
            sweeper = Sweeper(self._store)
            sweeper.add(name, self._table_id, eviction.every_seconds, eviction.decay_every_seconds)
            # The thread keeps the rows, but not this table.
            weakref.finalize(self, sweeper.close)
        super().__init__(spec, self._store.table_info(self._table_id)["state_names"])

    def __len__(self) -> int:
        return int(self._store.table_info(self._table_id)["rows"])

    def _pull(self, keys: Keys, rows: Rows, create: bool) -> None:
        native(self._store.pull, self._table_id, keys, rows, create)

    def _push(self, keys: Keys, gradients: Rows, counts: Rows | None = None) -> None:
        native(self._store.push, self._table_id, keys, gradients, False, counts)

    def _assign(self, keys: Keys, rows: Rows) -> None:
        native(self._store.assign, self._table_id, keys, rows)

    def _delete(self, keys: Keys) -> None:
        native(self._store.delete, self._table_id, keys)

    def _contains(self, keys: Keys) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = native(self._store.contains, self._table_id, keys)
        return found

    def _state(self, keys: Keys) -> NDArray[np.uint8]:
        state: NDArray[np.uint8] = native(self._store.state, self._table_id, keys)
        return state

    def _evict(self) -> int:
        evicted: int = native(sweep, self._store, self._table_id)[1]
        return evicted

    def _decay(self, epoch: int) -> bool:
        changed: bool = native(self._store.decay, self._table_id, epoch)
        return changed

    def _shows(self, keys: Keys) -> NDArray[np.float32]:
        shows: NDArray[np.float32] = native(self._store.shows, self._table_id, keys)
        return shows

    def _servers(self) -> int:
        return 1

    def _evicted(self, server: int, epoch: int, position: int, most: int) -> Some:
        first, keys, times, reasons = native(self._store.evicted, self._table_id, position, most)
        return Some(1, first, keys, times, reasons, tuple(_core.EVICTION_REASONS))

    def _set(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            native(getattr(self._store, f"set_{name}"), self._table_id, value)

    def _items(self, batch: int) -> Iterator[tuple[Keys, Rows]]:
        position = 0
        while True:
            keys, rows, position = native(self._store.scan, self._table_id, position, batch)
            if keys:
                yield np.frombuffer(keys, np.uint64), np.frombuffer(rows, self._dtype).reshape(-1, self.dim)
            if position == 0:
                return
