"""The table by itself: keys, rows, growth, deletion, scans, changes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.native import _core

LAST = 2**64 - 1


def int64_table(dim: int = 3) -> tuple[Any, int]:
    """A store with one table whose rows start as zeros and add up what is pushed."""
    store = _core.Store()
    return store, store.create_table("t", dim, "int64", "Add", {}, "Zeros", {}, 0, "Reject")


def float_table(
    dim: int, initializer: str = "Zeros", parameters: dict[str, float] | None = None
) -> tuple[Any, int]:
    """A store with one SGD table of learning rate 1."""
    store = _core.Store()
    options = ("t", dim, "float32", "SGD", {"learning_rate": 1.0}, initializer, parameters or {}, 7, "Reject")
    return store, store.create_table(*options)


def scan_all(store: Any, table: int, dim: int, rows_max: int) -> list[tuple[int, tuple[int, ...]]]:
    """Every (key, row) that a scan shows, in its order."""
    found, position = [], 0
    while True:
        keys, rows, position = store.scan(table, position, rows_max)
        table_rows = np.frombuffer(rows, np.int64).reshape(-1, dim)
        found += [
            (int(k), tuple(row.tolist()))
            for k, row in zip(np.frombuffer(keys, np.uint64), table_rows, strict=True)
        ]
        if position == 0:
            return found


def add(row: NDArray[np.int64] | None, more: NDArray[np.int64]) -> NDArray[np.int64]:
    """more added to a row, wrapping."""
    return more.copy() if row is None else row + more


@pytest.mark.parametrize("seed", range(12))
def test_a_table_is_a_dict_of_rows(seed: int) -> None:
    """Whatever sequence of pushes, assignments, deletions and pulls, the table holds what a dict would."""
    random = np.random.default_rng(seed)
    dim = int(random.integers(1, 20))
    store, table = int64_table(dim)
    oracle: dict[int, NDArray[np.int64]] = {}
    space = random.integers(0, 2**64, int(random.integers(2, 4000)), dtype=np.uint64)
    space[0], space[-1] = 0, LAST
    for step in range(40):
        where = f"seed {seed}, step {step}"
        keys = random.choice(space, int(random.integers(0, 2500)))
        rows = random.integers(-(2**62), 2**62, (len(keys), dim))
        kind = random.random()
        if kind < 0.45:
            store.push(table, keys, rows)
            for key, row in zip(keys.tolist(), rows, strict=True):
                oracle[key] = add(oracle.get(key), row)
        elif kind < 0.6:
            present = {key for key in keys.tolist() if key in oracle}
            assert store.delete(table, keys) == len(present), where
            for key in present:
                del oracle[key]
        elif kind < 0.7:
            store.assign(table, keys, rows)
            oracle |= {key: row.copy() for key, row in zip(keys.tolist(), rows, strict=True)}
        else:
            out = np.full((len(keys), dim), 7, np.int64)
            create = bool(random.random() < 0.3)
            store.pull(table, keys, out, create)
            zeros = np.zeros(dim, np.int64)
            expected = [oracle.get(key, zeros) for key in keys.tolist()]
            assert np.array_equal(out, np.array(expected, np.int64).reshape(-1, dim)), where
            if create:
                for key in keys.tolist():
                    oracle.setdefault(key, zeros)
        assert store.table_info(table)["rows"] == len(oracle), where
    assert store.contains(table, space).tolist() == [key in oracle for key in space.tolist()], f"seed {seed}"
    expected_rows = {key: tuple(row.tolist()) for key, row in oracle.items()}
    assert sorted(scan_all(store, table, dim, 97)) == sorted(expected_rows.items()), f"seed {seed}"


def test_every_64_bit_key_is_legal() -> None:
    """0, 2^63 and 2^64 - 1 are keys like any other."""
    store, table = int64_table(1)
    keys = np.array([0, 1, 2**63, LAST], np.uint64)
    store.push(table, keys, np.array([[1], [2], [3], [4]]))
    out = np.empty((4, 1), np.int64)
    store.pull(table, keys, out, False)
    assert out[:, 0].tolist() == [1, 2, 3, 4]


def test_growth_keeps_every_row_whatever_the_batches() -> None:
    """A table filled one way, in other batches, or read while it grows has the same rows, bit for bit."""
    keys = np.random.default_rng(3).integers(0, 2**64, 120_000, dtype=np.uint64)
    normal = {"mean": 0.0, "stddev": 1.0}
    rows = []
    for batch in (len(keys), 501, 16_384):
        store, table = float_table(4, "Normal", normal)
        out = np.empty((len(keys), 4), np.float32)
        for at in range(0, len(keys), batch):
            store.pull(table, keys[at : at + batch], out[at : at + batch], True)
        again = np.empty_like(out)
        store.pull(table, keys, again, False)
        assert np.array_equal(out, again), f"batches of {batch}"
        rows.append(out)
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_a_table_half_way_through_growing_finds_every_row() -> None:
    """After each single insertion around a doubling, all rows so far are found."""
    store, table = int64_table(1)
    keys = np.arange(5000, dtype=np.uint64)
    for n in range(1, 5001, 7):
        store.push(table, keys[n - 1 : n + 6], np.ones((len(keys[n - 1 : n + 6]), 1), np.int64))
        assert bool(store.contains(table, keys[: n + 6]).all()), n


def at_an_odd_address(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same, as they may lie in a message."""
    memory = np.empty(keys.nbytes + 1, np.uint8)
    odd = memory[1:].view(np.uint64)
    odd[:] = keys
    return odd


@pytest.mark.parametrize("instruction_set", _core.instruction_sets())
@pytest.mark.parametrize("order", ["shards", "any"])
def test_large_calls_on_a_large_table_change_the_rows_of_their_keys(order: str, instruction_set: str) -> None:
    """Among so many rows tags fit that are another key's, keys lie beyond their bucket, and a stripe's keys are more
    than are looked for together; some keys are new, some repeat, some calls begin at an odd address."""
    random = np.random.default_rng(3)
    before = _core.instruction_set()
    _core.use_instruction_set(instruction_set)
    try:
        store, table = int64_table(2)
        keys = np.unique(random.integers(0, 2**64, 420_000, dtype=np.uint64))
        sums = np.zeros((len(keys), 2), np.int64)
        store.push(table, keys[20_000:], sums[20_000:], True)
        for step in range(6):
            places = random.integers(0, len(keys), 60_000)
            if order == "shards":
                places = places[np.argsort(_core.shards_of(keys[places]), kind="stable")]
            more = random.integers(-(2**62), 2**62, (len(places), 2))
            asked = at_an_odd_address(keys[places]) if step % 2 else keys[places]
            found = np.empty_like(more)
            if step > 1:
                # New ones are made by a pull.
                store.pull(table, asked, found, True)
                assert (found == sums[places]).all(), f"step {step}, before the push"
            # Said to be unique, and taken one after the other where they are not.
            store.push(table, asked, more, True)
            np.add.at(sums, places, more)
            store.pull(table, asked, found, False)
            assert (found == sums[places]).all(), f"step {step}"
        every = np.empty_like(sums)
        store.pull(table, keys, every, False)
        assert (every == sums).all()
    finally:
        _core.use_instruction_set(before)


def key_of_hash(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys that have these hashes: MurmurHash3's finaliser, backwards."""
    keys = hashes.copy()
    for odd in (0xC4CEB9FE1A85EC53, 0xFF51AFD7ED558CCD):
        keys ^= keys >> np.uint64(33)
        keys *= np.uint64(pow(odd, -1, 2**64))
    return keys ^ (keys >> np.uint64(33))


@pytest.mark.parametrize("top", [0, LAST >> 24 << 24], ids=["first_bucket", "last_bucket"])
def test_keys_that_all_want_one_bucket_are_a_dict_of_rows_too(top: int) -> None:
    """Keys made so that their hashes begin alike overflow far, round the index's end too, and each keeps its row."""
    random = np.random.default_rng(5)
    store, table = int64_table(1)
    keys = key_of_hash(np.uint64(top) + random.permutation(3000).astype(np.uint64))
    assert (_core.shards_of(keys) == (1023 if top else 0)).all()
    others = random.integers(0, 2**64, 20_000, dtype=np.uint64)
    oracle: dict[int, int] = {}
    for turn in range(12):
        some = np.concatenate([random.choice(keys, 600), others[turn * 1600 : (turn + 1) * 1600]])
        if turn % 4 == 3:
            store.delete(table, some)
            for key in some.tolist():
                oracle.pop(key, None)
        else:
            store.push(table, some, np.ones((len(some), 1), np.int64))
            for key in some.tolist():
                oracle[key] = oracle.get(key, 0) + 1
        every = np.concatenate([keys, others])
        found = np.empty((len(every), 1), np.int64)
        store.pull(table, every, found, False)
        wanted = [oracle.get(key, 0) for key in every.tolist()]
        assert found[:, 0].tolist() == wanted, f"turn {turn}"


@pytest.mark.parametrize("live", [9, 10, 20, 21, 42])
def test_a_search_ends_where_every_bucket_has_overflowed(live: int) -> None:
    """Rows of one stripe come and go until each of its few buckets was full once; then a key is looked for in vain."""
    random = np.random.default_rng(live)
    store, table = int64_table(1)
    keys = key_of_hash(random.integers(0, 2**58, 400, dtype=np.uint64))
    assert (_core.shards_of(keys) < 16).all()
    found: list[bool] = []

    def churn() -> None:
        here: list[int] = []
        for _ in range(4_000):
            if len(here) == live:
                gone = here.pop(int(random.integers(live)))
                store.delete(table, keys[gone : gone + 1])
            new = int(random.choice(np.setdiff1d(np.arange(400), here)))
            store.push(table, keys[new : new + 1], np.ones((1, 1), np.int64))
            here.append(new)
        found.extend(store.contains(table, keys).astype(bool))
        assert sorted(here) == np.flatnonzero(found).tolist()

    # In a thread, since nothing interrupts a search that does not end.
    thread = threading.Thread(target=churn, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), f"{live} rows: a search does not end"
    assert sum(found) == live


def test_an_index_takes_eight_bytes_a_row_whatever_the_number_of_rows() -> None:
    """While a table grows there is no size at which it takes much more than its rows; nor is a half-full index kept."""
    store, table = int64_table(1)
    rows, row_bytes = 0, 24
    slabs = 64 * 1024 * row_bytes  # half of each stripe's last one is empty
    out = np.empty((50_000, 1), np.int64)
    while rows < 3_000_000:
        store.pull(table, np.arange(rows, rows + 50_000, dtype=np.uint64), out, True)
        rows += 50_000
        if rows < 1_500_000:
            continue
        index = (store.counters()["bytes"] - slabs / 2) / rows - row_bytes
        assert index <= 9, f"{rows} rows, {index:.2f} bytes of index each"


def test_deleted_rows_give_their_memory_back() -> None:
    """Rows deleted return their slabs to the system; what stays is the index and a slab a stripe."""
    store, table = float_table(256)
    keys = np.arange(40_000, dtype=np.uint64)
    store.push(table, keys, np.zeros((len(keys), 256), np.float32))
    full = store.counters()["bytes"]
    store.delete(table, keys)
    assert full > len(keys) * 256 * 4
    assert store.counters()["bytes"] < full / 4


def test_a_deleted_row_comes_back_as_new() -> None:
    """A key pulled after its row was deleted has its initial row again."""
    store, table = float_table(8, "Uniform", {"low": -1.0, "high": 1.0})
    keys = np.array([5, 6], np.uint64)
    first = np.empty((2, 8), np.float32)
    store.pull(table, keys, first, True)
    store.push(table, keys, np.ones((2, 8), np.float32))
    assert store.delete(table, keys) == 2
    again = np.empty((2, 8), np.float32)
    store.pull(table, keys, again, True)
    assert np.array_equal(first, again)


def test_a_scan_misses_no_row_that_stays_while_others_go() -> None:
    """Rows present throughout are all seen, though others are deleted and inserted between the parts."""
    random = np.random.default_rng(11)
    store, table = int64_table(1)
    staying = np.arange(0, 3000, dtype=np.uint64)
    leaving = np.arange(10_000, 13_000, dtype=np.uint64)
    for keys in (staying, leaving):
        store.push(table, keys, np.ones((len(keys), 1), np.int64))
    seen: set[int] = set()
    position = 0
    while True:
        keys, _, position = store.scan(table, position, 50)
        seen |= set(np.frombuffer(keys, np.uint64).tolist())
        if position == 0:
            break
        store.delete(table, random.choice(leaving, 40))
        fresh = random.integers(2**40, 2**41, 20, dtype=np.uint64)
        store.push(table, fresh, np.ones((20, 1), np.int64))
    assert seen >= set(staying.tolist()), "seed 11"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("t", 0, "float32", "SGD", {"learning_rate": 1.0}, "Zeros", {}, 0, "Reject"),
            ("dim is 0", "1 to 65536"),
        ),
        (
            ("t", 4, "float64", "SGD", {"learning_rate": 1.0}, "Zeros", {}, 0, "Reject"),
            ("float64", "wanted float32, bfloat16, float16 or int64"),
        ),
        (
            ("t", 4, "float32", "adamm", {}, "Zeros", {}, 0, "Reject"),
            ("adamm", "wanted one of SGD, Adagrad, "),
        ),
        (("t", 4, "float32", "SGD", {}, "Zeros", {}, 0, "Reject"), ("SGD needs parameter 'learning_rate'",)),
        (
            ("t", 4, "float32", "SGD", {"learning_rate": 1.0, "momentum": 0.9}, "Zeros", {}, 0, "Reject"),
            ("momentum",),
        ),
        (
            ("t", 4, "float32", "SGD", {"learning_rate": -1.0}, "Zeros", {}, 0, "Reject"),
            ("learning_rate is -1",),
        ),
        (
            ("t", 4, "int64", "SGD", {"learning_rate": 1.0}, "Zeros", {}, 0, "Reject"),
            ("dtype is int64", "Add"),
        ),
        (("t", 4, "int64", "Add", {}, "Constant", {"value": 1.0}, 0, "Reject"), ("Zeros", "Constant")),
        (("t", 4, "float32", "Add", {}, "Zeros", {}, 0, "Ignore"), ("Ignore", "Reject, Zero or Allow")),
        (("", 4, "float32", "Add", {}, "Zeros", {}, 0, "Reject"), ("name",)),
    ],
)
def test_a_table_that_cannot_be_is_refused_by_name(options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    """The error names the field, the value found and the values wanted; nothing is made."""
    store = _core.Store()
    with pytest.raises(_core.StatusError) as caught:
        store.create_table(*options)
    kind, message = caught.value.args
    assert kind == "BadRequest"
    assert all(word in message for word in words), message


def test_a_table_is_made_once() -> None:
    """The same name again is refused."""
    store, _ = int64_table()
    with pytest.raises(_core.StatusError, match="exists already"):
        store.create_table("t", 3, "int64", "Add", {}, "Zeros", {}, 0, "Reject")


def test_a_memory_limit_refuses_new_rows_and_spares_the_old() -> None:
    """At the limit present rows go on, and new ones are refused with both numbers; nothing is lost.

    Memory is taken a slab (at most 64 KiB) a stripe at a time, so the limit may be passed by 64 of them.
    """
    store = _core.Store(memory_limit=3_000_000)
    table = store.create_table("t", 16, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    accepted = 0
    with pytest.raises(_core.StatusError) as caught:
        for at in range(0, 10**6, 1000):
            keys = np.arange(at, at + 1000, dtype=np.uint64)
            store.push(table, keys, np.ones((1000, 16), np.int64))
            accepted += 1000
    assert caught.value.args[0] == "ResourceExhausted"
    assert "3000000" in caught.value.args[1]
    assert accepted > 1000
    assert store.counters()["bytes"] <= 3_000_000 + 64 * 65_536
    present = np.arange(accepted, dtype=np.uint64)
    store.push(table, present, np.ones((accepted, 16), np.int64))
    out = np.empty((accepted, 16), np.int64)
    store.pull(table, present, out, True)
    assert bool((out == 2).all())
    assert store.table_info(table)["rows"] == accepted


def test_the_gil_is_free_while_the_table_works() -> None:
    """A Python thread counts on while another is inside one long call."""
    import threading

    store, table = float_table(64)
    keys = np.random.default_rng(0).integers(0, 2**64, 400_000, dtype=np.uint64)
    rows = np.zeros((len(keys), 64), np.float32)
    inside = threading.Event()
    done = threading.Event()

    def work() -> None:
        inside.set()
        store.push(table, keys, rows)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    counted = 0
    while not done.is_set():
        counted += 1
    thread.join()
    assert counted > 100
