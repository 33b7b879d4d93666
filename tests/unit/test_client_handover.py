"""A push that goes on while its caller computes (client/handover.py)."""

from __future__ import annotations

import random
import threading

import pytest

from tablebay.client import errors
from tablebay.client.handover import Handover
from tablebay.client.retry import Deadline, Pace


def pace() -> Pace:
    return Pace(random=random.Random(0))


def within(seconds: float = 5.0) -> Deadline:
    return pace().deadline(seconds)


def test_a_waiter_returns_when_the_push_has_ended() -> None:
    """And at once where there is none."""
    handover, may_end = Handover(), threading.Event()
    ended: list[bool] = []
    handover.wait(within)
    handover.begin(lambda: ended.append(may_end.wait(5)))
    threading.Timer(0.1, may_end.set).start()
    handover.wait(within)
    assert ended == [True]
    handover.close()


def test_an_error_is_raised_once_to_whoever_waits_next() -> None:
    """The push after it begins as if there had been none."""
    handover = Handover()

    def fail() -> None:
        raise errors.BadRequest("no")

    handover.begin(fail)
    with pytest.raises(errors.BadRequest, match="no"):
        handover.wait(within)
    handover.wait(within)
    handover.begin(lambda: None)
    handover.wait(within)
    handover.close()


def test_a_wait_ends_with_its_deadline() -> None:
    """The push goes on, and can be waited for again."""
    handover, may_end = Handover(), threading.Event()

    def wait() -> None:
        may_end.wait(5)

    handover.begin(wait)
    with pytest.raises(errors.DeadlineExceeded, match=r"not settled within 0\.1 s"):
        handover.wait(lambda: within(0.1))
    may_end.set()
    handover.wait(within)
    handover.close()


def test_the_push_itself_waits_for_nothing() -> None:
    """Else it would wait for itself."""
    handover = Handover()
    passed: list[bool] = []

    def push() -> None:
        handover.wait(within)
        passed.append(True)

    handover.begin(push)
    handover.wait(within)
    assert passed == [True]
    handover.close()
