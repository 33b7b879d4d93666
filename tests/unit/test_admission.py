"""Admission: a row is made by the N-th push that names its key, counted exactly or in a filter, or by chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.client import client_over
from tablebay.client.inprocess import InProcessTransport, services
from tablebay.client.proto import tablebay_pb2
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


def filtered(admit_at: int, keys: int, store: Any = None) -> tuple[Any, int, int]:
    """As `make`, with a filter for so many keys."""
    store = store or _core.Store()
    seen = store.create_table("t--sightings", 32, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    options = ("Zeros", {}, 0, "Reject", "Create", admit_at, 1.0, keys)
    return store, store.create_table("t", DIM, "float32", "Add", {}, *options), seen


@pytest.mark.parametrize("admit_at", [2, 3, 15])
def test_a_filter_is_never_late_and_seldom_early(admit_at: int) -> None:
    """With as many keys as it is made for: none later than its N-th push, and at most 1 of 100 sooner, as is stated.

    The sooner ones at the (N-1)-th push, where the most are; the number of keys dropped is what was passed over.
    """
    count = 200_000
    random = np.random.default_rng(admit_at)
    store, table, seen = filtered(admit_at, count)
    keys = random.integers(0, 2**64, count, dtype=np.uint64)
    ones = np.ones((count, DIM), np.float32)
    for push in range(1, admit_at):
        store.push(table, random.permutation(keys), ones)
        early = store.table_info(table)["rows"] / count
        assert early <= 0.01, f"seed {admit_at}: {early} of the keys by push {push}"
    store.push(table, keys, ones)
    assert store.contains(table, keys).all()
    pushed = store.counters()["push_missing_dropped"] + store.counters()["push_missing_created"]
    assert store.counters()["push_missing_created"] == count
    assert pushed <= admit_at * count
    assert store.table_info(seen)["rows"] <= 1024 * -(-count * 12 // (512 * 1024))
    # A row of 32 int64 and its 16 bytes, and its place in the index: what the docs call some 7 bytes a key.
    assert store.table_info(seen)["rows"] * (272 + 14) < 8 * count


def test_pulls_count_nothing_in_a_filter() -> None:
    """Neither a pull nor a deletion changes it; an assigned row is there at once."""
    store, table, seen = filtered(2, 1000)
    keys = np.arange(100, dtype=np.uint64)
    store.pull(table, keys, np.empty((100, DIM), np.float32), True)
    store.delete(table, keys)
    assert store.table_info(seen)["rows"] == store.table_info(table)["rows"] == 0
    store.assign(table, keys[:3], np.ones((3, DIM), np.float32))
    assert store.contains(table, keys).sum() == 3


def test_a_filter_is_in_the_checkpoint_of_its_rows() -> None:
    """Deltas too; a store loaded from both goes on where the counters were, and a shard's counters lie in the shard."""
    store, table, seen = filtered(3, 10_000)
    keys = np.arange(500, dtype=np.uint64)
    ones = np.ones((500, DIM), np.float32)
    store.push(table, keys[:250], ones[:250])
    cuts = [store.take([], 0.0, True)]
    files = {number: [whole(cuts[0], number)] for number in (table, seen)}
    cuts[0].commit()
    store.push(table, keys, ones)
    cuts.append(store.take([], 0.0, False))
    assert not cuts[1].full
    store.push(table, keys, ones)
    assert store.table_info(table)["rows"] >= 250
    for number, parts in files.items():
        parts.append(whole(cuts[1], number))
    loaded = _core.Store(epoch=2)
    loader = loaded.load(ALL_SHARDS)
    filtered(3, 10_000, loader)
    for number, contents_of in files.items():
        for position, content in enumerate(contents_of):
            loader.begin(number, None, position > 0).feed(content)
    loader.finish()
    loaded.push(table, keys, ones)
    assert loaded.contains(table, keys).tobytes() == store.contains(table, keys).tobytes()
    assert contents(loaded, table, keys, DIM, np.float32)[1].tobytes() == (
        contents(store, table, keys, DIM, np.float32)[1].tobytes()
    )


def test_chance_admits_as_many_as_it_says() -> None:
    """A tenth of 50,000 keys at each push, within 5 sigma, others each time; the gradients of the rest are dropped."""
    count, chance = 50_000, 0.1
    store = _core.Store()
    options = ("Zeros", {}, 0, "Reject", "Create", 1, chance)
    table = store.create_table("t", DIM, "float32", "Add", {}, *options)
    keys = np.arange(count, dtype=np.uint64)
    ones = np.ones((count, DIM), np.float32)
    store.pull(table, keys, np.empty((count, DIM), np.float32), True)
    assert store.table_info(table)["rows"] == 0
    left = count
    for push in range(1, 6):
        store.push(table, keys, ones)
        rows = store.table_info(table)["rows"]
        new = rows - (count - left)
        assert abs(new - chance * left) < 5 * np.sqrt(left * chance * (1 - chance)), push
        left = count - rows
    there, rows = contents(store, table, keys, DIM, np.float32)
    assert not rows[~there].any()
    assert (rows[there, 0] >= 1).all()
    counters = store.counters()
    assert counters["push_missing_created"] == there.sum()
    assert counters["push_missing_dropped"] + rows[:, 0].sum() == 5 * count


@pytest.mark.parametrize(
    "policy", [{"admit_probability": 0.3}, {"admit_at": 2, "admit_filter_keys": 50}, {"admit_at": 2}]
)
def test_any_number_of_servers_admits_the_same_keys(policy: dict[str, Any]) -> None:
    """By count, by chance, and in a filter that is much too small; a table in this process too."""
    spec: dict[str, Any] = {"dim": DIM, "optimizer": tb.Adagrad(0.1), **policy}
    alone = tb.Table(name="users", **spec)
    keys = np.arange(3000, dtype=np.uint64)
    random = np.random.default_rng(8)
    with tb.local(servers=1) as one, tb.local(servers=3) as three:
        tables = [alone, one.table("users", **spec), three.table("users", **spec)]
        for _ in range(4):
            some = random.integers(0, 3000, 1000).astype(np.uint64)
            for table in tables:
                table.push(some, np.ones((1000, DIM), np.float32))
        found = [table.contains(keys).tobytes() for table in tables]
        assert found[0] == found[1] == found[2]
        assert 0 < sum(found[0]) < 3000
        assert len({table.pull(keys).tobytes() for table in tables}) == 1


def test_chance_and_filter_are_said_everywhere() -> None:
    """On the wire, in JSON; defaults are not said, so that an older server refuses what it does not know."""
    plain = tb.TableSpec("t", DIM)
    chance = replace(plain, admit_probability=0.25)
    filter_ = replace(plain, admit_at=3, admit_filter_keys=1000)
    for spec in (plain, chance, filter_):
        assert tb.TableSpec.from_message(spec.message()) == spec
        assert load_tables(dump_tables([spec])) == [spec]
    assert "admit" not in dump_tables([plain])
    assert '"admitProbability":0.25' in dump_tables([chance])
    assert '"admitFilterKeys":1000' in dump_tables([filter_])
    sightings = filter_.sightings()
    assert sightings is not None
    assert sightings.dim == 32
    for words, wrong in (
        ("admit_probability is 0.5 beside admit_at 2", {"admit_probability": 0.5, "admit_at": 2}),
        ("admit_probability is 0.5 beside .* Drop", {"admit_probability": 0.5, "push_missing": "Drop"}),
        ("admit_filter_keys is set and admit_at is 1", {"admit_filter_keys": 5}),
        ("admit_filter_keys is set and admit_at is 16", {"admit_filter_keys": 5, "admit_at": 16}),
        ("admit_probability is 0", {"admit_probability": 0.0}),
    ):
        with pytest.raises(tb.BadRequest, match=words):
            tb.TableSpec("t", DIM, **wrong)  # type: ignore[arg-type]
    native_words = "admitProbability is 2, wanted more than 0, at most 1"
    with pytest.raises(_core.StatusError, match=native_words):
        _core.Store().create_table("t", 1, "float32", "Add", {}, "Zeros", {}, 0, "Reject", "Create", 1, 2.0)


def test_a_server_that_does_not_know_a_field_is_noticed() -> None:
    """It answers the table that it made, which is another: refused by name rather than trained without admission."""

    class Old(InProcessTransport):
        def call(self, server: int, method: str, request: bytes, *args: Any, **named: Any) -> Any:
            if method == "CreateTable":
                message = tablebay_pb2.CreateTableRequest.FromString(request)
                message.spec.ClearField("admit_probability")
                request = message.SerializeToString()
            return super().call(server, method, request, *args, **named)

    with (
        client_over(Old(services(1)), timeout=10) as client,
        pytest.raises(
            tb.TableMismatch, match="admit_probability: found 1.0, wanted 0.5; the server is of an older"
        ),
    ):
        client.table("t", dim=2, admit_probability=0.5)
