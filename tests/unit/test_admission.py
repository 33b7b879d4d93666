"""Admission by count: a row is made by the N-th push that names its key, and no earlier, and no otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.tables import dump_tables, load_tables
from tablebay.native import _core
from tests.unit.checkpoint_blocks import whole

DIM = 3
ALL_SHARDS = list(range(1024))
INITIAL = ("Normal", {"mean": 0.0, "stddev": 1.0})


def make(admit_at: int, store: Any = None, limit: int = 0) -> tuple[Any, int, int]:
    """A store, or loader, with a table whose rows are sums, and the table of its sightings."""
    store = store or _core.Store(memory_limit=limit)
    seen = store.create_table("t--sightings", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    table = store.create_table("t", DIM, "float32", "Add", {}, *INITIAL, 0, "Reject", "Create", admit_at)
    return store, table, seen


def contents(store: Any, table: int, keys: Any, dim: int, dtype: Any) -> tuple[Any, Any]:
    """Which keys have rows, and all rows."""
    out = np.empty((len(keys), dim), dtype)
    store.pull(table, keys, out, False)
    return store.contains(table, keys), out


@pytest.mark.parametrize("admit_at", [2, 3, 7])
def test_random_pushes_admit_what_a_dictionary_says(admit_at: int) -> None:
    """Repeats within a push are one sighting; pulls count nothing and make nothing; the N-th gradient is the first."""
    seed = admit_at
    random = np.random.default_rng(seed)
    store, table, seen = make(admit_at)
    everyone = np.arange(900, dtype=np.uint64)
    plain = _core.Store()
    plain.create_table("t", DIM, "float32", "Add", {}, *INITIAL, 0, "Reject")
    first = np.empty((900, DIM), np.float32)
    plain.pull(table, everyone, first, True)
    counts: dict[int, int] = {}
    rows: dict[int, Any] = {}
    dropped = 0
    for _ in range(50):
        keys = random.integers(0, 900, int(random.integers(1, 150))).astype(np.uint64)
        gradients = random.integers(-9, 9, (len(keys), DIM)).astype(np.float32)
        pulled = np.empty((len(keys), DIM), np.float32)
        store.pull(table, keys, pulled, True)
        wanted = np.array([rows.get(key, first[key]) for key in keys.tolist()])
        assert np.array_equal(pulled, wanted), f"seed {seed}"
        store.push(table, keys, gradients)
        for key in dict.fromkeys(keys.tolist()):
            if key not in rows:
                counts[key] = counts.get(key, 0) + 1
                if counts[key] < admit_at:
                    dropped += 1
                    continue
                rows[key] = first[key]
                del counts[key]
            summed = np.zeros(DIM, np.float32)
            for gradient in gradients[keys == key]:
                summed = summed + gradient
            rows[key] = rows[key] + summed
    there, found = contents(store, table, everyone, DIM, np.float32)
    assert [key for key in everyone.tolist() if there[key]] == sorted(rows), f"seed {seed}"
    for key, row in rows.items():
        np.testing.assert_array_equal(found[key], row, err_msg=f"seed {seed}")
    there, sighted = contents(store, seen, everyone, 1, np.int64)
    assert {key: int(sighted[key, 0]) for key in everyone.tolist() if there[key]} == counts, f"seed {seed}"
    counters = store.counters()
    assert (counters["push_missing_dropped"], counters["push_missing_created"]) == (dropped, len(rows))


def test_counts_are_in_the_checkpoint_of_their_rows() -> None:
    """Pushes while a cut is read are not in it; a store loaded from it goes on where the counts were."""
    store, table, seen = make(3)
    keys = np.arange(100, dtype=np.uint64)
    ones = np.ones((100, DIM), np.float32)
    store.push(table, keys[:50], ones[:50])
    store.push(table, keys, ones)
    cut = store.take([], 0.0, True)
    store.push(table, keys, ones)
    assert store.table_info(table)["rows"] == 50
    files = {number: whole(cut, number) for number in (table, seen)}
    loaded = _core.Store(epoch=2)
    loader = loaded.load(ALL_SHARDS)
    make(3, loader)
    for number, content in files.items():
        loader.begin(number, None, False).feed(content)
    loader.finish()
    assert loaded.table_info(table)["rows"] == 0
    loaded.push(table, keys, ones)
    for number, dim, dtype in ((table, DIM, np.float32), (seen, 1, np.int64)):
        for found, wanted in zip(
            contents(loaded, number, keys, dim, dtype), contents(store, number, keys, dim, dtype), strict=True
        ):
            assert np.array_equal(found, wanted)


def test_assign_and_delete_do_as_ever() -> None:
    """An assigned row is there at once; a deleted one must be sighted again."""
    store, table, _ = make(2)
    key, one = np.array([4], np.uint64), np.ones((1, DIM), np.float32)
    store.assign(table, key, one)
    store.push(table, key, one)
    there, rows = contents(store, table, key, DIM, np.float32)
    assert there.tolist() == [True]
    assert (rows == 2).all()
    store.delete(table, key)
    store.push(table, key, one)
    assert not store.contains(table, key)[0]
    store.push(table, key, one)
    assert store.contains(table, key)[0]


def test_a_table_without_its_sightings_refuses_pushes() -> None:
    """Rather than losing count."""
    store = _core.Store()
    table = store.create_table("t", DIM, "float32", "Add", {}, "Zeros", {}, 0, "Reject", "Create", 2)
    with pytest.raises(_core.StatusError, match="no table has the id"):
        store.push(table, np.array([1], np.uint64), np.ones((1, DIM), np.float32))


def test_the_memory_limit_holds_for_sightings() -> None:
    """Keys that have no row yet take memory too."""
    store, table, _ = make(2, limit=1 << 16)
    with pytest.raises(_core.StatusError, match="new rows want"):
        store.push(table, np.arange(100_000, dtype=np.uint64), np.ones((100_000, DIM), np.float32))


def test_the_spec_says_it_everywhere() -> None:
    """On the wire, in JSON, on servers and in this process; 1 is not said, and what cannot be is refused."""
    plain = tb.TableSpec("t", DIM)
    counted = replace(plain, admit_at=3)
    assert tb.TableSpec.from_message(counted.message()) == counted
    assert load_tables(dump_tables([counted])) == [counted]
    assert "admitAt" not in dump_tables([plain])
    assert plain.sightings() is None
    with pytest.raises(tb.BadRequest, match="admit_at is 0"):
        tb.TableSpec("t", DIM, admit_at=0)
    with pytest.raises(tb.BadRequest, match="admit_at is 2 and push_missing is Drop"):
        tb.TableSpec("t", DIM, admit_at=2, push_missing="Drop")
    with pytest.raises(tb.BadRequest, match="name has 53 characters, wanted at most 52"):
        tb.TableSpec("t" * 53, DIM, admit_at=2)
    with pytest.raises(_core.StatusError, match="admitAt is 0, wanted at least 1"):
        make(0)
    keys, ones = np.arange(40, dtype=np.uint64), np.ones((40, DIM), np.float32)
    spec: dict[str, Any] = {"dim": DIM, "optimizer": tb.Adagrad(0.1), "admit_at": 3}
    alone = tb.Table(name="users", **spec)
    with tb.local(servers=2) as client:
        remote = client.table("users", **spec)
        for push in range(4):
            for table in (alone, remote):
                table.push(keys, ones)
                assert len(table) == (40 if push >= 2 else 0)
            assert alone.pull(keys).tobytes() == remote.pull(keys).tobytes()
            seen = client.table("users--sightings")
            assert seen.pull(keys, create=False)[:, 0].tolist() == [(push + 1) * (push < 2)] * 40
