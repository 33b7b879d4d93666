"""The index of a table: a search stays as short for a server that has some of the shards as for one that has all."""

from __future__ import annotations

import numpy as np
import pytest

from tablebay.client.routing import ShardMap
from tablebay.native import _core

ROWS = 120_000


@pytest.mark.parametrize("servers", [1, 2, 3, 4, 5, 16, 64, 1000])
def test_a_search_looks_at_little_more_than_one_bucket(servers: int) -> None:
    """Whichever share of the shards a server has: its rows lie in all of its index, not in that share of it."""
    owners = ShardMap.even(servers).owners
    random = np.random.default_rng(servers)
    keys = random.integers(0, 2**64, 1 << 20, dtype=np.uint64)
    while True:
        mine = keys[owners[_core.shards_of(keys)] == servers - 1]
        if len(mine) >= min(ROWS, 2_000_000 // servers):
            break
        keys = random.integers(0, 2**64, 8 << 20, dtype=np.uint64)
    mine = mine[:ROWS]
    store = _core.Store()
    table = store.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    probes = []
    for begin in range(0, len(mine), 10_000):
        some = mine[begin : begin + 10_000]
        store.push(table, some, np.ones((len(some), 1), np.int64))
        probes.append(store.index_probes(table))
    assert store.counters()["rows"] == len(mine)
    # One in 20 lies beyond its own bucket, more where few buckets were made for few rows.
    assert max(probes) < 1.5, (servers, probes)
    store.delete(table, mine)
    assert store.index_probes(table) == 0
