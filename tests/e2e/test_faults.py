"""Faults in the middle of training: each test proves that its fault has struck, and where training was then."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.conftest import frozen
from e2e.jobs import SMALL, STEPS, Job, seconds_since
from e2e.kube import condition, get, holds, items, kubectl, until

# Until the test lets it go.
SLOW_S = 60
BACKOFF_S = 18
SCRIPT = "tablebay.examples.flights"
AUC_MIN = 0.785


def test_a_worker_process_killed(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """kill -9 of worker 1: its rank goes on in another pod, when the backoff says, and nothing else is restarted."""
    # Kubernetes by itself would wait 10 s.
    backoff = {"initialSeconds": BACKOFF_S, "maxSeconds": BACKOFF_S}
    change = {"runPolicy": {"failurePolicy": {"backoff": backoff}}}
    flights = job(lasts_s=SLOW_S, shared_processes=True, change=change)
    step = flights.in_the_middle()
    servers, other = flights.uids("server"), flights.worker(0)["metadata"]["uid"]
    killed = flights.worker(1)["metadata"]
    flights.kill(killed["name"], "worker", SCRIPT)
    _replaced(flights, killed["uid"], scenario)
    assert flights.uids("server") == servers
    assert flights.worker(0)["metadata"]["uid"] == other
    failed = get("pod", killed["name"], flights.namespace)
    assert failed is not None
    ended = failed["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
    waited_s = _seconds(ended, flights.worker(1)["metadata"]["creationTimestamp"])
    assert waited_s >= BACKOFF_S - 1, f"it began again {waited_s} s after it ended"
    status = flights.until_condition("Complete")["status"]
    assert step < STEPS
    assert status["restarts"]["total"] == 1
    assert status["firstFailure"]["exitCode"] == 137
    assert status["firstFailure"]["pod"] == killed["name"]
    assert status["progress"]["auc"] >= AUC_MIN


def test_a_worker_pod_deleted(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """kubectl delete pod of worker 1: another pod takes its rank, and nothing else is restarted."""
    flights = job(lasts_s=SLOW_S)
    flights.in_the_middle()
    servers, other = flights.uids("server"), flights.worker(0)["metadata"]["uid"]
    gone = flights.worker(1)["metadata"]
    kubectl("-n", flights.namespace, "delete", "pod", gone["name"], "--grace-period=1", "--wait=false")
    _replaced(flights, gone["uid"], scenario)
    assert flights.uids("server") == servers
    assert flights.worker(0)["metadata"]["uid"] == other
    status = flights.until_condition("Complete")["status"]
    assert status["progress"]["auc"] >= AUC_MIN


def _seconds(one: str, other: str) -> float:
    """Between two times as Kubernetes writes them."""
    begin, end = (datetime.datetime.fromisoformat(text) for text in (one, other))
    return (end - begin).total_seconds()


def _replaced(job: Job, uid: str, scenario: dict[str, Any]) -> None:
    """Wait until rank 1 runs in a pod of another uid."""
    began = time.monotonic()

    def look() -> bool:
        for pod in job.pods("worker").values():
            mine = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1"
            if mine and pod["metadata"]["uid"] != uid and pod["status"]["phase"] == "Running":
                return True
        return False

    until(look, "another pod of worker 1", 90)
    scenario["replaced_seconds"] = seconds_since(began)


@pytest.mark.alone
@pytest.mark.usefixtures("resting")
def test_the_operators_pods_deleted(job: Callable[..., Job], system: str, scenario: dict[str, Any]) -> None:
    """Training goes on without the operator, and another one sees the job to its end, with others beside it."""
    flights = job(lasts_s=SLOW_S)
    step = flights.in_the_middle()
    before = {pod["metadata"]["uid"] for pod in items("pods", system)}
    selector = ("-l", "app.kubernetes.io/component=operator")
    kubectl("-n", system, "delete", "pods", *selector, "--grace-period=1", "--wait=false")
    until(
        lambda: not before & {pod["metadata"]["uid"] for pod in items("pods", system)},
        "the old ones are gone",
    )
    during = flights.in_the_middle(after=step)
    flights.in_the_middle(after=during)
    status = flights.until_condition("Complete")["status"]
    assert status["restarts"]["total"] == 0
    assert status["progress"]["auc"] >= AUC_MIN
    after = {pod["metadata"]["uid"] for pod in items("pods", system)}
    assert not before & after


@pytest.mark.alone
@pytest.mark.own_cluster
@pytest.mark.usefixtures("resting")
def test_the_api_server_away_for_a_minute(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Training goes on while nothing answers at the API server, and the job ends as it should afterwards."""
    flights = job(lasts_s=100)
    step = flights.in_the_middle()
    server = get("pod", "flights-server-0", flights.namespace)
    assert server is not None
    pods = flights.uids("server") | flights.uids("worker")
    with frozen("kube-apiserver"):
        time.sleep(60)
        said = until(lambda: flights.reported_at(server["status"]["podIP"]), "server 0 answers", 20)
        during = max(int(values["step"]) for values in said.values())
    scenario["steps_meanwhile"] = during - step
    assert step + 20 < during < STEPS
    until(lambda: flights.until_step(during), "the API server answers again")
    assert flights.uids("server") | flights.uids("worker") == pods
    status = flights.until_condition("Complete")["status"]
    assert status["restarts"]["total"] == 0
    assert status["progress"]["auc"] >= AUC_MIN


@pytest.mark.parametrize("how", ["process", "pod"])
def test_a_server_lost_fails_the_job(job: Callable[..., Job], scenario: dict[str, Any], how: str) -> None:
    """Without checkpoints its rows are gone: the job fails and says so; no worker trains on with fresh rows."""
    flights = job(lasts_s=SLOW_S, shared_processes=True)
    flights.in_the_middle()
    lost = get("pod", "flights-server-1", flights.namespace)
    assert lost is not None
    began = time.monotonic()
    if how == "process":
        flights.kill("flights-server-1", "server", "tablebay-server")
    else:
        kubectl(
            "-n", flights.namespace, "delete", "pod", "flights-server-1", "--grace-period=1", "--wait=false"
        )
    body = flights.until_condition("Failed")
    scenario["failed_seconds"] = seconds_since(began)
    found = condition(body, "Failed")
    assert found["reason"] == "ServerLost"
    assert "server 1 was lost in the middle of training" in found["message"]
    assert "without checkpoints its rows are gone" in found["message"]
    assert condition(body, "Ready")["reason"] == "ServerLost"
    assert not holds(body, "Complete")
    assert body["status"]["firstFailure"]["pod"].startswith("flights-server-1")
    until(lambda: not flights.pods("server"), "the servers are deleted")
    time.sleep(2)
    assert not holds(flights.body(), "Complete")


@pytest.mark.deep
def test_a_worker_that_always_fails(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Its restarts used up the job fails, with the first failure kept in the status after the pods are gone."""
    worker = {"name": "worker", "command": ["python", "-c", "import sys; sys.exit(3)"]}
    change = {
        "servers": {"replicas": 1},
        "workers": {"template": {"spec": {"containers": [worker]}}},
        "runPolicy": {"failurePolicy": {"maxRestarts": 1}, "cleanPolicy": {"onFailure": "All"}},
    }
    body = job("broken", change=change).until_condition("Failed")
    found = condition(body, "Failed")
    assert found["reason"] == "WorkersFailed"
    assert "maxRestarts is 1" in found["message"]
    assert body["status"]["firstFailure"]["exitCode"] == 3
    broken = Job(body["metadata"]["namespace"], "broken")
    until(lambda: not items("pods", broken.namespace), "the pods are deleted", 60)
    assert broken.status()["firstFailure"]["exitCode"] == 3
    assert holds(broken.body(), "Failed")


@pytest.mark.deep
def test_a_deadline_ends_the_job(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """activeDeadlineSeconds from the start of training on; then the job has failed for that reason."""
    flights = job(lasts_s=SLOW_S, change={**SMALL, "runPolicy": {"activeDeadlineSeconds": 10}})
    found = condition(flights.until_condition("Failed"), "Failed")
    assert found["reason"] == "DeadlineExceeded"
    assert "which is 10" in found["message"]


@pytest.mark.deep
def test_a_job_deleted_and_made_again_at_once(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """The new one waits until the old one's objects are gone, has pods of its own, and trains to its end."""
    first = job(lasts_s=SLOW_S)
    first.in_the_middle()
    old = first.body()["metadata"]["uid"]
    pods = first.uids("server") | first.uids("worker")
    kubectl("-n", first.namespace, "delete", "tj", "flights")
    second = job()
    assert second.body()["metadata"]["uid"] != old
    status = second.until_condition("Complete")["status"]
    assert status["progress"]["auc"] >= AUC_MIN
    there = items("pods", second.namespace, "tablebay.dev/job=flights")
    # The old one's workers, which were told to end, may take their grace period for it.
    own = {pod["metadata"]["uid"] for pod in there if "deletionTimestamp" not in pod["metadata"]}
    assert own and not own & set(pods.values())


@pytest.mark.deep
def test_a_status_written_by_hand(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """A user's Complete in the middle of training is overwritten, and training goes on to its real end."""
    flights = job(lasts_s=SLOW_S)
    flights.in_the_middle()
    lie = (
        '{"status":{"conditions":[{"type":"Complete","status":"True","reason":"Lie","message":"",'
        '"lastTransitionTime":"2020-01-01T00:00:00Z"}]}}'
    )
    patch = ("patch", "tj", "flights", "--subresource=status", "--type=merge", "-p", lie)
    kubectl("-n", flights.namespace, *patch)
    until(lambda: not holds(flights.body(), "Complete"), "the lie is overwritten", 30)
    assert flights.uids("server")
    assert flights.until_condition("Complete")["status"]["progress"]["auc"] >= AUC_MIN
