"""In the middle of training: workers that come and go, failures judged by rules, a learning rate that changes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e import elastic
from e2e.jobs import STEPS, Job, seconds_since
from e2e.kube import condition, get, holds, kubectl, run, until
from e2e.test_cli import tablebay
from e2e.test_durability import complete_and_exact, durable, restored_rows


def ranks(job: Job) -> dict[int, str]:
    """The uid of each rank's pod that is ready."""
    return {
        int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): pod["metadata"]["uid"]
        for pod in job.pods("worker").values()
        if any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"]["conditions"])
    }


def autoscaler(job: Job) -> tuple[str, str]:
    """Whether the HorizontalPodAutoscaler of the job is able to scale it, and the reason."""
    found = get("hpa", job.name, job.namespace) or {"status": {}}
    for one in found["status"].get("conditions", ()):
        if one["type"] == "AbleToScale":
            return one["status"], one["reason"]
    return "", ""


def test_workers_scaled_2_to_4_to_1(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """In the middle of training: two more train beside the others, then rank 0 alone goes on, in the pod it had.

    Each push of each rank, of those that were told to end too, is in the rows once.
    """
    worker = {"name": "worker", "command": ["python", "-c", Path(elastic.__file__).read_text()]}
    bounds = {"minReplicas": 1, "maxReplicas": elastic.RANKS}
    flights = job(change={"workers": {**bounds, "template": {"spec": {"containers": [worker]}}}})
    flights.slowed = True
    # As docs/operations.md types it.
    autoscale = ("kubectl", "autoscale", "tj", "flights", "--min=1", "--max=4", "--cpu=80%")
    made = run(*autoscale, "-n", flights.namespace)
    assert (made.returncode, made.stderr) == (0, "")
    step = flights.until_step(10)
    assert 0 < step < elastic.STEPS - 20, f"step {step} is not in the middle"
    before, servers = ranks(flights), flights.uids("server")
    assert set(before) == {0, 1}
    where = ("-n", flights.namespace)
    # Without metrics it changes nothing, but it can ask and say how many there are to be.
    until(lambda: autoscaler(flights) == ("True", "SucceededGetScale"), "the autoscaler reads the scale", 30)
    kubectl(*where, "delete", "hpa", "flights")
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
    until(lambda: set(flights.reported()) == {0, 1, 2, 3}, "ranks 2 and 3 report", 60, 0.5)
    now = flights.steps()
    assert step <= now[0] < elastic.STEPS, f"step {now[0]} is not in the middle"
    began = time.monotonic()
    tablebay("scale", "flights", "--workers", "1", "--namespace", flights.namespace)
    until(lambda: set(flights.pods("worker")) and set(ranks(flights)) == {0}, "1 worker", 90, 0.3)
    scenario["scaled_down_seconds"] = seconds_since(began)
    assert ranks(flights) == {0: before[0]}
    assert flights.steps()[0] < elastic.STEPS
    status = flights.until_condition("Complete")["status"]
    assert status["progress"]["step"] == elastic.STEPS
    assert status["restarts"]["total"] == 0
    assert status["workers"]["succeeded"] == 1
    said = kubectl(*where, "logs", "job/flights-worker", "--all-pods=true", "--tail=-1")
    steps = {
        int(rank): int(count)
        for rank, count in re.findall(r"rank (\d): (\d+) steps, each once$", said, re.MULTILINE)
    }
    scenario["steps_of_ranks"] = [steps[rank] for rank in range(elastic.RANKS)]
    assert steps[0] == elastic.STEPS
    assert all(now[rank] <= steps[rank] < elastic.STEPS for rank in (1, 2, 3))
    # Servers of a job that ended are gone; while it trained they were the same.
    assert all(uid in servers.values() for uid in flights.uids("server").values())


@pytest.mark.deep
@pytest.mark.parametrize(("operator", "rank"), [("Any", 1), ("Index0", 0)])
def test_one_worker_ends_the_job_well(
    job: Callable[..., Job], scenario: dict[str, Any], operator: str, rank: int
) -> None:
    """By its success policy the job is Complete once one worker has ended; the other, which never would, is gone."""
    program = f"import os, time; os.environ['RANK'] == '{rank}' or time.sleep(3600)"
    worker = {"name": "worker", "command": ["python", "-c", program]}
    pod = {"containers": [worker], "terminationGracePeriodSeconds": 1}
    policy = {"runPolicy": {"successPolicy": {"operator": operator}}}
    flights = job(change={"servers": {"replicas": 1}, "workers": {"template": {"spec": pod}}, **policy})
    status = flights.until_condition("Complete")["status"]
    assert status["workers"]["succeeded"] == 1
    assert status["restarts"]["total"] == 0
    until(lambda: not flights.pods("worker"), "the other worker is told to end", 60)


KILLED = {"name": "killed", "target": "Workers", "onExitCodes": {"operator": "In", "values": [137]}}


def policy(**fields: Any) -> dict[str, Any]:
    """A change of the job: its failure policy."""
    return {"runPolicy": {"failurePolicy": fields}}


def kill(job: Job, rank: int) -> tuple[int, str]:
    """kill -9 of a worker in the middle of training; the step then, and the pod."""
    step = job.in_the_middle()
    pod = job.worker(rank)["metadata"]["name"]
    job.kill(pod, "worker", "tablebay.examples.flights")
    return step, pod


@pytest.mark.deep
def test_a_rule_fails_the_job(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """A worker killed in the middle of training: by Kubernetes' own hand the job fails, and says by which rule."""
    change = policy(maxRestarts=5, rules=[{**KILLED, "action": "FailJob"}])
    flights = job(lasts_s=50, shared_processes=True, change=change)
    step, pod = kill(flights, 1)
    began = time.monotonic()
    until(lambda: holds(flights.body(), "Failed"), lambda: f"it fails: {flights.ready_message()}", 60)
    scenario["failed_seconds"] = seconds_since(began)
    assert 0 < step < STEPS
    body = flights.body()
    assert condition(body, "Failed")["reason"] == "FailureRule"
    assert (
        f"rule killed: worker pod {pod}: its process was ended by signal 9"
        in condition(body, "Failed")["message"]
    )
    assert body["status"]["firstFailure"]["rule"] == "killed"
    until(lambda: not flights.pods("worker"), "the other worker ends", 60)


@pytest.mark.deep
def test_a_rule_ignores_what_the_budget_would_not_bear(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """No restart is allowed within the hour, and one that a rule ignores is made all the same, of that rank alone."""
    change = policy(maxRestarts=0, windowSeconds=3600, rules=[{**KILLED, "action": "Ignore"}])
    flights = job(lasts_s=50, shared_processes=True, change=change)
    flights.in_the_middle()
    before = ranks(flights)
    step, _ = kill(flights, 1)
    began = time.monotonic()
    until(lambda: ranks(flights).get(1, before[1]) != before[1], "rank 1 runs in another pod", 90)
    scenario["replaced_seconds"] = seconds_since(began)
    assert 0 < step < STEPS
    assert ranks(flights)[0] == before[0]
    status = flights.until_condition("Complete")["status"]
    assert status["restarts"]["inWindow"] == 0
    assert status["firstFailure"]["rule"] == "killed"


@pytest.mark.deep
def test_a_learning_rate_and_a_weight_decay_changed_while_it_trains(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """In the middle: both servers have the new ones, and no pod is another one. So it is with labels of pods that a
    hand takes away or edits: a server's set has given its pod up by then, and takes it back."""
    flights = job(lasts_s=80)
    step = flights.in_the_middle()
    pods = flights.uids("server") | flights.uids("worker")
    (table,) = flights.body()["spec"]["tables"]
    options = {"learningRate": 0.04, "weightDecay": 0.001}
    flights.patch(tables=[{**table, "optimizer": {**table["optimizer"], **options}}])

    def told() -> set[tuple[str, str]]:
        """The servers that say so, with what."""
        return {
            (name, option)
            for name in flights.pods("server")
            for line in kubectl("-n", flights.namespace, "logs", name).splitlines()
            for option in ('"learning_rate": 0.04', '"weight_decay": 0.001')
            if "table.updated" in line and option in line
        }

    began = time.monotonic()
    until(lambda: len(told()) == 4, lambda: f"both servers have both: {told()}", 30)
    scenario["told_seconds"] = seconds_since(began)
    assert step <= flights.step() < STEPS
    assert flights.uids("server") | flights.uids("worker") == pods

    def label(pod: str, change: str) -> None:
        kubectl("-n", flights.namespace, "label", "pod", pod, change, "--overwrite")

    def seen() -> bool:
        """Whether each is owned and has its labels."""
        found = flights.pods("server") | flights.pods("worker")
        owned = all(pod["metadata"].get("ownerReferences") for pod in found.values())
        return owned and flights.uids("server") | flights.uids("worker") == pods

    began = time.monotonic()
    label("flights-server-1", "tablebay.dev/job-")
    until(seen, "the server is the job's again", 60)
    label(next(iter(flights.pods("worker"))), "tablebay.dev/role=nobody")
    until(seen, "the worker is a worker again", 60)
    scenario["relabelled_seconds"] = seconds_since(began)
    assert step <= flights.step() < STEPS
    assert condition(flights.body(), "Ready")["reason"] == "Training"
    flights.until_condition("Complete")


@pytest.mark.deep
def test_a_suspended_job_goes_on_with_another_number_of_servers(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """2 to 3 in the middle of training: refused before it is suspended; afterwards nothing is lost or doubled."""
    flights = durable(job, lasts_s=60)
    step = flights.in_the_middle()
    patch = ("-n", flights.namespace, "patch", "tj", "flights", "--type=merge", "-p")
    three = '{"spec": {"servers": {"replicas": 3}}}'
    refused = run("kubectl", *patch, three)
    assert "servers.replicas changes only once the job is suspended" in refused.stderr
    flights.patch(suspend=True)
    flights.until_condition("Suspended")
    began = time.monotonic()
    kubectl(*patch, three)
    flights.patch(suspend=False)
    flights.until_reason("Training", 120)
    scenario["resumed_seconds"] = seconds_since(began)
    assert len(flights.pods("server")) == 3
    assert restored_rows(flights) > 0
    flights.until_step(step + 1)
    complete_and_exact(flights, scenario)
