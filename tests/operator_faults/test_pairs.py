"""Two faults in one life of a job, chosen by a seed."""

from __future__ import annotations

import asyncio
import random

import pytest
from operator_faults.engine import EVENT_FAULTS, FIXTURES, READ_FAULTS, WRITE_FAULTS, baseline, strike

# Of each job.
PAIRS, MORE_PAIRS = 8, 400
# These are enough by themselves.
ALONE = {"503 for a while", "event: late"}
MODES = [mode for mode in (*WRITE_FAULTS, *READ_FAULTS, *EVENT_FAULTS) if mode not in ALONE]


def pair(name: str, seed: int) -> list[tuple[str, int]]:
    """Two different calls or events, each with a fault."""
    choose = random.Random(seed)
    found = baseline(name)
    result = []
    for mode in choose.sample(MODES, 2):
        if mode in EVENT_FAULTS:
            numbers = list(range(found.events))
        else:
            numbers = [call.number for call in found.calls if call.write == (mode in WRITE_FAULTS)]
        result.append((mode, choose.choice(numbers)))
    return result


def problems_of(name: str, seeds: range) -> list[str]:
    """With the seed of the pair that something came of."""
    pairs = {seed: pair(name, seed) for seed in seeds}

    async def run() -> list[str]:
        return [f"seed {seed}: {one}" for seed, modes in pairs.items() for one in await strike(name, modes)]

    return asyncio.run(run())


@pytest.mark.parametrize("name", FIXTURES)
def test_two_faults_change_nothing_in_the_end(name: str) -> None:
    """The message has the seed of the pair that something came of."""
    problems = problems_of(name, range(PAIRS))
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:5]])


@pytest.mark.deep
@pytest.mark.parametrize("name", FIXTURES)
def test_two_faults_change_nothing_in_the_end_many_times(name: str) -> None:
    """Of many more pairs."""
    problems = problems_of(name, range(PAIRS, MORE_PAIRS))
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:5]])
