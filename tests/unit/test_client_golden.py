"""Routing, pinned.

These values may change only together with a new version of the checkpoint format: under another hash every
key of an old checkpoint would be looked for on the wrong server.
"""

from __future__ import annotations

import zlib

import numpy as np

from tablebay.client.routing import ShardMap
from tablebay.native import _core

MASK = 2**64 - 1


def murmur_finaliser(key: int) -> int:
    """fmix64 of MurmurHash3, once more in Python."""
    key ^= key >> 33
    key = key * 0xFF51AFD7ED558CCD & MASK
    key ^= key >> 33
    key = key * 0xC4CEB9FE1A85EC53 & MASK
    return key ^ key >> 33


def test_the_hash_is_murmurs_finaliser() -> None:
    """Against a second implementation, on edge keys and random ones; the shard is its top ten bits."""
    edges = [0, 1, 2, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
    random = np.random.default_rng(0).integers(0, 2**64, 10_000, dtype=np.uint64).tolist()
    keys = np.array(edges + random, np.uint64)
    hashes = [murmur_finaliser(key) for key in keys.tolist()]
    assert _core.hash_keys(keys).tolist() == hashes
    assert _core.shards_of(keys).tolist() == [value >> 54 for value in hashes]


def test_shards_of_known_keys_never_change() -> None:
    """Values written down once; the first three hashes are the published ones of fmix64."""
    keys = np.array([0, 1, 2, 42, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1], np.uint64)
    assert _core.hash_keys(keys)[:3].tolist() == [0, 0xB456BCFC34C2CB2C, 0x3ABF2A20650683E7]
    assert _core.shards_of(keys).tolist() == [0, 721, 234, 516, 744, 686, 573, 234, 402]
    shards = _core.shards_of(np.arange(100_000, dtype=np.uint64))
    assert zlib.crc32(shards.astype("<u2").tobytes()) == 385362260
    assert _core.SHARDS == 1024


def test_servers_of_known_keys_never_change() -> None:
    """The new job's shard map: shard i belongs to server i % servers."""
    keys = np.array([0, 1, 2, 42, 2**63], np.uint64)
    for servers, wanted in ((1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 0, 1]), (5, [0, 1, 4, 1, 3])):
        owners = ShardMap.even(servers).owners
        assert owners[_core.shards_of(keys)].tolist() == wanted


def test_table_ids_never_change() -> None:
    """The CRC-32C of the name, by which every server knows a table without asking."""
    assert _core.table_id("123456789") == 0xE3069283
    assert _core.table_id("user") == 0x8A5D14BE


def test_a_plan_has_each_key_once_on_its_server_in_shard_order() -> None:
    """And leads every given key to its place."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        servers = int(draw.integers(1, 9))
        owners = ShardMap.even(servers).owners
        keys = draw.integers(0, 500, int(draw.integers(0, 2000))).astype(np.uint64)
        plan = _core.Router(owners, servers).plan(keys)
        unique = plan.keys()
        assert (plan.count, plan.unique) == (keys.size, unique.size), f"seed {seed}"
        assert (unique[plan.inverse()] == keys).all(), f"seed {seed}"
        assert sorted(unique.tolist()) == sorted(set(keys.tolist())), f"seed {seed}"
        shards = _core.shards_of(unique)
        places = owners[shards].astype(np.int64) * 1024 + shards
        assert (np.diff(places) >= 0).all(), f"seed {seed}"
        others = draw.integers(0, 500, 100).astype(np.uint64)
        positions = plan.intersect(others)
        wanted = [i for i, key in enumerate(unique.tolist()) if key in set(others.tolist())]
        assert positions.tolist() == wanted, f"seed {seed}"
