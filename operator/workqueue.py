"""Which jobs are to be looked at, and when: client-go's work queue, for one event loop.

A key that is added while it waits is there once. A key that is added while it is worked on is given out again
afterwards, never to two workers at once.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Callable

Key = tuple[str, str]

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 300.0


class WorkQueue:
    """Keys (namespace, name). Used from one event loop only."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, randomness: random.Random | None = None
    ) -> None:
        self._clock = clock
        self._random = randomness or random.Random()
        self._ready: deque[Key] = deque()
        # When each was added.
        self._waiting: dict[Key, float] = {}
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        # When a key that failed is looked at again.
        self._retry_at: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._later: list[tuple[float, Key]] = []
        self._changed = asyncio.Event()

    def now(self) -> float:
        """Seconds, by the clock that the queue goes by."""
        return self._clock()

    def add(self, key: Key) -> None:
        """Have a key looked at as soon as a worker is free."""
        if key in self._waiting:
            return
        if key in self._working:
            self._again.add(key)
            return
        self._waiting[key] = self._clock()
        self._ready.append(key)
        self._changed.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key looked at in so many seconds, or earlier if it is due earlier already."""
        at = self._clock() + seconds
        if self._due.get(key, float("inf")) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._later, (at, key))
        self._changed.set()

    def retry(self, key: Key, *, after_s: float = 0.0) -> float:
        """Have a key looked at again after a failure: each time later. Returns in how many seconds.

        after_s: no sooner than that.
        """
        now = self._clock()
        left = max(self._retry_at.get(key, now) - now, 0.0)
        if left > 0:
            left = max(left, after_s)
            # Something has changed, and it was looked at before its time: no further failure, or a job with many
            # events would soon wait for minutes.
            self.add_after(key, left)
            return left
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 30))
        wait = max(after_s, wait) * (1.0 + 0.2 * self._random.random())
        self._retry_at[key] = now + wait
        self.add_after(key, wait)
        return wait

    def failures(self, key: Key) -> int:
        """How often in a row a key has failed."""
        return self._failures.get(key, 0)

    def succeeded(self, key: Key) -> None:
        """The next failure of this key is its first."""
        self._failures.pop(key, None)
        self._retry_at.pop(key, None)

    def forget(self, key: Key) -> None:
        """Drop all that is known of a key that is gone."""
        self._failures.pop(key, None)
        self._retry_at.pop(key, None)
        self._due.pop(key, None)

    async def get(self) -> Key:
        """The next key, which is this worker's until `done`."""
        while True:
            self._promote()
            if self._ready:
                key = self._ready.popleft()
                self._waiting.pop(key, None)
                self._working.add(key)
                return key
            self._changed.clear()
            timeout = None if not self._later else max(0.0, self._later[0][0] - self._clock())
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """The worker is done with the key."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _promote(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            at, key = heapq.heappop(self._later)
            # A later entry was overtaken by an earlier one, or forgotten.
            if self._due.get(key) == at:
                del self._due[key]
                self.add(key)

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    @property
    def age_s(self) -> float:
        """For how long the oldest of them has waited."""
        self._promote()
        return self._clock() - min(self._waiting.values()) if self._waiting else 0.0
