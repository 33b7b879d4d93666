"""The operator's looks at a job, with all that they read and write, against an API server on loopback."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.operator_world import CHECKPOINT, DEFAULTS, FLIGHTS, pod
from unit.test_operator_cluster import Api, refusal, serving, use

from tablebay.client.environment import JOB_LABEL
from tablebay.client.tls import Source
from tablebay.operator import progress, projections
from tablebay.operator.certificates import Certificates
from tablebay.operator.cluster import CLAIMS, POD_MONITORS, PODS, TRAINING_JOBS, WORKLOADS, ApiError, Cluster
from tablebay.operator.informers import Informer
from tablebay.operator.jobcache import JobCache
from tablebay.operator.progress import Checkpoints, Poller
from tablebay.operator.projections import TRAINED_ANNOTATION
from tablebay.operator.reconcile import CHILDREN, Reconciler
from tablebay.operator.recorder import Recorder
from tablebay.operator.workqueue import WorkQueue

KEY = ("ads", "flights")
CREATED = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names."""
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


class Operator:
    """A reconciler with its caches, whose looks a test begins."""

    def __init__(self, api: Api, *, pod_monitors: bool, gang: str) -> None:
        self.api = api
        self.begun = 0
        queue = WorkQueue()
        self.jobs = JobCache(queue.add)
        cluster = Cluster()
        resources: dict[Any, Any] = {**CHILDREN, PODS: projections.pod}
        if pod_monitors:
            resources[POD_MONITORS] = projections.child
        self.informers: dict[str, Informer[Any]] = {
            resource.kind: Informer(
                cluster, resource, project, selector=JOB_LABEL, namespaces=(), changed=queue.add
            )
            for resource, project in resources.items()
        }
        children = {kind: one for kind, one in self.informers.items() if kind != "Pod"}
        self.poller = Poller(
            queue.add, queue.add_after, ask=lambda address, tls: [], ask_checkpoints=self._ask_checkpoints
        )
        self.reconciler = Reconciler(
            cluster=cluster,
            jobs=self.jobs,
            children=children,
            pods=self.informers["Pod"],
            poller=self.poller,
            recorder=Recorder(cluster, "test"),
            queue=queue,
            defaults=replace(DEFAULTS, gang=gang),
            certificates=Certificates(cluster),
        )
        if gang == "Kueue":
            self.reconciler.workloads = WORKLOADS[0]

    def _ask_checkpoints(self, address: str, tls: Source | None, begin: bool) -> Checkpoints:
        """Each that is begun has ended by the next question."""
        self.begun += begin
        return Checkpoints(epoch=1, ticket=self.begun if begin else 0, ended=self.begun)

    async def look(self) -> str:
        """One look, on what is known; what it failed for, or ""."""
        # The watches have told by then.
        await asyncio.sleep(0.05)
        body = self.api.objects.get(("trainingjobs", *KEY))
        assert body is not None
        self.jobs.event("MODIFIED", body)
        try:
            await self.reconciler.reconcile(KEY)
        except ApiError as error:
            return str(error)
        return ""


@asynccontextmanager
async def operating(api: Api, *, pod_monitors: bool = False, gang: str = "") -> AsyncIterator[Operator]:
    """An operator whose watches are in step."""
    operator = Operator(api, pod_monitors=pod_monitors, gang=gang)
    try:
        async with asyncio.timeout(20):
            for informer in operator.informers.values():
                await informer.synced()
            yield operator
    finally:
        for informer in operator.informers.values():
            informer.stop()


def made(api: Api, **spec: Any) -> None:
    """The user makes the job, without its checkpoint; spec: fields of its spec."""
    body = yaml.safe_load(FLIGHTS.read_text())
    body["spec"].pop("checkpoint", None)
    body["spec"] |= spec
    body["metadata"] |= {"namespace": "ads", "uid": "u-1", "generation": 1, "creationTimestamp": CREATED}
    api.put(TRAINING_JOBS, body)


def servers_ready(api: Api) -> None:
    """What the StatefulSet's controller and the kubelet do."""
    for index in range(2):
        body = pod(f"flights-server-{index}", "server", index, f"c-{index}", True, {})
        body["metadata"]["ownerReferences"] = [
            {
                "kind": "StatefulSet",
                "name": "flights-server",
                "controller": True,
                "uid": api.objects["statefulsets", "ads", "flights-server"]["metadata"]["uid"],
            }
        ]
        api.put(PODS, body)


def workers(api: Api) -> dict[str, Any]:
    """The workers' Job."""
    return api.objects["jobs", "ads", "flights-worker"]


def ready(api: Api) -> str:
    """The reason of Ready."""
    conditions = api.objects["trainingjobs", *KEY].get("status", {}).get("conditions", ())
    return next((one["reason"] for one in conditions if one["type"] == "Ready"), "")


def plain(api: Api) -> dict[tuple[str, str], Any]:
    """What there is of the job, less what differs from run to run."""
    result = {}
    for (plural, _, name), body in api.objects.items():
        if plural != "events":
            content = {key: value for key, value in body.items() if key not in ("metadata", "status")}
            annotations = dict(body["metadata"].get("annotations", {}))
            if plural == "secrets":
                # Keys are new each time.
                content["data"] = sorted(content["data"])
                annotations.pop("tablebay.dev/written", None)
            if TRAINED_ANNOTATION in annotations:
                # The workers' Job's uid.
                annotations[TRAINED_ANNOTATION] = {
                    **json.loads(annotations[TRAINED_ANNOTATION]),
                    "job": "uid",
                }
            result[plural, name] = (content, annotations, ready(api))
    return result


def writes(api: Api) -> int:
    """How many requests changed something, or tried to."""
    return sum(1 for method, _, query in api.requests if method != "GET" and "dryRun" not in query)


async def released(operator: Operator) -> list[str]:
    """A job from nothing to the release of its workers; what the looks failed for."""
    made(operator.api)
    failures = [await operator.look() for _ in range(3)]
    servers_ready(operator.api)
    failures += [await operator.look() for _ in range(3)]
    return [failure for failure in failures if failure]


def test_a_job_gets_its_objects_and_its_workers_are_released(api: Api) -> None:
    """And then nothing is written any more."""

    async def run() -> None:
        async with operating(api, pod_monitors=True) as operator:
            assert await released(operator) == []
            assert ready(api) == "StartingWorkers"
            assert workers(api)["spec"]["suspend"] is False
            assert ("podmonitors", "ads", "flights") in api.objects
            before = writes(api)
            for _ in range(5):
                assert await operator.look() == ""
            assert writes(api) == before

    asyncio.run(run())


@pytest.mark.parametrize("number", range(14))
def test_a_refused_write_changes_nothing_in_the_end(api: Api, number: int) -> None:
    """The API server is in trouble for one write, whichever: the same objects come of it."""

    async def run(*, trouble: bool) -> dict[tuple[str, str], Any]:
        count = 0

        def fault(method: str, path: str, query: dict[str, str]) -> tuple[int, Any] | None:
            nonlocal count
            if method == "GET" or "dryRun" in query or path.endswith("/events"):
                return None
            count += 1
            return refusal(503, "ServiceUnavailable") if trouble and count == number + 1 else None

        api.objects.clear()
        api.fault = fault
        async with operating(api) as operator:
            failures = await released(operator)
            assert len(failures) == (1 if trouble and count > number else 0), failures
            return plain(api)

    assert asyncio.run(run(trouble=True)) == asyncio.run(run(trouble=False))


def test_a_name_that_is_taken_is_left_alone(api: Api) -> None:
    """A Service of another owner: nothing at all is made, and the job says why; it goes on when the name is free."""
    body = {"metadata": {"name": "flights-servers", "namespace": "ads", "labels": {}}, "spec": {"mine": True}}

    async def run() -> None:
        async with operating(api) as operator:
            made(api)
            api.objects["services", "ads", "flights-servers"] = {
                **body,
                "metadata": {**body["metadata"], "uid": "u-other", "resourceVersion": "3"},
            }
            assert await operator.look() == ""
            assert ready(api) == "NameConflict"
            assert api.objects["services", "ads", "flights-servers"]["spec"] == {"mine": True}
            assert {plural for plural, _, _ in api.objects} <= {"services", "trainingjobs", "events"}
            del api.objects["services", "ads", "flights-servers"]
            await operator.look()
            assert ready(api) == "StartingServers"

    asyncio.run(run())


def test_a_refused_template_is_said_and_nothing_is_made(api: Api) -> None:
    """In the API server's own words, before any object is there."""
    api.fault = lambda method, path, query: (
        refusal(422, "Invalid", "spec.template: no such field")
        if method == "PATCH" and "/jobs" in path
        else None
    )

    async def run() -> None:
        async with operating(api) as operator:
            made(api)
            assert await operator.look() == ""
            assert ready(api) == "InvalidTemplate"
            assert {plural for plural, _, _ in api.objects} == {"trainingjobs", "events"}

    asyncio.run(run())


def test_a_change_of_the_job_while_its_status_is_written_is_a_conflict_and_not_lost(api: Api) -> None:
    """The status is written on the condition of what was read; the next look sees the change."""
    changed: list[dict[str, Any]] = []

    def change_once(method: str, path: str, query: dict[str, str]) -> None:
        if method in ("PUT", "PATCH") and path.endswith("/status") and not changed:
            job = api.objects["trainingjobs", *KEY]
            metadata = {**job["metadata"], "labels": {"new": "yes"}}
            changed.append(api.put(TRAINING_JOBS, {**job, "metadata": metadata}))

    async def run() -> None:
        async with operating(api) as operator:
            made(api)
            operator.jobs.event("ADDED", api.objects["trainingjobs", *KEY])
            with pytest.raises(ApiError) as caught:
                await operator.reconciler.reconcile(KEY)
            assert caught.value.status == 409
            assert api.objects["trainingjobs", *KEY] == changed[0]
            assert await operator.look() == ""
            assert ready(api) == "StartingServers"
            assert api.objects["trainingjobs", *KEY]["metadata"]["labels"] == {"new": "yes"}

    api.fault = change_once
    asyncio.run(run())


def test_bug_podmonitors_that_the_cluster_no_longer_knows_hold_no_job_up(api: Api) -> None:
    """Prometheus' operator is uninstalled while ours runs: each apply of a PodMonitor is a 404 from then on.

    The workers are released all the same; monitoring is not worth a job.
    """
    api.fault = lambda method, path, query: (
        refusal(404, "NotFound", "the server could not find the requested resource")
        if "/podmonitors" in path and method == "PATCH"
        else None
    )

    async def run() -> None:
        async with operating(api, pod_monitors=True) as operator:
            await released(operator)
            assert workers(api)["spec"]["suspend"] is False
            assert ready(api) == "StartingWorkers"

    asyncio.run(run())


# ---- checkpoints

CLAIM = ("persistentvolumeclaims", "ads", "flights-checkpoints")


def change(api: Api, *, spec: dict[str, Any] | None = None, **metadata: Any) -> None:
    """The user changes the job."""
    body = api.objects["trainingjobs", *KEY]
    generation = body["metadata"]["generation"] + 1
    api.put(
        TRAINING_JOBS,
        {
            **body,
            "metadata": {**body["metadata"], "generation": generation, **metadata},
            "spec": {**body["spec"], **(spec or {})},
        },
    )


def replicas(api: Api) -> int:
    """How many servers the set wants."""
    found: int = api.objects["statefulsets", "ads", "flights-server"]["spec"]["replicas"]
    return found


def servers_end(api: Api) -> None:
    """What the StatefulSet's controller and the kubelet do."""
    for index in range(2):
        if ("pods", "ads", f"flights-server-{index}") in api.objects:
            api.remove(PODS, f"flights-server-{index}")


async def looks(operator: Operator, count: int) -> list[str]:
    """So many looks; what they failed for. Answers of servers come in between."""
    failures = []
    for _ in range(count):
        failures.append(await operator.look())
        if operator.poller._tasks:
            await asyncio.wait(list(operator.poller._tasks), timeout=5)
            await asyncio.sleep(0)
    return [failure for failure in failures if failure]


async def looks_until(operator: Operator, done: Callable[[], bool]) -> list[str]:
    """Looks until something holds; what they failed for."""
    failures = []
    for _ in range(12):
        failures += await looks(operator, 1)
        if done():
            return failures
    raise AssertionError(f"not after 12 looks: {ready(operator.api)}, {failures}")


async def suspended_and_resumed(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job from nothing through a suspension to training and deletion; what the looks failed for."""
    api = operator.api
    monkeypatch.setattr(progress, "RETRY_S", 0.0)
    made(api, checkpoint=CHECKPOINT)
    failures = await looks_until(operator, lambda: ready(api) == "StartingServers")
    servers_ready(api)
    failures += await looks_until(operator, lambda: workers(api)["spec"]["suspend"] is False)
    failures += await looks_until(operator, lambda: ready(api) == "StartingWorkers")
    change(api, spec={"suspend": True})
    failures += await looks_until(operator, lambda: replicas(api) == 0)
    servers_end(api)
    failures += await looks_until(operator, lambda: ready(api) == "Suspended")
    change(api, spec={"suspend": False})
    failures += await looks_until(operator, lambda: replicas(api) == 2)
    servers_ready(api)
    failures += await looks_until(operator, lambda: workers(api)["spec"]["suspend"] is False)
    change(api, deletionTimestamp=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    failures += await looks_until(operator, lambda: replicas(api) == 0)
    job = api.objects["trainingjobs", *KEY]
    assert job["metadata"]["finalizers"] == ["tablebay.dev/checkpoint"]
    servers_end(api)
    gone: list[str] = []
    return failures + await looks_until(
        operator, lambda: api.objects["trainingjobs", *KEY]["metadata"]["finalizers"] == gone
    )


@pytest.mark.parametrize("number", range(-1, 31))
def test_a_refused_write_keeps_no_job_from_being_suspended(
    api: Api, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The API server is in trouble for one write, whichever: the job is suspended, goes on, and is deleted."""
    count = 0

    def fault(method: str, path: str, query: dict[str, str]) -> tuple[int, Any] | None:
        nonlocal count
        if method == "GET" or "dryRun" in query or path.endswith("/events"):
            return None
        count += 1
        return refusal(503, "ServiceUnavailable") if count == number + 1 else None

    api.fault = fault

    async def run() -> None:
        async with operating(api) as operator:
            failures = await suspended_and_resumed(operator, monkeypatch)
            assert len(failures) == (1 if 0 <= number < count else 0), failures
            assert number < 0 or number < count + 3, "later numbers try nothing"
            # One for the suspension, one for the deletion.
            assert operator.begun == 2
            assert CLAIM in api.objects

    asyncio.run(run())
    assert count <= 31, "more writes than are tried"


def test_the_claim_is_made_first_and_never_touched_again(api: Api) -> None:
    """Before the servers that mount it; one that is there is as good."""

    async def run() -> None:
        async with operating(api) as operator:
            made(api, checkpoint=CHECKPOINT)
            assert await operator.look() == ""
            writes = [path for method, path, _ in api.requests if method in ("POST", "PATCH")]
            claim, servers = "persistentvolumeclaims", "statefulsets/flights-server"
            positions = [
                next(i for i, path in enumerate(writes) if part in path) for part in (claim, servers)
            ]
            assert positions == sorted(positions)
            body = api.objects[CLAIM]
            assert "ownerReferences" not in body["metadata"]
            for _ in range(3):
                await operator.look()
            assert api.objects[CLAIM] == body
            assert sum("persistentvolumeclaims" in path for _, path, _ in api.requests) == 2

    asyncio.run(run())


def test_a_claim_that_is_missing_is_waited_for(api: Api) -> None:
    """Not the operator's to make: nothing is made, the job says why, and goes on when it is there."""

    async def run() -> None:
        async with operating(api) as operator:
            made(api, checkpoint={**CHECKPOINT, "claim": None})
            assert await operator.look() == ""
            assert ready(api) == "ClaimUnusable"
            assert {plural for plural, _, _ in api.objects} == {"trainingjobs", "events"}
            body: dict[str, Any] = {"metadata": {"name": CLAIM[2], "namespace": "ads"}}
            api.put(CLAIMS, {**body, "spec": {"accessModes": ["ReadWriteOnce"]}})
            assert await operator.look() == ""
            assert ready(api) == "ClaimUnusable"
            api.put(CLAIMS, {**body, "spec": {"accessModes": ["ReadWriteMany"]}})
            assert await operator.look() == ""
            assert ready(api) == "StartingServers"

    asyncio.run(run())


def test_a_claim_that_may_not_be_made_is_a_condition(api: Api) -> None:
    """A quota, say: in the API server's words, and nothing else is made."""
    api.fault = lambda method, path, query: (
        refusal(403, "Forbidden", "exceeded quota: storage")
        if method == "POST" and "persistentvolumeclaims" in path
        else None
    )

    async def run() -> None:
        async with operating(api) as operator:
            made(api, checkpoint=CHECKPOINT)
            assert await operator.look() == ""
            conditions = api.objects["trainingjobs", *KEY]["status"]["conditions"]
            assert conditions[0]["message"] == "exceeded quota: storage"
            assert {plural for plural, _, _ in api.objects} == {"trainingjobs", "events"}

    asyncio.run(run())


def test_a_finalizer_of_somebody_else_is_left(api: Api) -> None:
    """Ours comes and goes; the list is written on the condition of what was read."""

    async def run() -> None:
        async with operating(api) as operator:
            made(api, checkpoint=CHECKPOINT)
            change(api, finalizers=["other/one"])
            await looks(operator, 2)
            finalizers = api.objects["trainingjobs", *KEY]["metadata"]["finalizers"]
            assert finalizers == ["other/one", "tablebay.dev/checkpoint"]
            change(api, deletionTimestamp="2026-01-02T03:04:05Z")
            await looks(operator, 2)
            assert api.objects["trainingjobs", *KEY]["metadata"]["finalizers"] == ["other/one"]

    asyncio.run(run())
