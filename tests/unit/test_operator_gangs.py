"""Gang scheduling: rendered as the schedulers' public APIs document it; none of them has run with it here."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from unit.operator_world import CHECKPOINT, DEFAULTS, World, job_object, manifests_of
from unit.test_operator_backoff import fails

from tablebay.client.errors import JobInvalid

GANGS = ("Volcano", "Coscheduling")


def world_with(gang: str, served: str | None = None, *, enabled: str | None = None, **change: Any) -> World:
    """A job with a gang. served: whose PodGroups the cluster knows; enabled: the chart's. Both its own if not given."""
    return World(
        job_object({"scheduling": {"gang": gang}, "checkpoint": CHECKPOINT, **change}),
        defaults=replace(DEFAULTS, gang=gang if enabled is None else enabled),
        pod_groups=gang if served is None else served,
    )


def at_once(world: World) -> int:
    """How many pods the PodGroup wants."""
    found: int = world.objects["PodGroup", "flights"]["spec"]["minMember"]
    return found


@pytest.mark.parametrize("gang", GANGS)
def test_a_group_never_waits_for_pods_that_wait_for_it(gang: str) -> None:
    """The servers alone until they are ready; with the write that lets the workers run, those too."""
    world = world_with(gang)
    world.look()
    assert at_once(world) == 2
    assert world.condition("Gang")["status"] == "True"
    world.server(0)
    world.look()
    assert at_once(world) == 2
    world.servers()
    plan = world.look()
    assert at_once(world) == 4
    assert [one["kind"] for one in plan.applies] == ["PodGroup"]
    assert world.workers["spec"]["suspend"] is False
    world.train()
    writes = world.writes
    world.look()
    assert world.writes == writes


@pytest.mark.parametrize("gang", GANGS)
def test_it_wants_no_more_pods_than_may_run(gang: str) -> None:
    """Ranks that are done need no room, and those that wait after a failure keep no server from coming back."""
    world = world_with(gang, runPolicy={"failurePolicy": {"backoff": {"initialSeconds": 60}}})
    world.train()
    fails(world, 1)
    world.look()
    world.look()
    assert at_once(world) == 3
    world.later(61)
    world.look()
    world.look()
    assert at_once(world) == 4
    world.counts(active=1, ready=1, succeeded=1)
    world.look()
    assert at_once(world) == 3


@pytest.mark.parametrize("gang", GANGS)
def test_an_elastic_job_wants_its_fewest_workers(gang: str) -> None:
    """And what is there of them, when it is scaled down to that."""
    spec = job_object().spec
    workers = {**spec["workers"], "replicas": 3, "minReplicas": 1, "maxReplicas": 4}
    world = world_with(gang, workers=workers)
    world.look()
    world.servers()
    world.look()
    world.hear()
    world.look()
    assert at_once(world) == 3


@pytest.mark.parametrize("gang", GANGS)
def test_what_a_group_wants_follows_the_workers_that_are_scaled(gang: str) -> None:
    """From 3 down to the fewest, 2: no room is asked for a rank that has ended; up again it is, for another one."""
    spec = job_object().spec["workers"]

    def scaled(replicas: int) -> None:
        world.ask(workers={**spec, "replicas": replicas, "minReplicas": 2, "maxReplicas": 4})
        for _ in range(3):
            world.look()
            if world.plan.tell is not None:
                world.hear()
        wanted = world.workers["spec"]["parallelism"]
        assert wanted == replicas
        world.counts(active=wanted, ready=wanted)

    world = world_with(gang, workers={**spec, "replicas": 3, "minReplicas": 2, "maxReplicas": 4})
    world.look()
    world.servers()
    world.look()
    world.hear()
    world.look()
    assert at_once(world) == 4
    scaled(2)
    assert at_once(world) == 4
    world.counts(active=1, ready=1, succeeded=1)
    world.look()
    assert at_once(world) == 3
    assert world.condition("Gang")["message"] == f"{gang}: 3 pods at once"
    scaled(4)
    assert at_once(world) == 4
    world.look()
    writes = world.writes
    world.look()
    assert world.writes == writes


@pytest.mark.parametrize("gang", GANGS)
def test_another_number_of_servers_is_another_group(gang: str) -> None:
    """While the job is suspended there is no group: it would hold a place in a queue."""
    world = world_with(gang)
    world.train()
    world.suspend()
    assert world.reason == "Suspended"
    assert ("PodGroup", "flights") not in world.objects
    world.ask(servers={"replicas": 3})
    for _ in range(3):
        world.look()
    world.ask(suspend=False)
    for _ in range(3):
        world.look()
    assert at_once(world) == 3


@pytest.mark.parametrize("gang", GANGS)
def test_the_group_goes_with_the_jobs_end(gang: str) -> None:
    """So that its queue has the place again."""
    world = world_with(gang)
    world.train()
    world.complete()
    world.progress = replace(world.progress, last=True, kept=True)
    for _ in range(3):
        world.look()
    assert world.reason == "Completed"
    assert ("PodGroup", "flights") not in world.objects


@pytest.mark.parametrize(
    ("served", "enabled", "reason", "words"),
    [
        ("", "Volcano", "NoPodGroups", "the cluster knows no PodGroups (scheduling.volcano.sh/v1beta1)"),
        ("", "", "GangNotEnabled", "found spec.scheduling.gang Volcano and the chart's gang.scheduler none"),
        ("Coscheduling", "Coscheduling", "GangNotEnabled", "the chart's gang.scheduler Coscheduling"),
    ],
)
def test_without_the_scheduler_nothing_is_made(served: str, enabled: str, reason: str, words: str) -> None:
    """The job waits, says for what, and begins when it is there."""
    world = world_with("Volcano", served, enabled=enabled)
    plan = world.look()
    assert not world.objects
    assert world.reason == reason
    assert words in world.condition("Ready")["message"]
    assert plan.again_s is not None
    world.defaults, world.pod_groups = replace(DEFAULTS, gang="Volcano"), "Volcano"
    world.look()
    assert at_once(world) == 2


def test_a_job_that_runs_goes_on_without_the_scheduler() -> None:
    """Its condition says so."""
    world = world_with("Volcano")
    world.train()
    world.pod_groups = ""
    world.look()
    assert world.reason == "Training"
    assert world.condition("Gang")["reason"] == "NoPodGroups"


def test_pods_say_to_which_group_they_belong() -> None:
    """By the annotation, or the label, that the scheduler looks for, and by its name where the job gives none."""
    for gang, where, name in (
        ("Volcano", "annotations", "scheduling.k8s.io/group-name"),
        ("Coscheduling", "labels", "scheduling.x-k8s.io/pod-group"),
    ):
        job = job_object({"scheduling": {"gang": gang}})
        made = manifests_of(job)
        templates = [one["spec"]["template"] for one in made if one["kind"] in ("StatefulSet", "Job")]
        assert len(templates) == 2
        for template in templates:
            assert template["metadata"][where][name] == "flights"
            assert template["spec"].get("schedulerName") == ("volcano" if gang == "Volcano" else None)


@pytest.mark.parametrize(
    ("scheduling", "words"),
    [
        (
            {"gang": "Kubernetes"},
            "found 'Kubernetes', which is not there yet; wanted None, Volcano, Coscheduling or Kueue",
        ),
        ({"gang": "volcano"}, "scheduling.gang: found 'volcano'"),
        ({"queue": "ads"}, "found queue ads beside gang None; wanted gang Volcano or Kueue, or no queue"),
        ({"gang": "Coscheduling", "queue": "ads"}, "found queue ads beside gang Coscheduling"),
    ],
)
def test_a_gang_that_cannot_be_is_refused(scheduling: dict[str, Any], words: str) -> None:
    """With what was found and what is wanted."""
    with pytest.raises(JobInvalid, match=re.escape(words)):
        job_object({"scheduling": scheduling})
