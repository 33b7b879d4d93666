"""Mutual TLS between a job's pods, as it is by default: who is let in, and certificates that change in training."""

from __future__ import annotations

import base64
import datetime
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.identity import Caller, Identity, given, made, secret
from e2e.install import SPREAD_S
from e2e.jobs import STEPS, Job, seconds_since
from e2e.kube import condition, get, holds, kubectl, run, until
from rpcs import METHODS, of_rank_0

from tablebay.ps_server.access import ALLOWED

STEPS_PER_REPORT = 20
# So that an authority is replaced, and more, within the training.
LASTS_S = 6 * SPREAD_S + 40
# For a change of a Secret to come to the pods and to be taken up, and for two reports.
WAIT_S = 4 * SPREAD_S + 60
AUC_MIN = 0.785
CHECKPOINT: dict[str, Any] = {
    "destination": "pvc://flights-checkpoints/run",
    "claim": {"size": "64Mi", "accessModes": ["ReadWriteOnce"]},
    "everySeconds": 5,
    "timeoutSeconds": 60,
}


def slow(job: Callable[..., Job], lasts_s: float, **options: Any) -> Job:
    """The flights job with its oracle, slowed."""
    return job(arguments=("--oracle",), lasts_s=lasts_s, **options)


def annotate(job: Job, name: str) -> None:
    """Ask for what docs/operations.md says, by a text that was never there."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    kubectl("-n", job.namespace, "annotate", "--overwrite", "tj", job.name, f"tablebay.dev/{name}={now}")


def server_address(job: Job) -> str:
    """Of server 0's pod."""
    pod = get("pod", f"{job.name}-server-0", job.namespace)
    assert pod is not None
    address: str = pod["status"]["podIP"]
    return address


def statuses(job: Job, shown: Identity | None, requests: dict[str, bytes] | None = None) -> set[str]:
    """How the RPCs of server 0 end for a caller."""
    caller = Caller(job.name, server_address(job), shown)
    try:
        return set(caller.statuses(requests).values())
    finally:
        caller.close()


def connections(job: Job) -> int:
    """How often a server has taken up a renewed certificate so far: before a handshake with somebody."""
    said = kubectl("-n", job.namespace, "logs", f"{job.name}-server-0", "-c", "server", "--tail=-1")
    return said.count('"certificate.renewed"')


def complete(job: Job, scenario: dict[str, Any], before: set[str]) -> None:
    """Trained to its end with the pods that it had, and each push is in the rows once."""
    body = job.until_condition("Complete")
    status = body["status"]
    scenario["auc"] = status["progress"]["auc"]
    assert status["progress"]["auc"] >= AUC_MIN
    assert status["restarts"]["total"] == 0, status.get("firstFailure")
    said = kubectl("-n", job.namespace, "logs", "job/flights-worker", "--all-pods=true", "--tail=-1")
    assert "rows equal" in said
    assert job.worker_pods() == before


@pytest.mark.deep
def test_pods_of_a_job_speak_tls_to_one_another_alone(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """Every RPC ends with the right status for plain text, no certificate, an expired one, one of another job's
    authority, another job's name, and another rank; each pod sees its own pair; all goes with the job."""
    flights, other = (
        slow(job, 60),
        slow(job, 250, name="other", change={"servers": {"replicas": 1}, "workers": {"replicas": 1}}),
    )
    flights.in_the_middle()
    found = condition(flights.body(), "Secure")
    assert (found["status"], found["reason"]) == ("True", "MutualTLS")
    until(lambda: get("secret", "other-worker-tls-0", flights.namespace), "the other job has certificates")
    namespace = flights.namespace
    own = given(namespace, "flights", "worker", 1)
    nobody = Identity(None, own.trusted)
    stranger = Identity(given(namespace, "other", "worker", 0).pair, own.trusted)
    for case, shown, status in (
        ("plain", None, "UNAVAILABLE"),
        ("none", nobody, "UNAVAILABLE"),
        ("expired", made(namespace, "flights", "worker/1", ended=True), "UNAVAILABLE"),
        ("of another job", stranger, "UNAVAILABLE"),
        ("of another job's name", made(namespace, "flights", "worker/1", uid="0-0"), "PERMISSION_DENIED"),
    ):
        assert statuses(flights, shown) == {status}, case
    content = of_rank_0("flights")
    assert statuses(flights, own, content) == {"PERMISSION_DENIED"}, "in the name of another rank"
    operator = Caller("flights", server_address(flights), made(namespace, "flights", "operator"))
    allowed = ALLOWED["operator"]
    asked = operator.statuses({name: b"" for name in METHODS if name not in allowed})
    assert set(asked.values()) == {"PERMISSION_DENIED"}
    assert operator.statuses({"Stats": b""}) == {"Stats": "OK"}
    operator.close()
    # The image has what the native core needs for it.
    said = kubectl("-n", namespace, "logs", "flights-server-0", "-c", "server", "--tail=-1")
    assert '"server.ready"' in said and "data.tls_by_grpc" not in said
    # What a pod's own container can see of certificates.
    pod = flights.worker(1)["metadata"]["name"]
    shell = ("-n", namespace, "exec", pod, "-c", "worker", "--", "python", "-c")
    seen = kubectl(
        *shell,
        "import os; print(*os.listdir('/run'), open(os.environ['TABLEBAY_TLS_DIR'] + '/tls.crt').read())",
    )
    assert "tablebay-certificates" not in seen and own.pair is not None
    assert own.pair.certificate.decode().strip() in seen
    written = run("kubectl", *shell, "import os; open(os.environ['TABLEBAY_TLS_DIR'] + '/tls.crt', 'a')")
    assert written.returncode != 0 and "PermissionError" in written.stderr
    # As docs/cluster.md says: with the pod's own.
    look = 'tablebay rows fields --limit 1 --servers "$TABLEBAY_SERVERS" --tls-dir "$TABLEBAY_TLS_DIR"'
    rows = kubectl("-n", namespace, "exec", "job/flights-worker", "-c", "worker", "--", "sh", "-c", look)
    assert re.match(r"fields: \d+ rows of 9 float32\n", rows)
    names = {"flights-authority", "flights-server-tls-0", "flights-worker-tls-0"}
    kubectl("-n", namespace, "delete", "tj", "flights", other.name)
    until(
        lambda: not any(get("secret", name, namespace) for name in names), "the Secrets go with the job", 60
    )


@pytest.mark.timeout(300 + 8 * SPREAD_S)
def test_certificates_renewed_expired_and_the_authority_replaced_in_training(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """In one job, each in the middle of its training, no pod of which is restarted, and no step of which is lost.

    Renewed: all pairs anew, and the servers show them. Replaced: two authorities are trusted, then the new one signs,
    then it alone is trusted, and the old pairs open nothing. Expired: worker 1's, while nobody renews it; it waits, and
    goes on where it was once it has another.
    """
    flights = slow(job, LASTS_S, durable=True, change={"checkpoint": CHECKPOINT})
    flights.in_the_middle()
    before = flights.worker_pods()
    renewed(flights, scenario)
    replaced(flights, scenario)
    expired(flights, scenario)
    complete(flights, scenario, before)


def renewed(flights: Job, scenario: dict[str, Any]) -> None:
    """Ask for new pairs, and see them shown."""
    step, began = flights.step(), time.monotonic()
    old = [given(flights.namespace, "flights", "worker", rank).pair for rank in (0, 1)]
    taken = connections(flights)
    annotate(flights, "renew-certificates")
    until(
        lambda: given(flights.namespace, "flights", "worker", 1).pair != old[1],
        "there are new certificates",
        30,
    )
    assert given(flights.namespace, "flights", "worker", 0).pair != old[0]
    until(lambda: connections(flights) > taken, "the servers show them", WAIT_S)
    scenario["renewed_seconds"] = seconds_since(began)
    goes_on(flights, scenario, "renewed", step)


def replaced(flights: Job, scenario: dict[str, Any]) -> None:
    """Ask for another authority, and see each of its steps."""

    def trusted() -> list[str]:
        text = secret(flights.namespace, "flights-worker-tls-0")["ca.crt"].decode()
        return [f"{one}-----END" for one in text.split("-----END CERTIFICATE-----\n") if one]

    step, began = flights.step(), time.monotonic()
    (old,) = trusted()
    first = given(flights.namespace, "flights", "worker", 0).pair
    annotate(flights, "rotate-authority")
    until(lambda: len(trusted()) == 2 and old in trusted(), "both are trusted", 30)
    until(
        lambda: given(flights.namespace, "flights", "worker", 0).pair != first,
        "the new one signs",
        3 * SPREAD_S,
    )
    until(lambda: len(trusted()) == 1, "the old one is trusted no more", 3 * SPREAD_S)
    assert trusted() != [old]
    scenario["rotated_seconds"] = seconds_since(began)
    # And every process has taken that up.
    time.sleep(SPREAD_S)
    flights.shown = None
    goes_on(flights, scenario, "rotated", step)
    stale = Identity(first, secret(flights.namespace, "flights-worker-tls-0")["ca.crt"])
    assert statuses(flights, stale) == {"UNAVAILABLE"}, "the old certificates open nothing"


def expired(flights: Job, scenario: dict[str, Any]) -> None:
    """Put an expired pair of worker 1's in its Secret, see it wait, and have it renewed."""
    pair = made(flights.namespace, "flights", "worker/1", ended=True).pair
    assert pair is not None
    texts = (("1.key", pair.key), ("1.crt", pair.certificate))
    data = {name: base64.b64encode(text).decode() for name, text in texts}
    patch = ("patch", "secret", "flights-worker-tls-0", "--type=merge", "-p", json.dumps({"data": data}))
    kubectl("-n", flights.namespace, *patch)
    # A worker never waits for another one.
    last = until(lambda: behind(flights), "worker 1 waits while worker 0 trains", WAIT_S)
    assert 0 < last < STEPS - 1, f"step {last} is not in the middle of training"
    assert not holds(flights.body(), "Complete")
    annotate(flights, "renew-certificates")
    began = time.monotonic()
    until(lambda: flights.steps().get(1, 0) > last, "worker 1 trains on", WAIT_S)
    scenario["expired_waited_at_step"], scenario["expired_back_seconds"] = last, seconds_since(began)


def behind(flights: Job) -> int:
    """The step that worker 1 is at, once worker 0 is two reports ahead; else 0."""
    steps = flights.steps()
    return steps[1] if len(steps) == 2 and steps[0] >= steps[1] + 2 * STEPS_PER_REPORT else 0


def goes_on(flights: Job, scenario: dict[str, Any], what: str, before: int) -> None:
    """Steps were made meanwhile, and are made afterwards, and none of them is the last."""
    during = flights.until_step(before + 1, WAIT_S)
    after = flights.until_step(during + 1, WAIT_S)
    assert 0 < before < during < after < STEPS, "not in the middle of training"
    scenario[f"{what}_steps"] = [before, during, after]


@pytest.mark.deep
def test_a_job_without_tls_says_so(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """network.tls: Disabled is a choice that a condition shows; it cannot be made or taken back later."""
    flights = job(change={"network": {"tls": "Disabled"}})
    body = until(lambda: body if condition(body := flights.body(), "Secure") else None, "the condition", 30)
    found = condition(body, "Secure")
    assert (found["status"], found["reason"]) == ("False", "TLSDisabled")
    assert not get("secret", "flights-authority", flights.namespace)
    patch = json.dumps({"spec": {"network": {"tls": "Enabled"}}})
    refused = run("kubectl", "-n", flights.namespace, "patch", "tj", "flights", "--type=merge", "-p", patch)
    assert refused.returncode != 0
    assert "network.tls cannot change in a job that exists: found Enabled, wanted Disabled" in refused.stderr
    status = flights.until_condition("Complete")["status"]
    assert status["progress"]["auc"] >= AUC_MIN


@pytest.mark.deep
def test_secrets_that_are_deleted_are_made_again(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """By the next look at the job, here one that was asked for: pairs, then the authority. Training goes on."""
    flights = slow(job, 60, durable=True, change={"checkpoint": CHECKPOINT})
    flights.in_the_middle()
    before = flights.worker_pods()
    for name in ("flights-worker-tls-0", "flights-authority"):
        step = flights.step()
        kubectl("-n", flights.namespace, "delete", "secret", name)
        annotate(flights, "renew-certificates")
        until(lambda name=name: get("secret", name, flights.namespace), f"{name} is there again", 30)  # type: ignore[misc]
        flights.shown = None
        assert 0 < step < flights.until_step(step + 2) < STEPS
    complete(flights, scenario, before)
