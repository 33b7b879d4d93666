"""Which jobs have TLS, what is said of it, and in which order the operator makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.operator_world import World, job_object
from unit.test_chart import RIGHTS
from unit.test_operator_cluster import Api, serving, use
from unit.test_operator_reconcile import KEY, made, operating, released, suspended_and_resumed, workers

from tablebay.operator import conditions as c
from tablebay.operator.authority import RENEW_ANNOTATION
from tablebay.operator.cluster import SECRETS, TRAINING_JOBS
from tablebay.operator.pod_tls import CONTAINER

SECRET_NAMES = {"flights-authority", "flights-server-tls-0", "flights-worker-tls-0"}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names."""
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


def secured(manifest: dict[str, Any]) -> bool:
    pod = manifest["spec"]["template"]["spec"]
    return any(one["name"] == CONTAINER for one in pod.get("initContainers", ()))


def both(world: World) -> set[bool]:
    """Whether servers and workers have TLS."""
    return {
        secured(world.objects[key]) for key in (("StatefulSet", "flights-server"), ("Job", "flights-worker"))
    }


def test_a_job_has_tls_unless_it_says_otherwise() -> None:
    """And the condition Secure says which."""
    world = World()
    world.train()
    assert both(world) == {True}
    assert world.plan.tls == "keep"
    found = world.condition(c.SECURE)
    assert (found["status"], found["reason"]) == ("True", "MutualTLS")
    world = World(job_object({"network": {"tls": "Disabled"}}))
    world.train()
    assert both(world) == {False}
    assert world.plan.tls == ""
    found = world.condition(c.SECURE)
    assert (found["status"], found["reason"]) == ("False", "TLSDisabled")
    assert "may read and write" in found["message"]


@pytest.mark.parametrize("lost", [None, "Job", "StatefulSet"])
def test_a_job_that_another_operator_began_keeps_what_it_has(lost: str | None) -> None:
    """One without TLS is not given it in the middle, whatever of it is made again: its other pods speak none."""
    world = World(job_object({"network": {"tls": "Disabled"}}))
    world.train()
    world.job = job_object()
    if lost is not None:
        name = {"Job": "flights-worker", "StatefulSet": "flights-server"}[lost]
        del world.objects[lost, name]
    if lost == "StatefulSet":
        # By `kubectl delete --cascade=orphan`: with it gone, its pods are nobody's.
        for pod in world.pods.values():
            if "-server-" in pod["metadata"]["name"]:
                del pod["metadata"]["ownerReferences"]
    for _ in range(3):
        world.look()
    assert both(world) == {False}
    assert world.plan.tls == ""
    found = world.condition(c.SECURE)
    assert (found["status"], found["reason"]) == ("False", "MadePlain")
    secure = World()
    secure.train()
    secure.job = job_object({"network": {"tls": "Disabled"}})
    for _ in range(3):
        secure.look()
    assert both(secure) == {True}
    assert secure.condition(c.SECURE)["status"] == "True"


def test_a_job_that_has_ended_makes_no_more_certificates() -> None:
    """Its servers are asked with one for their last report, that is all."""
    world = World()
    world.train()
    world.complete()
    assert world.look().tls == "use"


def test_certificates_are_there_before_the_pods(api: Api) -> None:
    """The Secrets before the set of servers, which would wait for its volume, and before the workers may run."""

    async def run() -> None:
        async with operating(api) as operator:
            assert await released(operator) == []
            paths = [(method, path) for method, path, _ in api.requests if method in ("POST", "PATCH")]
            secrets = [at for at, (method, path) in enumerate(paths) if path.endswith("/secrets")]
            servers = next(at for at, (_, path) in enumerate(paths) if path.endswith("/flights-server"))
            assert len(secrets) == 3 and max(secrets) < servers
            assert {name for plural, _, name in api.objects if plural == "secrets"} == SECRET_NAMES
            assert workers(api)["spec"]["suspend"] is False

    asyncio.run(run())


def test_a_secrets_name_that_is_taken_is_said_before_anything_is_made(api: Api) -> None:
    """It may hold what somebody needs: it is neither read further nor written, and the job waits for its name."""
    body = {"metadata": {"name": "flights-worker-tls-0", "namespace": "ads"}, "data": {"mine": "AA=="}}

    async def run() -> None:
        async with operating(api) as operator:
            made(api)
            kept = api.put(SECRETS, body)
            assert await operator.look() == ""
            status = api.objects[("trainingjobs", *KEY)]["status"]
            (found,) = (one for one in status["conditions"] if one["type"] == "Ready")
            assert found["reason"] == "NameConflict" and "Secret flights-worker-tls-0" in found["message"]
            assert {plural for plural, _, _ in api.objects} <= {"secrets", "trainingjobs", "events"}
            assert api.objects["secrets", "ads", "flights-worker-tls-0"] == kept
            api.remove(SECRETS, "flights-worker-tls-0")
            await operator.look()
            assert {name for plural, _, name in api.objects if plural == "secrets"} == SECRET_NAMES

    asyncio.run(run())


def test_an_annotation_of_the_job_renews_its_certificates(api: Api) -> None:
    """By the next look; nothing else of the job is written."""

    async def run() -> None:
        async with operating(api) as operator:
            assert await released(operator) == []
            before = api.objects["secrets", "ads", "flights-worker-tls-0"]["data"]
            body = api.objects[("trainingjobs", *KEY)]
            body["metadata"].setdefault("annotations", {})[RENEW_ANNOTATION] = "now"
            api.put(TRAINING_JOBS, body)
            began = len(api.requests)
            assert await operator.look() == ""
            assert api.objects["secrets", "ads", "flights-worker-tls-0"]["data"] != before
            writes = {path.split("/")[-1] for method, path, _ in api.requests[began:] if method != "GET"}
            assert writes == SECRET_NAMES - {"flights-authority"}

    asyncio.run(run())


def test_what_the_operator_asks_is_what_it_may(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3: every request of a job's whole life is within the chart's rules, and no Secret is listed."""
    words = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}

    async def run() -> None:
        async with operating(api) as operator:
            assert await suspended_and_resumed(operator, monkeypatch) == []

    asyncio.run(run())
    asked: dict[str, set[str]] = {}
    for method, path, query in api.requests:
        parts = path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        rest = rest[2:] if rest and rest[0] == "namespaces" else rest
        if not rest:
            continue
        verb = words.get(method) or ("watch" if "watch" in query else "list" if len(rest) == 1 else "get")
        resource = f"{group}/{rest[0]}" + (f"/{rest[2]}" if len(rest) > 2 else "")
        asked.setdefault(resource, set()).add(verb)
    assert asked["/secrets"] == {"get", "create"}
    for resource, verbs in asked.items():
        assert verbs <= RIGHTS[resource], resource
