"""The table by itself, against the same memory traffic without an index: `make bench ONLY=table`."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import calls
import eviction
import measure
import numpy as np
import workload
from measure import Figure
from workload import CALLS, DIM, KEYS, ROWS, Keys

ROUNDS = 8
# Of a row with 16 weights and 16 sums: key and version, then 128 bytes, padded (native/include/tablebay/options.h).
ROW_BYTES = 144
WEIGHTS = 12


def _limits(folder: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(folder / "liblimits.so"))
    pointer, u32, u64, real = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float
    library.limit_map.restype = pointer
    library.limit_map.argtypes = [u64]
    library.limit_gather64.argtypes = [pointer, pointer, u64, u32, u32, pointer]
    library.limit_adagrad16.argtypes = [pointer, pointer, u64, u32, u32, pointer, real, real]
    return library


def run(folder: Path) -> dict[str, Figure]:
    """Figures `table.*`."""
    work = workload.Workload.make()
    store, table = workload.new_store()
    out = np.empty((KEYS, DIM), np.float32)
    before = measure.rss_bytes()
    inserts = [
        measure.seconds(partial(store.pull, table, keys, out[: len(keys)], True)) for keys in work.batches()
    ]
    rows = store.counters()["rows"]
    if rows != ROWS:
        raise SystemExit(f"the table has {rows} rows after inserting {ROWS}")
    figures = {
        "table.insert_rows_per_s": measure.figure([KEYS / s for s in inserts], "rows/s"),
        "table.bytes_per_row": measure.figure([(measure.rss_bytes() - before) / rows], "bytes"),
    }

    limits = _limits(folder)
    memory = limits.limit_map(ROWS * ROW_BYTES)
    random = np.random.default_rng(1)
    positions = [random.choice(ROWS, KEYS, replace=False).astype(np.uint32) for _ in range(CALLS)]
    gradients = work.gradients

    def gather(at: Keys) -> None:
        limits.limit_gather64(memory, at.ctypes.data, KEYS, ROW_BYTES, WEIGHTS, out.ctypes.data)

    def adagrad(at: Keys) -> None:
        limits.limit_adagrad16(
            memory, at.ctypes.data, KEYS, ROW_BYTES, WEIGHTS, gradients.ctypes.data, 0.05, 1e-8
        )

    gathers = [partial(gather, at) for at in positions]
    updates = [partial(adagrad, at) for at in positions]
    pulls = measure.interleave(
        [partial(store.pull, table, k, out, True) for k in work.grouped], gathers, ROUNDS
    )
    pushes = measure.interleave(
        [partial(store.push, table, k, gradients, True) for k in work.grouped], updates, ROUNDS
    )
    figures["table.pull.over_gather"] = pulls.ours_over_theirs()
    figures["table.push.over_rmw"] = pushes.ours_over_theirs()
    for name, times in (
        ("table.pull_rows_per_s", pulls.ours),
        ("table.push_rows_per_s", pushes.ours),
        ("limit.gather_rows_per_s", pulls.theirs),
        ("limit.rmw_rows_per_s", pushes.theirs),
    ):
        figures[name] = measure.figure([KEYS / s for s in times], "rows/s")
    any_order = [measure.seconds(partial(store.pull, table, k, out, True)) for k in work.calls]
    figures["table.pull_any_order_rows_per_s"] = measure.figure([KEYS / s for s in any_order], "rows/s")

    one = [partial(_in_threads, 1, partial(_pulls, store, table, work.grouped))] * 5
    two = [partial(_in_threads, 2, partial(_pulls, store, table, work.grouped))] * 5
    threads = measure.interleave(two, one, 1)
    # Two threads do twice the work.
    ratios = [2 * b / a for a, b in zip(threads.ours, threads.theirs, strict=True)]
    figures["table.two_threads.over_one"] = measure.figure(ratios, "ratio")
    return figures | calls.run(folder) | eviction.run()


def _pulls(store: workload._core.Store, table: int, calls: list[Keys]) -> None:
    out = np.empty((KEYS, DIM), np.float32)
    for keys in calls:
        store.pull(table, keys, out, True)


def _in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
