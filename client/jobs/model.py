"""A TrainingJob, its pods and events, as small values made of what the API server answers.

Nothing here trusts the status: a field that is missing or of another type is as if it were not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tablebay.client.environment import ROLE_LABEL
from tablebay.client.job import WORKER_CONTAINER

SERVER, WORKER = "server", "worker"
ROLES = (SERVER, WORKER)
# A pod template is one for all pods, so the index is in labels that Kubernetes itself writes.
INDEX_LABELS = (
    "batch.kubernetes.io/job-completion-index",
    "apps.kubernetes.io/pod-index",
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One of a job's conditions, such as ServersReady."""

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the workers last reported; None is what nobody did."""

    step: int | None = None
    loss: float | None = None
    auc: float | None = None
    logloss: float | None = None
    examples_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong first; kept when the pod is gone."""

    pod: str
    container: str
    exit_code: int | None
    reason: str
    message: str

    @property
    def text(self) -> str:
        """All of it on one line."""
        parts = [
            f"pod {self.pod}" if self.pod else "",
            f"container {self.container}" if self.container else "",
            f"exit code {self.exit_code}" if self.exit_code is not None else "",
            self.reason,
        ]
        said = ", ".join(part for part in parts if part)
        return f"{said}: {self.message}" if self.message else said


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the cluster had it. `manifest` is the whole object."""

    name: str
    namespace: str
    uid: str
    created: str
    state: str
    ready: str
    servers: str
    workers: str
    restarts: int
    progress: Progress
    failure: Failure | None
    conditions: tuple[Condition, ...]
    deleting: bool
    manifest: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether it ended well."""
        return self._true("Complete")

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return self._true("Failed")

    @property
    def finished(self) -> bool:
        """Whether it ended."""
        return self.complete or self.failed

    @property
    def cause(self) -> str:
        """Why it failed, on one line: the condition's words, then the first failure."""
        found = next((one for one in self.conditions if one.type == "Failed"), None)
        words = [
            ": ".join(text for text in (found.reason, found.message) if text) if found else "",
            f"first failure: {self.failure.text}" if self.failure and self.failure.text else "",
        ]
        return "; ".join(text for text in words if text) or "no reason is given"

    def shows(self, condition: str) -> bool:
        """Whether a condition holds, in a status that was written for the spec of now."""
        seen = number(mapping(self.manifest, "status").get("observedGeneration")) or 0.0
        wanted = number(mapping(self.manifest, "metadata").get("generation")) or 0.0
        return seen >= wanted and self._true(condition)

    def _true(self, kind: str) -> bool:
        return any(one.type == kind and one.status == "True" for one in self.conditions)


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of a job. why: what it waits for, or how it ended; empty while it runs."""

    name: str
    role: str
    index: int
    container: str
    phase: str
    ready: bool
    restarts: int
    why: str
    created: str

    @property
    def title(self) -> str:
        """Its role and index: worker-0."""
        return f"{self.role}-{self.index}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job, as Kubernetes wrote it down."""

    time: str
    type: str
    reason: str
    message: str
    count: int


def job_of(manifest: Mapping[str, Any]) -> Job:
    """A job out of the API server's object."""
    metadata, status = mapping(manifest, "metadata"), mapping(manifest, "status")
    conditions = tuple(_condition(one) for one in _mappings(status.get("conditions")))
    ready = next((one for one in conditions if one.type == "Ready"), None)
    ended = next(
        (one for one in conditions if one.type in ("Failed", "Complete") and one.status == "True"), None
    )
    deleting = bool(metadata.get("deletionTimestamp"))
    if deleting:
        state = "Deleting"
    elif ready is not None and ready.reason:
        state = ready.reason
    else:
        state = ended.type if ended is not None else "Pending"
    progress = mapping(status, "progress")
    step = number(progress.get("step"))
    return Job(
        name=words(metadata.get("name")),
        namespace=words(metadata.get("namespace")),
        uid=words(metadata.get("uid")),
        created=words(metadata.get("creationTimestamp")),
        state=state,
        ready=ready.status if ready is not None else "Unknown",
        servers=_count(manifest, "servers"),
        workers=_count(manifest, "workers"),
        restarts=int(number(mapping(status, "restarts").get("total")) or 0),
        progress=Progress(
            step=int(step) if step is not None else None,
            loss=number(progress.get("loss")),
            auc=number(progress.get("auc")),
            logloss=number(progress.get("logloss")),
            examples_per_second=number(progress.get("examplesPerSecond")),
        ),
        failure=_failure(mapping(status, "firstFailure")),
        conditions=conditions,
        deleting=deleting,
        manifest=manifest,
    )


def pod_of(manifest: Mapping[str, Any]) -> Pod:
    """A pod out of the API server's object."""
    metadata, spec, status = (mapping(manifest, name) for name in ("metadata", "spec", "status"))
    labels = mapping(metadata, "labels")
    role = words(labels.get(ROLE_LABEL))
    index = next((words(labels[name]) for name in INDEX_LABELS if name in labels), "")
    states = _mappings(status.get("containerStatuses"))
    conditions = {words(one.get("type")): one for one in _mappings(status.get("conditions"))}
    return Pod(
        name=words(metadata.get("name")),
        role=role,
        index=int(index) if index.isdecimal() else 0,
        container=_main_container(
            role, [words(one.get("name")) for one in _mappings(spec.get("containers"))]
        ),
        phase=words(status.get("phase")) or "Unknown",
        ready=words(mapping(conditions, "Ready").get("status")) == "True",
        restarts=sum(int(number(one.get("restartCount")) or 0) for one in states),
        why=_why(status, mapping(conditions, "PodScheduled")),
        created=words(metadata.get("creationTimestamp")),
    )


def event_of(manifest: Mapping[str, Any]) -> Event:
    """An event out of the API server's object."""
    times = (manifest.get("lastTimestamp"), manifest.get("eventTime"))
    made = mapping(manifest, "metadata").get("creationTimestamp")
    return Event(
        time=words(next((time for time in times if time), made)),
        type=words(manifest.get("type")),
        reason=words(manifest.get("reason")),
        message=words(manifest.get("message")),
        count=int(number(manifest.get("count")) or 1),
    )


def mapping(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping at `name`; empty where there is none."""
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def words(value: object) -> str:
    """Text for one line of a terminal: no line break, no control character."""
    if value is None or isinstance(value, Mapping | list):
        return ""
    return " ".join("".join(each if each.isprintable() else " " for each in str(value)).split())


def number(value: object) -> float | None:
    """A finite number, also where it stands as text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _condition(value: Mapping[str, Any]) -> Condition:
    return Condition(
        type=words(value.get("type")),
        status=words(value.get("status")),
        reason=words(value.get("reason")),
        message=words(value.get("message")),
        since=words(value.get("lastTransitionTime")),
    )


def _count(manifest: Mapping[str, Any], role: str) -> str:
    """How many are ready of how many: 2/2."""
    said = words(mapping(mapping(manifest, "status"), role).get("readyText"))
    wanted = words(mapping(mapping(manifest, "spec"), role).get("replicas"))
    return said or f"0/{wanted or '?'}"


def _failure(value: Mapping[str, Any]) -> Failure | None:
    code = number(value.get("exitCode"))
    found = Failure(
        pod=words(value.get("pod")),
        container=words(value.get("container")),
        exit_code=int(code) if code is not None else None,
        reason=words(value.get("reason")),
        message=words(value.get("message")),
    )
    return found if found.text else None


def _main_container(role: str, names: list[str]) -> str:
    """The container whose log is the pod's: the server, or the one that trains."""
    wanted = SERVER if role == SERVER else WORKER_CONTAINER
    return wanted if wanted in names or not names else names[0]


def _why(status: Mapping[str, Any], scheduled: Mapping[str, Any]) -> str:
    if scheduled.get("status") == "False":
        return _reason(scheduled)
    states: Iterable[Mapping[str, Any]] = [
        *_mappings(status.get("initContainerStatuses")),
        *_mappings(status.get("containerStatuses")),
    ]
    for one in states:
        name = words(one.get("name"))
        waiting, ended = (mapping(mapping(one, "state"), kind) for kind in ("waiting", "terminated"))
        # A pod whose init container waits has every other one wait for it.
        if waiting and waiting.get("reason") != "PodInitializing":
            last = mapping(mapping(one, "lastState"), "terminated")
            code = f" (last exit code {words(last.get('exitCode'))})" if "exitCode" in last else ""
            return f"{name}: {_reason(waiting)}{code}"
        if ended and ended.get("exitCode") != 0:
            return f"{name}: exit code {words(ended.get('exitCode'))}, {_reason(ended)}".rstrip(", ")
    return _reason(status)


def _reason(value: Mapping[str, Any]) -> str:
    return ": ".join(text for text in (words(value.get("reason")), words(value.get("message"))) if text)
