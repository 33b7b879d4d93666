"""Eviction in the native core, against a dictionary that follows docs/eviction.md; the clock is given."""

from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tablebay.native import _core
from tests.unit.checkpoint_blocks import int64_rows, parse, whole

DIM = 3
ALL_SHARDS = list(range(1024))
BEGAN = 1_000_000_000
INITIAL = ("Normal", {"mean": 0.0, "stddev": 1.0})
END = 64  # stripes


def make(
    rules: dict[str, float], store: Any = None, limit: int = 0, dtype: str = "float32"
) -> tuple[Any, int]:
    """A store, or loader, with a table whose rows are sums."""
    store = store or _core.Store(memory_limit=limit)
    initial = ("Zeros", {}) if dtype == "int64" else INITIAL
    arguments = ("t", 1 if dtype == "int64" else DIM, dtype, "Add", {}, *initial, 0, "Reject", "Create")
    return store, store.create_table(*arguments, 1, 1.0, 0, rules)


def evict(store: Any, table: int) -> int:
    """A whole sweep; rows evicted."""
    evicted, stripe = 0, 0
    while stripe < END:
        _, some, stripe = store.evict(table, stripe, 0.0)
        evicted += some
    return evicted


def contents(store: Any, table: int, keys: Any) -> dict[int, bytes]:
    """Row by key, of those of `keys` that have one."""
    out = np.empty((len(keys), DIM), np.float32)
    store.pull(table, keys, out, False)
    there = np.asarray(store.contains(table, keys))
    return {int(key): row.tobytes() for key, row in zip(keys[there], out[there], strict=True)}


def begins(keys: Any) -> dict[int, Any]:
    """What a row of each key begins with."""
    store, table = make({})
    out = np.empty((len(keys), DIM), np.float32)
    store.pull(table, keys, out, True)
    return dict(zip(keys.tolist(), out, strict=True))


@dataclass
class Row:
    """What the definition asks of a row."""

    weights: Any
    born: int
    seen: int
    pushes: int = 0


def leaves(row: Row, rules: dict[str, float], now: int) -> str:
    """The rule by which it leaves, or ""."""
    if rules.get("ttl_seconds") and now - row.seen >= rules["ttl_seconds"]:
        return "ttl"
    if now - row.born < rules.get("grace_seconds", 0):
        return ""
    if row.pushes < rules.get("min_count", 0):
        return "count"
    norm = math.sqrt(sum(float(weight) ** 2 for weight in row.weights))
    return "norm" if norm < rules.get("min_norm", 0.0) else ""


RULES = [
    {"ttl_seconds": 20.0},
    {"min_count": 3.0, "grace_seconds": 15.0},
    {"min_norm": 2.0, "grace_seconds": 10.0},
    {"ttl_seconds": 30.0, "min_count": 2.0, "min_norm": 1.5, "grace_seconds": 12.0},
]


@pytest.mark.parametrize("rules", RULES, ids="+".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_calls_leave_what_a_dictionary_says(rules: dict[str, float], dtype: str) -> None:
    """Pushes and assignments are seen, pulls are not but for the rows they make; each row leaves by its first rule."""
    seed = len(rules)
    choose = np.random.default_rng(seed)
    store, table = make(rules, dtype=dtype)
    everyone = np.arange(700, dtype=np.uint64)
    first: dict[int, Any] = {}
    rows: dict[int, Row] = {}
    now = BEGAN
    reasons = dict.fromkeys(_core.EVICTION_REASONS, 0)

    def row_of(key: int) -> Row:
        return rows.setdefault(key, Row(first[key], now, now))

    plain, plain_table = _core.Store(), 0
    plain_table = plain.create_table("t", DIM, dtype, "Add", {}, *INITIAL, 0, "Reject")
    out = np.empty((700, DIM), np.float32)
    plain.pull(plain_table, everyone, out, True)
    first = dict(zip(everyone.tolist(), out, strict=True))
    for _ in range(120):
        now += int(choose.integers(0, 6))
        store.set_now(now)
        keys = choose.integers(0, 700, int(choose.integers(1, 60))).astype(np.uint64)
        what = choose.integers(0, 5)
        if what == 0:
            gradients = choose.integers(-2, 3, (len(keys), DIM)).astype(np.float32)
            if dtype == "bfloat16":
                gradients[:] = 0.0  # nothing to round
            store.push(table, keys, gradients)
            for key in dict.fromkeys(keys.tolist()):
                row = row_of(key)
                summed = np.zeros(DIM, np.float32)
                for gradient in gradients[keys == key]:
                    summed = summed + gradient
                row.weights, row.seen, row.pushes = row.weights + summed, now, row.pushes + 1
        elif what == 1:
            given = choose.integers(-2, 3, (len(keys), DIM)).astype(np.float32)
            store.assign(table, keys, given)
            for key, weights in zip(keys.tolist(), given, strict=True):
                row = row_of(key)
                row.weights, row.seen = weights, now
        elif what == 2:
            create = bool(choose.integers(0, 2))
            pulled = np.empty((len(keys), DIM), np.float32)
            store.pull(table, keys, pulled, create)
            for key, found in zip(keys.tolist(), pulled, strict=True):
                wanted = (
                    row_of(key).weights if create else rows[key].weights if key in rows else np.zeros(DIM)
                )
                np.testing.assert_array_equal(found, wanted, err_msg=f"seed {seed}")
        elif what == 3:
            store.delete(table, keys)
            for key in keys.tolist():
                rows.pop(key, None)
        else:
            gone = {key: reason for key, row in rows.items() if (reason := leaves(row, rules, now))}
            assert evict(store, table) == len(gone), f"seed {seed}"
            for key, reason in gone.items():
                del rows[key]
                reasons[reason] += 1
            assert contents(store, table, everyone) == {
                key: np.asarray(row.weights, np.float32).tobytes() for key, row in rows.items()
            }, f"seed {seed}"
    info = store.table_info(table)
    assert info["evicted"] == reasons, f"seed {seed}"
    assert sum(reasons.values()) > 50
    assert info["rows"] == len(rows)


def test_an_evicted_key_begins_anew() -> None:
    """Its row, its optimizer state, its count of pushes and its grace are a new row's."""
    store, table = make({"ttl_seconds": 10.0, "min_count": 2.0, "grace_seconds": 5.0})
    key, one = np.array([7], np.uint64), np.ones((1, DIM), np.float32)
    store.set_now(BEGAN)
    store.push(table, key, one)
    store.push(table, key, one)
    store.set_now(BEGAN + 10)
    assert evict(store, table) == 1
    store.push(table, key, one)
    np.testing.assert_array_equal(
        np.frombuffer(contents(store, table, key)[7], np.float32), begins(key)[7] + 1
    )
    store.set_now(BEGAN + 14)
    assert evict(store, table) == 0  # within its second grace
    store.set_now(BEGAN + 15)
    assert evict(store, table) == 1
    by_reason = store.table_info(table)["evicted"]
    assert {reason: number for reason, number in by_reason.items() if number} == {"ttl": 1, "count": 1}


def test_a_clock_that_is_put_back_makes_nothing_old() -> None:
    """A row seen in what is now the future is 0 seconds old."""
    store, table = make({"ttl_seconds": 10.0})
    store.set_now(BEGAN)
    store.pull(table, np.arange(9, dtype=np.uint64), np.empty((9, DIM), np.float32), True)
    store.set_now(BEGAN - 1000)
    assert evict(store, table) == 0
    store.set_now(0)  # the system's time: decades later
    assert evict(store, table) == 9


def test_rows_of_tables_without_eviction_stay_as_long_as_they_were() -> None:
    """Only what a table asks costs bytes: nothing without eviction, and ttl fits in what pads Adagrad's row of 16."""
    sizes = []
    for rules in ({}, {"ttl_seconds": 9.0}, {"ttl_seconds": 9.0, "min_count": 2.0, "grace_seconds": 5.0}):
        loader = _core.Store().load(ALL_SHARDS)
        adagrad = {"learning_rate": 0.1, "initial_accumulator": 0.1, "epsilon": 1e-8}
        table = loader.create_table(
            "t", 16, "float32", "Adagrad", adagrad, "Zeros", {}, 0, "Reject", "Create", 1, 1.0, 0, rules
        )
        sizes.append(loader.layout(table)[0])
    assert sizes == [144, 144, 152]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"ttl": 5.0}, "eviction has no parameter 'ttl'"),
        ({"ttl_seconds": 0.5}, "ttl_seconds is 0.5, wanted a whole number"),
        ({"ttl_seconds": -1.0}, "ttl_seconds is -1"),
        ({"ttl_seconds": math.nan}, "ttl_seconds is nan"),
        ({"ttl_seconds": 0.0}, "eviction says nothing"),
        ({"min_count": 2.0}, "grace_seconds is 0, wanted more than 0"),
        ({"ttl_seconds": 2.0, "grace_seconds": 3.0}, "grace_seconds is 3"),
        ({"min_norm": -1.0, "grace_seconds": 3.0}, "min_norm is -1"),
    ],
)
def test_an_eviction_that_cannot_be_is_refused(rules: dict[str, float], words: str) -> None:
    """BadRequest naming the table and the parameter, with the value found and the one wanted."""
    with pytest.raises(_core.StatusError, match=r"table 't'.*" + words) as refused:
        make(rules)
    assert refused.value.args[0] == "BadRequest"


def test_a_sweep_that_cannot_be_is_refused() -> None:
    """Of a table without eviction, or from a stripe that is none; a norm of whole numbers."""
    store, table = make({})
    with pytest.raises(_core.StatusError, match="table 't' has no eviction"):
        store.evict(table, 0, 1.0)
    store, table = make({"ttl_seconds": 1.0})
    with pytest.raises(_core.StatusError, match="stripe 64, wanted less than 64"):
        store.evict(table, 64, 1.0)
    with pytest.raises(_core.StatusError, match="min_norm is 1 and dtype int64"):
        make({"min_norm": 1.0, "grace_seconds": 1.0}, dtype="int64")


def test_an_evicted_row_is_deleted_by_the_next_delta() -> None:
    """A cut under way has it; the delta after has its key among the deleted; a store loaded from both has it not."""
    rules = {"ttl_seconds": 10.0}
    store, table = make(rules, dtype="int64")
    keys = np.arange(2000, dtype=np.uint64)
    ones = np.ones((2000, 1), np.int64)
    store.set_now(BEGAN)
    store.push(table, keys, ones)
    full = store.take([], 0.0, True)
    store.set_now(BEGAN + 5)
    store.push(table, keys[:500], ones[:500])
    store.set_now(BEGAN + 10)
    assert evict(store, table) == 1500
    store.push(table, keys[1900:], ones[1900:])  # made anew
    layout = dict(full.tables)[table]
    full_file = whole(full, table)
    assert int64_rows(parse(full_file, layout[0]), layout) == dict.fromkeys(range(2000), 1)
    full.commit()
    delta = store.take([], 0.0, False)
    delta_file = whole(delta, table)
    blocks = parse(delta_file, layout[0])
    assert sorted(blocks.deleted) == list(range(500, 2000))
    assert int64_rows(blocks, layout) == {
        **dict.fromkeys(range(500), 2),
        **dict.fromkeys(range(1900, 2000), 1),
    }
    loaded = _core.Store(epoch=2)
    loaded.set_now(BEGAN + 10)
    loader = loaded.load(ALL_SHARDS)
    make(rules, loader, dtype="int64")
    loader.begin(table, layout, False).feed(full_file)
    loader.begin(table, layout, True).feed(delta_file)
    loader.finish()
    assert loaded.table_info(table)["rows"] == 600
    # Times are in the rows: what was last seen at BEGAN + 5 leaves 10 s later, the rest stays.
    loaded.set_now(BEGAN + 15)
    assert evict(loaded, table) == 500
    assert np.asarray(loaded.contains(table, keys)).nonzero()[0].tolist() == list(range(1900, 2000))


def test_rows_that_come_without_their_times_were_seen_when_they_were_loaded() -> None:
    """Of weights alone, and of a file of a table that asked nothing of its rows."""
    plain, table = make({}, dtype="int64")
    keys = np.arange(100, dtype=np.uint64)
    plain.push(table, keys, np.ones((100, 1), np.int64))
    cut = plain.take([], 0.0, True)
    layout = dict(cut.tables)[table]
    content = whole(cut, table)
    for weights_only in (True, False):
        store = _core.Store(epoch=2)
        store.set_now(BEGAN)
        loader = store.load(ALL_SHARDS)
        rules = {"ttl_seconds": 10.0}
        make(rules, loader, dtype="int64")
        if not weights_only and loader.layout(table) != layout:
            with pytest.raises(_core.StatusError, match="CheckpointMismatch"):
                loader.begin(table, layout, False, weights_only)
            continue
        loader.begin(table, layout, False, weights_only).feed(content)
        loader.finish()
        store.set_now(BEGAN + 9)
        assert evict(store, table) == 0
        store.set_now(BEGAN + 10)
        assert evict(store, table) == 100


def test_memory_goes_back() -> None:
    """Of the rows: as many slabs as the rest needs, but for one a stripe. A store at its limit takes new rows again."""
    store, table = make({"ttl_seconds": 10.0}, limit=40_000_000)
    store.set_now(BEGAN)
    zeros = np.zeros((50_000, DIM), np.float32)
    pushed = 0
    with pytest.raises(_core.StatusError, match="limit"):
        while True:
            store.push(table, np.arange(pushed, pushed + 50_000, dtype=np.uint64), zeros)
            pushed += 50_000
    before = store.counters()["bytes"]
    store.set_now(BEGAN + 5)
    kept = np.arange(0, pushed, 4, dtype=np.uint64)
    store.push(table, kept, np.zeros((len(kept), DIM), np.float32))
    store.set_now(BEGAN + 10)
    assert evict(store, table) == pushed - len(kept)
    after = store.counters()["bytes"]
    assert after < 0.6 * before
    store.push(table, np.arange(pushed, pushed + 50_000, dtype=np.uint64), zeros)


def test_a_cut_under_way_gives_way_to_a_sweep_at_the_memory_limit() -> None:
    """Rows that are evicted before the copier has come are kept for it, until that would pass the limit."""
    store, table = make({"ttl_seconds": 10.0}, limit=16_000_000)
    store.set_now(BEGAN)
    zeros = np.zeros((50_000, DIM), np.float32)
    pushed = 0
    with pytest.raises(_core.StatusError, match="limit"):
        while True:
            store.push(table, np.arange(pushed, pushed + 50_000, dtype=np.uint64), zeros)
            pushed += 50_000
    cut = store.take([], 0.0, True)
    store.set_now(BEGAN + 10)
    assert evict(store, table) == pushed
    assert store.counters()["bytes"] < 16_000_000
    with pytest.raises(_core.StatusError, match="found no room"):
        whole(cut, table)


@pytest.mark.parametrize("seed", range(3))
def test_four_threads_agree_with_a_dictionary(seed: int) -> None:
    """Two push, pull, make and delete their own keys while one sweeps and one takes deltas; the table grows.

    In a round the clock stands. What is due then may leave at any moment of it, so its owner only reads it: the old row
    or none. All other rows are exactly what their owner's dictionary has, and at the end the chain of deltas is too.
    """
    ttl = 2
    store, table = make({"ttl_seconds": float(ttl)}, dtype="int64")
    values: list[dict[int, int]] = [{}, {}]
    seen: list[dict[int, int]] = [{}, {}]
    problems: list[str] = []
    now = BEGAN
    busy = threading.Event()
    chain: dict[int, int] = {}

    def own(worker: int) -> None:
        choose = random.Random(seed * 100 + worker + now)
        mine, times = values[worker], seen[worker]
        due = {key for key, at in times.items() if now - at >= ttl}
        for _ in range(25):
            span = 2000 + 300 * (now - BEGAN)
            keys = [2 * choose.randrange(span) + worker for _ in range(choose.randrange(1, 200))]
            what = choose.random()
            live = sorted(set(keys) - due)
            array = np.array(live, np.uint64)
            if what < 0.5:
                store.push(table, array, np.full((len(live), 1), 3, np.int64))
                for key in live:
                    mine[key], times[key] = mine.get(key, 0) + 3, now
            elif what < 0.6:
                store.delete(table, array)
                for key in live:
                    mine.pop(key, None)
                    times.pop(key, None)
            elif what < 0.7:
                out = np.empty((len(live), 1), np.int64)
                store.pull(table, array, out, True)
                for key, value in zip(live, out[:, 0].tolist(), strict=True):
                    if key not in mine:
                        mine[key], times[key] = 0, now
                    if mine[key] != value:
                        problems.append(f"made {key}: found {value}, wanted {mine[key]}")
            else:
                read = sorted(set(keys))
                out = np.empty((len(read), 1), np.int64)
                store.pull(table, np.array(read, np.uint64), out, False)
                for key, value in zip(read, out[:, 0].tolist(), strict=True):
                    wanted = {mine.get(key, 0)} | ({0} if key in due else set())
                    if value not in wanted:
                        problems.append(f"read {key}: found {value}, wanted one of {wanted}")

    def sweep() -> None:
        while busy.is_set():
            evict(store, table)

    def take() -> None:
        while busy.is_set():
            follow(store.take([], 0.0, False))

    def follow(cut: Any) -> None:
        layout = dict(cut.tables)[table]
        blocks = parse(whole(cut, table), layout[0])
        if cut.full:
            chain.clear()
        for key in blocks.deleted:
            chain.pop(key, None)
        chain.update(int64_rows(blocks, layout))
        cut.commit()

    for _ in range(8):
        store.set_now(now)
        busy.set()
        helpers = [threading.Thread(target=target) for target in (sweep, take)]
        owners = [threading.Thread(target=own, args=(worker,)) for worker in range(2)]
        for thread in helpers + owners:
            thread.start()
        for thread in owners:
            thread.join()
        busy.clear()
        for thread in helpers:
            thread.join()
        evict(store, table)
        assert not problems, f"seed {seed}: {problems[:3]}"
        for mine, times in zip(values, seen, strict=True):
            for key in [key for key, at in times.items() if now - at >= ttl]:
                del mine[key], times[key]
        follow(store.take([], 0.0, False))
        assert chain == values[0] | values[1], f"seed {seed}"
        assert store.table_info(table)["rows"] == len(chain), f"seed {seed}"
        now += 1
    assert store.table_info(table)["evicted"]["ttl"] > 100


def test_calls_go_on_while_a_sweep_goes_through_a_stripe() -> None:
    """A sweep lets the lock go between slices: pulls are answered before it is over."""
    store, table = make({"ttl_seconds": 10.0})
    store.set_now(BEGAN)
    keys = np.arange(300_000, dtype=np.uint64)
    zeros = np.zeros((len(keys), DIM), np.float32)
    store.push(table, keys, zeros)
    store.set_now(BEGAN + 10)
    swept = threading.Event()

    def run() -> None:
        evict(store, table)
        swept.set()

    thread = threading.Thread(target=run)
    thread.start()
    answered = 0
    out = np.empty((1000, DIM), np.float32)
    until = time.monotonic() + 60
    while not swept.is_set() and time.monotonic() < until:
        store.pull(table, keys[:1000], out, False)
        answered += 1
    thread.join()
    assert answered > 10
    assert store.table_info(table)["rows"] == 0
