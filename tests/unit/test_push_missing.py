"""What a push does with a key that has no row: makes it, or drops the gradient; counted either way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.client.tables import dump_tables, load_tables
from tablebay.native import _core
from tests.unit.checkpoint_blocks import parse, whole

DIM = 3


def make(policy: str, limit: int = 0) -> tuple[Any, int]:
    """A store with one table whose rows are sums."""
    store = _core.Store(memory_limit=limit)
    return store, store.create_table("t", DIM, "float32", "Add", {}, "Zeros", {}, 0, "Reject", policy)


def counted(store: Any) -> dict[str, int]:
    """What it counted of pushes."""
    counters: dict[str, int] = store.counters()
    names = ("push_missing_created", "push_missing_dropped", "keys_pushed", "rows_created")
    return {name: counters[name] for name in names}


@pytest.mark.parametrize("policy", ["Create", "Drop"])
def test_random_pushes_change_what_the_policy_says(policy: str) -> None:
    """Against a dictionary: keys with and without rows in one push, repeats, any order."""
    seed = 5
    random = np.random.default_rng(seed)
    store, table = make(policy)
    rows: dict[int, Any] = {}
    dropped = created = 0
    for _ in range(60):
        made = random.integers(0, 500, 4).astype(np.uint64)
        store.pull(table, made, np.empty((4, DIM), np.float32), True)
        for key in made.tolist():
            rows.setdefault(key, np.zeros(DIM, np.float32))
        keys = random.integers(0, 500, int(random.integers(1, 200))).astype(np.uint64)
        gradients = random.integers(-9, 9, (len(keys), DIM)).astype(np.float32)
        store.push(table, keys, gradients)
        missing = set(keys.tolist()) - set(rows)
        if policy == "Create":
            created += len(missing)
            rows |= {key: np.zeros(DIM, np.float32) for key in missing}
        else:
            dropped += len(missing)
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            if key in rows:
                rows[key] = rows[key] + gradient
    found = counted(store)
    assert (found["push_missing_created"], found["push_missing_dropped"]) == (created, dropped), (
        f"seed {seed}"
    )
    assert store.table_info(table)["rows"] == len(rows)
    keys = np.array(sorted(rows), np.uint64)
    out = np.empty((len(keys), DIM), np.float32)
    store.pull(table, keys, out, False)
    assert np.array_equal(out, np.array([rows[key] for key in keys.tolist()])), f"seed {seed}"


def test_assign_makes_rows_whatever_the_policy() -> None:
    """It says what the row is to be; it is no gradient without a row, and is not counted as one."""
    store, table = make("Drop")
    store.assign(table, np.array([1], np.uint64), np.ones((1, DIM), np.float32))
    store.push(table, np.array([1, 2], np.uint64), np.ones((2, DIM), np.float32))
    assert counted(store) == {
        "push_missing_created": 0,
        "push_missing_dropped": 1,
        "keys_pushed": 2,
        "rows_created": 1,
    }


def test_a_dropped_gradient_changes_nothing_of_a_checkpoint() -> None:
    """During a cut too: the next delta has the row that was pushed to, and no other."""
    store, table = make("Drop")
    rows = np.arange(200, dtype=np.uint64)
    store.pull(table, rows, np.empty((200, DIM), np.float32), True)
    first = store.take([], 0.0, True)
    keys = np.array([7, *range(1000, 1100), 8], np.uint64)
    store.push(table, keys, np.ones((102, DIM), np.float32))
    layout = dict(first.tables)[table]
    image = parse(whole(first, table), layout[0])
    assert len(image.rows) == 200
    assert not any(any(row[layout[2] :]) for row in image.rows)
    first.commit()
    delta = parse(whole(store.take([], 0.0, False), table), layout[0])
    assert sorted(int.from_bytes(row[:8], "little") for row in delta.rows) == [7, 8]


def test_a_push_that_makes_no_row_needs_no_memory() -> None:
    """A server at its limit takes a push whose missing keys are dropped, and refuses one that would make them."""
    keys = np.arange(100_000, dtype=np.uint64)
    gradients = np.ones((len(keys), DIM), np.float32)
    store, table = make("Drop", limit=1 << 16)
    store.push(table, keys, gradients)
    assert counted(store)["push_missing_dropped"] == len(keys)
    store, table = make("Create", limit=1 << 16)
    with pytest.raises(_core.StatusError, match="new rows want"):
        store.push(table, keys, gradients)


def test_a_dropped_push_is_a_step_that_was_applied() -> None:
    """Sent again it is a duplicate, though a row has been made meanwhile: the gradient is gone for good."""
    store, table = make("Drop")
    store.hello(1, 2, 1, 0)
    key = np.array([5], np.uint64)
    request = messages.PushRequest(
        sender=messages.Sender(client_high=1, client_low=2, incarnation=1),
        step=0,
        part=messages.Part(
            table_id=table, dim=DIM, keys=key.tobytes(), rows=np.ones(DIM, np.float32).tobytes()
        ),
    )
    answer = messages.PushResponse.FromString(store.handle_push(request.SerializeToString()))
    assert (answer.applied_shards, answer.duplicate_shards) == (1, 0)
    out = np.empty((1, DIM), np.float32)
    store.pull(table, key, out, True)
    again = messages.PushResponse.FromString(store.handle_push(request.SerializeToString()))
    assert (again.applied_shards, again.duplicate_shards) == (0, 1)
    store.pull(table, key, out, False)
    assert not out.any()


def test_the_policy_is_part_of_a_tables_spec() -> None:
    """On the wire, in JSON and in agreement; where it is Create it is not said, as older versions have it."""
    plain = tb.TableSpec("t", DIM)
    drops = replace(plain, push_missing="Drop")
    assert tb.TableSpec.from_message(drops.message()) == drops
    assert load_tables(dump_tables([drops])) == [drops]
    first, second = (json.loads(dump_tables([one]))[0] for one in (plain, drops))
    assert second == {**first, "pushMissing": "Drop"}
    assert plain.message().push_missing == ""
    with pytest.raises(tb.BadRequest, match="push_missing is 'drop'"):
        tb.TableSpec("t", DIM, push_missing="drop")  # type: ignore[arg-type]
    with pytest.raises(_core.StatusError, match="pushMissing is 'drop', wanted Create or Drop"):
        make("drop")
    with tb.local() as client:
        table = client.table("t", dim=DIM, push_missing="Drop")
        table.push([1], np.ones((1, DIM), np.float32))
        assert len(table) == 0
        with pytest.raises(tb.TableMismatch, match="push_missing: found 'Drop', wanted 'Create'"):
            client.table("t", push_missing="Create")
    assert len(tb.Table(DIM, push_missing="Drop")) == 0
