"""Workers that come and go in the middle of training, and failures that a job's own rules judge."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from e2e.jobs import Job, seconds_since
from e2e.kube import kubectl, run, until
from e2e.test_cli import tablebay

from tablebay.client.control import Control
from tablebay.client.errors import TablebayError

# Of each worker of two: 261,877 examples, 2,048 to a batch.
STEPS = 64
SLOW = 0.6


def in_the_middle(job: Job) -> int:
    """Wait for a step that is neither the first nor near the last; which one it is."""
    step = job.until_step(10)
    assert 0 < step < STEPS - 20, f"step {step} is not in the middle"
    return step


def reported(job: Job) -> dict[int, dict[str, float]]:
    """What each rank has reported to server 0."""
    address = job.pods("server")["flights-server-0"]["status"]["podIP"]
    try:
        with Control([f"{address}:7070"], timeout=2.0) as control:
            return {one.rank: dict(one.values) for one in control.progress(2.0)}
    except TablebayError:
        return {}


def ranks(job: Job) -> dict[int, str]:
    """The uid of each rank's pod that is ready."""
    return {
        int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): pod["metadata"]["uid"]
        for pod in job.pods("worker").values()
        if any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"]["conditions"])
    }


def test_workers_scaled_2_to_4_to_1(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """In the middle of training: two more train beside the others, then rank 0 alone goes on, in the pod it had."""
    change = {"workers": {"minReplicas": 1, "maxReplicas": 4}}
    flights = job(steps_per_second=SLOW, change=change)
    step = in_the_middle(flights)
    before, servers = ranks(flights), flights.uids("server")
    assert set(before) == {0, 1}
    where = ("-n", flights.namespace)
    refused = run("kubectl", *where, "scale", "tj", "flights", "--replicas=5")
    assert "found replicas 5, wanted 1 to 4" in refused.stderr
    began = time.monotonic()
    kubectl(*where, "scale", "tj", "flights", "--replicas=4")
    until(
        lambda: set(ranks(flights)) == {0, 1, 2, 3}, lambda: f"4 workers: {flights.ready_message()}", 60, 0.3
    )
    scenario["scaled_up_seconds"] = seconds_since(began)
    four = ranks(flights)
    assert {rank: four[rank] for rank in before} == before
    row = kubectl(*where, "get", "tj", "flights", "--no-headers").split()
    assert row[4].endswith("/4")
    # Every rank trains: the new ones have reported too.
    until(lambda: set(reported(flights)) == {0, 1, 2, 3}, "ranks 2 and 3 report", 60, 0.5)
    now = int(reported(flights)[0]["step"])
    assert step <= now < STEPS, f"step {now} is not in the middle"
    began = time.monotonic()
    tablebay("scale", "flights", "--workers", "1", "--namespace", flights.namespace)
    until(lambda: set(flights.pods("worker")) and set(ranks(flights)) == {0}, "1 worker", 90, 0.3)
    scenario["scaled_down_seconds"] = seconds_since(began)
    assert ranks(flights) == {0: before[0]}
    assert int(reported(flights)[0]["step"]) < STEPS
    assert "loss" not in reported(flights)[3]
    status = flights.until_condition("Complete")["status"]
    assert status["progress"]["step"] == STEPS
    assert status["restarts"]["total"] == 0
    assert status["workers"]["succeeded"] == 1
    # Servers of a job that ended are gone; while it trained they were the same.
    assert all(uid in servers.values() for uid in flights.uids("server").values())
