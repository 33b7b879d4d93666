"""The operator's decisions for a job with checkpoints: its servers come back, it is suspended, it ends in order."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from unit.operator_world import CHECKPOINT, DEFAULTS, World, job_object, text

from tablebay.operator import conditions
from tablebay.operator.decisions import decide
from tablebay.operator.plans import Plan, Progress
from tablebay.operator.projections import FINALIZER, PAUSED_ANNOTATION

KILLED = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": "2026-01-02T03:05:00Z"}}
SERVERS = ("StatefulSet", "flights-server")
# Of CHECKPOINT: timeoutSeconds 120, and pods of 150 s and 30 s.
WORKERS_S, CHECKPOINT_S, SERVERS_S = 60, 120, 180


def durable(**change: Any) -> World:
    """A world whose job has a checkpoint; change: fields of that."""
    return World(job_object({"checkpoint": {**CHECKPOINT, **change}}))


def training(**change: Any) -> World:
    """As far as Training."""
    world = durable(**change)
    world.train()
    return world


def replicas(world: World) -> int:
    """How many servers the set wants."""
    found: int = world.objects[SERVERS]["spec"]["replicas"]
    return found


def quiet(world: World, seconds: float = 60) -> bool:
    """Whether ten more looks write nothing."""
    writes = world.writes
    for _ in range(10):
        world.later(seconds / 10)
        world.look()
    return world.writes == writes


# ---- servers that come back


@pytest.mark.parametrize("how", ["restarted", "replaced", "gone", "ended"])
def test_a_server_that_dies_is_waited_for(how: str) -> None:
    """Whatever became of it: Ready is False for ServerRecovering, the workers are left alone, and it goes on."""
    world = training()
    workers = json.dumps(world.workers["spec"]) + json.dumps(world.workers["metadata"])
    if how == "restarted":
        world.server(1, container="c-1-again", ready=False, lastState=KILLED)
    elif how == "replaced":
        world.server(1, container="", ready=False)
        world.pods["flights-server-1"]["status"]["containerStatuses"][0]["containerID"] = ""
    elif how == "gone":
        del world.pods["flights-server-1"]
    else:
        world.server(1, ready=False, state=KILLED)
    world.look()
    assert world.reason == "ServerRecovering"
    assert not world.condition("Failed")
    message = world.condition("Ready")["message"]
    assert message.startswith("server 1 comes back: its p")
    assert "1 of 2 servers are ready" in message
    assert [event.reason for event in world.plan.events] == ["ServerRecovering"]
    if how == "gone":
        assert world.plan.again_s == pytest.approx(10.1)
        world.later(10.1)
        world.look()
        assert "; flights-server-1 not made: kubectl describe" in world.condition("Ready")["message"]
    assert quiet(world)
    assert json.dumps(world.workers["spec"]) + json.dumps(world.workers["metadata"]) == workers
    assert replicas(world) == 2
    world.server(1, container="c-1-again")
    world.look()
    assert world.reason == "Training"
    assert [event.reason for event in world.plan.events] == ["Training"]
    assert quiet(world)


def test_all_servers_may_die_at_once() -> None:
    """None of them is the end of the job."""
    world = training()
    world.servers_end()
    world.look()
    assert world.reason == "ServerRecovering"
    assert "server 0 comes back" in world.condition("Ready")["message"]
    assert "server 1 comes back" in world.condition("Ready")["message"]


def test_a_server_that_cannot_come_back_says_why() -> None:
    """In the kubelet's words: each try ends, and it waits for the next."""
    world = training()
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
    ended = {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": "2026-01-02T03:05:00Z"}}
    world.server(1, container="c-1-third", ready=False, state=waiting, lastState=ended)
    world.look()
    message = world.condition("Ready")["message"]
    assert "its process ended with exit code 3" in message
    assert "CrashLoopBackOff: back-off 40s" in message
    assert world.status["firstFailure"]["exitCode"] == 3


def test_a_worker_that_failed_is_no_matter_of_the_servers() -> None:
    """Its restarts are counted as ever."""
    world = training()
    world.counts(ready=1, failed=1)
    world.look()
    assert world.status["restarts"]["total"] == 1
    assert world.reason == "StartingWorkers"


# ---- suspend


def test_a_job_is_suspended_in_order_and_goes_on() -> None:
    """Workers, checkpoint, servers; nothing but pods goes, and the workers begin again when the servers are back."""
    world = training()
    world.ask(suspend=True)
    plan = world.look()
    assert world.workers["spec"]["suspend"] is True
    assert (world.reason, replicas(world), plan.poll) == ("Suspending", 2, "")
    assert world.condition("Suspended")["status"] == "False"
    assert [event.reason for event in plan.events] == ["Suspending"]
    world.later(3)
    world.workers_end()
    assert world.look().poll == "checkpoint"
    assert "a last checkpoint is made" in world.condition("Ready")["message"]
    assert replicas(world) == 2
    world.keep(12)
    world.look()
    assert replicas(world) == 0
    assert world.reason == "Suspending"
    world.servers_end()
    plan = world.look()
    assert world.reason == "Suspended"
    assert world.condition("Suspended")["status"] == "True"
    assert "all is in checkpoint 12" in world.condition("Ready")["message"]
    assert world.status["checkpoint"]["lastSuccessful"]["number"] == 12
    assert [event.reason for event in plan.events] == ["Suspended"]
    # The operator was restarted: what it had asked is forgotten, and what was said stays.
    world.progress = Progress()
    assert quiet(world, 3600)
    assert "all is in checkpoint 12" in world.condition("Ready")["message"]
    assert not world.status.get("firstFailure")
    assert {kind for kind, _ in world.objects} == {
        *("ServiceAccount", "Service", "Job", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy")
    }
    world.ask(suspend=False)
    world.look()
    assert replicas(world) == 2
    assert world.reason == "StartingServers"
    assert not world.condition("Suspended")
    assert world.workers["spec"]["suspend"] is True
    world.server(0, container="c-0-2")
    world.server(1, container="c-1-2")
    world.look()
    assert world.workers["spec"]["suspend"] is False
    assert world.recorded == ["c-0-2", "c-1-2"]
    world.worker(0, "b")
    world.worker(1, "b")
    world.counts(ready=2)
    world.look()
    assert world.reason == "Training"
    assert quiet(world)


def test_a_cache_alone_suspends_nothing() -> None:
    """What ends pods is decided on fresh reads."""
    world = training()
    world.ask(suspend=True)
    assert decide(world.job, world.observed(), world.status, DEFAULTS, world.now).confirm
    world.look()
    world.workers_end()
    world.keep()
    plan = decide(world.job, world.observed(), world.status, DEFAULTS, world.now)
    assert plan.confirm
    assert not plan.applies


def test_a_job_that_is_made_suspended_waits() -> None:
    """Its objects are there, its pods are not; without a checkpoint too, since there is nothing to lose."""
    for spec in ({"suspend": True}, {"suspend": True, "checkpoint": CHECKPOINT}):
        world = World(job_object(spec))
        world.look()
        assert replicas(world) == 0
        assert world.workers["spec"]["suspend"] is True
        assert world.reason == "Suspended"
        assert "training has not begun" in world.condition("Ready")["message"]
        assert quiet(world)
        world.ask(suspend=False)
        world.train()
        assert world.reason == "Training"


def test_without_a_checkpoint_training_is_not_given_up() -> None:
    """The API server refuses it; should it come through, the job goes on and says why."""
    world = World()
    world.train()
    world.ask(suspend=True)
    world.look()
    assert replicas(world) == 2
    assert world.workers["spec"]["suspend"] is False
    assert (world.reason, world.condition("Suspended")["reason"]) == ("Training", "NoCheckpoint")


def test_a_job_that_waits_for_no_checkpoint_ends_at_once() -> None:
    """`when` without Suspend: the servers are told to end when the workers have."""
    world = training(when=[])
    world.ask(suspend=True)
    world.look()
    world.workers_end()
    world.look()
    assert replicas(world) == 0
    world.servers_end()
    world.look()
    assert "goes on from the newest checkpoint" in world.condition("Ready")["message"]
    assert world.reason == "Suspended"


def test_workers_that_do_not_end_hold_nothing_up_for_long() -> None:
    """Their grace and half a minute, then the checkpoint is made all the same."""
    world = training()
    world.ask(suspend=True)
    world.look()
    world.later(WORKERS_S - 1)
    assert world.look().poll == ""
    world.later(2)
    assert world.look().poll == "checkpoint"


def test_a_checkpoint_that_is_not_made_in_time_is_told() -> None:
    """Suspended all the same, for a reason of its own, with what was in the way and what it goes on from."""
    world = training()
    last = {"lastSuccessful": {"number": 3, "time": text(world.now)}}
    world.ask(suspend=True)
    world.look()
    world.workers_end()
    world.look()
    world.progress = Progress(trouble="no space left on device", checkpoint=last)
    world.later(WORKERS_S + CHECKPOINT_S - 1)
    world.look()
    assert "the try before failed: no space left on device" in world.condition("Ready")["message"]
    world.later(2)
    world.look()
    assert replicas(world) == 0
    world.servers_end()
    plan = world.look()
    assert world.reason == "NotAllKept"
    assert world.condition("Suspended")["status"] == "True"
    message = world.condition("Ready")["message"]
    assert "no last checkpoint was made in time; the try before failed: no space left on device" in message
    assert "goes on from checkpoint 3" in message
    assert [(event.kind, event.reason) for event in plan.events] == [("Warning", "NotAllKept")]
    world.progress = Progress()
    assert quiet(world)


def test_servers_that_do_not_end_hold_nothing_up_for_ever() -> None:
    """A node that is gone keeps its pod; the job is Suspended past all limits."""
    world = training()
    world.ask(suspend=True)
    world.look()
    world.workers_end()
    world.keep()
    world.look()
    world.later(WORKERS_S + CHECKPOINT_S + SERVERS_S - 1)
    world.look()
    assert world.reason == "Suspending"
    world.later(2)
    world.look()
    assert world.condition("Suspended")["status"] == "True"
    assert quiet(world)


def test_a_suspension_that_is_taken_back_in_the_middle_goes_on() -> None:
    """From any stage, and the next one has all of its time."""
    for stage in range(3):
        world = training()
        world.ask(suspend=True)
        world.look()
        if stage > 0:
            world.workers_end()
            world.look()
        if stage > 1:
            world.keep()
            world.look()
            world.servers_end()
        world.ask(suspend=False)
        world.progress = Progress()
        world.servers()
        world.look()
        world.look()
        assert replicas(world) == 2
        assert world.workers["spec"]["suspend"] is False
        assert not world.condition("Suspended")
        world.later(10_000)
        world.worker(0, "b")
        world.ask(suspend=True)
        world.look()
        world.look()
        assert world.reason == "Suspending"
        assert replicas(world) == 2


def test_what_a_suspension_ends_is_no_failure() -> None:
    """Kubernetes may count its pods: the limit is higher meanwhile, and those are forgiven afterwards."""
    world = training()
    world.counts(ready=2, failed=1)
    world.look()
    world.ask(suspend=True)
    world.look()
    assert world.workers["spec"]["backoffLimit"] == 3 + 2
    world.workers_end(failed=2)
    world.keep()
    world.look()
    world.servers_end()
    world.look()
    assert world.status["restarts"]["total"] == 1
    world.ask(suspend=False)
    world.look()
    world.servers()
    world.look()
    assert world.workers["spec"]["suspend"] is False
    assert world.workers["spec"]["backoffLimit"] == 3 + 2
    assert json.loads(world.workers["metadata"]["annotations"][PAUSED_ANNOTATION])["forgiven"] == 2
    world.counts(failed=4, ready=2)
    world.look()
    assert world.status["restarts"]["total"] == 2
    assert quiet(world)


def test_time_does_not_count_while_suspended() -> None:
    """activeDeadlineSeconds is of the time in which it trained; startTime is the first."""
    world = World(job_object({"checkpoint": CHECKPOINT, "runPolicy": {"activeDeadlineSeconds": 1000}}))
    world.train()
    started = world.status["startTime"]
    world.later(400)
    world.ask(suspend=True)
    world.look()
    # A Job that is resumed past its deadline would fail before its new start counts.
    assert "activeDeadlineSeconds" not in world.workers["spec"]
    world.workers_end()
    world.keep()
    world.look()
    world.servers_end()
    world.later(100_000)
    world.look()
    world.ask(suspend=False)
    world.look()
    world.servers()
    world.look()
    assert world.workers["spec"]["suspend"] is False
    world.look()
    assert not world.condition("Failed")
    assert world.workers["spec"]["activeDeadlineSeconds"] == 600
    assert world.status["startTime"] == started
    assert quiet(world)


def test_settings_changed_while_suspended_are_used_afterwards() -> None:
    """The set is applied anew, with no pod."""
    world = training()
    world.suspend()
    spec = {**world.job.spec, "checkpoint": {**CHECKPOINT, "everySeconds": 7}}
    world.job = dataclasses.replace(job_object(spec), generation=9, finalizers=world.job.finalizers)
    world.look()
    assert replicas(world) == 0
    (server,) = world.objects[SERVERS]["spec"]["template"]["spec"]["containers"]
    assert {"name": "TABLEBAY_CHECKPOINT_EVERY_SECONDS", "value": "7"} in server["env"]


def test_a_job_that_ends_while_it_is_suspended_has_ended() -> None:
    """Its last worker was done before it was told to stop."""
    world = training()
    world.ask(suspend=True)
    world.look()
    world.complete()
    world.progress = Progress(last=True, kept=True)
    world.look()
    assert world.condition("Complete")["status"] == "True"


# ---- the end


def test_a_complete_job_is_kept_before_its_servers_go() -> None:
    """The last report, then a last checkpoint; no longer than its timeout."""
    world = training()
    world.complete()
    assert world.look().poll == "last"
    world.progress = Progress(last=True)
    assert world.look().poll == "checkpoint"
    assert "a last checkpoint is made" in world.condition("Ready")["message"]
    assert SERVERS in world.objects
    world.keep(9)
    world.look()
    assert world.condition("Complete")["status"] == "True"
    # Servers end once the status says how the job ended.
    world.look()
    assert SERVERS not in world.objects
    assert world.status["checkpoint"]["lastSuccessful"]["number"] == 9


def test_a_complete_job_whose_checkpoint_fails_is_complete() -> None:
    """Past the time limit."""
    world = training()
    world.complete()
    world.progress = Progress(last=True)
    world.look()
    world.later(151)
    world.look()
    assert world.condition("Complete")["status"] == "True"


# ---- deletion


def deleted(world: World) -> None:
    """The user deletes the job."""
    world.job = dataclasses.replace(world.job, deleting=True, deleted=text(world.now))


def test_a_job_is_held_for_its_last_checkpoint_only_if_it_asks_for_it() -> None:
    """A finalizer from its first look on; those of others stay; none without `when: [Delete]`."""
    world = durable()
    world.job = dataclasses.replace(world.job, finalizers=("other/one",))
    world.look()
    assert world.job.finalizers == ("other/one", FINALIZER)
    world.later(11)
    world.look()
    assert quiet(world)
    world = durable(when=["Suspend"])
    world.look()
    assert world.job.finalizers == ()
    world = World()
    world.look()
    assert world.job.finalizers == ()


def test_a_deleted_job_ends_in_order() -> None:
    """Workers, checkpoint, servers; then the finalizer goes, and owner references do the rest."""
    world = training()
    deleted(world)
    world.look()
    assert world.workers["spec"]["suspend"] is True
    assert (world.reason, replicas(world)) == ("Deleting", 2)
    world.workers_end()
    assert world.look().poll == "checkpoint"
    world.keep()
    world.look()
    assert replicas(world) == 0
    assert world.job.finalizers == (FINALIZER,)
    world.servers_end()
    world.look()
    assert world.job.finalizers == ()
    assert world.look() == Plan()


@pytest.mark.parametrize("begun", [False, True])
def test_a_deletion_has_an_end_whatever_happens(begun: bool) -> None:
    """No server answers, no pod ends: past the limits the job is let go; at once if it has nothing to keep."""
    world = training() if begun else durable()
    world.look()
    deleted(world)
    world.look()
    assert (FINALIZER in world.job.finalizers) is begun
    for _ in range(100):
        world.later(WORKERS_S + CHECKPOINT_S + SERVERS_S + 1 if _ == 50 else 0.1)
        world.look()
    assert world.job.finalizers == ()


def test_a_deleted_job_without_objects_is_let_go() -> None:
    """A namespace that goes takes them first."""
    world = training()
    deleted(world)
    world.objects.clear()
    world.pods.clear()
    world.look()
    assert world.job.finalizers == ()


def test_a_job_that_has_ended_is_not_held() -> None:
    """Its time to live, or its user, takes it at once."""
    world = training()
    world.complete()
    world.progress = Progress(last=True, kept=True)
    world.look()
    world.look()
    assert world.condition("Complete")["status"] == "True"
    assert world.job.finalizers == ()


def test_a_job_that_expires_is_let_go_first() -> None:
    """The finalizer goes, then the job: it would be held for nothing."""
    policy = {"ttlSecondsAfterFinished": 0}
    world = World(job_object({"checkpoint": CHECKPOINT, "runPolicy": policy}))
    world.train()
    world.complete()
    world.progress = Progress(last=True, kept=True)
    world.look()
    assert world.condition("Complete")["status"] == "True"
    plan = world.look()
    assert (plan.finalizers, plan.delete_job) == ((), False)
    assert world.look().delete_job


def test_a_suspended_job_is_deleted_at_once() -> None:
    """All is in its checkpoint."""
    world = training()
    world.suspend()
    deleted(world)
    world.look()
    assert world.job.finalizers == ()


def test_a_claim_that_cannot_be_used_is_a_condition() -> None:
    """In words, looked at again soon, and nothing is made."""
    world = durable()
    observed = dataclasses.replace(world.observed(), claim="found no PersistentVolumeClaim x")
    plan = decide(world.job, observed, {}, DEFAULTS, world.now)
    assert not plan.applies
    assert plan.again_s
    (ready,) = plan.status["conditions"]
    assert (ready["reason"], ready["message"]) == ("ClaimUnusable", "found no PersistentVolumeClaim x")
    assert [event.kind for event in plan.events] == ["Warning"]


@pytest.mark.parametrize("seed", range(200))
def test_random_lives_keep_the_rules(seed: int) -> None:
    """Whatever happens: no server's death is the end; suspended or deleted it ends within the limits, workers first."""
    rng = random.Random(seed)
    world = durable(when=rng.choice([["Suspend", "Delete"], ["Delete"], []]))
    world.look()
    for step in range(40):
        where = f"seed {seed}, step {step}"
        happening = rng.randrange(9)
        if happening == 0:
            world.servers()
        elif happening == 1:
            world.server(rng.randrange(2), container=f"c-{step}", ready=rng.random() < 0.5)
        elif happening == 2 and world.pods:
            del world.pods[rng.choice(sorted(world.pods))]
        elif happening == 3 and world.workers["spec"]["suspend"] is False:
            world.worker(rng.randrange(2), f"{step}", ready=rng.random() < 0.7)
        elif happening == 4:
            world.ask(suspend=rng.random() < 0.5)
        elif happening == 5:
            world.progress = Progress(kept=rng.random() < 0.5, trouble=rng.choice(["", "x"]))
        elif happening == 6:
            world.workers_end(failed=rng.randrange(3))
        elif happening == 7:
            world.servers_end()
        world.later(rng.choice([0, 1, 10, 100]))
        scaled = replicas(world) == 0
        world.look()
        assert not world.condition("Failed"), where
        assert not world.condition("Complete"), where
        if replicas(world) == 0 and not scaled:
            assert world.workers["spec"]["suspend"] is True, f"{where}: servers end beside workers"
        if world.workers["spec"]["suspend"] is False:
            assert replicas(world) == 2, where
    world.ask(suspend=True)
    for _ in range(200):
        world.later(10)
        world.look()
    assert world.condition("Suspended")["status"] == "True", f"seed {seed}"
    assert quiet(world), f"seed {seed}"
    deleted(world)
    for _ in range(50):
        # Pods that never end are among them.
        world.later(10)
        world.look()
    assert world.job.finalizers == (), f"seed {seed}"


def test_every_reason_is_in_the_operators_page() -> None:
    """docs/operations.md says what each reason of Ready means."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    reasons = {
        value
        for name, value in vars(conditions).items()
        if name.isupper()
        and isinstance(value, str)
        and name not in ("MONITORED", "NO_CHECKPOINT", "SERVERS_READY", "WORKERS_READY")
    }
    assert len(reasons) > 15
    assert not [reason for reason in sorted(reasons) if f"`{reason}`" not in page]
