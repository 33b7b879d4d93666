"""Servers that come back, and jobs that go on, in the middle of training: every push is in the rows exactly once.

The oracle's table shows it: each worker adds, to the row of every key of every step, a number that no other step adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.jobs import Job, seconds_since
from e2e.kube import condition, get, holds, items, kubectl, until
from e2e.test_faults import SCRIPT, SLOW, STEPS, in_the_middle

ORACLE = ("--oracle",)


def started(job: Callable[..., Job], **options: Any) -> Job:
    """The slowed flights job with checkpoints and the oracle."""
    return job(checkpoints=True, steps_per_second=SLOW, arguments=ORACLE, **options)


def require_exact(flights: Job, scenario: dict[str, Any]) -> dict[str, Any]:
    """It completes, and the oracle has found each row as it must be."""
    body = flights.until_condition("Complete")
    said = flights.logs("worker")
    assert "rows equal" in said, said[-2000:]
    scenario["oracle"] = next(line for line in said.splitlines() if "oracle:" in line)
    return body


@pytest.mark.parametrize("how", ["process", "pod"])
def test_a_killed_server_comes_back(job: Callable[..., Job], scenario: dict[str, Any], how: str) -> None:
    """G1, G3: kill -9 of its process, or its pod deleted; no worker is restarted, and the job completes, exactly."""
    flights = started(job, shared_processes=how == "process")
    in_the_middle(flights)
    workers = flights.uids("worker")
    before = get("pod", "flights-server-1", flights.namespace)
    assert before is not None
    began = time.monotonic()
    if how == "process":
        flights.kill("flights-server-1", "server", "tablebay-server")
    else:
        kubectl(
            "-n",
            flights.namespace,
            "delete",
            "pod",
            "flights-server-1",
            "--grace-period=0",
            "--force",
            "--wait=false",
        )
    flights.until_reason("ServerRecovering")
    flights.until_reason("Training", 120)
    scenario["repair_seconds"] = seconds_since(began)
    after = get("pod", "flights-server-1", flights.namespace)
    assert after is not None
    if how == "process":
        assert after["status"]["containerStatuses"][0]["restartCount"] > 0
    else:
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert flights.uids("worker") == workers
    body = require_exact(flights, scenario)
    assert body["status"]["restarts"]["total"] == 0
    assert "firstFailure" not in body["status"]
    assert body["status"]["checkpoint"]["number"] >= 1


def test_a_suspended_job_goes_on_where_it_stopped(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """suspend: true deletes all pods and keeps the claim; false: the steps that were done are not done again."""
    flights = started(job)
    step = in_the_middle(flights)
    began = time.monotonic()
    patch_suspend(flights, True)
    body = flights.until_condition("Suspended", 120)
    scenario["suspended_seconds"] = seconds_since(began)
    assert not flights.pods("server")
    assert not flights.pods("worker")
    assert condition(body, "Ready")["reason"] == "Suspended"
    assert not holds(body, "Failed")
    claims = {one["metadata"]["name"] for one in items("pvc", flights.namespace)}
    assert "flights-checkpoints" in claims
    began = time.monotonic()
    patch_suspend(flights, False)
    resumed = flights.until_step(step, 180)
    scenario["resumed_seconds"] = seconds_since(began)
    assert step <= resumed <= STEPS
    restored = [line for line in flights.logs("server").splitlines() if "server.restored" in line]
    assert len(restored) == 2
    assert not any('"rows": 0,' in line for line in restored), restored
    require_exact(flights, scenario)


def patch_suspend(flights: Job, value: bool) -> None:
    """Say so in the job."""
    text = "true" if value else "false"
    kubectl(
        "-n",
        flights.namespace,
        "patch",
        "tj",
        flights.name,
        "--type=merge",
        "-p",
        f'{{"spec":{{"suspend":{text}}}}}',
    )


def test_a_job_that_is_deleted_and_made_anew_goes_on(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """checkpoint.on: [Delete]: deleted in the middle, its servers make a last checkpoint; applied again, it goes on."""
    flights = started(job)
    step = in_the_middle(flights)
    began = time.monotonic()
    kubectl("-n", flights.namespace, "delete", "tj", "flights", "--wait=false")
    until(lambda: not items("pods", flights.namespace, "tablebay.dev/job=flights"), "all pods are gone", 120)
    scenario["deleted_seconds"] = seconds_since(began)
    again = started(job)
    again.until_step(step, 180)
    restored = [line for line in again.logs("server").splitlines() if "server.restored" in line]
    assert restored
    assert not any('"rows": 0,' in line for line in restored), restored
    require_exact(again, scenario)


def test_all_processes_killed_at_once(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Both servers and a worker, kill -9: what the worker had pushed since the last checkpoint is trained again."""
    flights = started(job, shared_processes=True, change={"checkpoint": {"everySeconds": 1}})
    in_the_middle(flights)
    until(
        lambda: flights.status().get("checkpoint", {}).get("number", 0) >= 1,
        "a checkpoint is in the status",
        120,
    )
    flights.kill(flights.worker(1)["metadata"]["name"], "worker", SCRIPT)
    for index in range(2):
        flights.kill(f"flights-server-{index}", "server", "tablebay-server")
    require_exact(flights, scenario)
