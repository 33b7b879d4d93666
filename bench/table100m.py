"""A table of 100 million rows, and what it was on the way there: `make bench ONLY=table100m`. Needs 17 GB of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import measure
import numpy as np
import workload
from in_process import Limit
from measure import Figure
from workload import CALLS, DIM, KEYS, Keys

from tablebay.native import _core

# Where it is looked at; the last is the end.
MARKS = (2_000_000, 10_000_000, 100_000_000)
ROUNDS = 5
_ODD = np.uint64(0x9E3779B97F4A7C15)


def _keys(first: int, count: int) -> Keys:
    """Distinct keys, the first-th and those after it."""
    return np.arange(first, first + count, dtype=np.uint64) * _ODD


def _pull_rate(store: _core.Store, table: int, rows: int) -> Figure:
    random = np.random.default_rng(1)
    out = np.zeros((KEYS, DIM), np.float32)
    calls = []
    for _ in range(CALLS):
        keys = random.choice(rows, KEYS, replace=False, shuffle=False).astype(np.uint64) * _ODD
        calls.append(partial(store.pull, table, workload.in_shard_order(keys), out, True))
    return _rate(calls)


def _rate(calls: Sequence[Callable[[], object]]) -> Figure:
    """Rows a second of calls of KEYS rows, after all were called once."""
    rates = []
    for turn in range(ROUNDS + 1):
        for call in calls:
            seconds = measure.seconds(call)
            if turn > 0:
                rates.append(KEYS / seconds)
    return measure.figure(rates, "rows/s")


def _gather_rate(folder: Path, rows: int) -> Figure:
    limit = Limit(folder, rows, DIM)
    out = np.zeros((KEYS, DIM), np.float32)
    rate = _rate([partial(limit.gather, at, out) for at in limit.positions])
    limit.close()
    return rate


def run(folder: Path) -> dict[str, Figure]:
    """Figures `table100m.*`, of one thread; `limit.100m.*`, what a gather without an index loses with so many rows."""
    figures = _table()
    # Afterwards, so that all of the table's memory is as new to the machine as its first.
    many, few = (_gather_rate(folder, rows) for rows in (MARKS[-1], MARKS[0]))
    return figures | {
        "limit.100m.gather_rows_per_s": many,
        "limit.100m.gather_over_2m": measure.figure([many.value / few.value], "ratio"),
    }


def _table() -> dict[str, Figure]:
    _core.use_processors(1)
    store, table = workload.new_store()
    out = np.zeros((KEYS, DIM), np.float32)
    before = measure.rss_bytes()
    figures: dict[str, Figure] = {}
    rows = 0
    spent = longest = 0.0
    for mark in MARKS:
        while rows < mark:
            keys = _keys(rows, min(KEYS, mark - rows))
            seconds = measure.seconds(partial(store.pull, table, keys, out[: len(keys)], True))
            spent += seconds
            longest = max(longest, seconds)
            rows += len(keys)
        name = f"table100m.at_{mark // 1_000_000}m"
        figures[f"{name}.bytes_per_row"] = measure.figure([(measure.rss_bytes() - before) / rows], "bytes")
        figures[f"{name}.insert_rows_per_s"] = measure.figure([rows / spent], "rows/s")
        figures[f"{name}.pull_rows_per_s"] = _pull_rate(store, table, rows)
    if store.counters()["rows"] != rows:
        raise SystemExit(f"the table has {store.counters()['rows']} rows after inserting {rows}")
    few, many, all_of_them = (f"table100m.at_{mark // 1_000_000}m" for mark in MARKS)

    def ratio(a: str, b: str) -> Figure:
        return measure.figure([figures[a].value / figures[b].value], "ratio")

    return figures | {
        "table100m.bytes_per_row": figures[f"{all_of_them}.bytes_per_row"],
        "table100m.insert_over_10m": ratio(f"{all_of_them}.insert_rows_per_s", f"{many}.insert_rows_per_s"),
        "table100m.pull_over_2m": ratio(f"{all_of_them}.pull_rows_per_s", f"{few}.pull_rows_per_s"),
        "table100m.longest_call_ms": measure.figure([1e3 * longest], "ms"),
    }
