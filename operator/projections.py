"""What is kept of a job's children: the few fields that decisions look at, not the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tablebay.client.environment import JOB_LABEL, ROLE_LABEL
from tablebay.operator.cluster import FIELD_MANAGER
from tablebay.operator.pod_tls import CONTAINER as CERTIFICATE_CONTAINER

SERVER_CONTAINER = "server"
HASH_ANNOTATION = "tablebay.dev/hash"
# On the workers' Job once it may run: which container each server was when training began.
SERVERS_ANNOTATION = "tablebay.dev/servers"
# On the servers' set of a job without checkpoints: the same, and the uid of the workers' Job, which may be deleted.
TRAINED_ANNOTATION = "tablebay.dev/trained"
# On the servers' set: what its servers were begun with where the job says nothing of it.
IMAGE_ANNOTATION = "tablebay.dev/server-image"
PULL_POLICY_ANNOTATION = "tablebay.dev/server-pull-policy"
# On the workers' Job of a job that was failed for something that the Job itself does not show: why, as JSON.
FAILED_ANNOTATION = "tablebay.dev/failed"
# On the workers' Job of a job that was suspended: what its times of suspension are not to count, as JSON.
PAUSED_ANNOTATION = "tablebay.dev/paused"
# On the workers' Job: when all of them ran for the first time.
RAN_ANNOTATION = "tablebay.dev/ran"
# On the workers' Job: what may change live of each table as the job file said it last, and whether it changed, as JSON.
RATES_ANNOTATION = "tablebay.dev/learning-rates"
# On the workers' Job: until when no worker that failed is begun again, as JSON.
BACKOFF_ANNOTATION = "tablebay.dev/backoff"
# On the workers' Job, where Kueue says when it runs: whether it was given to Kueue, or is held back.
QUEUE_ANNOTATION = "tablebay.dev/queue"
QUEUE_RELEASED, QUEUE_HELD = "Released", "Held"
# On the workers' Job: for how many servers it was made.
SERVER_COUNT_ANNOTATION = "tablebay.dev/server-replicas"
# On the workers' Job and the servers' set: that the job's pods speak TLS. None is given it, or loses it, later.
TLS_ANNOTATION = "tablebay.dev/tls"
# On a TrainingJob whose deletion waits for a last checkpoint.
FINALIZER = "tablebay.dev/checkpoint"

_KEPT_ANNOTATIONS = (
    SERVERS_ANNOTATION,
    TRAINED_ANNOTATION,
    FAILED_ANNOTATION,
    PAUSED_ANNOTATION,
    RAN_ANNOTATION,
    RATES_ANNOTATION,
    BACKOFF_ANNOTATION,
    QUEUE_ANNOTATION,
    SERVER_COUNT_ANNOTATION,
    TLS_ANNOTATION,
)
# Of a server's index and a worker's rank, given by Kubernetes.
INDEX_LABEL, RANK_LABEL = "apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index"
_KEPT_LABELS = (JOB_LABEL, ROLE_LABEL, INDEX_LABEL, RANK_LABEL)
_MESSAGE_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """An object that the operator writes. owner: the uid of its controller. edited: somebody else wrote to it."""

    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    owner: str
    job: str
    hash: str
    deleting: bool
    edited: bool
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatefulSet(Child):
    """The servers' set. image, pull_policy: that it was begun with, "" if unknown."""

    image: str
    pull_policy: str
    replicas: int
    ready: int
    # The template that new pods are made of, and the generation of which that is said.
    revision: str
    observed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One of an object's conditions."""

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob(Child):
    """The workers' Job. started: when it may first run its pods, or ""."""

    parallelism: int
    completions: int
    suspended: bool
    active: int
    ready: int
    succeeded: int
    failed: int
    started: str
    completed: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended. message: what it wrote last, or "" where it did not fail."""

    exit_code: int
    signal: int
    reason: str
    message: str
    finished: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container of a pod. id: of its latest life, "" before the first. waiting: (reason, message) if it is."""

    name: str
    id: str
    running: bool
    ready: bool
    restarts: int
    waiting: tuple[str, str] | None
    ended: Ended | None
    ended_before: Ended | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod. index: the server's or the worker's, -1 if unknown. held: why no node takes it, or "".

    conditions: type to status, of one that failed. reason: of the pod itself, such as Evicted, or "". ends: by when it
    is to have ended, of one that is told to. labels: those by which it is known. revision: of the set's template.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    owner: str
    job: str
    role: str
    index: int
    phase: str
    node: str
    ready: bool
    deleting: bool
    ends: str
    labels: Mapping[str, str]
    revision: str
    held: str
    reason: str
    conditions: Mapping[str, str]
    containers: tuple[Container, ...]


def pod(body: Mapping[str, Any]) -> Pod:
    """Of a v1 Pod."""
    meta, status = body["metadata"], body.get("status", {})
    labels = meta.get("labels") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    index = labels.get(INDEX_LABEL) or labels.get(RANK_LABEL)
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta["resourceVersion"],
        owner=_controller(meta),
        job=labels.get(JOB_LABEL, ""),
        role=labels.get(ROLE_LABEL, ""),
        index=int(index) if index is not None and index.isdecimal() else -1,
        phase=status.get("phase", "Pending"),
        node=body["spec"].get("nodeName", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in meta,
        ends=meta.get("deletionTimestamp") or "",
        labels={name: labels[name] for name in _KEPT_LABELS if name in labels},
        revision=labels.get("controller-revision-hash", ""),
        reason=status.get("reason", ""),
        # Of a few pods alone: those that a failure policy judges.
        conditions={type: one.get("status", "") for type, one in conditions.items()}
        if status.get("phase") == "Failed"
        else {},
        held=_short(scheduled.get("message", "")) if scheduled.get("status") == "False" else "",
        containers=tuple(
            _container(one)
            for one in (
                *(status.get("initContainerStatuses") or ()),
                *(status.get("containerStatuses") or ()),
            )
        ),
    )


def _container(status: Mapping[str, Any]) -> Container:
    state = status.get("state", {})
    waiting = state.get("waiting")
    return Container(
        name=status["name"],
        id=status.get("containerID", ""),
        running="running" in state,
        ready=bool(status.get("ready")),
        restarts=status.get("restartCount", 0),
        waiting=(waiting.get("reason", ""), _short(waiting.get("message", ""))) if waiting else None,
        ended=_ended(state.get("terminated")),
        ended_before=_ended(status.get("lastState", {}).get("terminated")),
    )


def _ended(state: Mapping[str, Any] | None) -> Ended | None:
    if state is None:
        return None
    code = state.get("exitCode", 0)
    return Ended(
        exit_code=code,
        signal=state.get("signal", code - 128 if 128 < code < 160 else 0),
        reason=state.get("reason", ""),
        message=_last(state.get("message", "")),
        finished=state.get("finishedAt") or "",
    )


def stateful_set(body: Mapping[str, Any]) -> StatefulSet:
    """Of an apps/v1 StatefulSet."""
    status = body.get("status", {})
    annotations = body["metadata"].get("annotations") or {}
    return StatefulSet(
        **_child(body, "StatefulSet"),
        image=annotations.get(IMAGE_ANNOTATION, ""),
        pull_policy=annotations.get(PULL_POLICY_ANNOTATION) or _pull_policy(body),
        replicas=body["spec"].get("replicas", 1),
        ready=status.get("readyReplicas", 0),
        revision=status.get("updateRevision", ""),
        observed=status.get("observedGeneration", 0),
    )


def _pull_policy(body: Mapping[str, Any]) -> str:
    """Of a set that does not say it, as an older operator made it."""
    pod = body["spec"].get("template", {}).get("spec", {})
    containers = (*(pod.get("initContainers") or ()), *(pod.get("containers") or ()))
    # The one that TLS adds comes first: a job may name another policy for its server, and hardly for that one.
    for one in containers:
        if one["name"] in (CERTIFICATE_CONTAINER, SERVER_CONTAINER):
            return str(one.get("imagePullPolicy", ""))
    return ""


def worker_job(body: Mapping[str, Any]) -> WorkerJob:
    """Of a batch/v1 Job."""
    spec, status = body["spec"], body.get("status", {})
    return WorkerJob(
        **_child(body, "Job"),
        parallelism=spec.get("parallelism", 1),
        completions=spec.get("completions") or 1,
        suspended=bool(spec.get("suspend")),
        active=status.get("active", 0),
        ready=status.get("ready", 0),
        succeeded=status.get("succeeded", 0),
        failed=status.get("failed", 0),
        started=status.get("startTime", ""),
        completed=status.get("completionTime", ""),
        conditions=tuple(
            Condition(
                type=one["type"],
                status=one["status"],
                reason=one.get("reason", ""),
                message=_short(one.get("message", "")),
                since=one.get("lastTransitionTime") or "",
            )
            for one in status.get("conditions") or ()
        ),
    )


def child(body: Mapping[str, Any]) -> Child:
    """Of any other object that the operator writes."""
    return Child(**_child(body, body["kind"]))


def _controller(meta: Mapping[str, Any]) -> str:
    owners: Sequence[Mapping[str, Any]] = meta.get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _child(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    meta = body["metadata"]
    annotations = meta.get("annotations") or {}
    return {
        "kind": kind,
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "resource_version": meta["resourceVersion"],
        "generation": meta.get("generation", 0),
        "owner": _controller(meta),
        "job": (meta.get("labels") or {}).get(JOB_LABEL, ""),
        "hash": annotations.get(HASH_ANNOTATION, ""),
        "deleting": "deletionTimestamp" in meta,
        "edited": any(
            entry.get("manager") != FIELD_MANAGER and entry.get("subresource") != "status"
            for entry in meta.get("managedFields") or ()
            # What Kubernetes' own controllers write beside the status is no edit.
            if not str(entry.get("manager", "")).startswith("kube-")
        ),
        "annotations": {name: annotations[name] for name in _KEPT_ANNOTATIONS if name in annotations},
    }


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE_MAX else text[: _MESSAGE_MAX - 1] + "…"


def _last(text: str) -> str:
    """Of what a container wrote before its end: why it ended comes last."""
    text = text.strip()
    return text if len(text) <= _MESSAGE_MAX else "…" + text[1 - _MESSAGE_MAX :]
