"""A push that begins where a pull of the same keys found their rows."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.native import _core

DIM = 3
ADAGRAD = ("Adagrad", {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8})
NORMAL = ("Normal", {"mean": 0.0, "stddev": 0.01}, 7, "Reject")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropped where there is no row": {"push_missing": "Drop"},
    "half admitted": {"admit_probability": 0.5},
    "evicted": {"eviction": {"ttl_seconds": 5.0}},
}


def new_store(**options: Any) -> tuple[Any, int]:
    """A store with one table."""
    store = _core.Store()
    store.set_now(1000)
    return store, store.create_table("t", DIM, "float32", *ADAGRAD, *NORMAL, **options)


def rows_of(store: Any, table: int) -> dict[int, bytes]:
    """Weights by key."""
    found: dict[int, bytes] = {}
    position = 0
    while True:
        keys, rows, position = store.scan(table, position, 1000)
        for i, key in enumerate(np.frombuffer(keys, np.uint64).tolist()):
            found[key] = rows[i * 4 * DIM : (i + 1) * 4 * DIM]
        if position == 0:
            return found


def pulled(store: Any, table: int, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Rows, made where there are none."""
    out = np.zeros((len(keys), DIM), np.float32)
    store.pull(table, keys, out, True)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_push_after_a_pull_does_what_one_without_does(kind: str, seed: int) -> None:
    """Bit for bit, whatever moved, went or came between the two; the other store pulls the keys in another order, so
    that it looks every row up."""
    random = np.random.default_rng(seed)
    ours, table = new_store(**KINDS[kind])
    theirs, _ = new_store(**KINDS[kind])
    space = random.integers(0, 2**64, 3000, dtype=np.uint64)
    for step in range(30):
        where = f"{kind}, seed {seed}, step {step}"
        keys = random.choice(space, int(random.integers(256, 2000)), replace=False)
        if random.random() < 0.5:  # as clients send them
            keys = keys[np.argsort(_core.shards_of(keys), kind="stable")]
        rows = pulled(ours, table, keys)
        np.testing.assert_array_equal(pulled(theirs, table, keys[::-1].copy())[::-1], rows, where)
        gone, new = random.choice(space, 500), random.integers(0, 2**64, 300, dtype=np.uint64)
        what = random.integers(0, 4)
        for store in (ours, theirs):
            if what == 1:
                store.delete(table, gone)
            elif what == 2:
                pulled(store, table, new)
            elif what == 3 and kind == "evicted":
                store.set_now(1000 + 4 * step)
                stripe = 0
                while stripe < _core.STRIPES:
                    stripe = store.evict(table, stripe, 1.0)[2]
            store.push(table, keys, 10 * rows + np.float32(step), True)
        assert ours.counters()["pushes_after_pull"] == step + 1, where
        assert theirs.counters()["pushes_after_pull"] == 0, where
        assert rows_of(ours, table) == rows_of(theirs, table), where


def test_each_pull_is_for_one_push_of_the_same_keys_of_the_same_table() -> None:
    """Another table's, one of other keys or of fewer, an assignment, and a second one look their rows up."""
    store, table = new_store()
    other = store.create_table("other", DIM, "float32", *ADAGRAD, *NORMAL)
    keys = np.arange(1000, dtype=np.uint64)
    gradients = np.ones((1000, DIM), np.float32)

    def guided(table: int, keys: NDArray[np.uint64]) -> int:
        before = store.counters()["pushes_after_pull"]
        store.push(table, keys, gradients[: len(keys)], True)
        return int(store.counters()["pushes_after_pull"] - before)

    pulled(store, table, keys)
    assert guided(other, keys) == 0
    assert guided(table, keys[:999].copy()) == 0
    assert guided(table, keys + np.uint64(1)) == 0
    store.assign(table, keys, gradients)
    assert guided(table, keys) == 1
    assert guided(table, keys) == 0


def test_a_pull_that_makes_nothing_and_a_small_one_are_not_kept() -> None:
    """An evaluation has no push after it, and a few keys are looked up as fast."""
    store, table = new_store()
    keys = np.arange(1000, dtype=np.uint64)
    store.pull(table, keys, np.zeros((1000, DIM), np.float32), False)
    store.push(table, keys, np.ones((1000, DIM), np.float32), True)
    pulled(store, table, keys[:255].copy())
    store.push(table, keys[:255].copy(), np.ones((255, DIM), np.float32), True)
    assert store.counters()["pushes_after_pull"] == 0


def test_only_so_much_is_kept() -> None:
    """The oldest pulls go: of 44 of 100,000 keys 41 are kept."""
    store, table = new_store()
    sets = [np.arange(n, n + 100_000, dtype=np.uint64) for n in range(44)]
    for keys in sets:
        pulled(store, table, keys)
    for keys in sets:
        store.push(table, keys, np.ones((100_000, DIM), np.float32), True)
    assert store.counters()["pushes_after_pull"] == 41


def test_only_so_many_are_kept() -> None:
    """A push looks through all that are: of 1,030 small pulls the last 1,024."""
    store, table = new_store()
    sets = [np.arange(n, n + 256, dtype=np.uint64) for n in range(1030)]
    for keys in sets:
        pulled(store, table, keys)
    for keys in sets:
        store.push(table, keys, np.ones((256, DIM), np.float32), True)
    assert store.counters()["pushes_after_pull"] == 1024


def test_threads_push_after_their_pulls_while_rows_move() -> None:
    """Three threads add 1 to the same rows and a fourth makes and deletes others: no push is lost, or hits another
    row."""
    store = _core.Store()
    table = store.create_table("t", DIM, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    keys = np.arange(2000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    others = ~keys
    rounds, ended = 60, threading.Event()
    ones = np.ones((2000, DIM), np.int64)

    def train() -> None:
        out = np.zeros((2000, DIM), np.int64)
        for _ in range(rounds):
            store.pull(table, keys, out, True)
            store.push(table, keys, ones, True)

    def move() -> None:
        out = np.zeros((2000, DIM), np.int64)
        while not ended.is_set():
            store.delete(table, others)
            store.pull(table, others, out, True)

    store.pull(
        table, others, np.zeros((2000, DIM), np.int64), True
    )  # before: their deletion moves the keys' rows
    mover = threading.Thread(target=move)
    trainers = [threading.Thread(target=train) for _ in range(3)]
    for thread in (mover, *trainers):
        thread.start()
    for thread in trainers:
        thread.join()
    ended.set()
    mover.join()
    out = np.zeros((2000, DIM), np.int64)
    store.pull(table, keys, out, False)
    np.testing.assert_array_equal(out, np.full((2000, DIM), 3 * rounds))
    assert store.counters()["pushes_after_pull"] > rounds
