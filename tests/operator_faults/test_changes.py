"""A job is changed, and put back, while every call of the operator's goes wrong once: nothing else comes of it."""

from __future__ import annotations

import asyncio

import pytest
from operator_faults.changes import CHANGES, baseline, numbers, problems_of, strike
from operator_faults.engine import EVENT_FAULTS, PARTS, READ_FAULTS, WRITE_FAULTS, part_of


@pytest.mark.parametrize("name", CHANGES)
def test_without_a_fault_a_change_shows_and_goes(name: str) -> None:
    """O4 to O6, and there is something to go wrong."""
    assert not problems_of(CHANGES[name], baseline(name))
    for mode in ("reset", "event: missed"):
        assert len(numbers(name, mode)) >= 2


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mode", [*WRITE_FAULTS, *READ_FAULTS, *EVENT_FAULTS])
@pytest.mark.parametrize("name", CHANGES)
def test_o4_o5_o6_one_fault_changes_nothing_in_the_end(name: str, mode: str, part: str) -> None:
    """Whichever call or event after the change it strikes; the message names the change, the fault and the call."""

    assert not problems_of(CHANGES[name], baseline(name))

    async def run() -> list[str]:
        chosen = part_of(numbers(name, mode), part, mode)
        return [problem for number in chosen for problem in await strike(name, mode, number)]

    problems = asyncio.run(run())
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:5]])
