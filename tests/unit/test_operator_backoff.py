"""How long a rank whose worker failed waits for another one: failurePolicy.backoff."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import pytest
from unit.operator_world import World, job_object, text
from unit.test_operator_failures import fail

from tablebay.client.errors import JobInvalid
from tablebay.client.policies import Backoff
from tablebay.operator.decisions import decide
from tablebay.operator.manifests import Defaults

DEFAULTS = Defaults("registry/tablebay:1", "IfNotPresent")
THREE = {"replicas": 3}


def world_with(workers: int = 3, **policy: Any) -> World:
    """A job of so many workers whose failed ones wait 30 s, then 60 s, 100 s at most; it trains."""
    backoff = {"initialSeconds": 30, "factor": 2, "maxSeconds": 100}
    spec = job_object().spec
    failure_policy = {"maxRestarts": 9, "backoff": backoff, **policy}
    world = World(
        job_object(
            {
                "workers": {**spec["workers"], "replicas": workers},
                "runPolicy": {"failurePolicy": failure_policy},
            }
        )
    )
    world.train()
    world.counts(active=workers)
    return world


def fails(world: World, rank: int, suffix: str = "a", **how: Any) -> None:
    """A worker that runs has failed, and the Job's controller has seen it."""
    fail(world, rank, suffix, **how)
    status = world.workers["status"]
    world.counts(active=status["active"] - 1, ready=status["ready"] - 1, failed=status.get("failed", 0) + 1)


def comes_back(world: World, rank: int, suffix: str) -> None:
    """Kubernetes has made another pod of a rank."""
    world.worker(rank, suffix)
    status = world.workers["status"]
    world.counts(active=status["active"] + 1, ready=status["ready"] + 1)


def at_once(world: World) -> int:
    """How many pods the Job may have."""
    found: int = world.workers["spec"]["parallelism"]
    return found


def test_the_delay_grows_up_to_its_limit() -> None:
    """As the formula says, for any number of failures."""
    backoff = Backoff()
    assert [backoff.delay_s(number) for number in (0, 1, 2, 3, 6, 7, 8)] == [0, 10, 20, 40, 320, 600, 600]
    assert backoff.delay_s(1_000_000) == 600
    given = {"initialSeconds": 5, "factor": 1.0, "maxSeconds": 7}
    assert Backoff.model_validate(given).delay_s(9) == 5


def test_a_rank_that_failed_waits_and_the_others_run() -> None:
    """The Job may have as many pods as run until the time is up, by itself; then all, in as many writes as steps."""
    world = world_with()
    fails(world, 1)
    world.look()
    assert at_once(world) == 2
    assert world.workers["spec"]["completions"] == 3
    until = text(world.now + datetime.timedelta(seconds=30))
    assert f"those that failed begin again at {until}" in world.condition("Ready")["message"]
    assert world.plan.again_s == pytest.approx(30.1)
    writes = world.writes
    world.later(29)
    world.look()
    assert (world.writes, at_once(world)) == (writes, 2)
    world.later(2)
    world.look()
    assert at_once(world) == 3
    comes_back(world, 1, "b")
    world.look()
    assert world.reason == "Training"
    writes = world.writes
    world.look()
    assert world.writes == writes


def test_each_failure_waits_longer() -> None:
    """30 s, 60 s, and no more than 100 s; a failure during a wait prolongs it for both."""
    world = world_with()
    names = ("a", "b", "c", "d", "e")
    for number, delay in enumerate((30, 60, 100, 100)):
        fails(world, 1, names[number])
        world.look()
        assert at_once(world) == 2
        assert world.plan.again_s == pytest.approx(delay + 0.1)
        world.later(delay + 1)
        world.look()
        assert at_once(world) == 3
        comes_back(world, 1, names[number + 1])
    world = world_with()
    fails(world, 1)
    world.look()
    world.later(20)
    fails(world, 2)
    world.look()
    assert at_once(world) == 1
    assert world.plan.again_s == pytest.approx(60.1)


def test_failures_out_of_the_window_count_no_more() -> None:
    """The next one after it waits as the first did."""
    world = world_with(windowSeconds=200)
    fails(world, 1)
    world.look()
    world.later(201)
    world.look()
    comes_back(world, 1, "b")
    fails(world, 1, "b")
    world.look()
    assert world.plan.again_s == pytest.approx(30.1)


def test_what_does_not_count_does_not_wait() -> None:
    """A pod that the cluster took away, and one that a rule ignores."""
    killed = {"name": "killed", "onExitCodes": {"operator": "In", "values": [137]}, "action": "Ignore"}
    world = world_with(rules=[killed])
    fails(world, 1, code=137)
    world.look()
    assert at_once(world) == 3
    taken = {"conditions": [{"type": "DisruptionTarget", "status": "True"}], "reason": "Evicted"}
    fails(world, 2, code=143, **taken)
    world.look()
    assert at_once(world) == 3


def test_a_worker_that_ends_well_in_a_wait_makes_no_room() -> None:
    """Else Kubernetes would begin the rank that waits in its place."""
    world = world_with()
    fails(world, 1)
    world.look()
    world.pods["flights-worker-0-a"]["status"]["phase"] = "Succeeded"
    world.counts(active=1, ready=1, succeeded=1)
    world.look()
    assert at_once(world) == 1
    world.later(31)
    world.look()
    assert at_once(world) == 3


def test_a_pod_that_was_made_already_stays() -> None:
    """The operator was away: as many pods as there are already are let run."""
    world = world_with()
    fails(world, 1)
    comes_back(world, 1, "b")
    world.look()
    assert at_once(world) == 3


def test_bug_the_jobs_own_count_may_be_behind() -> None:
    """The Job's controller says that a pod is active until it makes the next one: found on a real cluster."""
    world = world_with()
    fails(world, 1)
    world.counts(active=3, failed=0)
    world.look()
    assert at_once(world) == 2


def test_fewer_pods_at_once_are_asked_for_on_fresh_reads_alone() -> None:
    """A cache may miss a pod that runs, which would end for it."""
    world = world_with()
    fails(world, 1)
    plan = decide(world.job, world.observed(), world.status, DEFAULTS, world.now)
    assert plan.confirm
    assert not plan.patches


def test_a_suspension_ends_the_wait() -> None:
    """Its Job is let have all its pods again, when it goes on."""
    world = world_with()
    fails(world, 1)
    world.look()
    world.workers["spec"]["suspend"] = True
    world.look()
    assert at_once(world) == 3


def test_a_note_edited_by_hand_does_no_harm() -> None:
    """Whatever it says, the wait is no longer than the policy has it."""
    world = world_with()
    fails(world, 1)
    world.look()
    note = world.workers["metadata"]["annotations"]
    for words in ("nonsense", json.dumps({"after": "9999", "until": "9999-01-01T00:00:00Z"})):
        note["tablebay.dev/backoff"] = words
        world.look()
        assert world.plan.again_s is None or world.plan.again_s <= 31
    assert at_once(world) == 3


@pytest.mark.parametrize(
    ("backoff", "words"),
    [
        ({"initialSeconds": 0}, "backoff.initialSeconds: found 0, wanted an integer from 1 to 86400"),
        ({"factor": 0.5}, "backoff.factor: found 0.5"),
        ({"factor": 11}, "backoff.factor: found 11"),
        ({"maxSeconds": 86_401}, "backoff.maxSeconds: found 86401"),
        ({"initialSeconds": 601}, "found initialSeconds 601 above maxSeconds 600"),
        ({"initial": 1}, "backoff.initial: unknown field"),
    ],
)
def test_a_backoff_that_cannot_be_is_refused(backoff: dict[str, Any], words: str) -> None:
    """With what was found and what is wanted."""
    with pytest.raises(JobInvalid, match=re.escape(words)):
        job_object({"runPolicy": {"failurePolicy": {"backoff": backoff}}})
