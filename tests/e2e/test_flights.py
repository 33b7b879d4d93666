"""The job file of the laptop, on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.jobs import Job, seconds_since
from e2e.kube import holds, items, kubectl, until

AUC_MIN = 0.785


def test_the_flights_job_trains(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Applied as it is, it is Complete with its AUC in the status; its servers are gone, its logs are there."""
    began = time.monotonic()
    flights = job(durable=True)
    body = flights.until_condition("Complete")
    scenario["complete_seconds"] = seconds_since(began)
    status = body["status"]
    scenario["auc"] = status["progress"]["auc"]
    scenario["examples_per_second"] = status["progress"]["examplesPerSecond"]
    assert status["progress"]["auc"] >= AUC_MIN
    assert status["restarts"]["total"] == 0
    assert "firstFailure" not in status
    assert status["workers"]["succeeded"] == 2
    assert not holds(body, "Failed")
    row = kubectl("-n", flights.namespace, "get", "tj", "flights", "--no-headers").split()
    assert row[:3] == ["flights", "False", "Completed"]
    assert "test AUC" in kubectl("-n", flights.namespace, "logs", "job/flights-worker", "--all-pods=true")
    until(lambda: not flights.pods("server"), "the servers are deleted")


@pytest.mark.deep
def test_a_job_that_ends_deletes_itself_and_all_of_it(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """ttlSecondsAfterFinished deletes the TrainingJob, and with it goes every object that was made for it."""
    flights = job(change={"runPolicy": {"ttlSecondsAfterFinished": 1}})
    kinds = "trainingjob,statefulset,job,service,serviceaccount,pdb,pod,pvc"
    until(lambda: _own(kinds, flights), "the job's objects are made")
    until(lambda: not _own(kinds, flights), lambda: f"all is gone but {_own(kinds, flights)}", 240)


def _own(kinds: str, job: Job) -> list[str]:
    return [
        f"{one['kind']}/{one['metadata']['name']}"
        for one in items(kinds, job.namespace)
        if one["metadata"]["name"].startswith(job.name)
    ]


@pytest.mark.deep
def test_a_deleted_job_leaves_nothing_but_what_is_retained(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """In the middle of training: every object goes, and of the volumes those whose retention says Retain stay."""
    kept = job("kept", lasts_s=60, change=_storage("Retain"))
    gone = job("gone", lasts_s=60, change=_storage("Delete"))
    for one in (kept, gone):
        one.until_reason("Training", 180)
    claims = {one["metadata"]["name"] for one in items("pvc", kept.namespace)}
    assert claims == {f"shards-{name}-server-{index}" for name in ("kept", "gone") for index in range(2)}
    kubectl("-n", kept.namespace, "delete", "tj", "kept", "gone", "--wait=false")
    kinds = "trainingjob,statefulset,job,service,serviceaccount,pdb,pod"
    until(lambda: not _own(kinds, kept) and not _own(kinds, gone), "every object is gone", 120)
    left = {"shards-kept-server-0", "shards-kept-server-1"}
    until(
        lambda: {one["metadata"]["name"] for one in items("pvc", kept.namespace)} == left, "gone's volumes go"
    )


def _storage(when_deleted: str) -> dict[str, Any]:
    storage = {"size": "64Mi", "retention": {"whenDeleted": when_deleted}}
    return {"servers": {"storage": storage}, "workers": {"replicas": 1}}
