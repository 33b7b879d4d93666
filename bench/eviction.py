"""Half of a table's rows evicted: the memory that goes back, and the pulls that go on meanwhile.

`make bench ONLY=table` does it with 10 million rows, by age; python bench/eviction.py ROWS RULE with others, and for a
budget: ttl, lru or lfu.
"""

from __future__ import annotations

import sys
import threading

import measure
import numpy as np
from measure import Figure

from tablebay.client.sweeper import sweep
from tablebay.native import _core

ROWS = 10_000_000
DIM = 16
BATCH = 100_000
PULL_KEYS = 1_000
IDLE_PULLS = 20_000
BEGAN = 1_000_000_000
TTL_S = 10
_PULLS_KEPT = 1_000_000


def run(rows: int = ROWS, rule: str = "ttl") -> dict[str, Figure]:
    """Figures `table.evict.*`. rule: by which half of the rows leave."""
    rules = {
        "ttl": {"ttl_seconds": TTL_S},
        "lru": {"max_rows": rows // 2},
        "lfu": {"max_rows": rows // 2, "policy": 1},
    }[rule]
    store = _core.Store()
    adagrad = {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}
    table = store.create_table(
        "t", DIM, "float32", "Adagrad", adagrad, "Normal", {"mean": 0.0, "stddev": 0.01}, 0, "Reject", "Create",
        1, 1.0, 0, rules,
    )  # fmt: skip
    keys = np.arange(rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    out = np.empty((BATCH, DIM), np.float32)
    gradients = np.zeros((BATCH, DIM), np.float32)
    before = measure.rss_bytes()
    store.set_now(BEGAN)
    for first in range(0, rows, BATCH):
        some = keys[first : first + BATCH]
        store.pull(table, some, out[: len(some)], True)
    store.set_now(BEGAN + TTL_S - 1)
    kept = np.ascontiguousarray(keys[::2])
    for first in range(0, len(kept), BATCH):
        some = kept[first : first + BATCH]
        store.push(table, some, gradients[: len(some)])
    full = measure.rss_bytes()

    random = np.random.default_rng(1)
    calls = [random.choice(kept, PULL_KEYS, replace=False) for _ in range(100)]

    def pull(number: int) -> float:
        return measure.seconds(lambda: store.pull(table, calls[number % len(calls)], out[:PULL_KEYS], False))

    idle = [pull(number) for number in range(IDLE_PULLS)]
    store.set_now(BEGAN + TTL_S)
    found: list[tuple[int, int]] = []
    seconds: list[float] = []

    def evict() -> None:
        seconds.append(measure.seconds(lambda: found.append(sweep(store, table))))

    thread = threading.Thread(target=evict)
    thread.start()
    busy = []
    while thread.is_alive() and len(busy) < _PULLS_KEPT:
        busy.append(pull(len(busy)))
    thread.join()
    after = measure.rss_bytes()
    if found != [(rows, rows - len(kept))]:
        raise SystemExit(f"the sweep found {found}, wanted {rows} rows of which {rows - len(kept)} leave")
    p99_idle, p99_busy = (float(np.percentile(times, 99)) for times in (idle, busy))
    return {
        "table.evict.rss_drop": measure.figure([(full - after) / (full - before)], "ratio"),
        "table.evict.pull_p99_over_idle": measure.figure([p99_busy / p99_idle], "ratio"),
        "table.evict.pull_p99_idle_us": measure.figure([p99_idle * 1e6], "us"),
        "table.evict.rows_per_s": measure.figure([rows / seconds[0]], "rows/s"),
    }


if __name__ == "__main__":
    for name, value in run(int(sys.argv[1]), *sys.argv[2:]).items():
        print(f"{name:34} {value.value:,.4g} {value.unit}")
