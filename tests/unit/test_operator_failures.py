"""Failure rules, budgets within a window, success policies and the deadline before a job runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.operator_world import CHECKPOINT, World, job_object, manifests_of, text

from tablebay.client.errors import JobInvalid
from tablebay.operator.native_policy import NO_LIMIT

BUG = {
    "name": "bug",
    "target": "Workers",
    "onExitCodes": {"operator": "In", "values": [43, 42]},
    "action": "FailJob",
}
OOM = {"name": "oom", "onReasons": ["OOMKilled"], "action": "Ignore"}
TAKEN_AWAY = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def policy(*rules: dict[str, Any], **fields: Any) -> World:
    """A world whose job has a failure policy, and has begun to train."""
    world = World(job_object({"runPolicy": {"failurePolicy": {"rules": list(rules), **fields}}}))
    world.train()
    return world


def fail(world: World, rank: int, suffix: str, code: int = 1, reason: str = "Error", **status: Any) -> None:
    """A worker's pod has failed, just now."""
    ended = {"exitCode": code, "reason": reason, "finishedAt": text(world.now)}
    world.worker(rank, suffix, ready=False, state={"terminated": ended})
    pod = world.pods[f"flights-worker-{rank}-{suffix}"]
    conditions = [*pod["status"]["conditions"], *status.pop("conditions", [])]
    pod["status"] |= {"phase": "Failed", "conditions": conditions, **status}


def job_spec(world: World) -> dict[str, Any]:
    """Of the workers' Job."""
    found: dict[str, Any] = world.workers["spec"]
    return found


# ---- rules


def test_plain_rules_are_kubernetes_own() -> None:
    """In their order, before the one that every job has; the limit of restarts stays the Job's."""
    evicted = {"name": "mine", "onPodConditions": [{"type": "DisruptionTarget"}], "action": "FailJob"}
    counted = {
        "name": "again",
        "target": "Workers",
        "onExitCodes": {"operator": "NotIn", "values": [1]},
        "action": "RestartWorker",
    }
    mine = {"name": "server", "target": "Servers", "onReasons": ["OOMKilled"], "action": "FailJob"}
    spec = job_spec(policy(BUG, counted, evicted, mine, maxRestarts=7))
    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42, 43]}},
        {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        TAKEN_AWAY,
    ]
    assert spec["backoffLimit"] == 7
    assert "successPolicy" not in spec


@pytest.mark.parametrize("fields", [{"windowSeconds": 60}, {"rules": [BUG, OOM]}])
def test_what_kubernetes_does_not_know_is_judged_here(fields: dict[str, Any]) -> None:
    """Then all of it is: the Job has no limit and no rule but the one that every job has."""
    world = World(job_object({"runPolicy": {"failurePolicy": fields}}))
    world.look()
    assert job_spec(world)["backoffLimit"] == NO_LIMIT
    assert job_spec(world)["podFailurePolicy"]["rules"] == [TAKEN_AWAY]


def test_a_job_that_kubernetes_failed_by_a_rule_says_which() -> None:
    """With the pod and its exit code; without the pod in Kubernetes' own words."""
    world = policy(BUG)
    fail(world, 1, "a", code=42)
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "as rule 0 has it"}
    world.counts(ready=1, failed=1, conditions=[failed])
    world.look()
    assert world.reason == "FailureRule"
    wanted = "rule bug: worker pod flights-worker-1-a: its process ended with exit code 42"
    assert world.condition("Failed")["message"] == wanted
    assert world.status["firstFailure"]["rule"] == "bug"
    world = policy(BUG)
    world.counts(failed=1, conditions=[failed])
    world.look()
    assert world.condition("Failed")["message"] == "as rule 0 has it"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([OOM, {"name": "all", "onReasons": ["OOMKilled"], "action": "FailJob"}], ""),
        ([{"name": "all", "onReasons": ["OOMKilled"], "action": "FailJob"}, OOM], "FailureRule"),
        ([{"name": "other", "target": "Servers", "onReasons": ["OOMKilled"], "action": "FailJob"}, OOM], ""),
        ([{**BUG, "onExitCodes": {"operator": "In", "values": [137]}}, OOM], "FailureRule"),
    ],
)
def test_the_first_rule_that_a_failure_meets_decides(rules: list[dict[str, Any]], reason: str) -> None:
    """Of those that are about such a pod."""
    world = policy(*rules, maxRestarts=0)
    fail(world, 1, "a", code=137, reason="OOMKilled")
    world.counts(ready=1, failed=1)
    world.look()
    assert world.condition("Failed").get("reason", "") == reason
    if reason:
        assert json.loads(world.workers["metadata"]["annotations"]["tablebay.dev/failed"])["reason"] == reason
        assert job_spec(world)["suspend"] is True, "its other workers train on"
        # With the status written its servers go.
        world.look()
        writes = world.writes
        world.pods.clear()
        world.look()
        world.look()
        assert world.reason == "FailureRule"
        assert world.writes - writes <= 1


def test_a_rule_about_servers_ends_the_job_though_they_would_come_back() -> None:
    """By the life before too: the kubelet may have started the container again already."""
    rule = {
        "name": "disk",
        "target": "Servers",
        "onExitCodes": {"operator": "In", "values": [4]},
        "action": "FailJob",
    }
    change = {"checkpoint": CHECKPOINT, "runPolicy": {"failurePolicy": {"rules": [rule]}}}
    world = World(job_object(change))
    world.train()
    world.server(1, container="c-1-again", lastState={"terminated": {"exitCode": 5, "reason": "Error"}})
    world.look()
    assert not world.condition("Failed")
    world.server(1, container="c-1-third", lastState={"terminated": {"exitCode": 4, "reason": "Error"}})
    world.look()
    assert world.reason == "FailureRule"
    assert (
        "rule disk: server pod flights-server-1: its process ended with exit code 4"
        in world.condition("Ready")["message"]
    )


def test_an_eviction_is_no_failure_unless_a_rule_says_so() -> None:
    """Of a job that is judged here too."""
    world = policy(OOM, maxRestarts=0)
    taken = {"conditions": [{"type": "DisruptionTarget", "status": "True"}], "reason": "Evicted"}
    fail(world, 1, "a", code=137, **taken)
    world.look()
    assert not world.condition("Failed")
    strict = {"name": "strict", "target": "Workers", "onReasons": ["Evicted"], "action": "FailJob"}
    world = policy(strict, maxRestarts=5)
    fail(world, 1, "a", code=137, **taken)
    world.look()
    assert world.reason == "FailureRule"


# ---- the budget


def test_restarts_count_within_the_window_alone() -> None:
    """3 in a minute are too many for a limit of 2; spread over more they are not, and the status says so by itself."""
    world = policy(maxRestarts=2, windowSeconds=60)
    for number in range(4):
        fail(world, 1, f"n{number}")
        world.counts(failed=number + 1)
        world.look()
        assert not world.condition("Failed")
        world.later(40)
        world.look()
        assert world.status["restarts"] == {"total": number + 1, "inWindow": 1}
        assert world.plan.again_s == pytest.approx(20.1)
    fail(world, 1, "x1")
    fail(world, 1, "x2")
    world.look()
    assert world.reason == "WorkersFailed"
    message = world.condition("Failed")["message"]
    assert message.startswith(
        "workers failed 3 times within 60 s, and spec.runPolicy.failurePolicy.maxRestarts is 2"
    )
    assert job_spec(world)["suspend"] is True


def test_what_a_suspension_ends_is_no_failure() -> None:
    """Its pods are on their way out."""
    world = policy(maxRestarts=0, windowSeconds=60)
    fail(world, 1, "a", code=143)
    world.pods["flights-worker-1-a"]["metadata"]["deletionTimestamp"] = text(world.now)
    world.look()
    assert not world.condition("Failed")


# ---- success


@pytest.mark.parametrize(
    ("operator", "rule"),
    [("Any", {"succeededCount": 1}), ("Index0", {"succeededIndexes": "0"}), ("All", None)],
)
def test_a_success_policy_is_kubernetes_own(operator: str, rule: dict[str, Any] | None) -> None:
    """And the condition says why fewer were enough."""
    world = World(job_object({"runPolicy": {"successPolicy": {"operator": operator}}}))
    world.train()
    assert job_spec(world).get("successPolicy") == (rule and {"rules": [rule]})
    world.complete()
    world.counts(succeeded=1)
    world.progress = type(world.progress)(last=True)
    world.look()
    message = world.condition("Complete")["message"]
    assert message.startswith("1 workers have ended well")
    assert (operator in message) == (operator != "All")


# ---- the deadline before it runs


def waits(seconds: int = 100) -> World:
    """A world whose job must run in time."""
    change = {"checkpoint": CHECKPOINT, "runPolicy": {"preRunningDeadlineSeconds": seconds}}
    world = World(job_object(change))
    world.look()
    assert world.condition("Waiting")["status"] == "True"
    assert world.plan.again_s == pytest.approx(seconds + 0.1)
    return world


def test_a_job_that_does_not_run_in_time_fails_with_the_reason() -> None:
    """Whatever it waits for, in the scheduler's words."""
    world = waits()
    world.later(99)
    world.server(0)
    world.server(1, ready=False)
    held = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: no GPU"}
    world.pods["flights-server-1"]["status"]["conditions"] = [held]
    world.look()
    assert world.reason == "StartingServers"
    world.later(2)
    world.look()
    assert world.reason == "PreRunningDeadlineExceeded"
    assert (
        "preRunningDeadlineSeconds, which is 100; flights-server-1: 0/3 nodes"
        in world.condition("Failed")["message"]
    )
    world.look()
    assert ("StatefulSet", "flights-server") not in world.objects


def test_a_job_that_ran_once_has_kept_it() -> None:
    """A worker that comes back later is not late."""
    world = waits()
    world.train()
    assert world.workers["metadata"]["annotations"]["tablebay.dev/ran"] == text(world.now)
    assert not world.condition("Waiting")
    world.counts(ready=1)
    world.later(1000)
    world.look()
    assert world.reason == "StartingWorkers"
    assert not world.condition("Failed")


def test_the_time_of_a_suspension_does_not_count() -> None:
    """It begins anew when the job goes on."""
    world = waits()
    world.later(90)
    world.ask(suspend=True)
    world.look()
    world.later(1000)
    world.look()
    assert world.reason == "Suspended"
    assert not world.condition("Waiting")
    world.ask(suspend=False)
    world.look()
    world.later(99)
    world.look()
    assert not world.condition("Failed")
    world.later(2)
    world.look()
    assert world.reason == "PreRunningDeadlineExceeded"


# ---- what is refused


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"name": "a", "action": "Ignore"}, "rule a: found none of them, wanted exactly one of onExitCodes"),
        ({**BUG, "onReasons": ["Error"]}, "rule bug: found onExitCodes and onReasons, wanted exactly one"),
        (
            {**BUG, "onExitCodes": {"operator": "In", "values": [0]}},
            "found 0, wanted an integer from 1 to 255",
        ),
        ({**BUG, "onExitCodes": {"operator": "In", "values": [1, 1]}}, "found 1 more than once"),
        (
            {**BUG, "action": "RestartServer"},
            "found action RestartServer beside target Workers, wanted Servers",
        ),
        ({**BUG, "target": "Any", "action": "RestartWorker"}, "found action RestartWorker beside target Any"),
        ({**BUG, "action": "RollbackJob"}, "RollbackJob"),
        ({**BUG, "target": "Servers", "action": "RestartServer"}, "rule bug without checkpoint"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rule: dict[str, Any], words: str) -> None:
    """With what was found and what is wanted."""
    with pytest.raises(JobInvalid, match=words):
        job_object({"runPolicy": {"failurePolicy": {"rules": [rule]}}})


def test_rules_have_names_of_their_own() -> None:
    """So that a message names one."""
    with pytest.raises(JobInvalid, match="found bug more than once"):
        job_object({"runPolicy": {"failurePolicy": {"rules": [BUG, BUG]}}})


def test_a_job_without_policies_is_as_it_was() -> None:
    """What an older operator made of it is not written anew."""
    (found,) = [one for one in manifests_of(job_object()) if one["kind"] == "Job"]
    assert found["spec"]["backoffLimit"] == 3
    assert found["spec"]["podFailurePolicy"]["rules"] == [TAKEN_AWAY]


# ---- the servers' budget


@pytest.mark.parametrize(
    ("budget", "checkpoint", "wanted"),
    [(None, True, 1), (None, False, 0), (0, True, 0), (3, True, 3), (0, False, 0)],
)
def test_how_many_servers_may_be_evicted(budget: int | None, checkpoint: bool, wanted: int) -> None:
    """As the job says; else one that comes back, and none that would not."""
    servers: dict[str, Any] = {"replicas": 4}
    if budget is not None:
        servers["podDisruptionBudget"] = {"maxUnavailable": budget}
    change = {"servers": servers, **({"checkpoint": CHECKPOINT} if checkpoint else {})}
    (found,) = [one for one in manifests_of(job_object(change)) if one["kind"] == "PodDisruptionBudget"]
    assert found["spec"]["maxUnavailable"] == wanted
