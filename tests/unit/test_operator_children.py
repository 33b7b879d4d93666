"""The objects that the operator makes of a job."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from unit.operator_world import DEFAULTS, job_object, manifests_of

from tablebay.client.job import JOB_NAME_CHARACTERS_MAX
from tablebay.operator import manifests

GOLDEN = Path(__file__).parent / "golden" / "operator"
WORKER = {
    "name": "worker",
    "command": ["python", "train.py"],
    "env": [{"name": "WHERE", "value": "rank $(TABLEBAY_RANK)"}],
    "resources": {"limits": {"nvidia.com/gpu": 1}},
}
JOBS: dict[str, dict[str, Any]] = {
    "flights": {},
    "everything": {
        "image": "registry/train:1",
        "servers": {
            "replicas": 3,
            "image": "registry/servers:1",
            "storage": {"size": "10Gi", "storageClassName": "nvme", "retention": {"whenDeleted": "Retain"}},
            "onFinish": "Retain",
            "template": {
                "metadata": {"labels": {"team": "ads"}, "annotations": {"prometheus.io/scrape": "false"}},
                "spec": {
                    "nodeSelector": {"disk": "nvme"},
                    "containers": [
                        {"name": "server", "resources": {"limits": {"memory": "4Gi"}}},
                        {"name": "logs", "image": "registry/logs:1"},
                    ],
                },
            },
        },
        "workers": {
            "replicas": 4,
            "template": {
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "initContainers": [{"name": "fetch", "command": ["true"]}],
                    "containers": [WORKER, {"name": "side", "image": "registry/side:1"}],
                }
            },
        },
        "runPolicy": {"activeDeadlineSeconds": 3600, "failurePolicy": {"maxRestarts": 5}},
        "scheduling": {"priorityClassName": "prod", "schedulerName": "other"},
        "monitoring": {"podMonitor": "Enabled"},
    },
    "checkpoints": {
        "checkpoint": {
            "destination": "pvc://flights-checkpoints/run",
            "claim": {"size": "1Gi", "accessModes": ["ReadWriteOnce"]},
            "timeoutSeconds": 120,
        },
        "restore": {"from": "pvc://other/run/1", "policy": "IfExists"},
    },
}


@pytest.mark.parametrize("name", JOBS)
def test_the_objects_of_a_job_are_the_golden_ones(name: str) -> None:
    """A change of what the operator makes shows in the diff of a file; write it anew with WRITE_GOLDEN=1."""
    import os

    text = yaml.safe_dump_all(manifests_of(job_object(JOBS[name]), pod_monitors=True), sort_keys=False)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)
    assert file.read_text() == text


def test_the_claim_of_checkpoints_belongs_to_no_job() -> None:
    """It outlives the job, and is valid by Kubernetes' own schema."""
    (claim,) = manifests.claims(job_object(JOBS["checkpoints"]))
    kubernetes_validate.validate(claim, "1.34", strict=True)
    assert claim["metadata"]["name"] == "flights-checkpoints"
    assert "ownerReferences" not in claim["metadata"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    assert manifests.claims(job_object({})) == []
    assert manifests.claims(job_object({"checkpoint": {"destination": "pvc://there/run"}})) == []


def test_a_server_has_time_for_its_last_checkpoint() -> None:
    """timeoutSeconds and a moment, unless no occasion for one is named; a longer grace of the template stands."""

    def grace(**checkpoint: Any) -> int:
        spec = {"checkpoint": {"destination": "pvc://there/run", "timeoutSeconds": 100, **checkpoint}}
        servers = next(one for one in manifests_of(job_object(spec)) if one["kind"] == "StatefulSet")
        found: int = servers["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        return found

    assert grace() == 115
    assert grace(on=["Delete"]) == 115
    assert grace(on=[]) == 30


@pytest.mark.parametrize("name", JOBS)
def test_kubernetes_would_take_them(name: str) -> None:
    """Each is valid by Kubernetes' own schema, strictly: no field that it does not know."""
    for manifest in manifests_of(job_object(JOBS[name])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kubernetes_validate.validate(manifest, "1.34", strict=True)


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a manifest's pods."""
    pod = manifest["spec"]["template"]["spec"]
    return [*pod["containers"], *pod.get("initContainers", ())]


@pytest.mark.parametrize("name", JOBS)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    """Not root, no privilege, no capability, the default seccomp profile, and no token of any account."""
    for manifest in manifests_of(job_object(JOBS[name])):
        if "template" not in manifest.get("spec", {}):
            continue
        pod = manifest["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == "flights-tablebay"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        own = [one for one in containers(manifest) if one["name"] in ("server", "worker", "fetch", "side")]
        for container in own:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_every_container_of_a_template_is_secured() -> None:
    """Those beside the server too: the namespace would refuse the pod."""
    (servers,) = (one for one in manifests_of(job_object(JOBS["everything"])) if one["kind"] == "StatefulSet")
    for container in containers(servers):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_worker_finds_what_a_local_run_gives_it() -> None:
    """The variables of a local run, ours first, so that the user's own may name them."""
    (workers,) = (one for one in manifests_of(job_object(JOBS["everything"])) if one["kind"] == "Job")
    worker = next(one for one in containers(workers) if one["name"] == "worker")
    names = [variable["name"] for variable in worker["env"]]
    assert names[-1] == "WHERE"
    assert {
        *("TABLEBAY_JOB", "TABLEBAY_ROLE", "TABLEBAY_RANK", "TABLEBAY_WORKERS", "TABLEBAY_GENERATION"),
        *("TABLEBAY_SERVERS", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    } <= set(names)
    values = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert values["TABLEBAY_SERVERS"] == "flights-server-{0..2}.flights-servers:7070"
    assert values["MASTER_ADDR"] == "flights-worker-0.flights-workers"
    assert values["WORLD_SIZE"] == "4"
    assert workers["spec"]["template"]["spec"]["subdomain"] == "flights-workers"


def test_names_fit_what_kubernetes_allows() -> None:
    """With the longest name of a job: 63 characters for each object, pod and host name."""
    longest = "j" * JOB_NAME_CHARACTERS_MAX
    for suffix in (
        "-server-1023",
        "-worker-9999-abcde",
        "-servers",
        "-workers",
        "-tablebay",
        "-server-0123456789",
    ):
        assert len(longest + suffix) <= 63
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest + suffix)


def test_a_hash_changes_with_its_object_alone() -> None:
    """The same job gives the same hashes; another number of servers another one of the StatefulSet only."""

    def hashes(change: dict[str, Any]) -> dict[str, str]:
        return {
            f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["annotations"]["tablebay.dev/hash"]
            for one in manifests_of(job_object(change))
        }

    assert hashes({}) == hashes({})
    other = hashes({"servers": {"replicas": 2, "onFinish": "Retain"}})
    assert other == hashes({})
    changed = {
        name for name, value in hashes({"servers": {"replicas": 5}}).items() if hashes({})[name] != value
    }
    assert changed == {"StatefulSet/flights-server"}


def test_the_image_of_servers_is_the_jobs_else_the_recorded_else_the_charts() -> None:
    """In this order."""
    job, own = job_object(), job_object({"servers": {"replicas": 2, "image": "own:1"}})
    assert manifests.server_image(own, DEFAULTS, "recorded:1") == "own:1"
    assert manifests.server_image(job, DEFAULTS, "recorded:1") == "recorded:1"
    assert manifests.server_image(job, DEFAULTS, "") == DEFAULTS.server_image
