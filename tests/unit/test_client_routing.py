"""The shard map."""

from __future__ import annotations

import numpy as np
import pytest

from tablebay.client.errors import BadRequest
from tablebay.client.routing import SHARDS, ShardMap


@pytest.mark.parametrize("servers", [1, 2, 3, 5, 7, 64, 1000, 1024])
def test_a_new_jobs_shards_are_dealt_out_evenly(servers: int) -> None:
    """No server has more than one shard more than another, and all shards have a server."""
    shard_map = ShardMap.even(servers)
    counts = [int((shard_map.owners == server).sum()) for server in range(servers)]
    assert sum(counts) == SHARDS
    assert max(counts) - min(counts) <= 1
    assert shard_map.version == 1


def test_a_shard_map_travels() -> None:
    """Little-endian u16 for each shard, there and back."""
    shard_map = ShardMap.even(300)
    packed = shard_map.pack()
    assert packed[:8] == b"\x00\x00\x01\x00\x02\x00\x03\x00"
    assert len(packed) == 2 * SHARDS
    again = ShardMap.unpack(4, 300, packed)
    assert again.version == 4
    assert again.servers == 300
    assert again.owners.dtype == np.uint16
    assert (again.owners == shard_map.owners).all()


def test_what_is_no_shard_map_is_refused() -> None:
    """By its length, its number of servers, and an owner that does not exist."""
    with pytest.raises(BadRequest, match="10 bytes of owners, wanted 2048"):
        ShardMap.unpack(1, 2, bytes(10))
    with pytest.raises(BadRequest, match="a shard belongs to server 2, but there are 2 servers"):
        ShardMap.unpack(1, 2, ShardMap.even(3).pack())
    with pytest.raises(BadRequest, match="0 servers, wanted 1 to 1024"):
        ShardMap.even(0)
    with pytest.raises(BadRequest, match="1025 servers, wanted 1 to 1024"):
        ShardMap.even(1025)
