"""Ranked clients whose pushes add up, as threads or as a process of their own, and what the rows must be in the end.

Worker r at step s adds h(r, s, key), 63 pseudo-random bits, to each key of its batch: a loss, a repeat or a mix-up
shows in the sums without any tolerance.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tablebay as tb
from tablebay.examples.flights.oracle import additions

KEYS = 4_000
BATCH = 600
JOB = "faults"

Keys = NDArray[np.uint64]


def batch(rank: int, step: int) -> Keys:
    """The different keys of a step, uint64."""
    return np.unique(np.random.default_rng((rank, step)).integers(0, KEYS, BATCH).astype(np.uint64))


def gradients(rank: int, step: int, keys: Keys, dim: int = 1) -> NDArray[np.int64]:
    """What is added to each key's row: the same number in all columns."""
    return np.repeat(additions(rank, step, keys).reshape(-1, 1), dim, axis=1)


def table(client: tb.Client, dim: int = 1) -> Any:
    """The table of the sums."""
    return client.table("sums", dim=dim, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())


def take_steps(
    client: tb.Client,
    rank: int,
    last: int,
    *,
    dim: int = 1,
    until: Callable[[], object] | None = None,
    told: Callable[[int], object] = lambda step: None,
) -> int:
    """From where the rank stopped to `last`, or until something is so; how many the rank has taken then."""
    sums = table(client, dim)
    for step in range(client.next_step, last):
        if until is not None and until():
            return step
        keys = batch(rank, step)
        with client.step() as block:
            assert block.number == step
            block.pull({sums: keys[:50]})
            block.push({sums: (keys, gradients(rank, step, keys, dim))})
        told(step + 1)
    return last


class Worker(threading.Thread):
    """A rank that takes its steps one after the other, and remembers why it stopped.

    steps: of each rank; where `until` is given at most, and it ends when that is so. options: of connect.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        rank: int,
        workers: int,
        steps: int,
        *,
        dim: int = 1,
        until: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name=f"rank-{rank}", daemon=True)
        self.rank = rank
        self.step = 0
        self.error: BaseException | None = None
        self.client: tb.Client | None = None
        self._addresses = addresses
        self._workers = workers
        self._steps = steps
        self._dim = dim
        self._until = until
        self._options = options

    def run(self) -> None:
        """All steps, from where the rank stopped."""
        try:
            with tb.connect(
                self._addresses, rank=self.rank, workers=self._workers, job=JOB, **self._options
            ) as client:
                self.client = client
                take_steps(client, self.rank, self._steps, dim=self._dim, until=self._until, told=self._note)
                if self._until is None:
                    client.barrier("done")
        except BaseException as error:  # noqa: BLE001 - raised by `check`
            self.error = error

    def _note(self, step: int) -> None:
        self.step = step

    def check(self) -> None:
        """Waits for its end, and raises what ended it."""
        self.join()
        if self.error is not None:
            raise self.error


def leave(client: tb.Client) -> None:
    """End a client as an error would: what it pushed last is not waited for."""
    client.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def check_all(workers: Sequence[Worker]) -> None:
    """Waits for the end of all, and raises what ended one of them, at once: the others may wait for it for ever."""
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(0.02)
            if worker.error is not None:
                raise worker.error
    for worker in workers:
        worker.check()


def expected(workers: int, steps: int | Sequence[int]) -> dict[int, int]:
    """The sum of each key, of so many steps of each rank."""
    each = [steps] * workers if isinstance(steps, int) else steps
    sums: dict[int, int] = {}
    for rank, count in enumerate(each):
        for step in range(count):
            keys = batch(rank, step)
            for key, value in zip(keys.tolist(), additions(rank, step, keys).tolist(), strict=True):
                sums[key] = (sums.get(key, 0) + value) % 2**64
    return sums


def held(addresses: Sequence[str]) -> dict[int, int]:
    """What the servers hold."""
    with tb.connect(addresses, job=JOB) as client:
        found = {}
        for keys, rows in client.table("sums").items():
            assert bool((rows == rows[:, :1]).all()), "a row's columns differ"
            found |= dict(zip(keys.tolist(), rows[:, 0].view(np.uint64).tolist(), strict=True))
        return found


def repro(file: str, seed: object) -> str:
    """The line that says how to see a failure again."""
    return f"REPRO: TABLEBAY_SEED={seed} pytest {file}"


def require_equal(found: dict[int, int], wanted: dict[int, int], where: str) -> None:
    """Fails with how many rows differ. where: the REPRO line."""
    if found != wanted:
        wrong = [key for key in wanted.keys() | found.keys() if found.get(key) != wanted.get(key)]
        raise AssertionError(
            f"{len(wrong)} of {len(wanted)} rows differ, key {wrong[0]} first: found {found.get(wrong[0])}, wanted "
            f"{wanted.get(wrong[0])}\n{where}"
        )


def main() -> int:
    """A rank in a process of its own: a line for each step on standard output, and one for what ended it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("addresses")
    parser.add_argument("rank", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("steps", type=int)
    given = parser.parse_args()
    try:
        with tb.connect(
            given.addresses.split(","), rank=given.rank, workers=given.workers, job=JOB
        ) as client:
            take_steps(client, given.rank, given.steps, told=lambda step: print("step", step, flush=True))
    except tb.TablebayError as error:
        print("ended", type(error).__name__, error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
