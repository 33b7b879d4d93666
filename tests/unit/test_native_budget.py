"""Rows that leave for a budget of rows or bytes, and the feed of what left, in the native core; the clock is given."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from tablebay.native import _core
from tests.unit.checkpoint_blocks import int64_rows, parse, whole

BEGAN = 1_000_000_000
END = 64  # stripes
INDEX_BYTES = 8


def make(rules: dict[str, float], optimizer: str = "Add", dim: int = 1) -> tuple[Any, int]:
    """A store with an int64 table of sums, or a float32 one."""
    store = _core.Store()
    if optimizer == "Add":
        options: tuple[Any, ...] = ("t", dim, "int64", "Add", {}, "Zeros", {}, 0, "Reject", "Create")
    else:
        options = ("t", dim, "float32", "SGD", {"learning_rate": 1.0}, "Zeros", {}, 0, "Reject", "Create")
    table = store.create_table(*options, 1, 1.0, 0, rules)
    store.set_now(BEGAN)
    return store, table


def push(store: Any, table: int, keys: Any) -> None:
    """1 for each."""
    array = np.asarray(keys, np.uint64)
    store.push(table, array, np.ones((len(array), 1), np.int64))


def evict(store: Any, table: int, seconds: float = 0.0) -> int:
    """A whole sweep; rows evicted."""
    evicted, stripe, turns = 0, 0, 0
    while stripe < END:
        _, some, stripe = store.evict(table, stripe, seconds)
        evicted += some
        turns += 1
        assert turns < 1000, "a sweep does not end"
    return evicted


def feed(store: Any, table: int, position: int = 0) -> tuple[int, list[tuple[int, int, str]]]:
    """Number of the first event, and (key, time, reason) of each."""
    first, keys, times, reasons = store.evicted(table, position, 2**20)
    names = _core.EVICTION_REASONS
    return first, list(
        zip(
            np.frombuffer(keys, np.uint64).tolist(),
            np.frombuffer(times, np.uint32).tolist(),
            [names[reason] for reason in reasons],
            strict=True,
        )
    )


@pytest.mark.parametrize("policy", [0.0, 1.0], ids=["LRU", "LFU"])
@pytest.mark.parametrize("seed", range(3))
def test_those_nearest_to_leaving_leave_and_no_more_than_are_too_many(policy: float, seed: int) -> None:
    """After a sweep of random rows the budget holds exactly, and no row stays that is nearer than one that left."""
    choose = np.random.default_rng(seed)
    budget = 3000
    rules = {"max_rows": float(budget), "policy": policy, "ttl_seconds": 200.0}
    store, table = make(rules)
    seen: dict[int, int] = {}
    pushes: dict[int, int] = {}
    now, left = BEGAN, {"lru": 0, "lfu": 0, "ttl": 0}
    for _ in range(12):
        for _ in range(10):
            now += int(choose.integers(0, 5))
            store.set_now(now)
            keys = np.unique((choose.pareto(0.5, 400) * 60).astype(np.uint64) % np.uint64(20_000))
            push(store, table, keys)
            for key in keys.tolist():
                seen[key], pushes[key] = now, pushes.get(key, 0) + 1
        position = sum(left.values())
        before = set(seen)
        evicted = evict(store, table)
        _, events = feed(store, table, position)
        assert len(events) == evicted, f"seed {seed}"
        old = {key for key, at in seen.items() if now - at >= 200}
        assert {key for key, _, reason in events if reason == "ttl"} == old, f"seed {seed}"
        for_budget = {key for key, _, reason in events if reason == ("lfu" if policy else "lru")}
        assert len(for_budget) == max(0, len(before) - len(old) - budget), f"seed {seed}"
        stay = before - old - for_budget
        assert store.table_info(table)["rows"] == len(stay), f"seed {seed}"
        if for_budget:
            near = pushes if policy else seen
            assert max(near[key] for key in for_budget) <= min(near[key] for key in stay), f"seed {seed}"
        for key, at, reason in events:
            assert at == now
            left[reason] += 1
            del seen[key], pushes[key]
        assert np.asarray(store.contains(table, np.array(sorted(stay), np.uint64))).all(), f"seed {seed}"
    assert left["lfu" if policy else "lru"] > 1000, f"seed {seed}"
    evicted_by = store.table_info(table)["evicted"]
    assert {reason: evicted_by[reason] for reason in left} == left


def test_large_ages_are_told_apart_within_one_part_of_128() -> None:
    """Of rows days old the older half leaves, but for those within 1/128 of the border's age."""
    store, table = make({"max_rows": 5000.0})
    ages = np.random.default_rng(3).permutation(10_000) * 60 + 1000
    for age in range(0, 10_000, 500):
        for at in range(age, age + 500):
            store.set_now(BEGAN - int(ages[at]))
            push(store, table, [at])
    store.set_now(BEGAN)
    assert evict(store, table) == 5000
    gone = ages[[key for key, _, _ in feed(store, table)[1]]]
    stay = np.setdiff1d(ages, gone)
    assert gone.min() > stay.max() * (1 - 1 / 64)


def test_rows_that_are_alike_leave_evenly_from_all_over_the_table() -> None:
    """Exactly as many as are too many, of each stripe its share: keys of no stripe are worse off."""
    store, table = make({"max_rows": 50_000.0, "policy": 1.0})
    keys = np.arange(80_000, dtype=np.uint64)
    push(store, table, keys)
    assert evict(store, table, 1.0) == 30_000
    there = np.asarray(store.contains(table, keys))
    stripes = np.array([int(shard) // 16 for shard in _core.shards_of(keys)])
    shares = [there[stripes == stripe].mean() for stripe in range(END)]
    assert max(shares) - min(shares) < 0.01
    assert evict(store, table) == 0


def test_a_row_in_its_grace_does_not_leave_for_few_pushes() -> None:
    """New rows have had few pushes: with graceSeconds LFU takes the older ones, as far as there are any."""
    store, table = make({"max_rows": 2000.0, "policy": 1.0, "grace_seconds": 10.0})
    old = np.arange(2000, dtype=np.uint64)
    for _ in range(3):
        push(store, table, old)
    store.set_now(BEGAN + 10)
    new = np.arange(5000, 5500, dtype=np.uint64)
    push(store, table, new)
    assert evict(store, table) == 500
    assert np.asarray(store.contains(table, new)).all()
    push(store, table, np.arange(6000, 9000, dtype=np.uint64))
    assert evict(store, table) == 1500, "all that are not in their grace"
    assert store.table_info(table)["rows"] == 3500
    store.set_now(BEGAN + 20)
    assert evict(store, table) == 1500
    assert store.table_info(table)["rows"] == 2000


@pytest.mark.parametrize(("shards", "rows"), [(1024, 4096), (256, 1024), (1, 4)])
def test_a_server_keeps_the_share_that_its_shards_are(shards: int, rows: int) -> None:
    """Of maxRows, and of maxBytes, which counts a row's bytes and 8 of the index."""
    row_bytes = 16 + 8 + 8  # key, version; weights; what LRU remembers, padded
    for rules in ({"max_rows": 4096.0}, {"max_bytes": 4096.0 * (row_bytes + INDEX_BYTES)}):
        store, table = make(rules)
        owners = np.ones(1024, np.uint16)
        owners[:shards] = 0
        store.set_shard_map(owners, 0, 2)
        keys = np.arange(100_000, dtype=np.uint64)
        push(store, table, keys[np.isin(_core.shards_of(keys), np.arange(shards))])
        evict(store, table)
        assert store.table_info(table)["rows"] <= rows
        assert store.table_info(table)["rows"] >= min(rows, 90), rules


def test_a_budget_gives_memory_back_and_what_left_begins_anew() -> None:
    """Memory goes with the rows; a push of a key that left makes a new row."""
    store, table = make({"max_rows": 100_000.0})
    keys = np.arange(600_000, dtype=np.uint64)
    push(store, table, keys)
    before = store.counters()["bytes"]
    store.set_now(BEGAN + 1)
    push(store, table, keys[:50_000])
    assert evict(store, table, 1.0) == 500_000
    assert store.counters()["bytes"] < 0.6 * before
    assert np.asarray(store.contains(table, keys[:50_000])).all()
    gone = keys[~np.asarray(store.contains(table, keys))]
    push(store, table, gone[:10])
    out = np.empty((10, 1), np.int64)
    store.pull(table, gone[:10], out, False)
    assert (out == 1).all()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"max_rows": 0.5}, "max_rows is 0.5, wanted a whole number"),
        ({"max_bytes": -1.0}, "max_bytes is -1"),
        ({"max_rows": 5.0, "policy": 2.0}, "policy is 2, wanted a whole number from 0 to 1"),
        ({"ttl_seconds": 5.0, "policy": 1.0}, "policy is LFU, wanted max_rows or max_bytes"),
        ({"max_rows": 5.0, "grace_seconds": 3.0}, "grace_seconds is 3"),
        ({"ttl_seconds": 5.0, "events_kept": 1e9}, "events_kept is 1e"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(rules: dict[str, float], words: str) -> None:
    """BadRequest naming the table and the parameter, with the value found and the one wanted."""
    with pytest.raises(_core.StatusError, match=r"table 't'.*" + words):
        make(rules)


def test_the_feed_keeps_the_last_events_and_says_where_they_begin() -> None:
    """A reader that is too late sees that the first number is not the one it asked for."""
    store, table = make({"ttl_seconds": 10.0, "events_kept": 100.0})
    push(store, table, range(60))
    store.set_now(BEGAN + 10)
    evict(store, table)
    first, events = feed(store, table)
    assert first == 0
    assert sorted(events) == [(key, BEGAN + 10, "ttl") for key in range(60)]
    push(store, table, range(100, 190))
    store.set_now(BEGAN + 20)
    evict(store, table)
    first, events = feed(store, table, 60)
    assert first == 60
    assert sorted(key for key, _, _ in events) == list(range(100, 190))
    first, events = feed(store, table, 20)
    assert (first, len(events)) == (50, 100), "30 of those asked for are gone"
    assert feed(store, table, 150) == (150, [])
    assert feed(store, table, 10_000) == (150, [])
    store.delete(table, np.arange(5, dtype=np.uint64))
    assert feed(store, table, 150) == (150, []), "a deletion is not by itself"
    none, table = make({"ttl_seconds": 10.0, "events_kept": 0.0})
    push(none, table, range(9))
    none.set_now(BEGAN + 10)
    assert evict(none, table) == 9
    assert feed(none, table) == (9, [])


@pytest.mark.parametrize("seed", range(3))
def test_four_threads_and_a_budget_agree_with_a_dictionary(seed: int) -> None:
    """Two push, pull, make and delete their own keys, while one sweeps for a budget and one takes deltas; it grows.

    In a round the clock stands, and no more keys are named than the budget holds: those are the newest, so none of them
    leaves, and each is exactly what its owner has. Any other may leave, whole; the feed names all that did.
    """
    budget = 4000
    store, table = make({"max_rows": float(budget), "events_kept": 2.0**20})
    values: list[dict[int, int]] = [{}, {}]
    chain: dict[int, int] = {}
    problems: list[str] = []
    busy = threading.Event()
    now, position = BEGAN, 0

    def own(worker: int) -> None:
        choose = random.Random(seed * 100 + worker + now)
        mine = values[worker]
        pool = [2 * choose.randrange(6000) + worker for _ in range(1500)]
        named: set[int] = set()
        for _ in range(25):
            keys = sorted(set(choose.sample(pool, 150)))
            # The first to name a key this round: what it is may have left, or be about to.
            array = np.array(keys, np.uint64)
            out = np.empty((len(keys), 1), np.int64)
            if choose.random() < 0.6:
                store.assign(table, array, np.array([[mine.get(key, 0)] for key in keys], np.int64))
                store.push(table, array, np.full((len(keys), 1), 3, np.int64))
                for key in keys:
                    mine[key] = mine.get(key, 0) + 3
                named.update(keys)
            elif choose.random() < 0.2:
                store.delete(table, array)
                for key in keys:
                    mine.pop(key, None)
                named.difference_update(keys)
            else:
                store.pull(table, array, out, False)
                for key, value in zip(keys, out[:, 0].tolist(), strict=True):
                    wanted = {mine.get(key, 0)} | (set() if key in named else {0})
                    if value not in wanted:
                        problems.append(f"read {key}: found {value}, wanted one of {wanted}")
        there = np.asarray(store.contains(table, np.array(sorted(named), np.uint64)))
        if not there.all():
            problems.append(f"{(~there).sum()} keys of this round left")

    def sweep() -> None:
        while busy.is_set():
            evict(store, table)

    def follow(cut: Any) -> None:
        layout = dict(cut.tables)[table]
        blocks = parse(whole(cut, table), layout[0])
        if cut.full:
            chain.clear()
        for key in blocks.deleted:
            chain.pop(key, None)
        chain.update(int64_rows(blocks, layout))
        cut.commit()

    def take() -> None:
        while busy.is_set():
            follow(store.take([], 0.0, False))

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
        first, events = feed(store, table, position)
        assert first == position
        position += len(events)
        gone = {key for key, _, _ in events}
        both = values[0] | values[1]
        there = np.asarray(store.contains(table, np.array(sorted(both), np.uint64)))
        for key, stays in zip(sorted(both), there.tolist(), strict=True):
            if not stays:
                assert key in gone, f"seed {seed}: {key} is away, and no event says so"
                del values[key % 2][key]
        follow(store.take([], 0.0, False))
        assert chain == values[0] | values[1], f"seed {seed}"
        assert store.table_info(table)["rows"] == len(chain) <= budget, f"seed {seed}"
        now += 1
    assert store.table_info(table)["evicted"]["lru"] == position > 1000, f"seed {seed}"
