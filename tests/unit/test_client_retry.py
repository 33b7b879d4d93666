"""Deadlines and the waits between attempts."""

from __future__ import annotations

import math
import random

from tablebay.client.retry import BACKOFF_FIRST_S, BACKOFF_LAST_S, Pace


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_waits_grow_with_full_jitter_up_to_a_bound() -> None:
    """Each is drawn from 0 to a bound that doubles, so that clients do not come back together."""
    pace = Pace(random=random.Random(1))
    for attempt in range(40):
        bound = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0**attempt)
        draws = [pace.backoff(attempt) for _ in range(200)]
        assert 0.0 <= min(draws) < 0.2 * bound
        assert 0.8 * bound < max(draws) <= bound


def test_a_pause_never_passes_the_deadline() -> None:
    """The last wait is cut to what is left, and says that no time is."""
    time = FakeTime()
    pace = Pace(time.clock, time.sleep, random.Random(2))
    deadline = pace.deadline(1.0)
    attempt = 0
    while deadline.pause(attempt):
        attempt += 1
    assert time.now == 101.0
    assert deadline.passed()
    assert deadline.remaining() == 0.0
    assert math.isclose(sum(time.slept), 1.0)


def test_a_deadline_of_zero_has_passed() -> None:
    """So that a call with no time left is not begun again."""
    assert Pace().deadline(0.0).passed()
    assert not Pace().deadline(60.0).passed()
