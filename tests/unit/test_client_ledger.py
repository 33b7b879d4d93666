"""Step numbers: which is next, and which are open."""

from __future__ import annotations

import random
import threading

import pytest

from tablebay.client.errors import DeadlineExceeded
from tablebay.client.ledger import OPEN_STEPS_MAX, StepLedger
from tablebay.client.retry import Pace


def test_numbers_are_handed_out_in_order_from_the_first() -> None:
    """A resumed client goes on where the servers say."""
    ledger = StepLedger(7)
    deadline = Pace().deadline(1.0)
    assert ledger.next == 7
    assert ledger.oldest == 7
    assert [ledger.take(deadline) for _ in range(3)] == [7, 8, 9]
    assert ledger.next == 10
    assert ledger.oldest == 7
    ledger.complete(7)
    assert ledger.oldest == 8
    ledger.complete(9)
    assert ledger.oldest == 8
    ledger.complete(8)
    assert ledger.oldest == 10


def test_a_number_given_back_is_the_next_one() -> None:
    """The lowest first, and open all the while, so that no hole is left behind."""
    ledger = StepLedger(0)
    deadline = Pace().deadline(1.0)
    for _ in range(4):
        ledger.take(deadline)
    ledger.give_back(2)
    ledger.give_back(1)
    ledger.complete(0)
    assert ledger.next == 1
    assert ledger.oldest == 1
    assert [ledger.take(deadline), ledger.take(deadline), ledger.take(deadline)] == [1, 2, 4]


def test_no_more_than_64_steps_are_open() -> None:
    """The 65th waits for the oldest, and gives up at its deadline."""
    ledger = StepLedger(0)
    for _ in range(OPEN_STEPS_MAX):
        ledger.take(Pace().deadline(1.0))
    with pytest.raises(DeadlineExceeded, match=r"step 64 has not begun .* 64 steps are open"):
        ledger.take(Pace().deadline(0.01))
    ledger.complete(1)
    with pytest.raises(DeadlineExceeded):
        ledger.take(Pace().deadline(0.01))
    timer = threading.Timer(0.05, ledger.complete, [0])
    timer.start()
    assert ledger.take(Pace().deadline(10.0)) == 64
    timer.join()


def test_the_window_holds_for_any_order() -> None:
    """In any order of completions, no step is 64 past the oldest open one, nor handed out twice."""
    for seed in range(50):
        draw = random.Random(seed)
        ledger = StepLedger(0)
        open_steps: list[int] = []
        completed: set[int] = set()
        for _ in range(500):
            if open_steps and draw.random() < 0.5:
                step = open_steps.pop(draw.randrange(len(open_steps)))
                if draw.random() < 0.3:
                    ledger.give_back(step)
                else:
                    ledger.complete(step)
                    completed.add(step)
                continue
            try:
                step = ledger.take(Pace().deadline(0.0))
            except DeadlineExceeded:
                assert open_steps, f"seed {seed}"
                continue
            assert step not in completed, f"seed {seed}"
            assert step not in open_steps, f"seed {seed}"
            assert step - ledger.oldest < OPEN_STEPS_MAX, f"seed {seed}"
            open_steps.append(step)
