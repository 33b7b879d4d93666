"""In which order the processes of a job end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tablebay.operator.halting import Limits, Standing, stage

LIMITS = Limits(workers_s=60, checkpoint_s=120, servers_s=180)
BEGINS = Standing(began=True, workers=2, servers=2, scaled=False, checkpoint=True, kept=False, elapsed_s=0.0)


def test_workers_end_then_a_checkpoint_is_made_then_the_servers_end() -> None:
    """Each when the one before is done."""
    assert stage(BEGINS, LIMITS) == ("workers", 60)
    no_workers = replace(BEGINS, workers=0, elapsed_s=5)
    assert stage(no_workers, LIMITS) == ("checkpoint", 175)
    assert stage(replace(no_workers, kept=True), LIMITS) == ("servers", 355)
    ending = replace(no_workers, kept=True, scaled=True)
    assert stage(ending, LIMITS) == ("servers", 355)
    assert stage(replace(ending, servers=0), LIMITS) == ("done", 0)


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": False}, {"began": False}, {"servers": 0}],
    ids=["not asked for", "nothing", "none"],
)
def test_no_checkpoint_is_waited_for_where_there_is_none_to_make(change: dict[str, bool]) -> None:
    """Not asked for, nothing trained, or no server that could make one."""
    assert stage(replace(BEGINS, workers=0, **change), LIMITS)[0] == "servers"


def test_each_stage_is_passed_over_when_its_time_is_up() -> None:
    """Pods that never end, a checkpoint that is never made."""
    assert stage(replace(BEGINS, elapsed_s=59.9), LIMITS)[0] == "workers"
    assert stage(replace(BEGINS, elapsed_s=60), LIMITS)[0] == "checkpoint"
    assert stage(replace(BEGINS, elapsed_s=180), LIMITS)[0] == "servers"
    stuck = replace(BEGINS, scaled=True, elapsed_s=359)
    assert stage(stuck, LIMITS)[0] == "servers"
    assert stage(replace(stuck, elapsed_s=360), LIMITS) == ("done", 0)


def test_servers_that_are_told_to_end_are_asked_for_nothing_more() -> None:
    """Whatever workers there are again by then."""
    assert stage(replace(BEGINS, scaled=True), LIMITS)[0] == "servers"


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_it_ends_in_time_and_never_goes_back(seed: int) -> None:
    """With pods that come and go as they like."""
    rng = random.Random(seed)
    order = ["workers", "checkpoint", "servers", "done"]
    standing, before = BEGINS, 0
    while True:
        found, left_s = stage(standing, LIMITS)
        assert left_s <= LIMITS.total_s - standing.elapsed_s + 1e-9 or found == "done"
        if found == "done":
            break
        if found == "servers":
            standing = replace(standing, scaled=True)
        # Workers that come back are ended again; nothing else goes back.
        assert order.index(found) >= before or not standing.scaled
        before = order.index(found)
        standing = replace(
            standing,
            elapsed_s=standing.elapsed_s + rng.choice([0.1, 1, 30]),
            workers=rng.randrange(3),
            servers=rng.randrange(3),
            kept=rng.random() < 0.1,
        )
        assert standing.elapsed_s < LIMITS.total_s + 31
