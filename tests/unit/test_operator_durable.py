"""The operator's decisions for a job with checkpoints: servers that come back, and suspension."""

from __future__ import annotations

from typing import Any

from unit.operator_world import World, job_object

from tablebay.operator.decisions import Progress

CHECKPOINT = {"destination": "pvc://rows/run", "claim": {"size": "1Gi"}}
KILLED = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": "2026-01-02T03:05:00Z"}}


def durable(**change: Any) -> World:
    """A world of the flights job with a destination."""
    return World(job=job_object({"checkpoint": CHECKPOINT, **change}))


def test_the_claim_is_made_with_the_servers_and_not_again() -> None:
    """Whoever deletes it while the job runs meant that."""
    world = durable()
    plan = world.look()
    assert [claim["metadata"]["name"] for claim in plan.claims] == ["rows"]
    assert not world.look().claims
    del world.objects["Service", "flights-servers"]
    assert not world.look().claims


def test_a_killed_server_recovers_and_no_worker_is_touched() -> None:
    """The process in its pod, then the whole pod: the job says so, goes on, and knows the new ones as its own."""
    world = durable()
    world.train()
    world.server(1, container="c-1b", ready=False, lastState=KILLED)
    world.look()
    assert world.reason == "ServerRecovering"
    assert "server 1 comes back with its rows" in world.condition("Ready")["message"]
    assert "signal 9" in world.condition("Ready")["message"]
    assert [event.reason for event in world.plan.events] == ["ServerRecovering"]
    assert world.workers["spec"]["suspend"] is False
    assert not world.look().events
    world.server(1, container="c-1b")
    world.look()
    assert world.reason == "Training"
    assert world.recorded == ["c-0", "c-1b"]
    del world.pods["flights-server-0"]
    world.look()
    assert world.reason == "ServerRecovering"
    assert "its pod is gone" in world.condition("Ready")["message"]
    world.server(0, container="c-0b")
    world.look()
    assert world.reason == "Training"
    assert world.workers["spec"]["suspend"] is False
    assert "firstFailure" not in world.status
    assert world.status["restarts"] == {"total": 0}


def test_a_suspended_job_ends_its_workers_then_its_servers_and_keeps_its_claim() -> None:
    """In this order, since a push that comes after the last checkpoint would be lost; then all goes on."""
    world = durable()
    world.train()
    world.job = job_object({"checkpoint": CHECKPOINT, "suspend": True})
    world.progress = Progress(checkpoint={"number": 7})
    world.look()
    assert world.workers["spec"]["suspend"] is True
    assert world.recorded == []
    assert ("StatefulSet", "flights-server") in world.objects
    assert world.condition("Suspended")["status"] == "False"
    world.look()
    assert "workers end" in world.condition("Suspended")["message"]
    assert ("StatefulSet", "flights-server") in world.objects
    world.pods = {name: pod for name, pod in world.pods.items() if "-worker-" not in name}
    plan = world.look()
    assert [kind for kind, *_ in plan.deletes] == ["StatefulSet"]
    world.look()
    assert world.condition("Suspended")["status"] == "True"
    assert "pvc://rows/run; the newest checkpoint is number 7" in world.condition("Suspended")["message"]
    assert world.reason == "Suspended"
    writes = world.writes
    world.look()
    assert world.writes == writes

    world.job = job_object({"checkpoint": CHECKPOINT, "suspend": False})
    plan = world.look()
    assert ("StatefulSet", "flights-server") in world.objects
    assert (
        world.objects["StatefulSet", "flights-server"]["spec"]["template"]["spec"]["containers"][0]["image"]
        == (world.status["servers"]["image"])
    )
    assert [claim["metadata"]["name"] for claim in plan.claims] == ["rows"]
    assert world.workers["spec"]["suspend"] is True
    assert world.condition("Suspended")["status"] == "False"
    world.server(0, container="d-0")
    world.server(1, container="d-1")
    world.look()
    assert world.workers["spec"]["suspend"] is False
    assert world.recorded == ["d-0", "d-1"]


def test_servers_that_take_their_time_are_waited_for() -> None:
    """Their pods end within their grace; until then the job is suspending."""
    world = durable()
    world.train()
    pods = {name: pod for name, pod in world.pods.items() if "-server-" in name}
    world.job = job_object({"checkpoint": CHECKPOINT, "suspend": True})
    world.look()
    world.pods = dict(pods)
    world.look()
    world.pods = dict(pods)
    world.look()
    assert world.reason == "Suspending"
    assert "2 servers make a last checkpoint" in world.condition("Suspended")["message"]
    world.pods = {}
    world.look()
    assert world.reason == "Suspended"


def test_a_job_that_begins_suspended_has_no_pods() -> None:
    """Nothing is made until it may run."""
    world = durable(suspend=True)
    plan = world.look()
    assert not plan.applies
    assert world.reason == "Suspended"


def test_a_job_that_has_ended_is_not_suspended() -> None:
    """Its end stands."""
    world = durable()
    world.train()
    world.counts(
        succeeded=2,
        conditions=[{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-02T03:05:00Z"}],
    )
    world.progress = Progress(last=True)
    world.job = job_object({"checkpoint": CHECKPOINT, "suspend": True})
    world.look()
    assert world.condition("Complete")["status"] == "True"


def test_the_newest_checkpoint_is_in_the_status() -> None:
    """As server 0 says."""
    world = durable()
    world.train()
    world.progress = Progress(
        checkpoint={"number": 2, "time": "2026-01-02T03:05:00Z", "bytes": 5, "seconds": 0.5}
    )
    world.look()
    assert world.status["checkpoint"]["number"] == 2
