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
from numpy.typing import NDArray
from workload import CALLS, DIM, KEYS, ROWS, Rows, Workload

from tablebay.native import _core

MANY_ROWS = 10_000_000
OTHER_DIMS = (8, 64, 128)
ROUNDS = 8
# Growth is watched call by call, so that what is longer than other calls is a stall.
GROWTH_KEYS = 10_000
GROWTH_FROM = 1_000_000
# Key and version come before a row's weights (native/include/tablebay/options.h).
WEIGHTS = 12
# So many times as much memory as rows have is touched before they are made: the system takes whichever pages are free.
TOUCHED = 4
# Of an index: native/include/tablebay/index.h, hash.h.
ROWS_A_LINE, STRIPES = 10, 64


def row_bytes(dim: int) -> int:
    """Of a row with as many weights as sums, padded as the table's are."""
    return (WEIGHTS + 8 * dim + 7) // 8 * 8


Positions = NDArray[np.uint32]


class Limit:
    """Rows of a table's size, at random places: what memory can do."""

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        self._library = library = ctypes.CDLL(str(folder / "liblimits.so"))
        pointer, u32, u64, real = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float
        library.limit_map.restype = pointer
        library.limit_map.argtypes = [u64]
        library.limit_unmap.argtypes = [pointer, u64]
        library.limit_gather.argtypes = [pointer, pointer, u64, u32, u32, u32, pointer]
        library.limit_adagrad.argtypes = [pointer, pointer, u64, u32, u32, u32, pointer, real, real]
        library.limit_adagrad_found.argtypes = [
            pointer, pointer, pointer, pointer, u64, u32, u32, pointer, real, real,
        ]  # fmt: skip
        self._dim = dim
        self._bytes = rows * row_bytes(dim)
        self._memory = library.limit_map(self._bytes)
        random = np.random.default_rng(1)
        self.positions = [random.choice(rows, KEYS, replace=False).astype(np.uint32) for _ in range(CALLS)]
        # As many as an index has, and in the order in which a call asks for them: by stripes, within each at random.
        self._line_bytes = rows // ROWS_A_LINE * 64
        self._lines = library.limit_map(self._line_bytes)
        self.places = [self._in_call_order(random, rows // ROWS_A_LINE) for _ in range(CALLS)]

    @staticmethod
    def _in_call_order(random: np.random.Generator, lines: int) -> Positions:
        places = np.sort(random.integers(0, lines, KEYS, dtype=np.uint32))
        return np.concatenate([random.permutation(part) for part in np.array_split(places, STRIPES)])

    def gather(self, at: Positions, out: Rows) -> None:
        self._library.limit_gather(
            self._memory, at.ctypes.data, KEYS, row_bytes(self._dim), WEIGHTS, self._dim, out.ctypes.data
        )

    def adagrad(self, at: Positions, gradients: Rows) -> None:
        self._library.limit_adagrad(
            self._memory, at.ctypes.data, KEYS, row_bytes(self._dim), WEIGHTS, self._dim,
            gradients.ctypes.data, 0.05, 1e-8,
        )  # fmt: skip

    def adagrad_found(self, at: tuple[Positions, Positions], gradients: Rows) -> None:
        """adagrad, where a line of an index has to be read before each row; dim 16 alone."""
        positions, places = at
        self._library.limit_adagrad_found(
            self._memory, self._lines, places.ctypes.data, positions.ctypes.data, KEYS, row_bytes(self._dim),
            WEIGHTS, gradients.ctypes.data, 0.05, 1e-8,
        )  # fmt: skip

    def close(self) -> None:
        self._library.limit_unmap(self._memory, self._bytes)
        self._library.limit_unmap(self._lines, self._line_bytes)


def run(folder: Path) -> dict[str, Figure]:
    """Figures `table.*` and `limit.*` with 10 million rows; `table.2m.*` with 2 million, `table.dim8.*` and so on.

    One thread at a time but for `two_threads`, `helped` and `growth`.
    """
    _core.use_processors(1)
    figures = _with_rows(folder, MANY_ROWS, DIM, "", whole=True)
    _core.use_processors(0)
    figures |= growth()
    _core.use_processors(1)
    figures |= _with_rows(folder, ROWS, DIM, "2m.")
    for dim in OTHER_DIMS:
        figures |= _with_rows(folder, ROWS, dim, f"dim{dim}.")
    return figures | calls.run(folder) | eviction.run()


def _with_rows(folder: Path, rows: int, dim: int, prefix: str, whole: bool = False) -> dict[str, Figure]:
    work = Workload.make(rows, dim)
    store, table = workload.new_store(dim)
    out = np.zeros((KEYS, dim), np.float32)
    new_memory = measure.touch(TOUCHED * rows * row_bytes(dim))
    before = measure.rss_bytes()
    inserts = [
        measure.seconds(partial(store.pull, table, keys, out[: len(keys)], True)) for keys in work.batches()
    ]
    there = store.counters()["rows"]
    if there != rows:
        raise SystemExit(f"the table has {there} rows after inserting {rows}")
    figures = {
        # All of it: the calls in which the table grew are among them.
        f"table.{prefix}insert_rows_per_s": measure.figure([rows / sum(inserts)], "rows/s"),
        f"table.{prefix}bytes_per_row": measure.figure([(measure.rss_bytes() - before) / rows], "bytes"),
    }
    limit = Limit(folder, rows, dim)
    # Before any pull of the same keys, whose finding a push would use.
    pushes = measure.interleave(
        [partial(store.push, table, keys, work.gradients, True) for keys in work.grouped],
        [partial(limit.adagrad, at, work.gradients) for at in limit.positions],
        ROUNDS,
    )
    pulls = measure.interleave(
        [partial(store.pull, table, keys, out, True) for keys in work.grouped],
        [partial(limit.gather, at, out) for at in limit.positions],
        ROUNDS,
    )
    after_pull = measure.interleave(
        [partial(store.push, table, keys, work.gradients, True) for keys in work.grouped],
        [partial(limit.adagrad, at, work.gradients) for at in limit.positions],
        ROUNDS,
        before=(
            [partial(store.pull, table, keys, out, True) for keys in work.grouped],
            [partial(limit.gather, at, out) for at in limit.positions],
        ),
    )
    figures[f"table.{prefix}pull.over_gather"] = pulls.ours_over_theirs()
    figures[f"table.{prefix}push.over_rmw"] = pushes.ours_over_theirs()
    figures[f"table.{prefix}push_after_pull.over_rmw"] = after_pull.ours_over_theirs()
    for name, times in (
        (f"table.{prefix}pull_rows_per_s", pulls.ours),
        (f"table.{prefix}push_rows_per_s", pushes.ours),
        (f"table.{prefix}push_after_pull_rows_per_s", after_pull.ours),
        (f"limit.{prefix}gather_rows_per_s", pulls.theirs),
        (f"limit.{prefix}rmw_rows_per_s", pushes.theirs),
    ):
        figures[name] = measure.figure([KEYS / s for s in times], "rows/s")
    if whole:
        figures["limit.new_memory_rows_per_s"] = measure.figure([TOUCHED * rows / new_memory], "rows/s")
    if dim == DIM:
        # Of other rows than those before them, which the caches have.
        found = measure.interleave(
            [
                partial(limit.adagrad_found, at, work.gradients)
                for at in zip(limit.positions, limit.places, strict=True)
            ],
            [partial(limit.adagrad, at, work.gradients) for at in np.roll(limit.positions, CALLS // 2, 0)],
            ROUNDS,
        )
        figures[f"limit.{prefix}rmw_found.over_rmw"] = found.ours_over_theirs()
    if whole:
        any_order = [measure.seconds(partial(store.pull, table, keys, out, True)) for keys in work.calls]
        figures["table.pull_any_order_rows_per_s"] = measure.figure([KEYS / s for s in any_order], "rows/s")
        for name, all_calls in (
            ("pull", [partial(store.pull, table, keys, out, True) for keys in work.grouped]),
            ("push", [partial(store.push, table, keys, work.gradients, True) for keys in work.grouped]),
        ):
            helped = measure.interleave(
                [partial(_on, 0, call) for call in all_calls],
                [partial(_on, 1, call) for call in all_calls],
                ROUNDS,
            )
            figures[f"table.helped.{name}_over_one"] = helped.ours_over_theirs()
        _core.use_processors(1)
        figures["table.two_threads.over_one"] = two_over_one(
            [partial(store.pull, table, keys) for keys in work.grouped], create=True
        )
        figures["limit.two_threads.over_one"] = two_over_one(
            [partial(limit.gather, at) for at in limit.positions]
        )
    limit.close()
    return figures


def _on(processors: int, call: Callable[[], None]) -> None:
    """A call on so many processors; 0: on those that are idle, which is what it is without being asked."""
    _core.use_processors(processors)
    call()


def two_over_one(work: list[Callable[..., None]], create: bool = False) -> Figure:
    """How many times as much two threads do as one, each with memory of its own that it has written before."""
    outs = [np.zeros((KEYS, DIM), np.float32) for _ in range(2)]
    rounds = 3

    def all_of_it(out: Rows) -> None:
        for _ in range(rounds):
            for call in work:
                call(out, True) if create else call(out)

    def in_threads(count: int) -> None:
        threads = [threading.Thread(target=all_of_it, args=(out,)) for out in outs[:count]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    pairs = measure.interleave([partial(in_threads, 2)] * 7, [partial(in_threads, 1)] * 7, 1)
    return measure.figure([2 * b / a for a, b in zip(pairs.ours, pairs.theirs, strict=True)], "ratio")


def growth() -> dict[str, Figure]:
    """Figures `table.growth.*`: a table that grows to 10 million rows, 10,000 keys a call, helped."""
    work = Workload.make(MANY_ROWS)
    store, table = workload.new_store()
    out = np.zeros((GROWTH_KEYS, DIM), np.float32)
    measure.touch(TOUCHED * MANY_ROWS * row_bytes(DIM))
    before = measure.rss_bytes()
    measure.reset_peak_rss()
    seconds = [
        measure.seconds(partial(store.pull, table, keys, out, True)) for keys in work.batches(GROWTH_KEYS)
    ]
    peak = measure.peak_rss_bytes() - before
    watched = [1e3 * s for s in seconds[GROWTH_FROM // GROWTH_KEYS :]]
    return {
        "table.growth.peak_over_end": measure.figure([peak / (measure.rss_bytes() - before)], "ratio"),
        "table.growth.max_stall_ms": measure.figure([max(watched)], "ms"),
        "table.growth.call_ms": measure.figure(watched, "ms"),
    }
