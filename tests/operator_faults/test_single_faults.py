"""Every call of the operator's, and every event that it hears of, goes wrong once: nothing else comes of it."""

from __future__ import annotations

import asyncio

import pytest
from operator_faults.engine import (
    EVENT_FAULTS,
    FIXTURES,
    PARTS,
    READ_FAULTS,
    WRITE_FAULTS,
    baseline,
    part_of,
    strike,
)


@pytest.mark.parametrize("name", FIXTURES)
def test_without_a_fault_all_oracles_hold(name: str) -> None:
    """And there is something to go wrong: calls that write and that read, and events."""
    found = baseline(name)
    assert not found.problems
    assert sum(call.write for call in found.calls) >= 20
    assert sum(not call.write for call in found.calls) >= 15
    assert found.events >= 40


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mode", [*WRITE_FAULTS, *READ_FAULTS, *EVENT_FAULTS])
@pytest.mark.parametrize("name", FIXTURES)
def test_one_fault_changes_nothing_in_the_end(name: str, mode: str, part: str) -> None:
    """Whichever call or event of the job's whole life it strikes; the message names the job, the fault and the call."""
    expected = baseline(name)
    if mode in EVENT_FAULTS:
        numbers = list(range(expected.events))
    else:
        numbers = [call.number for call in expected.calls if call.write == (mode in WRITE_FAULTS)]

    async def run() -> list[str]:
        chosen = part_of(numbers, part, mode)
        return [problem for number in chosen for problem in await strike(name, [(mode, number)])]

    problems = asyncio.run(run())
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:5]])
