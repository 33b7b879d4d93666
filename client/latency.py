"""How long calls take: a histogram with buckets 10 % wide, small enough to travel with each report.

Bucket i counts calls with 1e-6 * 1.1**i <= seconds < 1e-6 * 1.1**(i + 1); the first and the last take what
lies beyond. On the wire: 256 little-endian u32 (docs/wire.md).
"""

from __future__ import annotations

import math
import struct
import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from tablebay.client.errors import BadRequest

BUCKETS = 256
FIRST_S = 1e-6
GROWTH = 1.1

_FORMAT = f"<{BUCKETS}I"
_COUNT_MAX = 2**32 - 1


class LatencyHistogram:
    """Safe in threads."""

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        self._counts = [0] * BUCKETS if counts is None else list(counts)
        if len(self._counts) != BUCKETS:
            raise BadRequest(f"latency histogram: {len(self._counts)} buckets, wanted {BUCKETS}")
        self._lock = threading.Lock()

    @staticmethod
    def bucket(seconds: float) -> int:
        """The bucket that `seconds` falls into."""
        if not seconds > FIRST_S:
            return 0
        return min(BUCKETS - 1, int(math.log(seconds / FIRST_S) / math.log(GROWTH)))

    def record(self, seconds: float) -> None:
        """Count one call."""
        bucket = self.bucket(seconds)
        with self._lock:
            self._counts[bucket] += 1

    @property
    def counts(self) -> list[int]:
        """Calls in each bucket."""
        with self._lock:
            return list(self._counts)

    @property
    def count(self) -> int:
        """Calls in all."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Seconds that a share `q` of the calls did not exceed, to within 10 %; NaN without calls."""
        if not 0.0 <= q <= 1.0:
            raise BadRequest(f"quantile is {q}, wanted 0 to 1")
        counts = self.counts
        total = sum(counts)
        if total == 0:
            return math.nan
        rank = max(1, math.ceil(q * total))
        bucket = bisect_left(list(accumulate(counts)), rank)
        return float(FIRST_S * GROWTH ** (bucket + 0.5))

    def merge(self, other: LatencyHistogram) -> None:
        """Add another's counts to this one."""
        added = other.counts
        with self._lock:
            self._counts = [mine + more for mine, more in zip(self._counts, added, strict=True)]

    def pack(self) -> bytes:
        """The counts as a report carries them."""
        return struct.pack(_FORMAT, *(min(count, _COUNT_MAX) for count in self.counts))

    @classmethod
    def unpack(cls, data: bytes) -> LatencyHistogram:
        """What `pack` made; nothing at all is an empty histogram. Raises BadRequest for another length."""
        if not data:
            return cls()
        if len(data) != struct.calcsize(_FORMAT):
            raise BadRequest(f"latency histogram: {len(data)} bytes, wanted {struct.calcsize(_FORMAT)}")
        return cls(struct.unpack(_FORMAT, data))
