"""A table that the servers hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.arrays import Keys, Rows, as_keys, as_out
from tablebay.client.base_table import BaseTable
from tablebay.client.evictions import Some
from tablebay.client.native import native
from tablebay.client.proto import tablebay_pb2
from tablebay.client.session import Part, PushPart, Session
from tablebay.client.tables import DAYS_DIM, TableSpec
from tablebay.native import _core

# A push mostly follows a pull of the same keys: their plan is kept, up to this size.
_PLAN_KEYS_MAX = 1_000_000


class RemoteTable(BaseTable):
    """Made by `client.table(...)`. Each push, assign and delete is a step of its own; see docs/sdk.md."""

    def __init__(self, session: Session, spec: TableSpec, message: tablebay_pb2.Table) -> None:
        super().__init__(spec, message.state_names)
        self._session = session
        self._table_id = message.table_id
        self._row_bytes = message.row_bytes
        self._state_bytes = message.state_bytes
        self._last_plan: _core.Plan | None = None

    @property
    def session(self) -> Session:
        """The conversation that this table's client has."""
        return self._session

    def __len__(self) -> int:
        rows = 0
        for stats in self._session.stats():
            found = [table.rows for table in stats.tables if table.spec.name == self.name]
            if not found:
                raise errors.NotRegistered(f"table '{self.name}': a server does not have it any more")
            rows += found[0]
        return rows

    def plan(self, keys: Keys) -> _core.Plan:
        """Where each key goes. The last plan is kept, so that a push after a pull need not plan again."""
        last = self._last_plan
        if last is not None and last.is_of(keys):
            return last
        plan: _core.Plan = native(self._session.router.plan, keys)
        if keys.size <= _PLAN_KEYS_MAX:
            self._last_plan = plan
        return plan

    def pull_part(self, keys: Any, out: Any = None, create: bool = True) -> tuple[Part, Rows]:
        """A pull of `keys` as a part of a call, and the array, keys.shape + (dim,), that the call fills."""
        flat, shape = as_keys(keys, self.name)
        rows = (
            self.new_rows(shape) if out is None else as_out(out, self.name, self._dtype, (*shape, self.dim))
        )
        flags = 0 if create else _core.READ_ONLY
        return (self._table_id, self.dim, self._row_bytes, flags, self.plan(flat), rows), rows

    def push_part(self, keys: Any, gradients: Any, counts: Any = None) -> PushPart:
        """A push as a part of a call."""
        flat, shape = as_keys(keys, self.name)
        rows = self.rows_of(gradients, "gradients", flat, shape)
        return self._push_part(flat, rows, None if counts is None else self.counts_of(counts, shape))

    def _push_part(self, keys: Keys, gradients: Rows, counts: Rows | None) -> PushPart:
        part = (self._table_id, self.dim, self._row_bytes, 0, self.plan(keys), gradients)
        return part if counts is None else (*part, counts)

    def _pull(self, keys: Keys, rows: Rows, create: bool) -> None:
        session = self._session
        session.check()
        if keys.size:
            began = session.pace.clock()
            flags = 0 if create else _core.READ_ONLY
            part = (self._table_id, self.dim, self._row_bytes, flags, self.plan(keys), rows)
            session.pull([part], session.deadline())
            session.pull_latency.record(session.pace.clock() - began)

    def _push(self, keys: Keys, gradients: Rows, counts: Rows | None = None) -> None:
        self._session.push([self._push_part(keys, gradients, counts)])

    def _assign(self, keys: Keys, rows: Rows) -> None:
        self._session.push([(self._table_id, self.dim, self._row_bytes, _core.ASSIGN, self.plan(keys), rows)])

    def _delete(self, keys: Keys) -> None:
        self._session.push([(self._table_id, self.dim, 0, _core.DELETE, self.plan(keys), None)])

    def _contains(self, keys: Keys) -> NDArray[np.bool_]:
        found = np.empty(keys.shape, np.uint8)
        self._read(keys, found, 1, _core.CONTAINS)
        return found.view(np.bool_)

    def _state(self, keys: Keys) -> NDArray[np.uint8]:
        state = np.empty((keys.size, self._state_bytes), np.uint8)
        self._read(keys, state, self._state_bytes, _core.STATE)
        return state

    def _shows(self, keys: Keys) -> NDArray[np.float32]:
        shows = np.empty((keys.size, 2), np.float32)
        self._read(keys, shows, shows.itemsize * 2, _core.SHOWS)
        return shows

    def _decay(self, epoch: int) -> bool:
        # A step as any other: applied once on each shard, in checkpoints, sent again to a server that comes back.
        spec = self.spec.days()
        assert spec is not None
        table_id, row_bytes = _core.table_id(spec.name), DAYS_DIM * 8
        keys = _core.shard_keys()
        plan: _core.Plan = native(self._session.router.plan, keys)
        rows = np.zeros((keys.size, DAYS_DIM), np.int64)
        self._session.check()
        self._session.pull(
            [(table_id, DAYS_DIM, row_bytes, _core.READ_ONLY, plan, rows)], self._session.deadline()
        )
        if ((rows[:, 1] > 0) & (rows[:, 0] >= epoch)).all():
            return False
        rows[:] = (epoch, 0)
        self._session.push([(table_id, DAYS_DIM, row_bytes, 0, plan, rows)])
        return True

    def _read(self, keys: Keys, out: NDArray[Any], row_bytes: int, flags: int) -> None:
        self._session.check()
        if keys.size:
            part = (self._table_id, self.dim, row_bytes, flags, self.plan(keys), out)
            self._session.pull([part], self._session.deadline())

    def _evict(self) -> int:
        timeout = self._session.timeout
        evicted = 0
        for server in range(len(self._session.transport.addresses)):
            stripe = 0
            while stripe < _core.STRIPES:
                answer = self._evict_some(server, stripe, timeout)
                evicted += answer.evicted
                stripe = answer.next_stripe
        return evicted

    def _evict_some(self, server: int, stripe: int, timeout: float) -> tablebay_pb2.EvictResponse:
        return self._session.speak(lambda control: control.evict(server, self.name, stripe, timeout))

    def _servers(self) -> int:
        return len(self._session.transport.addresses)

    def _evicted(self, server: int, epoch: int, position: int, most: int) -> Some:
        timeout = self._session.timeout
        answer = self._session.speak(
            lambda control: control.evicted(server, self.name, epoch, position, most, timeout)
        )
        return Some(
            answer.epoch, answer.first, answer.keys, answer.times, answer.reasons, tuple(answer.reason_names)
        )

    def _set(self, values: dict[str, float]) -> None:
        timeout = self._session.timeout
        self._session.speak(lambda control: control.update_table(self.name, values, timeout))

    def _items(self, batch: int) -> Iterator[tuple[Keys, Rows]]:
        # A server that restarts in the middle would look like one that has few rows.
        self._session.stats()
        for server in range(len(self._session.transport.addresses)):
            yield from self._items_of(server, batch)
        self._session.stats()

    def _items_of(self, server: int, batch: int) -> Iterator[tuple[Keys, Rows]]:
        position = 0
        while True:
            answer = self._scan(server, position, batch)
            if answer.keys:
                keys = np.frombuffer(answer.keys, np.uint64)
                yield keys, np.frombuffer(answer.rows, self._dtype).reshape(-1, self.dim)
            position = answer.position
            if position == 0:
                return

    def _scan(self, server: int, position: int, batch: int) -> tablebay_pb2.ScanResponse:
        timeout = self._session.timeout
        return self._session.speak(lambda control: control.scan(server, self.name, position, batch, timeout))
