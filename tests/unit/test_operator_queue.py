"""The operator's work queue."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

from tablebay.operator.workqueue import BACKOFF_FIRST_S, BACKOFF_MAX_S, Key, WorkQueue

A, B = ("ads", "a"), ("ads", "b")
# A queue belongs to one event loop.
LOOP = asyncio.new_event_loop()


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def queue_of(clock: Clock | None = None) -> WorkQueue:
    return WorkQueue(clock=clock or Clock(), randomness=random.Random(0))


def take(queue: WorkQueue) -> list[Key]:
    """All keys that can be had now."""

    async def all_of() -> list[Key]:
        found = []
        while True:
            try:
                async with asyncio.timeout(0.01):
                    found.append(await queue.get())
            except TimeoutError:
                return found

    return LOOP.run_until_complete(all_of())


def test_a_key_added_twice_is_there_once() -> None:
    """Keys come in the order in which they were first added."""
    queue = queue_of()
    for key in (A, B, A):
        queue.add(key)
    assert queue.depth == 2
    assert take(queue) == [A, B]


def test_a_key_that_is_worked_on_is_given_out_again_only_afterwards() -> None:
    """So no two workers have it at once, and what happened meanwhile is not missed."""
    queue = queue_of()
    queue.add(A)
    assert take(queue) == [A]
    queue.add(A)
    assert take(queue) == []
    queue.done(A)
    assert take(queue) == [A]
    queue.done(A)
    assert take(queue) == []


def test_of_two_times_the_earlier_one_counts() -> None:
    """A later one changes nothing; the key comes once."""
    clock = Clock()
    queue = queue_of(clock)
    queue.add_after(A, 10)
    queue.add_after(A, 5)
    queue.add_after(A, 20)
    assert take(queue) == []
    clock.now = 5.1
    assert take(queue) == [A]
    queue.done(A)
    clock.now = 30
    assert take(queue) == []


def test_each_failure_waits_longer_up_to_a_bound() -> None:
    """From 5 ms, doubled, to 5 minutes and a fifth; after a success it begins anew."""
    clock = Clock()
    queue = queue_of(clock)
    waits = []
    for _ in range(30):
        waits.append(queue.retry(A))
        clock.now += waits[-1]
    assert BACKOFF_FIRST_S <= waits[0] <= 1.2 * BACKOFF_FIRST_S
    assert all(later > earlier for earlier, later in pairwise(waits[:15]))
    assert BACKOFF_MAX_S <= waits[-1] <= 1.2 * BACKOFF_MAX_S
    queue.succeeded(A)
    assert queue.retry(A) <= 1.2 * BACKOFF_FIRST_S


def test_a_forgotten_key_does_not_come_back() -> None:
    """What was due of it is dropped."""
    clock = Clock()
    queue = queue_of(clock)
    queue.add_after(A, 1)
    queue.forget(A)
    clock.now = 2
    assert take(queue) == []


def test_the_age_is_that_of_the_oldest_key() -> None:
    """Zero when none waits."""
    clock = Clock()
    queue = queue_of(clock)
    assert queue.age_s == 0
    queue.add(A)
    clock.now = 3
    queue.add(B)
    assert queue.age_s == 3
    take(queue)
    assert queue.age_s == 0


def test_many_workers_do_each_key_and_none_at_once() -> None:
    """1,000 additions of 20 keys by 8 workers: each key's last addition is worked on, never by two at a time."""
    seed = 7
    rng = random.Random(seed)

    async def run() -> dict[Key, int]:
        queue = WorkQueue(randomness=random.Random(seed))
        keys = [("ads", str(number)) for number in range(20)]
        added = dict.fromkeys(keys, 0)
        done: dict[Key, int] = dict.fromkeys(keys, 0)
        working: set[Key] = set()

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in working, f"seed {seed}: {key} is with two workers"
                working.add(key)
                seen = added[key]
                await asyncio.sleep(rng.random() * 0.002)
                done[key] = seen
                working.discard(key)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(8)]
        for _ in range(1000):
            key = rng.choice(keys)
            added[key] += 1
            queue.add(key)
            if rng.random() < 0.1:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)
        for worker in workers:
            assert not worker.done(), worker.exception()
            worker.cancel()
        assert done == added, f"seed {seed}"
        return done

    assert sum(asyncio.run(run()).values()) == 1000
