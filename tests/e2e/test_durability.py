"""Servers that come back, jobs that are suspended and go on: in the middle of training, and nothing lost or doubled.

The oracle of the flights job proves that each push of each worker is in the rows exactly once: rank 0 compares a table
of sums with the data, and ends with 1 where they differ. So a job that is Complete without a restart of a worker has
lost and doubled nothing; its log says so too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.jobs import SMALL, Job, seconds_since
from e2e.kube import condition, get, holds, items, kubectl, run, until
from e2e.test_cli import tablebay

# Until the test lets it go.
SLOW_S = 60
AUC_MIN = 0.785
CLAIM = "flights-checkpoints"
CHECKPOINT: dict[str, Any] = {
    "destination": f"pvc://{CLAIM}/run",
    "claim": {"size": "64Mi", "accessModes": ["ReadWriteOnce"]},
    "everySeconds": 3,
    "timeoutSeconds": 60,
}


def durable(job: Callable[..., Job], checkpoint: dict[str, Any] | None = None, **options: Any) -> Job:
    """The flights job with an oracle and a checkpoint every 3 s, with fields of that changed.

    Its workers are their containers' first processes and handle no SIGTERM: they would train on to the end.
    """
    pod = {"terminationGracePeriodSeconds": 1}
    return job(
        arguments=("--oracle",),
        durable=True,
        change={
            "checkpoint": {**CHECKPOINT, **(checkpoint or {})},
            "workers": {"template": {"spec": pod}},
        },
        **options,
    )


def restored_rows(job: Job) -> int:
    """How many rows server 0 has read from a checkpoint when it started."""
    for line in kubectl("-n", job.namespace, "logs", "flights-server-0", "-c", "server").splitlines():
        if "server.restored" in line:
            return int(json.loads(line)["rows"])
    raise AssertionError("server 0 says nothing of what it has restored")


def make_unwritable(job: Job) -> None:
    """The folder of the checkpoints, on which every further attempt fails."""
    program = (
        "import os, sys\n"
        "for folder, _, _ in os.walk(sys.argv[1], topdown=False):\n"
        "    os.chmod(folder, 0o500)\n"
    )
    folder = f"/var/lib/tablebay-claims/{CLAIM}/run"
    where = ("-n", job.namespace, "exec", "flights-server-0", "-c", "server", "--")
    kubectl(*where, "python", "-c", program, folder)


def containers(job: Job) -> dict[str, str]:
    """Which container each ready server is, by its pod's name."""
    found = {}
    for name, pod in job.pods("server").items():
        (status,) = pod["status"].get("containerStatuses") or [{}]
        if status.get("ready"):
            found[name] = status["containerID"]
    return found


def complete_and_exact(job: Job, scenario: dict[str, Any]) -> dict[str, Any]:
    """The status of the job that is complete, trained well, and has each push in its rows once."""
    body = job.until_condition("Complete")
    status: dict[str, Any] = body["status"]
    scenario["auc"] = status["progress"]["auc"]
    assert status["progress"]["auc"] >= AUC_MIN
    assert status["restarts"]["total"] == 0, status.get("firstFailure")
    said = kubectl("-n", job.namespace, "logs", "job/flights-worker", "--all-pods=true", "--tail=-1")
    assert "rows equal" in said
    return status


def eviction(namespace: str, pod: str) -> subprocess.CompletedProcess[str]:
    """What `kubectl drain` asks for."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"

    return run("kubectl", "create", "--raw", path, "-f", "-", input=json.dumps(body))


def evict(namespace: str, pod: str) -> None:
    """Evict a pod, as soon as that may be."""
    # 429 while the budget's controller has not counted the pods yet.
    until(lambda: eviction(namespace, pod).returncode == 0, f"{pod} may be evicted", 30)


@pytest.mark.parametrize(
    "hits", [("process", "process of server 0"), ("pod", "evicted", "all pods")], ids="+".join
)
def test_a_server_comes_back(
    job: Callable[..., Job], scenario: dict[str, Any], hits: tuple[str, ...]
) -> None:
    """Killed, deleted or evicted: it restores its rows, and no worker's pod is another one than before."""
    flights = durable(job, lasts_s=SLOW_S, shared_processes=True)
    step = flights.in_the_middle()
    workers = flights.worker_pods()
    assert len(workers) == 2
    for how in hits:
        repaired_after(how, flights, scenario)
        step = flights.in_the_middle(after=step)
        scenario[f"back_at_step, {how}"] = step
    until(lambda: flights.events("ServerRecovering"), "an Event tells of it", 30)
    assert not holds(flights.body(), "Failed")
    complete_and_exact(flights, scenario)
    assert flights.worker_pods() == workers


def repaired_after(how: str, flights: Job, scenario: dict[str, Any]) -> None:
    """Hit servers, and wait until they are back."""
    before, pods = containers(flights), flights.uids("server")
    assert len(before) == 2
    began = time.monotonic()
    hit = {"flights-server-0" if "server 0" in how else "flights-server-1"}
    if how.startswith("process"):
        flights.kill(min(hit), "server", "tablebay-server")
    elif how == "evicted":
        evict(flights.namespace, "flights-server-1")
        refused = eviction(flights.namespace, "flights-server-0")
        assert "violate the pod's disruption budget" in refused.stderr, "a second one while the first is away"
    else:
        hit = set(before) if how == "all pods" else hit
        # One second: too little for a last checkpoint, so what came after the newest is sent again.
        kubectl("-n", flights.namespace, "delete", "pod", *sorted(hit), "--grace-period=1", "--wait=false")

    def repaired() -> bool:
        now = containers(flights)
        return len(now) == 2 and all(now[name] != before[name] for name in hit)

    until(repaired, lambda: f"{sorted(hit)} came back: {flights.ready_message()}", 120, 0.2)
    seconds = scenario[f"repair_seconds, {how}"] = seconds_since(began)
    print(f"{how}: repaired in {seconds} s")
    now = flights.uids("server")
    for name in before:
        # A process comes back in the pod that it had.
        assert (now[name] != pods[name]) == (name in hit and not how.startswith("process"))
    assert {name for name, one in containers(flights).items() if one != before[name]} == hit
    flights.until_reason("Training")


def test_suspended_and_resumed(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """In the middle: no pod is left and the claim is; then training goes on from the last checkpoint to its end.

    Another everySeconds is refused while it runs; while it is suspended it is taken, and used afterwards.
    """
    flights = durable(job, lasts_s=SLOW_S)
    step = flights.in_the_middle()
    workers = flights.worker_pods()
    patch = ("-n", flights.namespace, "patch", "tj", "flights", "--type=merge", "-p")
    refused = run("kubectl", *patch, json.dumps({"spec": {"checkpoint": {"everySeconds": 2}}}))
    assert "checkpoint changes only while the job is suspended" in refused.stderr
    began = time.monotonic()
    where = ("--namespace", flights.namespace)
    assert tablebay("suspend", "flights", *where) == f"flights: suspending in namespace {flights.namespace}\n"
    body = flights.until_condition("Suspended")
    scenario["suspended_seconds"] = seconds_since(began)
    assert condition(body, "Ready")["reason"] == "Suspended"
    assert "all is in checkpoint" in condition(body, "Ready")["message"]
    last = body["status"]["checkpoint"]["lastSuccessful"]
    assert last["number"] >= 1
    assert last["bytes"] > 0
    until(lambda: not items("pods", flights.namespace, "tablebay.dev/job=flights"), "its pods are gone")
    assert get("pvc", CLAIM, flights.namespace)
    row = kubectl("-n", flights.namespace, "get", "tj", "flights").splitlines()
    assert "CKPT" in row[0]
    assert row[1].split()[2] == "Suspended"
    time.sleep(5)
    assert not items("pods", flights.namespace, "tablebay.dev/job=flights")
    flights.patch(checkpoint={"everySeconds": 2})
    began = time.monotonic()
    tablebay("resume", "flights", *where, "--wait", "--timeout", "120")
    scenario["resumed_seconds"] = seconds_since(began)
    assert condition(flights.body(), "Ready")["reason"] == "Training"
    checks = {
        one["check"]: one for one in json.loads(tablebay("doctor", *where, "--output", "json"))["checks"]
    }
    assert all(one["verdict"] == "ok" for one in checks.values()), checks
    (server,) = get("sts", "flights-server", flights.namespace)["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
    assert {"name": "TABLEBAY_CHECKPOINT_EVERY_SECONDS", "value": "2"} in server["env"]
    assert restored_rows(flights) > 0
    flights.until_step(step + 1)
    assert not flights.worker_pods() & workers
    status = complete_and_exact(flights, scenario)
    assert status["checkpoint"]["lastSuccessful"]["number"] > last["number"]
    assert not condition(flights.body(), "Suspended")


@pytest.mark.deep
def test_suspended_before_it_begins(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """A job that is made suspended has no pod until it is let go."""
    flights = durable(job)
    flights.patch(suspend=True)
    flights.until_condition("Suspended")
    until(lambda: not items("pods", flights.namespace, "tablebay.dev/job=flights"), "it has no pods")
    flights.patch(suspend=False)
    complete_and_exact(flights, scenario)


@pytest.mark.deep
def test_deleted_after_a_last_checkpoint_and_made_again(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """`when: [Delete]`: the job stays until all is kept, its claim stays, and a job of its name goes on from there."""
    # Never by itself: what the next job finds is the last checkpoint.
    rarely = {"when": ["Suspend", "Delete"], "everySeconds": 3600}
    flights = durable(job, rarely, lasts_s=SLOW_S)
    step = flights.in_the_middle()
    began = time.monotonic()
    kubectl("-n", flights.namespace, "delete", "tj", "flights", "--timeout=120s", timeout=150)
    scenario["deleted_seconds"] = seconds_since(began)
    until(lambda: not items("pods", flights.namespace, "tablebay.dev/job=flights"), "its pods are gone")
    assert get("pvc", CLAIM, flights.namespace)
    again = durable(job, rarely, lasts_s=SLOW_S)
    again.until_reason("Training", 120)
    assert restored_rows(again) > 0
    again.until_step(step + 1)
    complete_and_exact(again, scenario)
    # Complete: nothing to wait for any more.
    assert not again.body()["metadata"].get("finalizers")


@pytest.mark.deep
@pytest.mark.parametrize("how", ["suspended", "deleted"])
def test_a_checkpoint_that_cannot_be_made_holds_nothing_up_for_ever(
    job: Callable[..., Job], scenario: dict[str, Any], how: str
) -> None:
    """A destination that cannot be written any more: the job is suspended, or deleted, past its time limit."""
    occasion = {"suspended": "Suspend", "deleted": "Delete"}[how]
    change = {"when": [occasion], "timeoutSeconds": 5, "everySeconds": 3600}
    flights = durable(job, change, lasts_s=SLOW_S)
    flights.in_the_middle()
    make_unwritable(flights)
    began = time.monotonic()
    if how == "suspended":
        flights.patch(suspend=True)
        body = flights.until_condition("Suspended")
        assert condition(body, "Ready")["reason"] == "NotAllKept"
        assert "no last checkpoint was made in time" in condition(body, "Ready")["message"]
    else:
        kubectl("-n", flights.namespace, "delete", "tj", "flights", "--timeout=240s", timeout=270)
    scenario["seconds"] = seconds_since(began)
    until(lambda: not items("pods", flights.namespace, "tablebay.dev/job=flights"), "its pods are gone")
    assert get("pvc", CLAIM, flights.namespace)


@pytest.mark.deep
def test_a_finalizer_taken_away_by_hand(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Of a job that waits for a last checkpoint: it is gone at once, and what was made for it once its pods end."""
    flights = durable(job, {"when": ["Delete"], "timeoutSeconds": 60, "everySeconds": 3600}, lasts_s=SLOW_S)
    flights.in_the_middle()
    make_unwritable(flights)
    kubectl("-n", flights.namespace, "delete", "tj", "flights", "--wait=false")
    until(lambda: flights.ready_message().startswith("Deleting"), "it waits")
    patch = ("patch", "tj", "flights", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("-n", flights.namespace, *patch)
    kinds = "trainingjob,statefulset,job,service,serviceaccount,pdb,pod"
    until(
        lambda: not [one for one in items(kinds, flights.namespace) if one["metadata"]["name"] != "default"],
        "every object is gone",
        # A server that is told to end tries for the job's 60 s, and its pod is given half a minute more.
        180,
    )
    assert get("pvc", CLAIM, flights.namespace)


@pytest.mark.deep
def test_a_claim_that_not_every_server_sees(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Missing, then of one node alone: the condition says why, and nothing is made."""
    flights = job(
        durable=True,
        change={"checkpoint": {"destination": "pvc://mine/run", "everySeconds": 3, "claim": None}},
    )
    found = flights.until_reason("ClaimUnusable")
    assert "found no PersistentVolumeClaim mine" in found["message"]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mine"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}},
    }
    kubectl("-n", flights.namespace, "apply", "-f", "-", input=json.dumps(claim))
    until(
        lambda: "with accessModes [ReadWriteOnce] for 2 servers" in flights.ready_message(), "it is told", 30
    )
    assert not items("sts,jobs,pdb,pods", flights.namespace)


@pytest.mark.deep
def test_a_server_that_finds_no_checkpoint_is_heard(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """One is required, and there is none: Ready has the server's own words, and so has `tablebay doctor`."""
    flights = job(durable=True, change={"checkpoint": CHECKPOINT, "restore": {"policy": "Required"}, **SMALL})
    found = flights.until_reason("CheckpointUnusable")
    words = "flights-checkpoints/run holds no checkpoint, and one is required"
    assert found["message"].startswith("server 0 refuses to start: ")
    assert words in found["message"]
    doctor = [sys.executable, "-Im", "tablebay.client.cli", "doctor", "-n", flights.namespace]
    ended = subprocess.run(doctor, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"flights: CheckpointUnusable: {found['message']}" in ended.stdout
    assert not items("pods", flights.namespace, "tablebay.dev/role=worker")
