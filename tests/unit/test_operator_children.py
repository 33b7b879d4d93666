"""The objects that the operator makes of a job."""

from __future__ import annotations

import ipaddress
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from unit.operator_world import CHECKPOINT, DEFAULTS, World, job_object, manifests_of

from tablebay.client.job import JOB_NAME_CHARACTERS_MAX
from tablebay.client.local import checkpoints
from tablebay.operator import manifests, projections
from tablebay.operator.manifests import Defaults
from tablebay.ps_server.config import read_config

GOLDEN = Path(__file__).parent / "golden" / "operator"
WORKER = {
    "name": "worker",
    "command": ["python", "train.py"],
    "env": [{"name": "WHERE", "value": "rank $(TABLEBAY_RANK)"}],
    "resources": {"limits": {"nvidia.com/gpu": 1}},
}
JOBS: dict[str, dict[str, Any]] = {
    "flights": {},
    "durable": {"checkpoint": CHECKPOINT},
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
    "volcano": {"scheduling": {"gang": "Volcano", "queue": "ads", "priorityClassName": "prod"}},
    "coscheduling": {"scheduling": {"gang": "Coscheduling", "schedulerName": "coscheduler"}},
}
# A job with a gang has a PodGroup, which wants so many pods at once.
AT_ONCE = {"volcano": 4, "coscheduling": 2}


@pytest.mark.parametrize("name", JOBS)
def test_the_objects_of_a_job_are_the_golden_ones(name: str) -> None:
    """A change of what the operator makes shows in the diff of a file; write it anew with WRITE_GOLDEN=1."""
    import os

    options = {"pod_monitors": True, "pods_at_once": AT_ONCE.get(name, 0)}
    text = yaml.safe_dump_all(manifests_of(job_object(JOBS[name]), **options), sort_keys=False)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text)
    assert file.read_text() == text


@pytest.mark.parametrize("name", JOBS)
def test_kubernetes_would_take_them(name: str) -> None:
    """Each is valid by Kubernetes' own schema, strictly: no field that it does not know."""
    manifests = list(manifests_of(job_object(JOBS[name])))
    assert {"StatefulSet", "Job"} <= {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
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
        "-server-tls-2",
        "-worker-tls-19",
        "-authority",
    ):
        assert len(longest + suffix) <= 63
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest + suffix)


def servers_of(change: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The StatefulSet of a job with a checkpoint and these fields."""
    job = job_object({"checkpoint": CHECKPOINT, **change})
    (found,) = (one for one in manifests_of(job, **options) if one["kind"] == "StatefulSet")
    return found


def variables(manifest: dict[str, Any]) -> dict[str, str]:
    """Of a StatefulSet's server."""
    (server,) = (one for one in containers(manifest) if one["name"] == "server")
    return {one["name"]: one.get("value", "") for one in server["env"]}


def test_servers_are_told_of_checkpoints_as_a_local_run_tells_them(tmp_path: Path) -> None:
    """The same variables with the same values, but for where the folder is."""
    job = job_object({"checkpoint": CHECKPOINT, "restore": {"from": "pvc://other/run", "policy": "Required"}})
    local = checkpoints.variables(job.model, tmp_path)
    found = variables(servers_of({"restore": {"from": "pvc://other/run", "policy": "Required"}}))
    assert set(local) <= set(found)
    folders = {"TABLEBAY_CHECKPOINT", "TABLEBAY_RESTORE_FROM"}
    for name in set(local) - folders:
        assert found[name] == local[name], name
    assert found["TABLEBAY_CHECKPOINT"] == "/var/lib/tablebay-claims/flights-checkpoints/run"
    assert found["TABLEBAY_RESTORE_FROM"] == "/var/lib/tablebay-claims/other/run"
    assert {name: local[name].removeprefix(str(tmp_path)) for name in folders} == {
        "TABLEBAY_CHECKPOINT": "/volumes/flights-checkpoints/run",
        "TABLEBAY_RESTORE_FROM": "/volumes/other/run",
    }


def test_servers_take_what_they_are_told() -> None:
    """The server itself reads the variables: it refuses what it does not know."""
    found = read_config([], {**variables(servers_of({})), "TABLEBAY_INDEX": "0"}).checkpoint
    assert found is not None
    assert (found.every_s, found.timeout_s, found.full_every, found.retain_last) == (60, 120, 12, 5)
    assert (found.restore_from, found.restore_required) == ("Latest", False)


def test_a_claim_is_mounted_where_the_variables_say() -> None:
    """One volume for each claim; that of another job is read alone."""
    pod = servers_of({"restore": {"from": "pvc://other/run"}})["spec"]["template"]["spec"]
    claims = {
        one["name"]: one["persistentVolumeClaim"] for one in pod["volumes"] if "persistentVolumeClaim" in one
    }
    assert claims == {
        "checkpoints": {"claimName": "flights-checkpoints"},
        "restore": {"claimName": "other", "readOnly": True},
    }
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounts["checkpoints"] == "/var/lib/tablebay-claims/flights-checkpoints"
    assert mounts["restore"] == "/var/lib/tablebay-claims/other"
    same = servers_of({"restore": {"from": "pvc://flights-checkpoints/older"}})["spec"]["template"]["spec"]
    assert len([one for one in same["volumes"] if "persistentVolumeClaim" in one]) == 1


def test_servers_have_time_for_a_last_checkpoint() -> None:
    """The pod's grace is longer than the server's own, and that longer than timeoutSeconds; a template may say less."""
    pod = servers_of({})["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 150
    assert variables(servers_of({}))["TABLEBAY_GRACE_SECONDS"] == "140"
    own = {"replicas": 2, "template": {"spec": {"terminationGracePeriodSeconds": 5, "containers": []}}}
    assert servers_of({"servers": own})["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 5
    assert variables(servers_of({"servers": own}))["TABLEBAY_GRACE_SECONDS"] == "1"
    said = {"name": "server", "env": [{"name": "TABLEBAY_GRACE_SECONDS", "value": "7"}]}
    own = {"replicas": 2, "template": {"spec": {"containers": [said]}}}
    assert variables(servers_of({"servers": own}))["TABLEBAY_GRACE_SECONDS"] == "7"


def test_servers_share_a_node_where_the_claim_is_of_one() -> None:
    """ReadWriteOnce is mounted by one node; one server, or ReadWriteMany, may be anywhere. A template's rules stay."""
    wanted = {
        "labelSelector": {"matchLabels": {"tablebay.dev/job": "flights", "tablebay.dev/role": "server"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    pod = servers_of({})["spec"]["template"]["spec"]
    assert pod["affinity"] == {"podAffinity": {key: [wanted]}}
    many = {"checkpoint": {**CHECKPOINT, "claim": {"size": "1Gi"}}}
    assert "affinity" not in servers_of(many)["spec"]["template"]["spec"]
    assert "affinity" not in servers_of({"servers": {"replicas": 1}})["spec"]["template"]["spec"]
    node = {"nodeAffinity": {"x": 1}, "podAffinity": {key: [{"topologyKey": "zone"}]}}
    own = {"replicas": 2, "template": {"spec": {"affinity": node, "containers": []}}}
    found = servers_of({"servers": own})["spec"]["template"]["spec"]["affinity"]
    assert found == {"nodeAffinity": {"x": 1}, "podAffinity": {key: [{"topologyKey": "zone"}, wanted]}}


def test_one_server_at_a_time_may_be_evicted_where_it_comes_back() -> None:
    """None otherwise: its rows would be lost."""
    budgets = {
        name: next(one for one in manifests_of(job_object(change)) if one["kind"] == "PodDisruptionBudget")
        for name, change in JOBS.items()
    }
    assert budgets["durable"]["spec"]["maxUnavailable"] == 1
    assert budgets["flights"]["spec"]["maxUnavailable"] == 0


OPERATOR = {"app.kubernetes.io/name": "tablebay", "app.kubernetes.io/component": "operator"}


def lets_in(policy: dict[str, Any], namespace: str, labels: dict[str, str], port: int) -> bool:
    """Whether a NetworkPolicy in namespace ads lets a pod's connection in, as its API documents it."""

    def chosen(peer: dict[str, Any]) -> bool:
        of_namespace = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "ads"}})
        return all(
            found.get(name) == value
            for selector, found in (
                (of_namespace, {"kubernetes.io/metadata.name": namespace}),
                (peer["podSelector"], labels),
            )
            for name, value in selector["matchLabels"].items()
        )

    return any(
        ("from" not in rule or any(map(chosen, rule["from"])))
        and ("ports" not in rule or any(one["port"] == port for one in rule["ports"]))
        for rule in policy["spec"]["ingress"]
    )


def policies(made: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The NetworkPolicies by name."""
    return {one["metadata"]["name"]: one for one in made if one["kind"] == "NetworkPolicy"}


def lets_out(made: list[dict[str, Any]], own: dict[str, str], to: str | dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of these labels connect to an address, or to a pod of these labels in `ads`.

    As their API documents it: what one of those that select the pod allows is allowed.
    """
    for policy in policies(made).values():
        spec = policy["spec"]
        if (
            not spec["podSelector"]["matchLabels"].items() <= own.items()
            or "Egress" not in spec["policyTypes"]
        ):
            continue
        for rule in spec["egress"]:
            ports = {one["port"] for one in rule.get("ports", ())}
            if (not ports or port in ports) and (
                "to" not in rule or any(_is_peer(one, to) for one in rule["to"])
            ):
                return True
    return False


def _is_peer(peer: dict[str, Any], to: str | dict[str, str]) -> bool:
    if isinstance(to, dict):
        if "ipBlock" in peer:
            return False
        return peer.get("podSelector", {}).get("matchLabels", {}).items() <= to.items()
    address, block = ipaddress.ip_address(to), peer.get("ipBlock")
    if block is None or address not in ipaddress.ip_network(block["cidr"]):
        return False
    return not any(address in ipaddress.ip_network(one) for one in block["except"])


def test_servers_reach_their_job_and_names_alone_and_workers_no_metadata_service() -> None:
    """By rendered selectors. A node's cache of names, which has such an address, is asked all the same."""
    made = manifests_of(job_object())
    found = {one["kind"]: one for one in made}
    server, worker = (
        found[kind]["spec"]["template"]["metadata"]["labels"] for kind in ("StatefulSet", "Job")
    )
    elsewhere = {**worker, "tablebay.dev/job": "other"}
    metadata = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")
    for own in (server, worker):
        for to in (server, worker):
            assert lets_out(made, own, to, 7070)
        for address in metadata:
            assert not lets_out(made, own, address, 80)
        assert lets_out(made, own, "169.254.20.10", 53)
        assert lets_out(made, own, {"k8s-app": "kube-dns"}, 53)
    for to in ("10.0.0.9", "203.0.113.7", "2001:db8::7", elsewhere, {"app": "examples"}):
        assert not lets_out(made, server, to, 443)
        assert lets_out(made, worker, to, 443)


def test_only_the_jobs_own_pods_and_the_operator_are_let_in() -> None:
    """By the labels that the pods are made with, in the job's namespace; at the port of metrics everybody is."""
    made = manifests_of(job_object())
    found = {one["kind"]: one for one in made}
    policy = policies(made)["flights"]
    for kind in ("StatefulSet", "Job"):
        labels = found[kind]["spec"]["template"]["metadata"]["labels"]
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        for port in (7070, 7072, 29500):
            assert lets_in(policy, "ads", labels, port)
            assert not lets_in(policy, "search", labels, port), "a job of the same name elsewhere"
            assert not lets_in(policy, "ads", {**labels, "tablebay.dev/job": "other"}, port)
    for port in (7070, 7072):
        assert lets_in(policy, "tablebay-system", OPERATOR, port)
        assert not lets_in(policy, "ads", OPERATOR, port), "a pod that gives itself the operator's labels"
        assert not lets_in(policy, "ads", {}, port)
    assert lets_in(policy, "monitoring", {}, 7071)
    assert policies(made)["flights-workers"]["spec"]["policyTypes"] == ["Egress"]


def test_metrics_are_for_those_alone_whom_the_chart_names() -> None:
    """Other pods of the job reach all; the operator's ports stay its own."""
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        "podSelector": {"matchLabels": {"app": "prometheus"}},
    }
    asked = replace(DEFAULTS, metrics_from=json.dumps([peer]))
    job = job_object({})
    policy = policies(manifests.children(job, asked))["flights"]
    kubernetes_validate.validate(policy, "1.34", strict=True)
    assert lets_in(policy, "monitoring", {"app": "prometheus"}, 7071)
    assert not lets_in(policy, "monitoring", {"app": "grafana"}, 7071)
    assert not lets_in(policy, "ads", {"app": "prometheus"}, 7071)
    assert not lets_in(policy, "monitoring", {"app": "prometheus"}, 7070)
    assert lets_in(policy, "ads", {"tablebay.dev/job": "flights"}, 7071)
    assert lets_in(policy, "tablebay-system", OPERATOR, 7070)
    assert not lets_in(policy, "tablebay-system", OPERATOR, 7071)


def test_an_open_job_has_no_network_policy() -> None:
    """It is not made, and goes if it was there before the spec said so."""
    opened = job_object({"network": {"policy": "Open"}})
    assert "NetworkPolicy" not in {one["kind"] for one in manifests_of(opened)}
    world = World()
    world.train()
    assert ("NetworkPolicy", "flights") in world.objects
    world.ask(network={"policy": "Open"})
    world.look()
    assert "NetworkPolicy" not in {kind for kind, _ in world.objects}
    assert world.reason == "Training"
    world.ask(network={"policy": "Isolated"})
    world.look()
    assert ("NetworkPolicy", "flights") in world.objects


def test_a_suspended_job_wants_no_server() -> None:
    """The set stays, so that the volumes of servers.storage do."""
    assert servers_of({}, servers_run=False)["spec"]["replicas"] == 0
    assert servers_of({})["spec"]["replicas"] == 2


def test_the_claim_belongs_to_nobody() -> None:
    """It holds data: the job's deletion leaves it."""
    found = manifests.claim(job_object({"checkpoint": CHECKPOINT}))
    assert found is not None
    kubernetes_validate.validate(found, "1.34", strict=True)
    assert "ownerReferences" not in found["metadata"]
    assert found["metadata"]["name"] == "flights-checkpoints"
    assert found["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fast",
    }
    assert manifests.claim(job_object({"checkpoint": {**CHECKPOINT, "claim": None}})) is None
    assert manifests.claim(job_object()) is None


@pytest.mark.parametrize(
    ("modes", "servers", "given", "words"),
    [
        (["ReadWriteMany"], 2, None, ""),
        (["ReadWriteOnce"], 1, None, ""),
        (["ReadWriteOncePod"], 1, None, ""),
        (["ReadWriteOnce"], 2, {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}, ""),
        (["ReadWriteOnce"], 2, None, "with accessModes [ReadWriteOnce] for 2 servers"),
        (["ReadWriteOnce"], 2, {"size": "1Gi"}, "with accessModes [ReadWriteOnce] for 2 servers"),
        (["ReadWriteOncePod"], 2, {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}, "[ReadWriteOncePod]"),
        (["ReadOnlyMany"], 1, None, "with accessModes [ReadOnlyMany]"),
        (None, 2, None, "found no PersistentVolumeClaim flights-checkpoints in namespace ads"),
        (None, 2, {"size": "1Gi"}, ""),
    ],
)
def test_a_claim_that_not_every_server_sees_is_refused(
    modes: list[str] | None, servers: int, given: dict[str, Any] | None, words: str
) -> None:
    """With the name, what was found and what is wanted."""
    job = job_object({"checkpoint": {**CHECKPOINT, "claim": given}, "servers": {"replicas": servers}})
    found = None if modes is None else {"metadata": {}, "spec": {"accessModes": modes}}
    problem = manifests.claim_problem(job, found)
    assert (words in problem) if words else not problem
    assert not problem or "wanted" in problem


@pytest.mark.parametrize(
    ("found", "kept", "words"),
    [
        (
            {"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}},
            None,
            "is being deleted; wanted it gone",
        ),
        ({"metadata": {}, "status": {"phase": "Lost"}}, 3, "is Lost: its PersistentVolume is gone"),
        (None, 3, "which held checkpoint 3 of this job; wanted it back"),
        (None, 0, "which held checkpoint 0 of this job; wanted it back"),
    ],
)
def test_a_claim_that_is_on_its_way_or_was_there_is_refused(
    found: dict[str, Any] | None, kept: int | None, words: str
) -> None:
    """Also of a job that describes its claim: another one in its place would be empty."""
    job = job_object({"checkpoint": {**CHECKPOINT, "claim": {"size": "1Gi"}}})
    assert words in manifests.claim_problem(job, found, kept=kept)


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


def test_the_image_of_servers_is_the_jobs_else_the_one_they_were_begun_with_else_the_charts() -> None:
    """In this order."""
    job, own = job_object(), job_object({"servers": {"replicas": 2, "image": "own:1"}})
    (servers,) = (one for one in manifests_of(job) if one["kind"] == "StatefulSet")
    servers["metadata"] |= {"uid": "u-2", "resourceVersion": "1"}
    newer = Defaults("registry/tablebay:2", "Always")
    begun = newer.as_begun(projections.stateful_set(servers))
    assert manifests.server_image(own, begun) == "own:1"
    assert manifests.server_image(job, begun) == DEFAULTS.server_image
    assert manifests.server_image(job, newer.as_begun(None)) == "registry/tablebay:2"
