"""Which server holds which shard.

A key's shard is the top 10 bits of its hash (native/include/tablebay/hash.h, pinned by a golden test); the
shard map says which server holds the shard. Scaling moves shards; it never rehashes keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tablebay.client.errors import BadRequest

SHARDS = 1024

Owners = NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class ShardMap:
    """version: raised by each change. owners: uint16 (1024,), the index of each shard's server."""

    version: int
    servers: int
    owners: Owners

    def __post_init__(self) -> None:
        if self.owners.shape != (SHARDS,) or self.owners.dtype != np.uint16:
            found = f"{self.owners.dtype} {self.owners.shape}"
            raise BadRequest(f"shard map: owners are {found}, wanted uint16 ({SHARDS},)")
        if not 1 <= self.servers <= SHARDS:
            raise BadRequest(f"shard map: {self.servers} servers, wanted 1 to {SHARDS}")
        highest = int(self.owners.max())
        if highest >= self.servers:
            raise BadRequest(
                f"shard map: a shard belongs to server {highest}, but there are {self.servers} servers"
            )

    @classmethod
    def even(cls, servers: int) -> ShardMap:
        """Version 1, the map that a new job begins with: shard i belongs to server i % servers.

        Neighbouring shards share a stripe of a server's tables, and a stripe a lock: dealt out one by one,
        every server has keys in all its stripes.
        """
        if not 1 <= servers <= SHARDS:
            raise BadRequest(f"{servers} servers, wanted 1 to {SHARDS}, since there are {SHARDS} shards")
        return cls(1, servers, (np.arange(SHARDS) % servers).astype(np.uint16))

    @classmethod
    def unpack(cls, version: int, servers: int, owners: bytes) -> ShardMap:
        """The map that a message holds: `owners` is little-endian u16 for each shard. Raises BadRequest."""
        if len(owners) != 2 * SHARDS:
            raise BadRequest(f"shard map: {len(owners)} bytes of owners, wanted {2 * SHARDS}")
        return cls(version, servers, np.frombuffer(owners, "<u2").astype(np.uint16))

    def shards_of(self, server: int) -> list[int]:
        """The shards that a server has, ascending."""
        return [int(shard) for shard in np.flatnonzero(self.owners == server)]

    def pack(self) -> bytes:
        """The owners as a ShardMap message has them."""
        return self.owners.astype("<u2").tobytes()
