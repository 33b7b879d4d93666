"""A job's children: pure functions from the job to the objects that the API server is to hold."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tablebay.client import environment as names
from tablebay.client.job import TrainingJob, Workers
from tablebay.client.tables import dump_tables
from tablebay.operator import pod_tls
from tablebay.operator.cluster import POD_GROUPS, Manifest
from tablebay.operator.native_policy import NO_LIMIT, judged_here, native_rules, success
from tablebay.operator.projections import (
    HASH_ANNOTATION,
    IMAGE_ANNOTATION,
    INDEX_LABEL,
    PULL_POLICY_ANNOTATION,
    RANK_LABEL,
    SERVER_CONTAINER,
    SERVER_COUNT_ANNOTATION,
    TLS_ANNOTATION,
    StatefulSet,
)

SERVER, WORKER = "server", "worker"
SHARD_VOLUME, SHARD_FOLDER = "shards", "/var/lib/tablebay"
MASTER_PORT = 29500
# Where each claim with checkpoints is mounted, by its name.
CLAIM_VOLUME, CLAIM_FOLDER = "checkpoints", "/var/lib/tablebay-claims"
# SIGTERM to the end: a server drains, a worker ends its step.
GRACE_SECONDS = 30
# Of its pod's time a server leaves so much to end in.
_GRACE_LEFT_SECONDS = 10

_GRACE = "TABLEBAY_GRACE_SECONDS"


@dataclass(frozen=True)
class JobObject:
    """A TrainingJob as the API server has it. spec: the raw one, of which `model` is the checked form."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: str
    deleting: bool
    spec: Mapping[str, Any]
    model: TrainingJob
    # When it was told to go, and who holds it.
    deleted: str = ""
    finalizers: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    # What was made of this generation of the job before: most looks want the same again.
    made: dict[Any, list[Manifest]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def servers_name(self) -> str:
        """Of the StatefulSet; with a hyphen and an index the name of a server's pod."""
        return f"{self.name}-server"

    @property
    def account_name(self) -> str:
        """Of the ServiceAccount of all its pods: whatever becomes of their labels, they have it."""
        return f"{self.name}-tablebay"

    @property
    def workers_name(self) -> str:
        """Of the workers' Job; with a hyphen and a rank a worker's host name."""
        return f"{self.name}-worker"

    @property
    def world(self) -> int:
        """The job's generation for its processes: a job made anew under the same name has a higher one."""
        moment = datetime.datetime.fromisoformat(self.created)
        return int(moment.timestamp())

    @property
    def server_addresses(self) -> list[str]:
        """The servers' data addresses, as the operator finds them."""
        domain = f"{self.name}-servers.{self.namespace}.svc:{names.DATA_PORT}"
        return [f"{self.servers_name}-{index}.{domain}" for index in range(self.model.spec.servers.replicas)]

    @property
    def server_pattern(self) -> str:
        """The servers' data addresses, as workers find them."""
        last = self.model.spec.servers.replicas - 1
        return f"{self.servers_name}-{{0..{last}}}.{self.name}-servers:{names.DATA_PORT}"


@dataclass(frozen=True)
class Defaults:
    """What the chart says of pods. server_image, server_pull_policy: for jobs that name none.

    operator_namespace: from where the operator's pods speak with servers, "" where it runs outside the cluster.
    gang: the scheduler whose PodGroups the operator may write, "" if none. pod_monitor_labels: names and values, by
    which a Prometheus finds the PodMonitors. metrics_from: who may ask pods for metrics, as the `from` of a
    NetworkPolicy in JSON, "" for anybody.
    """

    server_image: str
    server_pull_policy: str
    operator_namespace: str = ""
    gang: str = ""
    pod_monitor_labels: tuple[tuple[str, str], ...] = ()
    metrics_from: str = ""

    def as_begun(self, servers: StatefulSet | None) -> Defaults:
        """The same, but with the image and the pull policy of servers that are there: no newer chart changes those."""
        if servers is None:
            return self
        return replace(
            self,
            server_image=servers.image or self.server_image,
            server_pull_policy=servers.pull_policy or self.server_pull_policy,
        )


def labels(job: JobObject, role: str) -> dict[str, str]:
    """By which a job's objects are found."""
    return {
        names.JOB_LABEL: job.name,
        names.ROLE_LABEL: role,
        "app.kubernetes.io/name": "tablebay",
        "app.kubernetes.io/instance": job.name,
        "app.kubernetes.io/component": role,
        "app.kubernetes.io/managed-by": "tablebay-operator",
    }


def selector(job: JobObject, role: str) -> dict[str, str]:
    """The labels that pods of a role are selected by."""
    return {names.JOB_LABEL: job.name, names.ROLE_LABEL: role}


def child_names(job: JobObject) -> frozenset[tuple[str, str]]:
    """Kind and name of every object that a job can have."""
    return frozenset(
        {
            ("ServiceAccount", job.account_name),
            ("Service", f"{job.name}-servers"),
            ("Service", f"{job.name}-workers"),
            ("Job", job.workers_name),
            ("StatefulSet", job.servers_name),
            ("PodDisruptionBudget", f"{job.name}-servers"),
            ("PodMonitor", job.name),
            ("NetworkPolicy", job.name),
            ("NetworkPolicy", f"{job.name}-workers"),
            ("PodGroup", job.name),
        }
    )


def unwanted(job: JobObject, *, servers_run: bool = True) -> list[tuple[str, str]]:
    """Kind and name of what a job may have had before, and is not to have any more."""
    spec = job.model.spec
    return [
        *([("PodMonitor", job.name)] if spec.monitoring.pod_monitor == "Disabled" else ()),
        *(
            (one for one in child_names(job) if one[0] == "NetworkPolicy")
            if spec.network.policy == "Open"
            else ()
        ),
        # Without pods it would hold a place in its queue.
        *([("PodGroup", job.name)] if not servers_run else ()),
    ]


def server_image(job: JobObject, defaults: Defaults) -> str:
    """The job's own; else the default."""
    return job.model.spec.servers.image or defaults.server_image


def children(
    job: JobObject,
    defaults: Defaults,
    *,
    pod_monitors: bool = False,
    servers_run: bool = True,
    pods_at_once: int = 0,
    tls: bool = True,
) -> list[Manifest]:
    """Every object of a job that has not ended, in the order in which they are made. Nobody is to change them.

    defaults: as the servers that are there were begun, if any are.
    pod_monitors: the cluster knows PodMonitors. servers_run: no, of a job that is suspended.
    pods_at_once: that must find room together; 0: there is no PodGroup. tls: between its pods.
    """
    key = (
        *(job.uid, job.namespace, job.name, job.created),
        *(defaults, pod_monitors, servers_run, pods_at_once, tls),
    )
    if key not in job.made:
        job.made[key] = _children(job, defaults, pod_monitors, servers_run, pods_at_once, tls=tls)
    return job.made[key]


def _children(
    job: JobObject,
    defaults: Defaults,
    pod_monitors: bool,
    servers_run: bool,
    pods_at_once: int,
    *,
    tls: bool,
) -> list[Manifest]:
    image = server_image(job, defaults)
    return [
        _object(job, "v1", "ServiceAccount", job.account_name, "job", automountServiceAccountToken=False),
        _service(job, f"{job.name}-servers", SERVER, _SERVER_PORTS),
        _service(job, f"{job.name}-workers", WORKER, (("master", MASTER_PORT),)),
        worker_job(job, defaults, image, tls=tls),
        stateful_set(job, defaults, image, run=servers_run, tls=tls),
        disruption_budget(job),
        *([pod_group(job, pods_at_once)] if pods_at_once and servers_run else ()),
        *(network_policies(job, defaults) if job.model.spec.network.policy == "Isolated" else ()),
        *(
            [pod_monitor(job, defaults)]
            if pod_monitors and job.model.spec.monitoring.pod_monitor != "Disabled"
            else ()
        ),
    ]


_SERVER_PORTS = (("data", names.DATA_PORT), ("http", names.HTTP_PORT), ("control", names.CONTROL_PORT))


def _object(
    job: JobObject,
    api: str,
    kind: str,
    name: str,
    role: str,
    more_labels: Mapping[str, str] | None = None,
    **content: Any,
) -> Manifest:
    manifest = {
        "apiVersion": api,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": {**(more_labels or {}), **labels(job, role)},
            "annotations": {},
            "ownerReferences": [owner_reference(job)],
        },
        **content,
    }
    manifest["metadata"]["annotations"] = {HASH_ANNOTATION: digest(manifest)}
    return manifest


def owner_reference(job: JobObject) -> dict[str, Any]:
    """Of what Kubernetes deletes with the job."""
    return {
        "apiVersion": job.model.api_version,
        "kind": job.model.kind,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
    }


def digest(content: Any) -> str:
    """Of a manifest, for the annotation that says which one an object was made of."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _service(job: JobObject, name: str, role: str, ports: tuple[tuple[str, int], ...]) -> Manifest:
    return _object(
        job,
        "v1",
        "Service",
        name,
        role,
        spec={
            "clusterIP": "None",
            # A server that restores itself and a worker that starts are found before they are ready.
            "publishNotReadyAddresses": True,
            "selector": selector(job, role),
            "ports": [{"name": port, "port": number, "targetPort": number} for port, number in ports],
        },
    )


def disruption_budget(job: JobObject) -> Manifest:
    """So many servers may be evicted at a time as the job says, or one; none while their rows would be lost."""
    budget = job.model.spec.servers.pod_disruption_budget
    return _object(
        job,
        "policy/v1",
        "PodDisruptionBudget",
        f"{job.name}-servers",
        SERVER,
        spec={
            "maxUnavailable": int(job.model.spec.durable) if budget is None else budget.max_unavailable,
            "selector": {"matchLabels": selector(job, SERVER)},
        },
    )


def pod_group(job: JobObject, members: int) -> Manifest:
    """For the scheduler of spec.scheduling.gang: so many of the job's pods find room together, or none does."""
    scheduling = job.model.spec.scheduling
    spec: dict[str, Any] = {"minMember": members}
    if scheduling.gang == "Volcano":
        if scheduling.queue:
            spec["queue"] = scheduling.queue
        if scheduling.priority_class_name:
            spec["priorityClassName"] = scheduling.priority_class_name
    return _object(job, POD_GROUPS[scheduling.gang].api, "PodGroup", job.name, "job", spec=spec)


def _join_gang(job: JobObject, metadata: dict[str, Any], pod: dict[str, Any]) -> None:
    """What of a pod says to which PodGroup it belongs."""
    gang = job.model.spec.scheduling.gang
    if gang == "Volcano":
        metadata["annotations"]["scheduling.k8s.io/group-name"] = job.name
        pod.setdefault("schedulerName", "volcano")
    elif gang == "Coscheduling":
        metadata["labels"]["scheduling.x-k8s.io/pod-group"] = job.name


# Where clouds answer whoever runs on a machine with that machine's rights.
_METADATA = {"0.0.0.0/0": ["169.254.0.0/16"], "::/0": ["fd00:ec2::254/128", "fe80::/10"]}


def network_policies(job: JobObject, defaults: Defaults) -> list[Manifest]:
    """Who speaks with whom. Both hold for workers: what one of them lets through is let through."""
    return [_network_policy(job, defaults), _workers_way_out(job)]


def _network_policy(job: JobObject, defaults: Defaults) -> Manifest:
    """Into the job's pods come its own pods, the operator, and at the port named http whoever may ask for metrics.

    Out of them goes what is for its own pods, or asks for a name. Servers need no more: kubelets mount their claims.
    """
    own = {names.JOB_LABEL: job.name}
    whoever = {"from": json.loads(defaults.metrics_from)} if defaults.metrics_from else {}
    ingress: list[dict[str, Any]] = [
        {"from": [{"podSelector": {"matchLabels": own}}]},
        {**whoever, "ports": [{"port": names.HTTP_PORT, "protocol": "TCP"}]},
    ]
    if defaults.operator_namespace:
        operator = {
            "namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": defaults.operator_namespace}
            },
            "podSelector": {
                "matchLabels": {
                    "app.kubernetes.io/name": "tablebay",
                    "app.kubernetes.io/component": "operator",
                }
            },
        }
        ports = [{"port": port, "protocol": "TCP"} for port in (names.DATA_PORT, names.CONTROL_PORT)]
        ingress.append({"from": [operator], "ports": ports})
    return _object(
        job,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        job.name,
        "job",
        spec={
            "podSelector": {"matchLabels": own},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": [
                {"to": [{"podSelector": {"matchLabels": own}}]},
                # A node's cache of names may have an address of the metadata services' range.
                {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
            ],
        },
    )


def _workers_way_out(job: JobObject) -> Manifest:
    """Workers read their examples from anywhere but the machine's metadata service."""
    blocks = [{"ipBlock": {"cidr": cidr, "except": without}} for cidr, without in _METADATA.items()]
    return _object(
        job,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        f"{job.name}-workers",
        WORKER,
        spec={
            "podSelector": {"matchLabels": selector(job, WORKER)},
            "policyTypes": ["Egress"],
            # Some plugins take no pod's address for one of a block.
            "egress": [{"to": [{"namespaceSelector": {}}, *blocks]}],
        },
    )


def pod_monitor(job: JobObject, defaults: Defaults) -> Manifest:
    """For the Prometheus operator: the pods of servers and workers, each at its port named http."""
    return _object(
        job,
        "monitoring.coreos.com/v1",
        "PodMonitor",
        job.name,
        "job",
        dict(defaults.pod_monitor_labels),
        spec={
            "selector": {"matchLabels": {names.JOB_LABEL: job.name}},
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics"}],
            "podTargetLabels": [names.JOB_LABEL, names.ROLE_LABEL],
        },
    )


def split_destination(destination: str) -> tuple[str, str]:
    """The claim and the folder of `pvc://claim/folder`."""
    claim, _, folder = destination.removeprefix("pvc://").partition("/")
    return claim, folder


def mounted(destination: str) -> str:
    """Where a server finds it."""
    return f"{CLAIM_FOLDER}/{'/'.join(split_destination(destination))}"


def claim(job: JobObject) -> Manifest | None:
    """The claim of the job's checkpoints, if it is the operator's to make. Nobody owns it: it outlives the job."""
    checkpoint = job.model.spec.checkpoint
    if checkpoint is None or checkpoint.claim is None:
        return None
    given = checkpoint.claim
    spec: dict[str, Any] = {
        "accessModes": list(given.access_modes),
        "resources": {"requests": {"storage": str(given.size)}},
    }
    if given.storage_class_name:
        spec["storageClassName"] = given.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": split_destination(checkpoint.destination)[0],
            "namespace": job.namespace,
            "labels": labels(job, SERVER),
        },
        "spec": spec,
    }


def claim_problem(job: JobObject, found: Mapping[str, Any] | None, *, kept: int | None = None) -> str:
    """Why the destination cannot be used with the claim that is there, or "". kept: the last checkpoint made in it."""
    checkpoint = job.model.spec.checkpoint
    if checkpoint is None:
        return ""
    name = split_destination(checkpoint.destination)[0]
    if found is None:
        if kept is not None:
            # Another one in its place would be empty, and the job would begin again without a word.
            return (
                f"found no PersistentVolumeClaim {name} in namespace {job.namespace}, which held checkpoint {kept} of "
                "this job; wanted it back, or one made by hand, with which the job begins without its rows"
            )
        if checkpoint.claim is not None:
            return ""
        return (
            f"spec.checkpoint.destination: found no PersistentVolumeClaim {name} in namespace {job.namespace}; "
            "wanted it made, or spec.checkpoint.claim, so that it is made"
        )
    if "deletionTimestamp" in found["metadata"]:
        return f"PersistentVolumeClaim {name} is being deleted; wanted it gone, or another claim"
    if (found.get("status") or {}).get("phase") == "Lost":
        return f"PersistentVolumeClaim {name} is Lost: its PersistentVolume is gone; wanted it back, or another claim"
    modes = found.get("spec", {}).get("accessModes") or []
    # One node is enough where there is one server, or where the servers are put together on purpose.
    enough = {"ReadWriteMany"}
    if checkpoint.one_node or job.model.spec.servers.replicas == 1:
        enough |= {"ReadWriteOnce"}
    if job.model.spec.servers.replicas == 1:
        enough |= {"ReadWriteOncePod"}
    if enough & set(modes):
        return ""
    return (
        f"spec.checkpoint.destination: found PersistentVolumeClaim {name} with accessModes "
        f"[{', '.join(modes)}] for {job.model.spec.servers.replicas} servers, which may be on several nodes; wanted "
        "ReadWriteMany, or spec.checkpoint.claim.accessModes [ReadWriteOnce], which puts them on one"
    )


def server_grace_seconds(job: JobObject) -> int:
    """SIGTERM to SIGKILL of a server."""
    checkpoint = job.model.spec.checkpoint
    default = GRACE_SECONDS if checkpoint is None else checkpoint.timeout_seconds + GRACE_SECONDS
    return _grace_seconds(job.spec["servers"].get("template"), default)


def worker_grace_seconds(job: JobObject) -> int:
    """SIGTERM to SIGKILL of a worker."""
    return _grace_seconds(job.spec["workers"].get("template"), GRACE_SECONDS)


def _grace_seconds(template: Mapping[str, Any] | None, default: int) -> int:
    given = ((template or {}).get("spec") or {}).get("terminationGracePeriodSeconds")
    # The API server is the one that refuses another thing.
    return given if isinstance(given, int) and given >= 0 else default


def _checkpoint_variables(job: JobObject) -> dict[str, str]:
    """What servers are told of checkpoints; nothing where the job makes none."""
    spec = job.model.spec
    checkpoint = spec.checkpoint
    if checkpoint is None:
        return {}
    source = spec.restore.from_
    return {
        names.CHECKPOINT: mounted(checkpoint.destination),
        names.CHECKPOINT_EVERY_SECONDS: str(checkpoint.every_seconds or 0),
        names.CHECKPOINT_EVERY_STEPS: str(checkpoint.every_steps or 0),
        names.CHECKPOINT_FULL_EVERY: str(checkpoint.full_every),
        names.CHECKPOINT_RETAIN_LAST: str(checkpoint.retain.last),
        names.CHECKPOINT_TIMEOUT_SECONDS: str(checkpoint.timeout_seconds),
        names.RESTORE_FROM: source if source in ("Latest", "Never") else mounted(source),
        names.RESTORE_POLICY: spec.restore.policy,
    }


def _mount_claims(job: JobObject, pod: dict[str, Any], container: dict[str, Any]) -> None:
    spec = job.model.spec
    if spec.checkpoint is None:
        return
    own = split_destination(spec.checkpoint.destination)[0]
    _mount(
        pod, container, CLAIM_VOLUME, f"{CLAIM_FOLDER}/{own}", {"persistentVolumeClaim": {"claimName": own}}
    )
    if spec.restore.from_.startswith("pvc://"):
        other = split_destination(spec.restore.from_)[0]
        if other != own:
            source = {"persistentVolumeClaim": {"claimName": other, "readOnly": True}}
            _mount(pod, container, "restore", f"{CLAIM_FOLDER}/{other}", source)


def _put_together(job: JobObject, pod: dict[str, Any]) -> None:
    """All servers on one node, the only one that mounts their claim."""
    affinity = pod.setdefault("affinity", {}).setdefault("podAffinity", {})
    affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(
        {
            "labelSelector": {"matchLabels": selector(job, SERVER)},
            "topologyKey": "kubernetes.io/hostname",
        }
    )


def stateful_set(
    job: JobObject, defaults: Defaults, image: str, *, run: bool = True, tls: bool = True
) -> Manifest:
    """The servers. OnDelete: nothing but the end of a pod brings it a new template."""
    spec = job.model.spec
    template = _pod_template(job, SERVER, job.spec["servers"].get("template"))
    pod = template["spec"]
    checkpoint = spec.checkpoint
    container = _container(pod, SERVER_CONTAINER)
    container.setdefault("image", image)
    container.setdefault("imagePullPolicy", defaults.server_pull_policy)
    container.setdefault("command", ["tablebay-server"])
    container["env"] = [
        *_values(
            {
                **_identity(job, SERVER, tls=tls),
                "TABLEBAY_HOST": "0.0.0.0",  # noqa: S104 - a pod's address is known when it runs
                names.TABLES: dump_tables(spec.tables),
                **_checkpoint_variables(job),
                **_server_grace(job, container),
            }
        ),
        _from_label(names.INDEX, INDEX_LABEL),
        *container.get("env", ()),
    ]
    container["ports"] = [
        *({"name": name, "containerPort": number} for name, number in _SERVER_PORTS),
        *container.get("ports", ()),
    ]
    container.setdefault("readinessProbe", _probe("/readyz", periodSeconds=2, failureThreshold=2))
    container.setdefault("livenessProbe", _probe("/healthz", periodSeconds=10, failureThreshold=6))
    # A server answers once it has restored its rows.
    restores_s = checkpoint.timeout_seconds if checkpoint is not None else 0
    startup = _probe("/healthz", periodSeconds=1, failureThreshold=120 + restores_s)
    container.setdefault("startupProbe", startup)
    if tls:
        pod_tls.add(job, SERVER, pod, container, image, defaults.server_pull_policy)
    _secure(container, read_only=True)
    _last_words(container)
    for other in (*pod["containers"], *pod.get("initContainers", ())):
        if other is not container:
            _secure(other, read_only=False)
    _mount(pod, container, "tmp", "/tmp")  # noqa: S108 - the container's own
    _mount_claims(job, pod, container)
    if checkpoint is not None:
        pod["terminationGracePeriodSeconds"] = server_grace_seconds(job)
        # Each start would else look at every file of every checkpoint.
        pod["securityContext"].setdefault("fsGroupChangePolicy", "OnRootMismatch")
        if checkpoint.one_node and spec.servers.replicas > 1:
            _put_together(job, pod)
    content: dict[str, Any] = {
        "serviceName": f"{job.name}-servers",
        "replicas": spec.servers.replicas if run else 0,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": selector(job, SERVER)},
        "template": template,
    }
    storage = spec.servers.storage
    if storage is None:
        _mount(pod, container, SHARD_VOLUME, SHARD_FOLDER)
    else:
        container.setdefault("volumeMounts", []).append({"name": SHARD_VOLUME, "mountPath": SHARD_FOLDER})
        claim: dict[str, Any] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": str(storage.size)}},
        }
        if storage.storage_class_name:
            claim["storageClassName"] = storage.storage_class_name
        content["volumeClaimTemplates"] = [
            {"metadata": {"name": SHARD_VOLUME, "labels": labels(job, SERVER)}, "spec": claim}
        ]
        content["persistentVolumeClaimRetentionPolicy"] = {
            "whenDeleted": storage.retention.when_deleted,
            "whenScaled": "Retain",
        }
    manifest = _object(job, "apps/v1", "StatefulSet", job.servers_name, SERVER, spec=content)
    manifest["metadata"]["annotations"] |= {
        IMAGE_ANNOTATION: image,
        PULL_POLICY_ANNOTATION: defaults.server_pull_policy,
    }
    if tls:
        manifest["metadata"]["annotations"][TLS_ANNOTATION] = "Enabled"
    return manifest


def worker_job(job: JobObject, defaults: Defaults, image: str, *, tls: bool = True) -> Manifest:
    """The workers, held back until every server is ready. image: the servers', which has what TLS adds to a pod."""
    spec = job.model.spec
    template = _pod_template(job, WORKER, job.spec["workers"]["template"])
    pod = template["spec"]
    pod.setdefault("restartPolicy", "Never")
    # Not the template's to say: MASTER_ADDR is a name in it.
    pod["subdomain"] = f"{job.name}-workers"
    container = _container(pod, spec.workers.container.name)
    if spec.image:
        container.setdefault("image", spec.image)
    _last_words(container)
    container["env"] = [
        *_values(
            {
                **_identity(job, WORKER, tls=tls),
                names.WORKERS: _numbers(spec.workers),
                "MASTER_ADDR": f"{job.workers_name}-0.{job.name}-workers",
                "MASTER_PORT": str(MASTER_PORT),
                # Of an elastic job it would be wrong as soon as somebody comes or goes.
                **({} if spec.workers.elastic else {"WORLD_SIZE": str(spec.workers.replicas)}),
                "LOCAL_RANK": "0",
                names.METRICS_PORT: str(names.HTTP_PORT),
            }
        ),
        _from_label(names.RANK, RANK_LABEL),
        _from_label("RANK", RANK_LABEL),
        *container.get("env", ()),
    ]
    container["ports"] = [
        {"name": "http", "containerPort": names.HTTP_PORT},
        *container.get("ports", ()),
    ]
    if tls:
        pod_tls.add(job, WORKER, pod, container, image, defaults.server_pull_policy)
    for other in (*pod["containers"], *pod.get("initContainers", ())):
        if spec.image:
            other.setdefault("image", spec.image)
        _secure(other, read_only=False)
    content = {
        "completionMode": "Indexed",
        "completions": spec.workers.replicas,
        "parallelism": spec.workers.replicas,
        "suspend": True,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": native_rules(spec.run_policy.failure_policy)},
        **success(spec.run_policy.success_policy),
        **worker_limits(job),
        "template": template,
    }
    manifest = _object(job, "batch/v1", "Job", job.workers_name, WORKER, spec=content)
    manifest["metadata"]["annotations"] |= {
        HASH_ANNOTATION: digest(worker_limits(job)),
        SERVER_COUNT_ANNOTATION: str(spec.servers.replicas),
        **({TLS_ANNOTATION: "Enabled"} if tls else {}),
    }
    return manifest


def _numbers(workers: Workers) -> str:
    """What workers are told of their number. A Job's template never changes: of an elastic job server 0 knows it."""
    return f"{workers.min_replicas}..{workers.max_replicas}" if workers.elastic else str(workers.replicas)


def worker_limits(job: JobObject, *, forgiven: int = 0, trained_s: int | None = 0) -> dict[str, Any]:
    """The part of the workers' Job that may change while it runs.

    forgiven: failures of pods that a suspension ended. trained_s: before the last suspension, which Kubernetes, that
    counts from the Job's newest start, does not know of; None while nothing counts.
    """
    policy = job.model.spec.run_policy
    counted = policy.failure_policy.max_restarts + forgiven
    limits: dict[str, Any] = {
        "backoffLimit": NO_LIMIT if judged_here(policy.failure_policy) else min(NO_LIMIT, counted)
    }
    if policy.active_deadline_seconds is not None and trained_s is not None:
        limits["activeDeadlineSeconds"] = max(1, policy.active_deadline_seconds - trained_s)
    return limits


def _server_grace(job: JobObject, container: Mapping[str, Any]) -> dict[str, str]:
    """How long a server may take for its last checkpoint, unless the template says so itself."""
    own = any(variable["name"] == _GRACE for variable in container.get("env") or ())
    if job.model.spec.checkpoint is None or own:
        return {}
    # A day is the most that a server takes.
    return {_GRACE: str(min(86_400, max(1, server_grace_seconds(job) - _GRACE_LEFT_SECONDS)))}


def _identity(job: JobObject, role: str, *, tls: bool) -> dict[str, str]:
    return {
        names.JOB: job.name,
        names.ROLE: role,
        names.GENERATION: str(job.world),
        names.SERVERS: job.server_pattern,
        names.LOG_FORMAT: "json",
        **({names.TLS_DIR: pod_tls.TLS_DIR} if tls else {}),
    }


def _pod_template(job: JobObject, role: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    # A key with nothing behind it, which YAML reads as null, is no key.
    template: dict[str, Any] = _without_nulls(given or {})
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels(job, role)}
    metadata["annotations"] = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(names.HTTP_PORT),
        "prometheus.io/path": "/metrics",
        **(metadata.get("annotations") or {}),
    }
    pod = template.setdefault("spec", {})
    pod.setdefault("containers", [])
    pod["serviceAccountName"] = job.account_name
    pod["automountServiceAccountToken"] = False
    pod.setdefault("enableServiceLinks", False)
    pod.setdefault("terminationGracePeriodSeconds", GRACE_SECONDS)
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        # So that the volumes can be written whatever the image's user is.
        "fsGroup": 65532,
        **(pod.get("securityContext") or {}),
    }
    scheduling = job.model.spec.scheduling
    if scheduling.priority_class_name:
        pod.setdefault("priorityClassName", scheduling.priority_class_name)
    if scheduling.scheduler_name:
        pod.setdefault("schedulerName", scheduling.scheduler_name)
    _join_gang(job, metadata, pod)
    return template


def _without_nulls(content: Any) -> Any:
    """A copy of what a template holds, less the keys whose value is null."""
    if isinstance(content, Mapping):
        return {name: _without_nulls(value) for name, value in content.items() if value is not None}
    if isinstance(content, list):
        return [_without_nulls(value) for value in content]
    return copy.copy(content)


def _container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """The container of that name in a template that has been copied; made if there is none."""
    containers: list[dict[str, Any]] = pod["containers"]
    for container in containers:
        if container["name"] == name:
            return container
    containers.insert(0, {"name": name})
    return containers[0]


def _secure(container: dict[str, Any], *, read_only: bool) -> None:
    given = container.get("securityContext") or {}
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        **given,
        "capabilities": {"drop": ["ALL"], **(given.get("capabilities") or {})},
    }


def _last_words(container: dict[str, Any]) -> None:
    """What a container that fails wrote last is in its pod's status: the operator shows it."""
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")


def _mount(
    pod: dict[str, Any],
    container: dict[str, Any],
    name: str,
    path: str,
    source: Mapping[str, Any] | None = None,
) -> None:
    """A volume at a path that has none; source: of the volume, an empty folder of the pod's own if not given."""
    mounts = container.setdefault("volumeMounts", [])
    if any(mount.get("mountPath") == path for mount in mounts):
        return
    volumes = pod.setdefault("volumes", [])
    taken = {volume["name"] for volume in volumes}
    while name in taken:
        name = f"tablebay-{name}"
    mounts.append({"name": name, "mountPath": path})
    volumes.append({"name": name, **(source or {"emptyDir": {}})})


def _values(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _from_label(variable: str, label: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}


def _probe(path: str, **timing: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": names.HTTP_PORT}, "timeoutSeconds": 3, **timing}
