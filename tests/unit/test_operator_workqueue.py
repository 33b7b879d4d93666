"""More of the operator's work queue: backoff, times and waiting workers. test_operator_queue.py has the rest."""

from __future__ import annotations

import asyncio
import random
import time
from typing import cast

import pytest

from tablebay.operator.cluster import ApiError
from tablebay.operator.reconcile import Reconciler, Workers
from tablebay.operator.workqueue import BACKOFF_FIRST_S, BACKOFF_MAX_S, Key, WorkQueue

A, B = ("ads", "a"), ("ads", "b")


@pytest.mark.parametrize("seed", range(5))
def test_each_wait_is_twice_the_one_before_and_a_random_fifth(seed: int) -> None:
    """So that jobs that failed together do not come back together."""
    now = 0.0
    queue = WorkQueue(clock=lambda: now, randomness=random.Random(seed))
    waits = []
    for _ in range(1100):
        waits.append(queue.retry(A))
        now += waits[-1]
    for number, wait in enumerate(waits):
        least = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(number, 60))
        assert least <= wait <= 1.2 * least, f"seed {seed}: failure {number}"
    assert len(set(waits)) == len(waits), f"seed {seed}"


def test_bug_events_while_a_key_waits_after_a_failure_do_not_prolong_the_wait() -> None:
    """A job in which much happened while the API server was away for a minute was looked at five minutes later."""
    now = 0.0
    queue = WorkQueue(clock=lambda: now, randomness=random.Random(0))
    while now < 60.0:
        wait = queue.retry(A)
        # Something changes long before the wait is over, and the look at it fails.
        now += min(wait, 0.5)
    assert queue.retry(A) <= 75
    now += queue.retry(A)
    queue.succeeded(A)
    assert queue.retry(A) <= 2 * BACKOFF_FIRST_S


def test_a_worker_that_waits_is_woken_by_an_earlier_time() -> None:
    """It sleeps until the earliest time known; a new one may be earlier."""

    async def run() -> float:
        queue = WorkQueue()
        queue.add_after(A, 30.0)
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0.02)
        began = time.monotonic()
        queue.add_after(B, 0.05)
        assert await asyncio.wait_for(waiting, 5) == B
        return time.monotonic() - began

    assert 0.04 <= asyncio.run(run()) < 3


def test_two_keys_at_once_reach_two_workers_that_wait() -> None:
    """Neither waits for the other."""

    async def run() -> set[Key]:
        queue = WorkQueue()
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0.02)
        queue.add(A)
        queue.add(B)
        done, left = await asyncio.wait(waiting, timeout=0.2)
        for task in left:
            task.cancel()
        return {task.result() for task in done}

    assert asyncio.run(run()) == {A, B}


def test_a_cancelled_worker_takes_no_key_with_it() -> None:
    """The operator ends, or a test does."""

    async def run() -> Key:
        queue = WorkQueue()
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0.01)
        queue.add(A)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            return waiting.result()
        return await asyncio.wait_for(queue.get(), 1)

    assert asyncio.run(run()) == A


def test_what_falls_due_while_it_is_worked_on_comes_afterwards() -> None:
    """Not to a second worker, and not lost."""

    async def run() -> None:
        now = 0.0
        queue = WorkQueue(clock=lambda: now)
        queue.add(A)
        assert await queue.get() == A
        queue.add_after(A, 1.0)
        now = 2.0
        queue.add(B)
        assert await queue.get() == B
        assert queue.depth == 0
        queue.done(A)
        assert await asyncio.wait_for(queue.get(), 1) == A

    asyncio.run(run())


def test_a_key_that_is_due_counts_as_waiting_though_all_workers_are_busy() -> None:
    """Or the probe would not see that nothing is worked on any more."""
    now = 0.0
    queue = WorkQueue(clock=lambda: now)
    queue.add_after(A, 10.0)
    now = 9.0
    assert queue.age_s == 0
    now = 11.0
    assert queue.age_s == 0
    now = 15.0
    assert queue.age_s == 4.0
    assert queue.depth == 1


@pytest.mark.parametrize("status", [409, 503])
def test_a_look_that_is_refused_is_repeated_soon(status: int) -> None:
    """Though nothing else happens: the key comes again by itself, and the failure is counted."""

    class Refused:
        async def reconcile(self, key: Key) -> None:
            raise ApiError(status, "Refused", "not now")

    async def run() -> Key:
        queue, seen = WorkQueue(), []
        workers = Workers(cast("Reconciler", Refused()), queue, lambda result, seconds: seen.append(result))
        queue.add(A)
        await workers.one()
        assert seen == ["conflict" if status == 409 else "error"]
        return await asyncio.wait_for(queue.get(), 5)

    assert asyncio.run(run()) == A


def test_f7_a_look_waits_for_no_less_than_the_api_server_asks() -> None:
    """As long as its refusal says, also when an event has brought another look meanwhile; then as before."""
    now = 0.0
    queue = WorkQueue(clock=lambda: now, randomness=random.Random(0))
    assert 40 <= queue.retry(A, after_s=40) <= 48
    now = 1.0
    assert 60 <= queue.retry(A, after_s=60) <= 72
    queue.succeeded(A)
    assert queue.retry(A) <= 2 * BACKOFF_FIRST_S


def test_f7_a_refused_look_is_put_off_for_as_long_as_it_says() -> None:
    """By the workers, from what the refusal bears."""

    class Busy:
        async def reconcile(self, key: Key) -> None:
            raise ApiError(429, "TooManyRequests", "later", retry_after_s=30)

    async def run() -> float:
        now = 100.0
        queue = WorkQueue(clock=lambda: now, randomness=random.Random(0))
        queue.add(A)
        await Workers(cast("Reconciler", Busy()), queue, lambda result, seconds: None).one()
        return queue._later[0][0] - now

    assert 30 <= asyncio.run(run()) <= 36
