"""Another number of servers for a suspended job."""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.operator_world import CHECKPOINT, World, job_object

JOB, SERVERS = ("Job", "flights-worker"), ("StatefulSet", "flights-server")


def suspended(**change: Any) -> World:
    """A job that has trained for 100 s and is suspended."""
    world = World(job_object({"checkpoint": CHECKPOINT, **change}))
    world.train()
    world.counts(startTime=world.workers["status"]["startTime"])
    world.later(100)
    world.ask(suspend=True)
    world.look()
    world.workers_end(failed=1)
    world.look()
    world.keep()
    world.look()
    world.servers_end()
    world.look()
    assert world.reason == "Suspended"
    return world


def resize(world: World, replicas: int) -> None:
    """The user gives it another number of servers."""
    world.ask(servers={"replicas": replicas})
    for _ in range(4):
        world.look()


def addresses(world: World) -> str:
    """Where its workers look for servers."""
    (container,) = world.workers["spec"]["template"]["spec"]["containers"]
    (found,) = [one["value"] for one in container["env"] if one["name"] == "TABLEBAY_SERVERS"]
    return str(found)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_suspended_job_goes_on_with_another_number_of_servers(replicas: int) -> None:
    """Its workers are made anew for them, held back until all are ready; nothing runs before it is resumed."""
    world = suspended()
    resize(world, replicas)
    assert world.reason == "Suspended"
    assert world.objects[SERVERS]["spec"]["replicas"] == 0
    assert addresses(world).startswith(f"flights-server-{{0..{replicas - 1}}}.")
    assert world.workers["spec"]["suspend"] is True
    writes = world.writes
    for _ in range(5):
        world.look()
    assert world.writes == writes
    world.ask(suspend=False)
    world.look()
    assert world.objects[SERVERS]["spec"]["replicas"] == replicas
    world.servers()
    world.look()
    world.look()
    assert world.workers["spec"]["suspend"] is False
    assert len(world.recorded) == replicas


def test_what_the_job_has_used_is_not_forgotten() -> None:
    """The time that it trained counts for its deadline; failures of pods that the suspension ended do not."""
    world = suspended(runPolicy={"activeDeadlineSeconds": 1000, "failurePolicy": {"maxRestarts": 3}})
    resize(world, 3)
    paused = json.loads(world.workers["metadata"]["annotations"]["tablebay.dev/paused"])
    assert (paused["trainedSeconds"], paused["forgiven"], paused["failedBefore"]) == (100, 0, 0)
    world.ask(suspend=False)
    world.look()
    world.servers()
    for _ in range(3):
        world.look()
    assert world.workers["spec"]["activeDeadlineSeconds"] == 900
    assert world.workers["spec"]["backoffLimit"] == 3


def test_the_job_is_deleted_once_what_it_knows_is_kept() -> None:
    """An operator that dies between the two finds it on the servers' set."""
    world = suspended()
    world.ask(servers={"replicas": 3})
    while not world.plan.deletes:
        world.look()
    kept = world.objects[SERVERS]["metadata"]["annotations"]["tablebay.dev/paused"]
    assert json.loads(kept)["trainedSeconds"] == 100
    assert JOB not in world.objects


def test_an_older_operators_job_is_left_alone() -> None:
    """It does not say for how many servers it was made."""
    world = suspended()
    del world.workers["metadata"]["annotations"]["tablebay.dev/server-replicas"]
    uid = world.workers["metadata"]["uid"]
    writes = world.writes
    world.look()
    assert (world.workers["metadata"]["uid"], world.writes) == (uid, writes)
