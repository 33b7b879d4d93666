"""Workers that ask for GPUs, on a node that the test says has some."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e.jobs import Job
from e2e.kube import condition, kubectl, until

# One after the other: they share the node.
pytestmark = pytest.mark.xdist_group("gpus")

GPU = "nvidia.com/gpu"
COUNT = 2


@pytest.fixture
def gpus() -> Iterator[None]:
    """A node that advertises two GPUs. They are scheduled; nothing computes on them."""
    node = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]

    def advertise(count: str | None) -> None:
        patch = json.dumps({"status": {"capacity": {"nvidia.com/gpu": count}}})
        kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)

    advertise(str(COUNT))
    until(lambda: _allocatable(node) == str(COUNT), "the node's GPUs are allocatable")
    yield
    advertise(None)


def _allocatable(node: str) -> str:
    found: str = json.loads(kubectl("get", "node", node, "-o", "json"))["status"]["allocatable"].get(GPU, "0")
    return found


def _asking_for(number: int) -> dict[str, Any]:
    container = {
        "name": "worker",
        "command": ["python", "-m", "tablebay.examples.flights"],
        "resources": {"limits": {GPU: number}},
    }
    return {"workers": {"template": {"spec": {"containers": [container]}}}}


@pytest.mark.usefixtures("gpus")
def test_workers_with_a_gpu_each(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """The limit is in the pods that run, and the job is complete."""
    flights = job(change=_asking_for(1), lasts_s=10)
    pod = until(lambda: next(iter(flights.pods("worker").values()), None), "a worker's pod")
    assert pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "1"
    flights.until_condition("Complete")


@pytest.mark.usefixtures("gpus")
def test_workers_that_ask_for_more_than_there_is(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """They stay pending, and Ready has the scheduler's own words, as the failure has once the deadline is over."""
    deadline = {"runPolicy": {"preRunningDeadlineSeconds": 20}}
    flights = job(change={**_asking_for(8), **deadline})
    found = until(lambda: _waiting(flights), "the scheduler's words")
    assert "nodes are available" in found
    assert f"Insufficient {GPU}" in found
    failed = condition(flights.until_condition("Failed"), "Failed")
    assert failed["reason"] == "PreRunningDeadlineExceeded"
    assert "preRunningDeadlineSeconds" in failed["message"]
    assert f"Insufficient {GPU}" in failed["message"]


def _waiting(job: Job) -> str:
    message = job.ready_message()
    return message if message.startswith("StartingWorkers") and "Insufficient" in message else ""
