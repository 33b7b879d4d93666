"""Workers that come and go: in which order the Job and server 0 hear of another number of them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from unit.operator_world import CHECKPOINT, World, job_object, manifests_of

from tablebay.client.errors import JobInvalid
from tablebay.operator import manifests
from tablebay.operator.plans import Tell

POD = {"spec": {"containers": [{"name": "worker", "command": ["python", "train.py"]}]}}


def workers(replicas: int, low: int = 1, high: int = 8) -> dict[str, Any]:
    """The workers of an elastic job."""
    return {"replicas": replicas, "minReplicas": low, "maxReplicas": high, "template": POD}


def elastic(replicas: int = 2) -> World:
    """A world whose job is elastic, and has a checkpoint."""
    return World(job_object({"workers": workers(replicas), "checkpoint": CHECKPOINT}))


def training(replicas: int = 2) -> World:
    """As far as Training."""
    world = elastic(replicas)
    world.look()
    world.servers()
    world.look()
    world.hear()
    run(world)
    assert world.reason == "Training", world.status
    return world


def run(world: World) -> None:
    """The Job's controller makes the pods that are wanted, and ends the others."""
    world.look()
    wanted = world.workers["spec"]["parallelism"]
    for name in [name for name in world.pods if "-worker-" in name]:
        if int(name.split("-")[2]) >= wanted:
            del world.pods[name]
    for rank in range(wanted):
        if f"flights-worker-{rank}-a" not in world.pods:
            world.worker(rank)
    world.counts(ready=wanted, active=wanted)
    world.look()


def size(world: World) -> tuple[int, int]:
    """Parallelism and completions of the workers' Job."""
    spec = world.workers["spec"]
    return spec["parallelism"], spec["completions"]


def wants(world: World) -> int | None:
    """How many workers the servers are to be told of."""
    return world.plan.tell and world.plan.tell.workers


def test_workers_wait_until_server_0_knows_how_many_there_are() -> None:
    """It is told once all servers are ready; what names them is the container that each is."""
    world = elastic()
    world.look()
    assert world.plan.tell is None
    world.servers()
    world.look()
    assert world.plan.tell == Tell(workers=2, lives=("c-0", "c-1"))
    assert world.workers["spec"]["suspend"] is True
    world.hear()
    world.look()
    assert world.workers["spec"]["suspend"] is False
    assert world.plan.tell is None


def test_more_workers_start_once_server_0_knows_of_them() -> None:
    """Both numbers of the Job in one write; its template, and the pods that run, are left alone."""
    world = training()
    template, pods = json.dumps(world.workers["spec"]["template"]), dict(world.pods)
    world.ask(workers=workers(4))
    world.look()
    assert (wants(world), size(world)) == (4, (2, 2))
    assert world.reason == "StartingWorkers"
    world.hear()
    world.look()
    assert size(world) == (4, 4)
    run(world)
    assert world.reason == "Training"
    assert world.status["workers"] | {"selector": ""} == {
        "replicas": 4, "ready": 4, "succeeded": 0, "failed": 0, "readyText": "4/4", "selector": "",
    }  # fmt: skip
    assert json.dumps(world.workers["spec"]["template"]) == template
    assert {name: world.pods[name] for name in pods} == pods
    assert world.workers["spec"]["suspend"] is False


def test_fewer_are_told_to_end_before_server_0_waits_for_them_no_more() -> None:
    """Else one that still runs would be a rank that the job does not have."""
    world = training(4)
    world.ask(workers=workers(1))
    world.look()
    assert size(world) == (1, 1)
    assert world.plan.tell is None
    world.look()
    assert wants(world) == 1
    world.hear()
    run(world)
    assert world.reason == "Training"
    assert world.plan.tell is None


def test_a_server_that_came_back_is_told_again() -> None:
    """It has heard nothing; the workers go on meanwhile."""
    world = training()
    world.server(0, container="c-0-again", ready=False)
    world.look()
    assert world.plan.tell is None
    world.server(0, container="c-0-again")
    world.look()
    assert world.plan.tell == Tell(workers=2, lives=("c-0-again", "c-1"))
    assert size(world) == (2, 2)
    world.hear()
    world.look()
    assert world.plan.tell is None


def test_a_job_scaled_while_suspended_begins_again_with_as_many() -> None:
    """Nothing is told while it ends, and nothing runs before the new servers know."""
    world = training()
    world.ask(suspend=True)
    world.look()
    world.workers_end()
    world.ask(workers=workers(3))
    world.look()
    assert world.plan.tell is None
    world.keep()
    world.look()
    world.servers_end()
    world.look()
    assert world.reason == "Suspended"
    world.ask(suspend=False)
    world.look()
    for index in range(2):
        world.server(index, container=f"d-{index}")
    world.look()
    assert (wants(world), world.workers["spec"]["suspend"]) == (3, True)
    world.hear()
    world.look()
    assert size(world) == (3, 3)
    assert world.workers["spec"]["suspend"] is False


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_asked_a_rank_that_runs_is_known_to_server_0(seed: int) -> None:
    """Random numbers, with the news late, lost or of a server that came back: in the end all agree, in quiet."""
    chance = random.Random(seed)
    world = training()
    life = 0
    for _ in range(60):
        if chance.random() < 0.3:
            world.ask(workers=workers(chance.randint(1, 8)))
        world.look()
        if world.plan.tell is not None and chance.random() < 0.5:
            world.hear()
        if chance.random() < 0.1:
            life += 1
            world.server(0, container=f"c-0-{life}")
        told = world.progress.told
        current = world.pods["flights-server-0"]["status"]["containerStatuses"][0]["containerID"]
        if (
            told is not None
            and told.lives[0] == current
            and world.workers["spec"]["parallelism"] > told.workers
        ):
            raise AssertionError(f"seed {seed}: {world.workers['spec']['parallelism']} run, {told} is known")
    for _ in range(4):
        world.look()
        if world.plan.tell is not None:
            world.hear()
    run(world)
    writes, wanted = world.writes, world.job.model.spec.workers.replicas
    assert size(world) == (wanted, wanted), f"seed {seed}"
    assert world.progress.told is not None
    assert world.progress.told.workers == wanted, f"seed {seed}"
    for _ in range(5):
        world.look()
    assert world.writes == writes, f"seed {seed}"


def test_a_number_written_into_the_job_by_hand_is_put_back() -> None:
    """Of a job that is not elastic too."""
    world = World()
    world.train()
    world.workers["spec"] |= {"parallelism": 5, "completions": 5}
    world.look()
    assert size(world) == (2, 2)
    assert world.plan.tell is None


def test_what_workers_find_in_their_environment() -> None:
    """The bounds for TABLEBAY_WORKERS, since the template never changes, and no WORLD_SIZE, which would be wrong."""

    def variables(job: manifests.JobObject) -> dict[str, Any]:
        (found,) = [one for one in manifests_of(job) if one["kind"] == "Job"]
        (container,) = found["spec"]["template"]["spec"]["containers"]
        return {one["name"]: one.get("value") for one in container["env"]}

    found = variables(job_object({"workers": workers(2)}))
    assert found["TABLEBAY_WORKERS"] == "1..8"
    assert "WORLD_SIZE" not in found
    assert variables(job_object())["WORLD_SIZE"] == "2"
    assert variables(job_object({"workers": workers(5)})) == found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minReplicas": 1}, "found one of minReplicas and maxReplicas; wanted both or neither"),
        ({"minReplicas": 3, "maxReplicas": 8}, "found replicas 2 beside minReplicas 3 and maxReplicas 8"),
        ({"minReplicas": 1, "maxReplicas": 1}, "wanted minReplicas <= replicas <= maxReplicas"),
    ],
)
def test_bounds_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    """With what was found and what is wanted."""
    with pytest.raises(JobInvalid, match=words):
        job_object({"workers": {"replicas": 2, "template": POD, **change}})
