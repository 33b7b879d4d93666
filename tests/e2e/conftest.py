"""A cluster with Tablebay installed, a namespace for each test, and the report that the scenarios fill."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e.jobs import SMALL, Job, merged
from e2e.kube import ROOT, kubectl, make_namespace, run, until
from e2e.report import REPORT

# Their tests take longest. They begin first, or one would still run when the others, side by side, have ended. Some
# faults strike beside jobs that test_idle.py then looks at.
FIRST = (
    "test_tls.py",
    "test_scale.py",
    "test_durability.py",
    "test_faults.py",
    "test_idle.py",
    "test_meeting.py",
    "test_walk.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a cluster."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    first = [Path(__file__).parent / name for name in FIRST]
    items.sort(key=lambda item: first.index(item.path) if item.path in first else len(first))


@pytest.fixture(scope="session")
def system() -> str:
    """The namespace that the operator is in."""
    return os.environ.get("E2E_NAMESPACE", "tablebay-system")


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace, deleted afterwards; what was in it is printed if the test fails."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    make_namespace(name)
    yield name
    if getattr(request.node, "failed", False):
        for command in (
            ("get", "tj,sts,job,pod,pvc", "-o", "wide"),
            ("get", "tj", "-o", "yaml"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", "tablebay.dev/job", "--tail=30", "--prefix"),
        ):
            print(run("kubectl", "-n", name, *command).stdout)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Lets fixtures know whether their test failed."""
    report = yield
    if report.when == "call" and report.failed:
        item.failed = True  # type: ignore[attr-defined]
    return report


@pytest.fixture
def job(namespace: str) -> Callable[..., Job]:
    """Applies a flights job with changes."""

    def apply(name: str = "flights", **changes: Any) -> Job:
        return Job.apply(namespace, name, **changes)

    return apply


FINISHED, RUNNING = 20, 5


def _job_of(*command: str, **more: Any) -> dict[str, Any]:
    worker = {"name": "worker", "command": command}
    return merged({**SMALL, **more}, {"workers": {"template": {"spec": {"containers": [worker]}}}})


class Resting:
    """FINISHED jobs that are Complete and RUNNING ones whose workers sleep, in a namespace of theirs."""

    def __init__(self) -> None:
        self.namespace = f"e2e-{uuid.uuid4().hex[:8]}"
        make_namespace(self.namespace)
        running = {f"running-{number}": _job_of("sleep", "3600") for number in range(RUNNING)}
        # Each without TLS: a container less to start.
        plain = {"network": {"tls": "Disabled"}}
        finished = {f"finished-{number}": _job_of("true", **plain) for number in range(FINISHED)}
        jobs = Job.apply_all(self.namespace, running | finished)
        self._running, self._finished = jobs[:RUNNING], jobs[RUNNING:]

    def settle(self) -> None:
        """Wait until each is as it is to be."""
        for one in self._finished:
            one.until_condition("Complete")
        for one in self._running:
            one.until_reason("Training")

    def end(self) -> None:
        """Delete them all, should they be there."""
        kubectl("delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="session")
def resting() -> Iterator[Resting]:
    """Jobs with which nothing happens, made for the first test that wants them beside its own."""
    jobs = Resting()
    yield jobs
    jobs.end()


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """A scenario of the report: its name, how long it took, whether it held, and the figures put in here."""
    figures: dict[str, Any] = {}
    began = time.monotonic()
    yield figures
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    entry = {
        "name": request.node.name.removeprefix("test_"),
        "ok": not getattr(request.node, "failed", False),
        "seconds": round(time.monotonic() - began, 1),
        **figures,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    with open(REPORT, "a+") as file:
        # Tests run side by side.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = json.loads(file.read() or '{"scenarios": []}')["scenarios"]
        file.truncate(0)
        file.write(json.dumps({"commit": commit, "scenarios": [*before, entry]}, indent=2) + "\n")


@pytest.fixture
def operator_metrics(system: str) -> Callable[[], str]:
    """The text that the leading operator's /metrics answers."""

    def read() -> str:
        def look() -> str | None:
            selector = "app.kubernetes.io/component=operator"
            pods = json.loads(kubectl("-n", system, "get", "pods", "-l", selector, "-o", "json"))["items"]
            for pod in pods:
                path = f"/api/v1/namespaces/{system}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
                ended = run("kubectl", "get", "--raw", path)
                if "tablebay_operator_is_leader 1.0" in ended.stdout:
                    return ended.stdout
            return None

        return until(look, "no replica of the operator leads", 60)

    return read


@contextmanager
def frozen(component: str) -> Iterator[None]:
    """A component of our own cluster, stopped where it is."""
    cluster = os.environ["E2E_CLUSTER"]
    subprocess.run([cluster, "freeze", component], check=True)
    try:
        yield
    finally:
        subprocess.run([cluster, "thaw", component], check=True)
