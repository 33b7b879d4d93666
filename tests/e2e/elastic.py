"""What each worker of an elastic job trains: sums that show, at the end, whether each push of each rank is there once.

The tests give this text to `python -c` in a worker's pod. A rank adds h(rank, step, key) of the flights job's oracle to
rows of its own, in the step in which it adds 1 to another row: so the rows say how many steps of a rank they hold, and
what the sums of so many are, whenever it has ended.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tablebay as tb
from tablebay.examples.flights.oracle import additions

STEPS, STEP_S = 120, 0.9
# Once it is there, steps wait no more.
FULL_SPEED = Path("/tmp/full-speed")
RANKS = 4
# Of each rank, on every server; the row of the last counts.
KEYS = 64


def keys(rank: int) -> NDArray[np.uint64]:
    """The rank's keys, uint64 (KEYS,)."""
    return np.arange(rank * KEYS, (rank + 1) * KEYS, dtype=np.uint64)


def added(rank: int, step: int) -> NDArray[np.int64]:
    """What a rank's step adds to the rows of its keys, int64 (KEYS,)."""
    values = additions(rank, step, keys(rank))
    values[-1] = 1
    return values


def main() -> int:
    """Train; rank 0 then compares. Returns 1 where a push was lost or is there twice."""
    client = tb.connect()
    rank = client.rank
    assert rank is not None
    table = client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
    for number in range(client.next_step, STEPS):
        time.sleep(0 if FULL_SPEED.exists() else STEP_S)
        with client.step() as step:
            step.push({table: (keys(rank), added(rank, number).reshape(-1, 1))})
        client.report(step=number + 1)
    client.barrier("trained")
    if rank != 0:
        return 0
    for other in range(RANKS):
        found = table.pull(keys(other), create=False).reshape(-1)
        steps = int(found[-1])
        wanted = np.zeros(KEYS, np.int64)
        for number in range(steps):
            wanted += added(other, number)
        if wrong := np.flatnonzero(found != wanted).tolist():
            print(f"rank {other}: {len(wrong)} rows are not those of {steps} steps", file=sys.stderr)
            return 1
        print(f"rank {other}: {steps} steps, each once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
