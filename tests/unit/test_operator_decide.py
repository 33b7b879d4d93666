"""The operator's decisions over the life of a job."""

from __future__ import annotations

import dataclasses
import datetime
import json
import random
from typing import Any

import pytest
from unit.operator_world import BEGAN, DEFAULTS, World, job_object

from tablebay.operator.decisions import LAST_REPORT_S, UNRECORDED_S, decide
from tablebay.operator.plans import Plan, Progress
from tablebay.operator.projections import TRAINED_ANNOTATION

KINDS = {"ServiceAccount", "Service", "Job", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"}
KILLED = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": "2026-01-02T03:05:00Z"}}


def quiet(plan: Plan) -> bool:
    """Whether a plan writes nothing but a status."""
    return not (plan.applies or plan.patches or plan.deletes or plan.delete_job or plan.confirm)


def test_a_new_job_gets_all_of_its_objects_at_once() -> None:
    """Seven objects by their fixed names, the workers held back; then nothing more until something changes."""
    world = World()
    plan = world.look()
    assert plan.first
    assert {one["kind"] for one in plan.applies} == KINDS
    assert len(plan.applies) == 8
    assert world.workers["spec"]["suspend"] is True
    assert world.reason == "StartingServers"
    writes = world.writes
    assert quiet(world.look())
    assert world.writes == writes


def test_workers_are_released_when_every_server_is_ready_and_noted() -> None:
    """With one write, who the servers are, and that the workers may run; before it the servers' set notes them too."""
    world = World()
    world.look()
    world.server(0)
    world.server(1, ready=False)
    world.look()
    assert world.workers["spec"]["suspend"] is True
    assert "1 of 2 servers are ready" in world.condition("Ready")["message"]
    world.servers()
    plan = world.look()
    assert [patch.child.kind for patch in plan.patches] == ["StatefulSet", "Job"]
    kept = world.objects["StatefulSet", "flights-server"]["metadata"]["annotations"][TRAINED_ANNOTATION]
    assert json.loads(kept) == {
        "job": world.workers["metadata"]["uid"],
        "servers": ["c-0", "c-1"],
        "before": False,
    }
    assert world.workers["spec"]["suspend"] is False
    assert world.recorded == ["c-0", "c-1"]


def test_the_schedulers_words_are_in_the_message() -> None:
    """Why the first pod that is not ready is not: the scheduler's words, or the kubelet's."""
    world = World()
    world.look()
    world.server(0, ready=False)
    held = world.pods["flights-server-0"]["status"]
    held["phase"] = "Pending"
    held["conditions"] = [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient cpu."}
    ]
    world.look()
    assert "flights-server-0: 0/1 nodes: Insufficient cpu." in world.condition("Ready")["message"]
    world.server(0, ready=False, state={"waiting": {"reason": "ErrImagePull", "message": "no such image"}})
    world.look()
    assert "flights-server-0: ErrImagePull: no such image" in world.condition("Ready")["message"]


def test_training_is_told_once_and_nothing_is_written_while_it_goes_on() -> None:
    """Ready is True, one Event says so, and ten more looks write nothing."""
    world = World()
    world.train()
    assert world.condition("Ready")["status"] == "True"
    assert [event.reason for event in world.plan.events] == ["Training"]
    writes = world.writes
    for _ in range(10):
        world.later(60)
        assert quiet(world.look())
        assert not world.plan.events
    assert world.writes == writes
    assert world.plan.poll == "running"


def test_the_last_report_is_read_before_the_servers_go() -> None:
    """Complete waits for it, at most half a minute; when it is written the servers and their budget are deleted."""
    world = World()
    world.train()
    world.complete()
    assert world.look().poll == "last"
    assert not world.condition("Complete")
    assert ("StatefulSet", "flights-server") in world.objects
    world.progress = Progress(values={"auc": 0.79}, last=True)
    world.look()
    assert world.condition("Complete")["status"] == "True"
    assert world.reason == "Completed"
    assert world.status["progress"]["auc"] == 0.79
    # An operator that ends here asks in vain when the servers are gone.
    assert ("StatefulSet", "flights-server") in world.objects
    world.look()
    kinds = {kind for kind, _ in world.objects}
    assert kinds == {"ServiceAccount", "Service", "Job", "NetworkPolicy"}
    world.look()
    assert world.status["servers"]["ready"] == 0
    writes = world.writes
    world.look()
    assert world.writes == writes


def test_servers_that_never_answer_hold_nothing_up_for_long() -> None:
    """Past the half minute the job is Complete without their report."""
    world = World()
    world.train()
    world.complete()
    world.look()
    world.later(LAST_REPORT_S + 1)
    world.look()
    assert world.condition("Complete")["status"] == "True"


def test_a_status_that_cannot_be_written_keeps_the_servers_for_a_while_only() -> None:
    """Two minutes after the end they go all the same."""
    world = World()
    world.train()
    world.complete()
    world.progress = Progress(last=True)
    for seconds, there in ((0, True), (UNRECORDED_S - 1, True), (UNRECORDED_S + 1, False)):
        world.now = BEGAN + datetime.timedelta(seconds=seconds)
        before = world.status
        world.look()
        world.status = before
        assert (("StatefulSet", "flights-server") in world.objects) == there


def test_servers_to_be_kept_are_kept() -> None:
    """onFinish: Retain leaves the servers; only the budget goes, which would hold up their node."""
    world = World(job_object({"servers": {"replicas": 2, "onFinish": "Retain"}}))
    world.train()
    world.complete()
    world.progress = Progress(last=True)
    world.look()
    world.look()
    assert ("StatefulSet", "flights-server") in world.objects
    assert ("PodDisruptionBudget", "flights-servers") not in world.objects


@pytest.mark.parametrize("how", ["restarted", "replaced", "gone", "ended"])
def test_a_lost_server_fails_the_job_after_fresh_reads(how: str) -> None:
    """Whatever became of it; the answer of a cache alone is not enough, and the failure stays."""
    world = World()
    world.train()
    if how == "restarted":
        world.server(1, container="c-1-again", lastState=KILLED)
    elif how == "replaced":
        world.server(1, container="")
        world.pods["flights-server-1"]["status"]["containerStatuses"][0]["containerID"] = ""
    elif how == "gone":
        del world.pods["flights-server-1"]
    else:
        world.server(1, ready=False, state=KILLED)
    cached = decide(world.job, world.observed(), world.status, DEFAULTS, world.now)
    assert cached.confirm
    assert not cached.status
    world.look()
    assert world.condition("Failed")["reason"] == "ServerLost"
    assert "server 1 was lost in the middle of training" in world.condition("Failed")["message"]
    assert world.status["firstFailure"]["pod"] == "flights-server-1"
    assert ("StatefulSet", "flights-server") in world.objects
    world.look()
    assert ("StatefulSet", "flights-server") not in world.objects
    failed, first = world.condition("Failed"), world.status["firstFailure"]
    for _ in range(3):
        world.later(60)
        world.servers()
        world.look()
        assert world.condition("Failed") == failed
        assert world.status["firstFailure"] == first
        assert world.reason == "ServerLost"
    world.status = {}
    world.look()
    assert world.condition("Failed") == failed


def test_a_server_that_restarts_before_training_is_no_loss() -> None:
    """Nothing was noted yet, so the workers begin with the server that is there."""
    world = World()
    world.look()
    world.server(0)
    world.server(1, container="second", lastState=KILLED)
    world.look()
    assert world.recorded == ["c-0", "second"]
    assert not world.condition("Failed")


def test_a_replaced_worker_is_counted_and_the_first_failure_kept() -> None:
    """Also when its pod is gone; the job goes on."""
    world = World()
    world.train()
    world.worker(1, state=KILLED, ready=False)
    world.pods["flights-worker-1-a"]["status"]["phase"] = "Failed"
    world.counts(ready=1, failed=1)
    world.look()
    assert world.reason == "StartingWorkers"
    first = world.status["firstFailure"]
    assert (first["pod"], first["exitCode"], first["signal"]) == ("flights-worker-1-a", 137, 9)
    del world.pods["flights-worker-1-a"]
    world.worker(1, "b")
    world.counts(ready=2)
    world.look()
    assert world.reason == "Training"
    assert world.status["restarts"]["total"] == 1
    assert world.status["firstFailure"] == first


@pytest.mark.parametrize(
    ("why", "reason", "words"),
    [
        ("BackoffLimitExceeded", "WorkersFailed", "maxRestarts is 3"),
        ("DeadlineExceeded", "DeadlineExceeded", "activeDeadlineSeconds"),
    ],
)
def test_a_failed_job_of_workers_fails_the_job(why: str, reason: str, words: str) -> None:
    """With the reason in our words."""
    world = World()
    world.train()
    failed = {"type": "Failed", "status": "True", "reason": why, "lastTransitionTime": "2026-01-02T03:05:00Z"}
    world.counts(failed=4, conditions=[failed])
    world.look()
    assert world.condition("Failed")["reason"] == reason
    assert words in world.condition("Failed")["message"]
    assert world.reason == reason


@pytest.mark.parametrize(
    ("policy", "suspended", "left"), [("None", False, True), ("Running", True, True), ("All", True, False)]
)
def test_workers_of_a_failed_job_are_cleaned_as_told(policy: str, suspended: bool, left: bool) -> None:
    """None leaves them, Running ends those that run, All takes the pods too, once the end is in the status."""
    world = World(job_object({"runPolicy": {"cleanPolicy": {"onFailure": policy}}}))
    world.train()
    del world.pods["flights-server-0"]
    world.look()
    assert world.workers["spec"]["suspend"] is suspended
    world.later(1)
    world.look()
    assert (("Job", "flights-worker") in world.objects) is left
    world.later(1)
    world.look()
    assert world.condition("Failed")["reason"] == "ServerLost"


def test_a_finished_job_expires_after_its_ttl_and_only_then() -> None:
    """The TrainingJob itself is deleted; the next look is asked for at the right time."""
    world = World(job_object({"runPolicy": {"ttlSecondsAfterFinished": 100}}))
    world.train()
    world.complete()
    world.progress = Progress(last=True)
    plan = world.look()
    assert not plan.delete_job
    assert plan.again_s == pytest.approx(100, abs=2)
    world.later(99)
    assert not world.look().delete_job
    world.later(2)
    assert world.look().delete_job


def test_a_finished_job_whose_workers_job_was_deleted_stays_finished() -> None:
    """It is not trained again."""
    world = World()
    world.train()
    world.complete()
    world.progress = Progress(last=True)
    world.look()
    del world.objects["Job", "flights-worker"]
    plan = world.look()
    assert not plan.applies
    assert world.condition("Complete")["status"] == "True"
    assert world.status["workers"]["succeeded"] == 2


def test_what_a_user_writes_into_the_status_is_overwritten() -> None:
    """A false Complete while the workers train, and conditions that were emptied."""
    world = World()
    world.train()
    right = world.status
    lie = {"type": "Complete", "status": "True", "reason": "Lie", "message": "", "lastTransitionTime": "x"}
    for conditions in ([lie], []):
        world.status = {**right, "conditions": conditions}
        world.look()
        assert not world.condition("Complete")
        assert world.reason == "Training"


def test_a_deleted_object_is_made_again_and_an_edited_one_put_back() -> None:
    """A Service that somebody deletes, and a StatefulSet whose generation is not the one that was left."""
    world = World()
    world.train()
    del world.objects["Service", "flights-workers"]
    assert [one["metadata"]["name"] for one in world.look().applies] == ["flights-workers"]
    world.objects["StatefulSet", "flights-server"]["metadata"]["generation"] += 1
    assert [one["kind"] for one in world.look().applies] == ["StatefulSet"]
    assert quiet(world.look())


def test_an_edit_while_no_operator_ran_is_found_by_its_manager() -> None:
    """After a restart generations are unknown; who wrote to the object is not."""
    world = World()
    world.train()
    world.settled.clear()
    assert quiet(world.look())
    edit = [{"manager": "kubectl-edit", "operation": "Update"}]
    world.objects["StatefulSet", "flights-server"]["metadata"]["managedFields"] = edit
    assert [one["kind"] for one in world.look().applies] == ["StatefulSet"]
    assert quiet(world.look())


def test_a_name_that_somebody_else_has_is_left_alone() -> None:
    """Nothing is written but the condition, which names it; the look is repeated."""
    world = World()
    world.look()
    world.objects["Service", "flights-servers"]["metadata"]["ownerReferences"][0]["uid"] = "another"
    plan = world.look()
    assert quiet(plan)
    assert world.reason == "NameConflict"
    assert "Service flights-servers" in world.condition("Ready")["message"]
    assert plan.again_s


def test_a_job_that_is_being_deleted_is_left_to_its_end() -> None:
    """Owner references take its objects; nothing is made again."""
    world = World()
    world.train()
    world.objects.clear()
    world.job = dataclasses.replace(world.job, deleting=True)
    assert decide(world.job, world.observed(), world.status, DEFAULTS, world.now) == Plan()


def test_an_old_job_without_any_child_is_read_anew_before_it_is_made() -> None:
    """The cache may speak of a job that is gone."""
    world = World()
    world.later(3600)
    assert decide(world.job, world.observed(), {}, DEFAULTS, world.now).confirm


def test_limits_that_change_are_patched_and_nothing_else() -> None:
    """maxRestarts of a running job: one patch, no new template."""
    world = World()
    world.train()
    policy = {"failurePolicy": {"maxRestarts": 9}, "activeDeadlineSeconds": 1000}
    world.job = dataclasses.replace(job_object({"runPolicy": policy}), generation=2)
    plan = world.look()
    assert not plan.applies
    assert [patch.body["spec"] for patch in plan.patches] == [
        {"activeDeadlineSeconds": 1000, "backoffLimit": 9}
    ]
    assert quiet(world.look())


def test_another_default_image_and_pull_policy_touch_no_running_job() -> None:
    """An upgrade of the chart leaves the servers of a job that runs as they are."""
    world = World()
    world.train()
    newer = dataclasses.replace(DEFAULTS, server_image="registry/tablebay:2", server_pull_policy="Always")
    assert quiet(decide(world.job, world.observed(), world.status, newer, world.now))
    assert world.status["servers"]["image"] == DEFAULTS.server_image


@pytest.mark.parametrize("seed", range(200))
def test_random_lives_keep_the_rules(seed: int) -> None:
    """Whatever happens in whatever order: no error, never both ends, an end never taken back, times only on flips."""
    rng = random.Random(seed)
    policy: dict[str, Any] = {"cleanPolicy": {"onFailure": rng.choice(["All", "Running", "None"])}}
    world = World(job_object({"runPolicy": policy}))
    world.look()
    ended = ""
    for step in range(30):
        where = f"seed {seed}, step {step}"
        happening = rng.randrange(9)
        if happening == 0:
            world.servers()
        elif happening == 1:
            world.server(rng.randrange(2), container=f"c-{step}", ready=rng.random() < 0.5)
        elif happening == 2 and world.pods:
            del world.pods[rng.choice(sorted(world.pods))]
        elif happening == 3:
            world.worker(rng.randrange(2), f"{step}", ready=rng.random() < 0.7)
        elif happening == 4 and ("Job", "flights-worker") in world.objects:
            world.counts(ready=rng.randrange(3), failed=rng.randrange(3))
        elif happening == 5 and ("Job", "flights-worker") in world.objects and rng.random() < 0.3:
            world.complete()
        elif happening == 6 and world.objects and rng.random() < 0.3:
            del world.objects[rng.choice(sorted(world.objects))]
        elif happening == 7:
            world.progress = Progress(values={"step": step}, last=rng.random() < 0.3)
        world.later(rng.choice([0, 1, 10, 100]))
        before = {one["type"]: one for one in world.status.get("conditions", ())}
        again = decide(world.job, world.observed(), world.status, DEFAULTS, world.now)
        assert again == decide(world.job, world.observed(), world.status, DEFAULTS, world.now), where
        world.look()
        for one in world.status["conditions"]:
            known = before.get(one["type"])
            if known is not None and known["status"] == one["status"]:
                assert known["lastTransitionTime"] == one["lastTransitionTime"], where
        ends = [type for type in ("Complete", "Failed") if world.condition(type)]
        assert len(ends) <= 1, where
        if ended:
            assert ends == [ended], f"{where}: {ended} was taken back"
        ended = ends[0] if ends else ""
