"""The feed of what left a table by itself: in this process, over several servers, and across gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.client import client_over
from tablebay.client.inprocess import InProcessTransport, services

BEGAN = 1_000_000_000
KEYS = np.arange(1000, dtype=np.uint64)


def leave(table: Any, stores: list[Any], keys: Any, now: int) -> None:
    """Make rows of `keys`, and have them leave at `now`."""
    for store in stores:
        store.set_now(now - 10)
    table.pull(keys)
    for store in stores:
        store.set_now(now)
    assert table.evict() == len(keys)


def test_a_table_in_this_process_names_what_left() -> None:
    """Keys, reasons and times; from a cursor on, what came after it."""
    table = tb.Table(2, name="t", eviction=tb.Eviction(ttl_seconds=10))
    assert len(table.evictions()) == 0
    leave(table, [table._store], KEYS[:10], BEGAN)
    found = table.evictions()
    assert found.complete
    assert sorted(found.keys.tolist()) == list(range(10))
    assert found.reasons.tolist() == ["ttl"] * 10
    assert found.times.tolist() == [BEGAN] * 10
    leave(table, [table._store], KEYS[10:13], BEGAN + 100)
    found = table.evictions(found.cursor)
    assert (sorted(found.keys.tolist()), found.complete) == ([10, 11, 12], True)
    assert len(table.evictions(found.cursor)) == 0


def test_servers_name_what_left_and_some_at_a_time() -> None:
    """Each its own, in the order of times; `most` of each, and the rest by the cursor."""
    found = services(3)
    with client_over(InProcessTransport(found)) as client:
        table = client.table("t", dim=2, eviction=tb.Eviction(ttl_seconds=10))
        stores = [service._store for service in found]
        leave(table, stores, KEYS[:300], BEGAN)
        leave(table, stores, KEYS[300:900], BEGAN + 50)
        events = table.evictions()
        assert sorted(events.keys.tolist()) == list(range(900))
        assert events.times.tolist() == [BEGAN] * 300 + [BEGAN + 50] * 600
        seen, cursor = [], None
        while True:
            some = table.evictions(cursor, most=70)
            assert some.complete
            assert len(some) <= 3 * 70
            if not len(some):
                break
            seen += some.keys.tolist()
            cursor = some.cursor
        assert sorted(seen) == list(range(900))


def test_a_gap_is_said() -> None:
    """Where events were dropped, where the server is another, and where there are more servers than there were."""
    found = services(1)
    with client_over(InProcessTransport(found)) as client:
        table = client.table("t", dim=2, eviction=tb.Eviction(ttl_seconds=10, events_kept=50))
        stores = [service._store for service in found]
        leave(table, stores, KEYS[:20], BEGAN)
        first = table.evictions()
        assert first.complete
        leave(table, stores, KEYS[:60], BEGAN + 50)
        second = table.evictions(first.cursor)
        assert (second.complete, len(second)) == (False, 50)
        assert table.evictions(second.cursor).complete
        epoch, position = second.cursor.split("-")
        other = table.evictions(f"{int(epoch) - 1}-{position}")
        assert (other.complete, len(other)) == (False, 50), "another life of the server: all that it has"
        assert not table.evictions(f"{second.cursor},{second.cursor}").complete
        for cursor in ("", "7", "1-2-3", f"1-{2**64}"):
            with pytest.raises(tb.BadRequest, match="table 't': cursor is"):
                table.evictions(cursor)
        with pytest.raises(tb.BadRequest, match="most is 0"):
            table.evictions(most=0)
        with pytest.raises(tb.BadRequest, match="table 'u' has no eviction"):
            client.table("u", dim=2).evictions()


def test_a_budget_is_that_of_all_servers() -> None:
    """Three servers keep a third each: together no more than maxRows, and nearly all of it."""
    found = services(3)
    with client_over(InProcessTransport(found)) as client:
        table = client.table("t", dim=2, eviction=tb.Eviction(max_rows=30_000, policy="LFU", grace_seconds=5))
        for service in found:
            service._store.set_now(BEGAN)
        table.pull(np.arange(50_000, dtype=np.uint64))
        assert table.evict() == 0, "all are in their grace"
        for service in found:
            service._store.set_now(BEGAN + 5)
        assert 20_000 <= table.evict() < 20_010
        assert 29_990 < len(table) <= 30_000
        assert client.table("t").spec.eviction == tb.Eviction(max_rows=30_000, policy="LFU", grace_seconds=5)
        assert set(table.evictions().reasons) == {"lfu"}
