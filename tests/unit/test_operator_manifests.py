"""More of the operator's objects: a job that overrides what it may. test_operator_children.py has the rest."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from unit.operator_world import DEFAULTS, World, job_object, manifests_of

from tablebay.client import environment as names
from tablebay.client.environment import DISTRIBUTED, expand_pattern
from tablebay.client.errors import JobInvalid
from tablebay.client.job import JOB_NAME_CHARACTERS_MAX, SERVERS_MAX, WORKERS_MAX
from tablebay.operator import manifests
from tablebay.operator.decisions import decide
from tablebay.operator.manifests import JobObject
from tablebay.operator.projections import HASH_ANNOTATION, IMAGE_ANNOTATION, PULL_POLICY_ANNOTATION

GOLDEN = Path(__file__).parent / "golden" / "operator"
OVERRIDES: dict[str, Any] = {
    "image": "registry/train:1",
    "servers": {
        "replicas": 3,
        "storage": {"size": "10Gi", "storageClassName": "nvme", "retention": {"whenDeleted": "Retain"}},
        "template": {
            "metadata": {
                "labels": {"team": "ads", "tablebay.dev/job": "another", "app.kubernetes.io/name": "mine"},
                "annotations": {"prometheus.io/port": "9999"},
            },
            "spec": {
                "priorityClassName": "own",
                "terminationGracePeriodSeconds": 90,
                "securityContext": {"fsGroup": 1000, "runAsUser": 1000},
                "containers": [
                    {"name": "logs", "image": "registry/logs:1", "securityContext": {"runAsUser": 2000}},
                    {
                        "name": "server",
                        "imagePullPolicy": "Always",
                        "env": [
                            {"name": "TABLEBAY_THREADS", "value": "4"},
                            {"name": "WHO", "value": "$(TABLEBAY_JOB)-$(TABLEBAY_INDEX)"},
                        ],
                        "resources": {
                            "requests": {"cpu": 2, "memory": "4Gi"},
                            "limits": {"memory": "4Gi", "nvidia.com/gpu": 1},
                        },
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 7071}, "periodSeconds": 9},
                        "securityContext": {"readOnlyRootFilesystem": False, "runAsGroup": 3000},
                        "volumeMounts": [{"name": "own", "mountPath": "/tmp"}],
                    },
                ],
                "volumes": [{"name": "own", "emptyDir": {"medium": "Memory"}}],
            },
        },
    },
    "workers": {
        "replicas": 4,
        "template": {
            "spec": {
                "containers": [
                    {"name": "side", "image": "registry/side:1"},
                    {
                        "name": "worker",
                        "image": "registry/own:1",
                        "env": [
                            {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                            {"name": "LOG", "value": "/logs/$(TABLEBAY_JOB)/$(RANK)-of-$(WORLD_SIZE)"},
                        ],
                        "resources": {"limits": {"nvidia.com/gpu": 8}},
                        "securityContext": {"capabilities": {"drop": ["NET_RAW"]}},
                    },
                ],
            }
        },
    },
    "scheduling": {"priorityClassName": "prod", "schedulerName": "other"},
}
JOBS: dict[str, dict[str, Any]] = {"flights": {}, "overrides": OVERRIDES}


def pods_of(job: JobObject) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod specs of a job's objects, by kind."""
    for manifest in manifests_of(job):
        if "template" in manifest.get("spec", {}):
            yield manifest["kind"], manifest["spec"]["template"]["spec"]


def container_of(job: JobObject, kind: str, name: str) -> dict[str, Any]:
    """A container of the servers or of the workers."""
    (pod,) = (pod for found, pod in pods_of(job) if found == kind)
    (found,) = (one for one in pod["containers"] if one["name"] == name)
    result: dict[str, Any] = found
    return result


def longest() -> JobObject:
    """A job with the longest name, the most servers and the most workers."""
    job = job_object({"servers": {"replicas": SERVERS_MAX}})
    workers = job.model.spec.workers.model_copy(update={"replicas": WORKERS_MAX})
    model = job.model.model_copy(update={"spec": job.model.spec.model_copy(update={"workers": workers})})
    return replace(job, name="j" * JOB_NAME_CHARACTERS_MAX, model=model)


def test_a_job_that_overrides_what_it_may_gets_the_golden_objects() -> None:
    """A change of what the operator makes shows in the diff of a file; write it anew with WRITE_GOLDEN=1."""
    text = yaml.safe_dump_all(manifests_of(job_object(OVERRIDES)), sort_keys=False)
    file = GOLDEN / "overrides.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)
    assert file.read_text() == text


@pytest.mark.parametrize("version", ["1.34", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("change", [OVERRIDES, {}], ids=["overrides", "flights"])
def test_kubernetes_would_take_them(change: dict[str, Any], version: str) -> None:
    """By the schema of the oldest version that is tested against and by the newest, strictly."""
    manifests = [*manifests_of(job_object(change)), *manifests_of(longest())]
    assert {"StatefulSet", "Job"} <= {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_every_container_meets_the_restricted_standard(name: str) -> None:
    """The rules of pod-security-standards, one by one, but for what the job itself says otherwise."""
    overridden = {("worker", "capabilities")} if name == "overrides" else set()
    for _, pod in pods_of(job_object(JOBS[name])):
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccount"} & pod.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["securityContext"].get("runAsUser") != 0
        kinds = {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"}
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
        assert kinds <= allowed | {"projected", "secret"}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context.get("privileged") in (None, False)
            assert context.get("runAsUser") != 0
            assert context.get("runAsNonRoot") in (None, True)
            assert not context["capabilities"].get("add")
            if (container["name"], "capabilities") not in overridden:
                assert context["capabilities"]["drop"] == ["ALL"]
            assert not [port for port in container.get("ports", ()) if port.get("hostPort")]


def test_what_the_job_says_goes_before_what_the_operator_would_say() -> None:
    """Images, probes, grace, users and mounts; not the labels by which pods are found, nor who they are."""
    job = job_object(OVERRIDES)
    (servers,) = (one for one in manifests_of(job) if one["kind"] == "StatefulSet")
    template = servers["spec"]["template"]
    pod, server = template["spec"], container_of(job, "StatefulSet", "server")
    assert template["metadata"]["labels"]["team"] == "ads"
    assert template["metadata"]["labels"]["tablebay.dev/job"] == "flights"
    assert servers["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert template["metadata"]["annotations"]["prometheus.io/port"] == "9999"
    assert (pod["priorityClassName"], pod["schedulerName"]) == ("own", "other")
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["securityContext"]["fsGroup"] == 1000
    assert (server["image"], server["imagePullPolicy"]) == (DEFAULTS.server_image, "Always")
    assert server["readinessProbe"]["periodSeconds"] == 9
    assert server["securityContext"]["readOnlyRootFilesystem"] is False
    assert [mount["name"] for mount in server["volumeMounts"] if mount["mountPath"] == "/tmp"] == ["own"]
    volumes = [one["name"] for one in pod["volumes"] if not one["name"].startswith("tablebay-certificate")]
    assert volumes == ["own"], "a volume that nobody mounts"
    assert container_of(job, "Job", "worker")["image"] == "registry/own:1"
    assert container_of(job, "Job", "side")["image"] == "registry/side:1"


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize(("kind", "container"), [("StatefulSet", "server"), ("Job", "worker")])
def test_every_name_in_a_value_is_of_a_variable_before_it(name: str, kind: str, container: str) -> None:
    """The kubelet replaces $(NAME) by variables that come earlier; others it leaves as they stand."""
    known: set[str] = set()
    for variable in container_of(job_object(JOBS[name]), kind, container)["env"]:
        for used in re.findall(r"\$\(([^)]*)\)", variable.get("value", "")):
            assert used in known, f"{variable['name']} uses {used}"
        assert variable["name"] not in known, "set twice"
        known.add(variable["name"])


@pytest.mark.parametrize("name", JOBS)
def test_each_pod_is_told_who_it_is(name: str) -> None:
    """Ours first; the rank and the index by the label that Kubernetes' own controllers set."""
    job = job_object(JOBS[name])
    rank = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
    index = {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    worker = {one["name"]: one for one in container_of(job, "Job", "worker")["env"]}
    server = {one["name"]: one for one in container_of(job, "StatefulSet", "server")["env"]}
    assert worker["RANK"]["valueFrom"] == worker["TABLEBAY_RANK"]["valueFrom"] == rank
    assert server["TABLEBAY_INDEX"]["valueFrom"] == index
    own = [found for found in worker if not found.startswith("TABLEBAY_") and found not in DISTRIBUTED]
    assert list(worker)[len(worker) - len(own) :] == own
    replicas = str(job.model.spec.workers.replicas)
    assert worker["WORLD_SIZE"]["value"] == worker["TABLEBAY_WORKERS"]["value"] == replicas
    assert worker["TABLEBAY_ROLE"]["value"] == "worker"
    assert server["TABLEBAY_ROLE"]["value"] == "server"
    assert worker["TABLEBAY_SERVERS"] == server["TABLEBAY_SERVERS"]
    assert worker["TABLEBAY_GENERATION"] == server["TABLEBAY_GENERATION"]
    assert int(worker["TABLEBAY_GENERATION"]["value"]) > 0


def test_the_job_given_is_left_as_it_is() -> None:
    """It is the cache's; the same job gives the same objects again, with the same hashes."""
    job = job_object(OVERRIDES)
    before = copy.deepcopy(job.spec)
    first = manifests_of(job)
    second = manifests_of(job)
    assert first == second
    assert job.spec == before
    first[3]["spec"]["template"]["spec"]["containers"].clear()
    assert manifests_of(job) == second


def test_a_digest_is_that_of_the_content() -> None:
    """Whatever the order of its fields; 32 characters, and this very one, or all objects would be applied again."""
    assert manifests.digest({"a": 1, "b": [1, 2]}) == manifests.digest({"b": [1, 2], "a": 1})
    assert manifests.digest({"a": 1}) != manifests.digest({"a": 2})
    assert manifests.digest({"a": 1, "b": [1, 2]}) == "8baa73198470c7bb4c3ce142a8fd651a"


def test_an_object_carries_the_digest_of_itself_without_it() -> None:
    """But the workers' Job, whose digest is of what may change of it."""
    for manifest in manifests_of(job_object(OVERRIDES)):
        bare = copy.deepcopy(manifest)
        bare["metadata"]["annotations"] = {}
        found = manifest["metadata"]["annotations"][HASH_ANNOTATION]
        assert (found == manifests.digest(bare)) is (manifest["kind"] != "Job")


def test_a_job_of_workers_is_never_applied_again() -> None:
    """Not for another template, image or number: Kubernetes refuses that for ever."""
    world = World()
    world.train()
    change = {"image": "registry/newer:2", "scheduling": {"schedulerName": "other"}}
    world.job = replace(job_object(change), generation=2)
    world.settled.clear()
    plan = decide(world.job, world.observed(), world.status, DEFAULTS, world.now)
    assert "Job" not in {one["kind"] for one in plan.applies}
    assert "StatefulSet" in {one["kind"] for one in plan.applies}
    assert not plan.patches


NEWER = replace(DEFAULTS, server_image="registry/tablebay:2", server_pull_policy="Always")


def test_servers_keep_their_image_and_pull_policy_when_their_job_changes() -> None:
    """A newer chart and a change of the job: the set is applied with what its servers were begun with."""
    world = World()
    world.train()
    world.job = replace(job_object({"scheduling": {"schedulerName": "other"}}), generation=2)
    plan = decide(world.job, world.observed(), world.status, NEWER, world.now)
    (servers,) = (one for one in plan.applies if one["kind"] == "StatefulSet")
    pod = servers["spec"]["template"]["spec"]
    begun = DEFAULTS.server_image, DEFAULTS.server_pull_policy
    found = {(one["image"], one["imagePullPolicy"]) for one in (*pod["containers"], *pod["initContainers"])}
    assert found == {begun}
    annotations = servers["metadata"]["annotations"]
    assert (annotations[IMAGE_ANNOTATION], annotations[PULL_POLICY_ANNOTATION]) == begun


def test_a_pod_monitor_has_the_labels_that_prometheus_asks_for() -> None:
    """Beside the operator's own, which none of them takes the place of."""
    job = job_object({})
    asked = replace(DEFAULTS, pod_monitor_labels=(("release", "monitoring"), (names.JOB_LABEL, "other")))
    own, found = (manifests.pod_monitor(job, defaults)["metadata"] for defaults in (DEFAULTS, asked))
    assert found["labels"] == own["labels"] | {"release": "monitoring"}
    assert found["annotations"][HASH_ANNOTATION] != own["annotations"][HASH_ANNOTATION]


@pytest.mark.parametrize("tls", ["Enabled", "Disabled"])
def test_a_set_that_does_not_name_its_pull_policy_keeps_it(tls: str) -> None:
    """As an operator made it that did not record it yet: a newer chart's does not become its own."""
    world = World(job=job_object({"network": {"tls": tls}}))
    world.train()
    del world.objects["StatefulSet", "flights-server"]["metadata"]["annotations"][PULL_POLICY_ANNOTATION]
    plan = decide(world.job, world.observed(), world.status, NEWER, world.now)
    assert not plan.applies


def test_the_longest_names_fit() -> None:
    """40 characters, 1,024 servers, 10,000 workers: every name, label and host name has at most 63."""
    job = longest()
    labels = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
    for manifest in manifests_of(job, pod_monitors=True):
        meta = manifest["metadata"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", meta["name"]), meta["name"]
        every = (
            [meta["labels"], manifest["spec"].get("template", {}).get("metadata", {}).get("labels", {})]
            if ("spec" in manifest)
            else [meta["labels"]]
        )
        for found in every:
            for value in found.values():
                assert len(value) <= 63
                assert labels.fullmatch(value)
    made = [
        f"{job.servers_name}-{SERVERS_MAX - 1}",
        # What the controllers make of the names: host names, and values of labels.
        f"{job.workers_name}-{WORKERS_MAX - 1}",
        f"{job.workers_name}-{WORKERS_MAX - 1}-abcde",
        f"{job.servers_name}-5d4f8c7b9d",
    ]
    assert max(map(len, made)) <= 63
    addresses = expand_pattern(job.server_pattern)
    assert len(addresses) == SERVERS_MAX
    assert addresses[-1] == f"{job.servers_name}-1023.{job.name}-servers:7070"


def test_the_address_of_rank_0_is_the_host_name_of_its_pod() -> None:
    """An Indexed Job's pod is found as <job>-<index> in the subdomain of its template."""
    job = job_object()
    values = {one["name"]: one.get("value") for one in container_of(job, "Job", "worker")["env"]}
    (pod,) = (pod for kind, pod in pods_of(job) if kind == "Job")
    services = {one["metadata"]["name"]: one for one in manifests_of(job) if one["kind"] == "Service"}
    assert values["MASTER_ADDR"] == f"flights-worker-0.{pod['subdomain']}"
    assert services[pod["subdomain"]]["spec"]["clusterIP"] == "None"
    assert services[pod["subdomain"]]["spec"]["publishNotReadyAddresses"] is True


def test_bug_another_subdomain_does_not_hide_rank_0() -> None:
    """MASTER_ADDR names the Service of the workers, so their pods must be in it whatever the template says."""
    template = {"spec": {"containers": [{"name": "worker"}], "subdomain": "elsewhere"}}
    try:
        job = job_object({"workers": {"replicas": 2, "template": template}})
    except JobInvalid:
        return
    (pod,) = (pod for kind, pod in pods_of(job) if kind == "Job")
    worker = container_of(job, "Job", "worker")
    (address,) = (one["value"] for one in worker["env"] if one["name"] == "MASTER_ADDR")
    assert address == f"flights-worker-0.{pod['subdomain']}"


@pytest.mark.parametrize(("volume", "path"), [("tmp", "/scratch"), ("shards", "/data")])
def test_bug_a_users_volume_may_have_any_name(volume: str, path: str) -> None:
    """Also one that the operator would use: two volumes of one name are refused by Kubernetes."""
    template = {
        "spec": {
            "containers": [{"name": "server", "volumeMounts": [{"name": volume, "mountPath": path}]}],
            "volumes": [{"name": volume, "emptyDir": {}}],
        }
    }
    job = job_object({"servers": {"replicas": 2, "template": template}})
    (pod,) = (pod for kind, pod in pods_of(job) if kind == "StatefulSet")
    found = [one["name"] for one in pod["volumes"]]
    assert len(found) == len(set(found)), found


@pytest.mark.parametrize(
    "spec",
    [
        {"volumes": None},
        {"securityContext": None},
        {"containers": [{"name": "server", "ports": None}]},
        {"containers": [{"name": "server", "volumeMounts": None}]},
        {"containers": [{"name": "server", "securityContext": None}]},
        {"containers": [{"name": "server", "securityContext": {"capabilities": None}}]},
    ],
    ids=str,
)
def test_bug_a_field_that_is_null_is_refused_or_as_good_as_none(spec: dict[str, Any]) -> None:
    """What the model lets through must not raise when objects are made: `ports:` with nothing behind it is null."""
    try:
        job = job_object({"servers": {"replicas": 2, "template": {"spec": spec}}})
    except JobInvalid:
        return
    assert {"StatefulSet", "Job"} <= {manifest["kind"] for manifest in manifests_of(job)}
