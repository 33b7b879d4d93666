"""Time and chance of a client: deadlines, and the waits between attempts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

BACKOFF_FIRST_S = 0.02
BACKOFF_LAST_S = 2.0


@dataclass(frozen=True)
class Pace:
    """The clock, the sleep and the randomness that a client uses; tests give their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: random.Random = field(default_factory=random.Random)

    def deadline(self, timeout_s: float) -> Deadline:
        """A deadline that far from now."""
        return Deadline(self, timeout_s)

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after attempt `attempt`, counted from 0: exponential, with full jitter.

        Full jitter (a draw from 0 to the bound) keeps clients that lost the same server from coming back
        together.
        """
        return self.random.uniform(0.0, min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 20)))


class Deadline:
    """One for a whole call, however many attempts it takes."""

    def __init__(self, pace: Pace, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._pace = pace
        self._end = pace.clock() + timeout_s

    def remaining(self) -> float:
        """Seconds left; 0 when it has passed."""
        return max(0.0, self._end - self._pace.clock())

    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() <= 0.0

    def pause(self, attempt: int) -> bool:
        """Wait before the next attempt, never past the deadline; False when no time is left for one."""
        self._pace.sleep(min(self._pace.backoff(attempt), self.remaining()))
        return not self.passed()
