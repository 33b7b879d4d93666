"""The chart as its users meet it: helm test, and what is left when it is gone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.install import RELEASE, main
from e2e.jobs import SMALL, Job, merged, seconds_since
from e2e.kube import condition, get, items, kubectl, run, until
from e2e.test_durability import CHECKPOINT, complete_and_exact, durable
from e2e.test_upgrade import acts

# As much of the Prometheus operator's definition as a PodMonitor needs.
POD_MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["selector", "podMetricsEndpoints"],
                                "properties": {
                                    "selector": {
                                        "type": "object",
                                        "properties": {
                                            "matchLabels": {
                                                "type": "object",
                                                "additionalProperties": {"type": "string"},
                                            }
                                        },
                                    },
                                    "podTargetLabels": {"type": "array", "items": {"type": "string"}},
                                    "podMetricsEndpoints": {
                                        "type": "array",
                                        "items": {
                                            "type": "object",
                                            "properties": {
                                                "port": {"type": "string"},
                                                "path": {"type": "string"},
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    }
                },
            }
        ],
    },
}
KINDS = "deployments,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,pdb,leases,jobs,trainingjobs"


@pytest.mark.deep
def test_helm_test_trains_a_tiny_job(system: str, scenario: dict[str, Any]) -> None:
    """`helm test` submits a job, waits for its end, and leaves nothing."""
    ended = run("helm", "test", RELEASE, "--namespace", system, "--timeout", "300s", timeout=330)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Phase:          Succeeded" in ended.stdout
    until(lambda: not items("trainingjobs", system), "the job of the test is deleted")


@pytest.mark.deep
def test_a_pod_monitor_that_cannot_be(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """podMonitor: Enabled in a cluster that knows none is a condition that says so; training goes on."""
    flights = job(lasts_s=10, change={"monitoring": {"podMonitor": "Enabled"}})
    found = until(lambda: condition(flights.body(), "Monitored"), "the condition")
    assert (found["status"], found["reason"]) == ("False", "NoPodMonitors")
    flights.until_condition("Complete")


@pytest.mark.deep
@pytest.mark.alone
def test_a_pod_monitor_where_the_cluster_knows_them(
    job: Callable[..., Job], system: str, scenario: dict[str, Any]
) -> None:
    """With the Prometheus operator's kind there, each job gets a PodMonitor, which goes with the job."""
    kubectl("apply", "-f", "-", input=json.dumps(POD_MONITORS))
    kubectl("wait", "--for=condition=Established", "crd/podmonitors.monitoring.coreos.com")
    kubectl("-n", system, "rollout", "restart", f"deployment/{RELEASE}-operator")
    kubectl("-n", system, "rollout", "status", f"deployment/{RELEASE}-operator")
    flights = job(lasts_s=60)
    monitor = until(lambda: get("podmonitor", "flights", flights.namespace), "the PodMonitor")
    labels = monitor["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    pods = until(lambda: items("pods", flights.namespace, selector), "the pods that it selects")
    port = monitor["spec"]["podMetricsEndpoints"][0]["port"]
    for pod in pods:
        ports = [one for container in pod["spec"]["containers"] for one in container.get("ports", ())]
        assert port in {one.get("name") for one in ports}
    flights.patch(monitoring={"podMonitor": "Disabled"})
    until(lambda: not items("podmonitors", flights.namespace), "the job has no PodMonitor any more")
    flights.patch(monitoring={"podMonitor": "Enabled"})
    until(lambda: items("podmonitors", flights.namespace), "it has one again")
    kubectl("-n", flights.namespace, "delete", "tj", "flights", "--wait=false")
    until(lambda: not items("podmonitors", flights.namespace), "the PodMonitor goes with its job")
    kubectl("delete", "crd", "podmonitors.monitoring.coreos.com")


def uninstall(system: str) -> None:
    """helm uninstall, after which nothing of the release is there but the definition of TrainingJobs."""
    before = {(one["kind"], one["metadata"]["name"]) for one in items(KINDS, system)}
    assert ("Deployment", f"{RELEASE}-operator") in before
    ended = run("helm", "uninstall", RELEASE, "--namespace", system, "--wait", timeout=180)
    assert ended.returncode == 0, ended.stderr

    def left() -> list[str]:
        found = {f"{one['kind']}/{one['metadata']['name']}" for one in items(KINDS, system)}
        # What Kubernetes puts in every namespace.
        return sorted(found - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"})

    until(lambda: not left(), lambda: f"nothing is left but {left()}", 90)
    selector = f"app.kubernetes.io/instance={RELEASE}"
    assert not items("clusterroles,clusterrolebindings", system, selector)
    assert get("crd", "trainingjobs.tablebay.dev", system)


@pytest.mark.alone
def test_a_job_deleted_and_the_chart_uninstalled(
    job: Callable[..., Job], system: str, scenario: dict[str, Any]
) -> None:
    """No object is left but the volume that the job's retention names, and the definition, which says so itself."""
    storage = {"size": "64Mi", "retention": {"whenDeleted": "Retain"}}
    flights = job(lasts_s=60, change=merged(SMALL, {"servers": {"storage": storage}}))
    flights.in_the_middle()
    kubectl("-n", flights.namespace, "delete", "tj", "flights")
    try:
        uninstall(system)

        def left() -> set[str]:
            found = items(f"{KINDS},statefulsets,networkpolicies,pvc", flights.namespace)
            return {f"{one['kind']}/{one['metadata']['name']}" for one in found}

        wanted = {
            "PersistentVolumeClaim/shards-flights-server-0",
            "ConfigMap/kube-root-ca.crt",
            "ServiceAccount/default",
        }
        until(lambda: left() == wanted, lambda: f"what is left is {sorted(left())}", 90)
    finally:
        assert main() == 0


@pytest.mark.deep
@pytest.mark.alone
def test_uninstalled_in_the_middle_of_training(
    job: Callable[..., Job], system: str, scenario: dict[str, Any]
) -> None:
    """Nothing of the release but the definition, and jobs in the middle of training go on.

    Without an operator a deleted job goes as ever, but for one with `when: [Delete]`, which waits. Installed again, the
    operator lets that one go, and takes up the job that trains.
    """
    flights = durable(job, lasts_s=100)
    small = {
        "servers": {"replicas": 1},
        "workers": {"replicas": 1, "template": {"spec": {"terminationGracePeriodSeconds": 1}}},
    }
    gone = job("gone", lasts_s=100, change=small)
    checkpoint = {**CHECKPOINT, "destination": "pvc://kept/run", "when": ["Delete"], "everySeconds": 3600}
    kept = job("kept", lasts_s=100, durable=True, change={**small, "checkpoint": checkpoint})
    for one in (flights, gone, kept):
        one.until_reason("Training", 180)
    step = flights.in_the_middle()
    pods, workers = flights.uids("server") | flights.uids("worker"), flights.worker_pods()
    assert len(pods) == 4

    try:
        uninstall(system)
        kubectl("-n", flights.namespace, "delete", "tj", "kept", "gone", "--wait=false")
        until(
            lambda: (
                not get("tj", "gone", gone.namespace)
                and not items("pods", gone.namespace, "tablebay.dev/job=gone")
            ),
            "a job without a finalizer goes",
        )
        about = kept.body()["metadata"]
        assert "deletionTimestamp" in about
        assert about["finalizers"] == ["tablebay.dev/checkpoint"]
        assert kept.pods("server")
        step = flights.in_the_middle(after=step)
        assert flights.uids("server") | flights.uids("worker") == pods
    finally:
        began = time.monotonic()
        assert main() == 0
    acts(flights, system, os.environ["IMAGE"])
    scenario["taken_up_seconds"] = seconds_since(began)
    scenario["taken_up_at_step"] = flights.in_the_middle(after=step)
    until(lambda: not get("tj", "kept", kept.namespace), "the job that waited for its checkpoint goes")
    assert get("pvc", "kept", kept.namespace)
    complete_and_exact(flights, scenario)
    assert flights.worker_pods() == workers
