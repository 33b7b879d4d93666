"""Kueue: rendered as its public API documents it; Kueue itself has not run with it here."""

from __future__ import annotations

import asyncio
import copy
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.operator_world import BEGAN, CHECKPOINT, DEFAULTS, World, config_of, job_object, text
from unit.test_operator_cluster import Api
from unit.test_operator_informers import until
from unit.test_operator_reconcile import Operator, api, change, looks_until, made, operating, servers_ready

from tablebay.client.errors import JobInvalid
from tablebay.operator import queues, run
from tablebay.operator.cluster import WORKLOADS as VERSIONS
from tablebay.operator.cluster import Cluster, Resource

__all__ = ["api"]  # a fixture
WORKLOADS = VERSIONS[0]
GOLDEN = Path(__file__).parent / "golden" / "operator" / "kueue.yaml"
SCHEDULING = {"gang": "Kueue", "queue": "ads"}


@dataclass
class Kueue:
    """What Kueue does with a Job that has its label: as of its docs, by `suspend` and the Workload's `active`."""

    world: World
    room: bool = True
    active: bool = True

    def act(self) -> None:
        """Let the Job run, or stop it."""
        job = self.world.objects.get(("Job", "flights-worker"))
        if job is None or "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]:
            return
        run = self.room and self.active
        if job["spec"]["suspend"] == run:
            job["spec"]["suspend"] = not run
            job["metadata"]["resourceVersion"] = str(int(job["metadata"]["resourceVersion"]) + 1000)
            if not run:
                # As it stops a Job it takes its start away.
                job["status"].pop("startTime", None)
                self.world.workers_end()
            else:
                job["status"]["startTime"] = text(self.world.now)


def world_with(*, durable: bool = True, **change: Any) -> tuple[World, Kueue]:
    """A job of Kueue's. Each look does with the Workload what the operator would."""
    more = {"checkpoint": CHECKPOINT} if durable else {}
    world = World(
        job_object({"scheduling": SCHEDULING, **more, **change}),
        defaults=replace(DEFAULTS, gang="Kueue"),
        pod_groups="Kueue",
    )
    kueue = Kueue(world)
    look = world.look

    def and_its_workload() -> Any:
        plan = look()
        for patch in plan.patches:
            active = queues.active(patch.body)
            kueue.active = kueue.active if active is None else active
        return plan

    world.look = and_its_workload  # type: ignore[method-assign]
    return world, kueue


def settle(world: World, kueue: Kueue) -> int:
    """Kueue and the operator in turn, until neither writes; how many writes of the operator's that took."""
    before = world.writes
    for _ in range(6):
        world.look()
        kueue.act()
    after = world.writes
    for _ in range(4):
        world.look()
        kueue.act()
    assert world.writes == after, "the operator and Kueue do not agree"
    return after - before


def train(world: World, kueue: Kueue) -> None:
    """As far as Training."""
    world.look()
    world.servers()
    settle(world, kueue)
    for rank in range(2):
        world.worker(rank)
    world.counts(ready=2, active=2)
    world.look()
    assert world.reason == "Training", world.status


def test_the_workers_wait_in_the_queue_once_the_servers_are_ready() -> None:
    """Not before, whoever has room; then with the label in place of `suspend: false`."""
    world, kueue = world_with()
    kueue.room = False
    settle(world, kueue)
    assert "kueue.x-k8s.io/queue-name" not in world.workers["metadata"]["labels"]
    world.servers()
    settle(world, kueue)
    assert world.workers["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ads"
    assert world.workers["spec"]["suspend"] is True
    assert world.reason == "Queued"
    assert "queue ads" in world.condition("Ready")["message"]
    assert world.condition("Gang")["reason"] == "Kueue"
    kueue.room = True
    train(world, kueue)
    assert world.recorded == ["c-0", "c-1"]


def test_the_job_that_kueue_is_given_is_the_golden_one() -> None:
    """What of it Kueue reads: the label, `suspend`, how many pods. Written anew with WRITE_GOLDEN=1."""
    world, kueue = world_with()
    kueue.room = False
    world.look()
    world.servers()
    settle(world, kueue)
    body = world.workers
    spec, meta = body["spec"], body["metadata"]
    seen = {
        "apiVersion": body["apiVersion"],
        "kind": body["kind"],
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": meta["labels"],
            "annotations": {"tablebay.dev/queue": meta["annotations"]["tablebay.dev/queue"]},
        },
        "spec": {name: spec[name] for name in ("completionMode", "completions", "parallelism", "suspend")},
    }
    text = yaml.safe_dump(seen, sort_keys=True)
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_a_job_that_kueue_stops_for_another_goes_on_when_it_lets_it() -> None:
    """The operator does not let it run itself, and counts none of the failures that the stop makes."""
    world, kueue = world_with(runPolicy={"failurePolicy": {"maxRestarts": 1}})
    train(world, kueue)
    kueue.room = False
    kueue.act()
    settle(world, kueue)
    world.counts(failed=2)
    settle(world, kueue)
    assert world.reason == "Queued"
    assert world.workers["spec"]["suspend"] is True
    assert world.workers["spec"]["backoffLimit"] >= 3
    kueue.room = True
    kueue.act()
    train(world, kueue)
    assert world.status["restarts"]["total"] == 0
    assert world.workers["spec"]["backoffLimit"] == 3, "1, and the 2 that the stop made"


def test_a_job_that_its_user_suspends_is_kueues_no_more() -> None:
    """Also one that waits; resumed it waits for its servers, then in the queue again."""
    for running in (True, False):
        world, kueue = world_with()
        train(world, kueue)
        if not running:
            kueue.room = False
            kueue.act()
            settle(world, kueue)
        world.ask(suspend=True)
        world.look()
        assert not kueue.active
        world.workers_end()
        world.keep()
        world.look()
        world.servers_end()
        kueue.room = True
        settle(world, kueue)
        assert world.reason == "Suspended"
        assert world.workers["spec"]["suspend"] is True
        world.ask(suspend=False)
        settle(world, kueue)
        assert world.workers["spec"]["suspend"] is True
        assert not kueue.active
        train(world, kueue)
        assert kueue.active


@pytest.mark.parametrize("waits", [True, False])
def test_a_job_that_fails_is_not_let_run_again(waits: bool) -> None:
    """Its Workload is made inactive first; one that waited is held too."""
    world, kueue = world_with(durable=False, runPolicy={"cleanPolicy": {"onFailure": "Running"}})
    train(world, kueue)
    if waits:
        kueue.room = False
        kueue.act()
        settle(world, kueue)
    world.server(1, container="c-1-again")
    for _ in range(3):
        world.look()
        kueue.act()
    kueue.room = True
    settle(world, kueue)
    assert world.condition("Failed")["reason"] == "ServerLost"
    assert world.workers["spec"]["suspend"] is True
    assert not kueue.active


def test_servers_that_are_lost_before_the_first_step_are_no_loss() -> None:
    """A job may wait in the queue for long: nothing was learnt yet, so other servers are as good."""
    world, kueue = world_with(durable=False)
    kueue.room = False
    world.look()
    world.servers()
    settle(world, kueue)
    world.server(1, container="c-1-again")
    settle(world, kueue)
    assert world.reason == "Queued"
    assert world.recorded == ["c-0", "c-1-again"]
    assert "firstFailure" not in world.status


@pytest.mark.parametrize(
    ("served", "enabled", "reason", "words"),
    [
        (
            "",
            "Kueue",
            "NoKueue",
            "the cluster knows no Workloads (kueue.x-k8s.io); wanted Kueue installed",
        ),
        ("", "", "GangNotEnabled", "found spec.scheduling.gang Kueue and the chart's gang.scheduler none"),
    ],
)
def test_without_kueue_nothing_is_made(served: str, enabled: str, reason: str, words: str) -> None:
    """The job says for what it waits, and begins when it is there."""
    world, kueue = world_with()
    world.defaults, world.pod_groups = replace(DEFAULTS, gang=enabled), served
    world.look()
    assert not world.objects
    assert world.reason == reason
    assert words in world.condition("Ready")["message"]
    world.defaults, world.pod_groups = replace(DEFAULTS, gang="Kueue"), "Kueue"
    train(world, kueue)


ELASTIC = {**job_object().spec["workers"], "minReplicas": 1, "maxReplicas": 4}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"scheduling": {"gang": "Kueue"}},
            "found queue '' beside gang Kueue; wanted the name of a LocalQueue",
        ),
        ({"scheduling": {"gang": "Kueue", "queue": "q" * 64}}, "at most 63 characters"),
        ({"scheduling": SCHEDULING, "workers": ELASTIC}, "found minReplicas beside scheduling.gang Kueue"),
        (
            {"scheduling": SCHEDULING, "runPolicy": {"failurePolicy": {"backoff": {"initialSeconds": 5}}}},
            "found failurePolicy.backoff beside scheduling.gang Kueue, which stops a Job whose parallelism changes",
        ),
    ],
)
def test_what_kueue_would_stop_is_refused(spec: dict[str, Any], words: str) -> None:
    """With what was found and what is wanted."""
    with pytest.raises(JobInvalid, match=re.escape(words)):
        job_object(spec)


def test_the_workload_is_set_before_the_job(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Active before Kueue may let the Job run, inactive before it is stopped: in between, Kueue does nothing wrong."""
    workload = {
        "apiVersion": WORKLOADS.api,
        "kind": "Workload",
        "metadata": {"name": "job-flights-worker-1", "namespace": "ads", "labels": {}},
        "spec": {"active": False},
    }

    def order(operator: Operator) -> list[str]:
        found = [
            path.rsplit("/", 2)[1]
            for method, path, _ in operator.api.requests
            if method == "PATCH" and ("/workloads/" in path or path.endswith("/jobs/flights-worker"))
        ]
        operator.api.requests.clear()
        return found

    async def run() -> None:
        async with operating(api, gang="Kueue") as operator:
            made(api, scheduling=SCHEDULING)
            await looks_until(operator, lambda: ("jobs", "ads", "flights-worker") in api.objects)
            job = api.objects["jobs", "ads", "flights-worker"]
            body = copy.deepcopy(workload)
            body["metadata"]["labels"] = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
            api.put(WORKLOADS, body)
            api.requests.clear()
            servers_ready(api)

            def given() -> bool:
                return (
                    "kueue.x-k8s.io/queue-name"
                    in api.objects["jobs", "ads", "flights-worker"]["metadata"]["labels"]
                )

            await looks_until(operator, given)
            assert order(operator) == ["workloads", "jobs"]
            name = ("workloads", "ads", "job-flights-worker-1")
            assert api.objects[name]["spec"]["active"] is True
            assert api.objects["jobs", "ads", "flights-worker"]["spec"]["suspend"] is True
            change(api, deletionTimestamp=text(BEGAN), finalizers=["tablebay.dev/checkpoint"])
            await looks_until(operator, lambda: api.objects[name]["spec"]["active"] is False)
            assert order(operator)[:2] == ["workloads", "jobs"]

    asyncio.run(run())


@pytest.mark.parametrize("version", ["v1beta2", "v1beta1"])
def test_kueue_is_found_though_it_comes_later_and_in_the_version_that_it_serves(
    api: Api, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Jobs are looked at once it has been asked for, and again once it is there."""
    monkeypatch.setattr(run, "DISCOVER_S", 0.01)

    async def life() -> None:
        async with operating(api, gang="Kueue") as operator:
            operator.reconciler.workloads = None
            process = run._Operator(config_of(replace(DEFAULTS, gang="Kueue")))
            task = asyncio.create_task(process._find_queues(Cluster(), operator.reconciler))
            await asyncio.wait_for(process._gang_asked.wait(), 10)
            assert operator.reconciler.workloads is None
            api.groups[f"kueue.x-k8s.io/{version}"] = ["localqueues", "workloads"]
            await until(lambda: operator.reconciler.workloads is not None, "Kueue is found")
            assert operator.reconciler.workloads == Resource(
                f"kueue.x-k8s.io/{version}", "workloads", "Workload"
            )
            task.cancel()

    asyncio.run(life())
