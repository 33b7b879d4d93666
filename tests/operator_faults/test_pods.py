"""Misfortunes of pods: lost nodes, images that cannot be had, quotas, mutations, edited labels, another operator."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from operator_faults.engine import DURABLE, at_step, job_body, make, plain, wait, worker_pod
from operator_faults.simulation import NAMESPACE, Simulation, condition, holds, live_pods, reason

from tablebay.operator import manifests
from tablebay.operator.cluster import Manifest

NOWHERE = "registry/nowhere:9"


async def training(simulation: Simulation, step: int = 5, **spec: Any) -> None:
    """A job that trains, as far as a step, and says so."""
    make(simulation, spec)
    await wait(simulation, f"step {step}", lambda: at_step(simulation, step))
    await wait(simulation, "Training", lambda: reason(simulation.job("flights")) == "Training")


async def trained(simulation: Simulation) -> None:
    """To its end, without an unhandled error, and never two servers of one index at once."""
    await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))
    assert not simulation.crashes
    assert not simulation.kubernetes.doubles


def pods(simulation: Simulation, role: str) -> dict[str, str]:
    """Name and uid of each pod of a role, whatever its labels say."""
    return {
        name: body["metadata"]["uid"]
        for (plural, _, name), body in simulation.api.objects.items()
        if plural == "pods" and f"-{role}-" in name
    }


def ended(simulation: Simulation) -> list[str]:
    """Pods that the operator has deleted."""
    return [call.name for call in simulation.calls if call.verb == "delete" and call.kind == "Pod"]


def message(simulation: Simulation) -> str:
    """Of Ready."""
    found: str = condition(simulation.job("flights"), "Ready").get("message", "")
    return found


async def quiet(simulation: Simulation, looks: int = 10) -> list[str]:
    """What so many more looks write, by an operator that has just started too; less the workers' progress."""
    await simulation.until(lambda: False, 130.0)
    for process in simulation.processes:
        process.alive = False
    simulation.start()
    await simulation.until(lambda: False, 1.0)
    before = len(simulation.calls)
    for _ in range(looks):
        simulation.processes[0].resync()
        await simulation.until(lambda: False, 1.0)
    return [str(call) for call in simulation.calls[before:] if call.write and call.verb != "patch status"]


@pytest.mark.parametrize("durable", [True, False])
def test_f28_no_second_server_before_the_one_on_a_lost_node_is_known_to_be_gone(durable: bool) -> None:
    """Its pod hangs in its end: the operator ends nothing, says which pod and node, and goes on when it is gone."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **(DURABLE if durable else {}))
        simulation.kubernetes.lose_node(NAMESPACE, "flights-server-1")
        before = pods(simulation, "server")
        await simulation.until(lambda: False, 600.0)
        assert pods(simulation, "server") == before
        assert not ended(simulation)
        assert reason(simulation.job("flights")) == ("ServerRecovering" if durable else "StartingServers")
        assert "flights-server-1" in message(simulation)
        assert "node-1" in message(simulation)
        assert await quiet(simulation) == []
        simulation.kubernetes.end_node(NAMESPACE, "flights-server-1")
        if durable:
            await trained(simulation)
            return
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        assert condition(simulation.job("flights"), "Failed")["reason"] == "ServerLost"

    asyncio.run(life())


def test_f29_an_image_that_cannot_be_had_is_put_back_and_touches_no_server_that_runs() -> None:
    """A hand gives the set another image while no operator runs, and a pod ends: that one is made anew, no other."""

    async def life() -> None:
        simulation = Simulation()
        simulation.kubernetes.no_images = {NOWHERE}
        await training(simulation, **DURABLE)
        stateful_set = ("statefulsets", NAMESPACE, "flights-server")
        known = simulation.api.objects[stateful_set]
        all_pods = {**pods(simulation, "server"), **pods(simulation, "worker")}
        simulation.processes[0].alive = False
        containers = copy.deepcopy(known["spec"]["template"]["spec"]["containers"])
        containers[0]["image"] = NOWHERE
        template = {"spec": {"containers": containers}}
        simulation.api.patch(*stateful_set, {"spec": {"template": template}}, manager="kubectl-set")
        simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
        await simulation.until(lambda: False, 30.0)
        now = {**pods(simulation, "server"), **pods(simulation, "worker")}
        assert {name for name in all_pods if now.get(name) != all_pods[name]} == {"flights-server-1"}
        simulation.start()
        await wait(simulation, "ImagePullFailed", lambda: holds(simulation.job("flights"), "ImagePullFailed"))
        words = condition(simulation.job("flights"), "ImagePullFailed")["message"]
        assert "flights-server-1" in words
        assert NOWHERE in words
        await wait(simulation, "Training", lambda: reason(simulation.job("flights")) == "Training")
        assert not condition(simulation.job("flights"), "ImagePullFailed")
        assert simulation.api.objects[stateful_set]["spec"] == known["spec"]
        assert ended(simulation) == ["flights-server-1"]
        await trained(simulation)

    asyncio.run(life())


def test_f29_servers_that_never_ran_are_made_anew_with_an_image_that_there_is() -> None:
    """The chart's image of servers is mistyped: it is said, nothing loops; mended in the chart, the job begins."""

    async def life() -> None:
        simulation = Simulation()
        simulation.kubernetes.no_images = {NOWHERE}
        simulation.image = NOWHERE
        simulation.kill()
        await simulation.until(lambda: False, 10.0)
        make(simulation, {})
        failed = "ImagePullFailed"
        await wait(simulation, failed, lambda: holds(simulation.job("flights"), failed))
        assert await quiet(simulation) == []
        assert not ended(simulation)
        simulation.image = "registry/tablebay:2"
        simulation.kill()
        await trained(simulation)
        assert sorted(ended(simulation)) == ["flights-server-0", "flights-server-1"]

    asyncio.run(life())


@pytest.mark.parametrize("quota", [1, 3])
def test_f31_a_quota_that_is_exceeded_is_waited_for_in_words(quota: int) -> None:
    """Server 1, or worker 1, is not made: no worker runs without all servers, nothing is deleted, nothing loops."""

    async def life() -> None:
        simulation = Simulation()
        simulation.kubernetes.quota = quota
        make(simulation, {})
        await simulation.until(lambda: False, 300.0)
        missing = "flights-server" if quota == 1 else "flights-worker"
        assert missing in message(simulation)
        assert "kubectl describe" in message(simulation)
        assert len(pods(simulation, "worker")) == (0 if quota == 1 else 1)
        assert await quiet(simulation) == []
        assert not [call for call in simulation.calls if call.verb == "delete"]
        simulation.kubernetes.quota = 100
        await trained(simulation)
        deleted = {
            event.body["metadata"]["name"] for event in simulation.api.history if event.kind == "DELETED"
        }
        assert not {name for name in deleted if "worker" in name}

    asyncio.run(life())


def _limited(body: Manifest) -> Manifest:
    """As a LimitRange's defaults, or a webhook of the cluster, leave a pod's containers."""
    for container in body["spec"]["containers"]:
        container.setdefault("resources", {"requests": {"cpu": "250m", "memory": "256Mi"}})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
    body["metadata"].setdefault("labels", {})["policy.example.com/seen"] = "yes"
    return body


@pytest.mark.parametrize("what", ["pods", "templates"])
def test_f32_what_a_cluster_adds_to_pods_is_not_fought_over(what: str) -> None:
    """By a LimitRange to pods, by a webhook to the templates of sets and Jobs: then nothing is written."""

    def admission(plural: str, body: Manifest) -> Manifest:
        if what == "pods" and plural == "pods":
            return _limited(copy.deepcopy(body))
        if what == "templates" and plural in ("statefulsets", "jobs"):
            body = copy.deepcopy(body)
            _limited(body["spec"]["template"])
        return body

    async def life() -> None:
        simulation = Simulation()
        simulation.api.admission = admission
        await training(simulation, **DURABLE)
        assert await quiet(simulation) == []
        assert not ended(simulation)
        simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
        await trained(simulation)

    asyncio.run(life())


LABELS: dict[str, dict[str, str | None]] = {
    "no job": {"tablebay.dev/job": None},
    "another job": {"tablebay.dev/job": "other"},
    "another role": {"tablebay.dev/role": "worker"},
    "another index": {"apps.kubernetes.io/pod-index": "0"},
}


@pytest.mark.parametrize("edit", LABELS)
@pytest.mark.parametrize("durable", [True, False])
def test_f36_a_servers_label_that_a_hand_edits_is_put_back(edit: str, durable: bool) -> None:
    """The set has given its pod up and cannot make another of its name: it is taken back, with its rows."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **(DURABLE if durable else {}))
        api, name = simulation.api, "flights-server-1"
        before, uids = api.objects["pods", NAMESPACE, name], pods(simulation, "server")
        api.patch("pods", NAMESPACE, name, {"metadata": {"labels": LABELS[edit]}}, manager="kubectl-label")
        await simulation.until(lambda: False, 30.0)
        now = api.objects["pods", NAMESPACE, name]
        assert now["metadata"]["labels"] == before["metadata"]["labels"]
        assert now["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
        assert pods(simulation, "server") == uids
        assert reason(simulation.job("flights")) == "Training"
        await trained(simulation)

    asyncio.run(life())


WORKER_LABELS: dict[str, dict[str, str | None]] = {
    "no job": {"tablebay.dev/job": None},
    "another role": {"tablebay.dev/role": "server"},
    "no Job": {"batch.kubernetes.io/controller-uid": None},
}


@pytest.mark.parametrize("edit", WORKER_LABELS)
def test_f36_a_workers_label_that_a_hand_edits_leaves_one_of_each_rank(edit: str) -> None:
    """Put back; or, where its Job has made another in its place, it is deleted. Suspended, all is kept."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **DURABLE)
        name, api = worker_pod(simulation, 1), simulation.api
        api.patch("pods", NAMESPACE, name, {"metadata": {"labels": WORKER_LABELS[edit]}}, manager="kubectl")
        await simulation.until(lambda: False, 90.0)
        live = [
            body["metadata"]["name"]
            for (plural, _, _), body in api.objects.items()
            if plural == "pods"
            and body["status"]["phase"] == "Running"
            and "-worker-1-" in body["metadata"]["name"]
        ]
        assert len(live) == 1
        labels = api.objects["pods", NAMESPACE, live[0]]["metadata"]["labels"]
        assert (labels["tablebay.dev/job"], labels["tablebay.dev/role"]) == ("flights", "worker")
        assert ended(simulation) == ([name] if edit == "no Job" else [])
        simulation.patch_job("flights", {"suspend": True})
        await wait(simulation, "Suspended", lambda: holds(simulation.job("flights"), "Suspended"))
        assert simulation.kept == [("flights", True)]
        simulation.patch_job("flights", {"suspend": False})
        await trained(simulation)

    asyncio.run(life())


def test_f21_another_version_of_the_operator_and_back_touches_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that makes other templates takes over in training, and the first one again: no pod is made or ended."""
    real = manifests.stateful_set

    def newer(*arguments: Any, **options: Any) -> Manifest:
        manifest = real(*arguments, **options)
        manifest["spec"]["template"]["metadata"]["annotations"]["example.com/newer"] = "yes"
        content = {name: value for name, value in manifest.items() if name != "metadata"}
        manifest["metadata"]["annotations"][manifests.HASH_ANNOTATION] = manifests.digest(content)
        return manifest

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **DURABLE)
        stateful_set = ("statefulsets", NAMESPACE, "flights-server")
        before = plain(simulation.api.objects[stateful_set])
        all_pods = {**pods(simulation, "server"), **pods(simulation, "worker")}
        monkeypatch.setattr(manifests, "stateful_set", newer)
        simulation.kill()
        annotations = ("spec", "template", "metadata", "annotations", "example.com/newer")

        def says() -> Any:
            found: Any = simulation.api.objects[stateful_set]
            for name in annotations:
                found = found.get(name, {})
            return found

        await wait(simulation, "the newer template", lambda: says() == "yes")
        await simulation.until(lambda: False, 20.0)
        assert {**pods(simulation, "server"), **pods(simulation, "worker")} == all_pods
        monkeypatch.setattr(manifests, "stateful_set", real)
        simulation.kill()
        await wait(simulation, "the older template", lambda: not says())
        await simulation.until(lambda: False, 20.0)
        assert plain(simulation.api.objects[stateful_set]) == before
        assert {**pods(simulation, "server"), **pods(simulation, "worker")} == all_pods
        await trained(simulation)

    asyncio.run(life())


def test_f21_a_field_that_this_operator_does_not_know_is_said_and_kept() -> None:
    """After a rollback a job may have a newer version's field: refused by its name, nothing touched, trained on."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **DURABLE)
        all_pods = {**pods(simulation, "server"), **pods(simulation, "worker")}
        body = simulation.job("flights")
        assert body is not None
        status = {"status": {**body["status"], "future": {"seen": 1}}}
        simulation.api.patch(
            "trainingjobs", NAMESPACE, "flights", status, subresource="status", manager="newer"
        )
        simulation.patch_job("flights", {"future": {"mode": "Fast"}})
        await wait(simulation, "InvalidSpec", lambda: reason(simulation.job("flights")) == "InvalidSpec")
        assert "future" in message(simulation)
        await simulation.until(lambda: False, 60.0)
        body = simulation.job("flights")
        assert body is not None
        assert body["spec"]["future"] == {"mode": "Fast"}
        assert body["status"]["future"] == {"seen": 1}
        assert {**pods(simulation, "server"), **pods(simulation, "worker")} == all_pods
        assert at_step(simulation, 50)
        assert len(live_pods(simulation.api, "flights", "worker")) == 2
        simulation.patch_job("flights", {"future": None})
        await trained(simulation)

    asyncio.run(life())


def test_bug_a_job_that_is_over_is_over_though_its_spec_is_refused_later() -> None:
    """The refusal took the condition Complete along: with its workers' Job deleted the job was trained again."""

    async def life() -> None:
        simulation = Simulation()
        make(simulation, {"runPolicy": {"cleanPolicy": {"onSuccess": "All"}}})
        await trained(simulation)
        await simulation.until(lambda: False, 30.0)
        assert ("jobs", NAMESPACE, "flights-worker") not in simulation.api.objects
        simulation.patch_job("flights", {"future": {"mode": "Fast"}})
        await wait(simulation, "InvalidSpec", lambda: reason(simulation.job("flights")) == "InvalidSpec")
        assert holds(simulation.job("flights"), "Complete")
        simulation.kill()
        await simulation.until(lambda: False, 10.0)
        simulation.patch_job("flights", {"future": None})
        await wait(simulation, "Completed", lambda: reason(simulation.job("flights")) == "Completed")
        assert await quiet(simulation) == []
        assert not pods(simulation, "server")
        assert not pods(simulation, "worker")

    asyncio.run(life())


@pytest.mark.parametrize("elastic", [False, True])
def test_f25_a_rank_that_is_done_is_not_begun_again_while_another_one_is_replaced(elastic: bool) -> None:
    """Rank 0 has ended well; rank 1 fails three times, and each time waits by itself; then the job is Complete."""

    async def life() -> None:
        simulation = Simulation()
        spec: dict[str, Any] = {"runPolicy": {"failurePolicy": {"backoff": {"initialSeconds": 15}}}}
        if elastic:
            workers = job_body({})["spec"]["workers"]
            spec["workers"] = {**workers, "minReplicas": 1, "maxReplicas": 3}
        await training(simulation, **spec)
        simulation.kubernetes.end_container(NAMESPACE, worker_pod(simulation, 0), 0)
        done = {name for name in pods(simulation, "worker") if "-worker-0-" in name}
        for _ in range(3):
            name = worker_pod(simulation, 1)
            simulation.kubernetes.end_container(NAMESPACE, name, 137)
            await wait(simulation, "the next", lambda name=name: runs(simulation, 1) not in ("", name))  # type: ignore[misc]
        await trained(simulation)
        made = {
            event.body["metadata"]["name"]
            for event in simulation.api.history
            if event.kind == "ADDED" and "-worker-0-" in event.body["metadata"]["name"]
        }
        assert made == done
        assert len(made) == 1

    def runs(simulation: Simulation, rank: int) -> str:
        for body in live_pods(simulation.api, "flights", "worker"):
            if f"-worker-{rank}-" in body["metadata"]["name"] and body["status"]["phase"] == "Running":
                found: str = body["metadata"]["name"]
                return found
        return ""

    asyncio.run(life())


REFUSAL = (
    '{"event": "checkpoint.passed_over", "level": "warning"}\n'
    "tablebay-server: pvc://checkpoints/run holds checkpoints of job search, this is job flights; wanted its own"
)


@pytest.mark.parametrize("begun", [False, True])
def test_f40_a_server_that_refuses_to_start_is_heard(begun: bool) -> None:
    """Ready has the reason CheckpointUnusable and the server's own words, and keeps them though it is begun again.

    begun: the job had trained, and server 1 comes back to a checkpoint that is not its own."""

    async def life() -> None:
        simulation = Simulation()
        if begun:
            await training(simulation, **DURABLE)
        simulation.kubernetes.refusing["server", 1] = 3, REFUSAL
        if begun:
            simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
        else:
            make(simulation, DURABLE)
        unusable = "CheckpointUnusable"
        await wait(simulation, unusable, lambda: reason(simulation.job("flights")) == unusable)
        words = "server 1 refuses to start: pvc://checkpoints/run holds checkpoints of job search"
        reasons = set()
        for _ in range(60):
            await simulation.until(lambda: False, 10.0)
            reasons.add(reason(simulation.job("flights")))
            assert words in message(simulation)
            assert "passed_over" not in message(simulation)
        assert reasons == {unusable}
        assert not ended(simulation)
        simulation.kubernetes.refusing.clear()
        await trained(simulation)

    asyncio.run(life())


def test_f25_the_last_words_of_a_worker_that_fails_for_ever_are_kept() -> None:
    """status.firstFailure and Ready have them; what a worker wrote last is why it failed."""

    async def life() -> None:
        simulation = Simulation()
        make(simulation, {"runPolicy": {"failurePolicy": {"maxRestarts": 0}}})
        traceback = "Traceback (most recent call last):\n" + "  File\n" * 400 + "ValueError: no such feature"
        await wait(simulation, "step 3", lambda: at_step(simulation, 3))
        simulation.kubernetes.end_container(NAMESPACE, worker_pod(simulation, 1), 1, traceback)
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        body = simulation.job("flights")
        assert body is not None
        kept = body["status"]["firstFailure"]["message"]
        assert kept.endswith("ValueError: no such feature")
        assert len(kept) <= 1024

    asyncio.run(life())
