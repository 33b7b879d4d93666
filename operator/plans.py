"""What is seen of a job's children, and what is to be done for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tablebay.operator.cluster import Manifest
from tablebay.operator.projections import Child, Pod


@dataclass(frozen=True, kw_only=True)
class Tell:
    """What the servers are told while they run. workers: how many there are, of an elastic job; 0 of another.

    options: table, option and value, where the job file has changed it. lives: which container each server is; another
    one has heard nothing.
    """

    workers: int
    lives: tuple[str, ...]
    options: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the servers told. values: of status.progress. last: read after the workers ended. told: what they know.

    checkpoint: of status.checkpoint. kept: a checkpoint was asked for when nothing was pushed any more, and made.
    trouble: why the newest try of that failed, or "". asking: such a checkpoint is being asked for already.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    last: bool = False
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = False
    trouble: str = ""
    asking: bool = False
    told: Tell | None = None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A job's children. fresh: read from the API server for this decision, not from a cache.

    settled: the generation at which the operator left each child, where it knows that.
    pod_monitors: the cluster knows PodMonitors. pod_groups: the scheduler whose PodGroups it knows, "" if none.
    conflicts, refusal, claim: what stood in the way of the plan before.
    """

    children: Mapping[tuple[str, str], Child]
    pods: Sequence[Pod]
    progress: Progress = field(default_factory=Progress)
    settled: Mapping[str, int] = field(default_factory=dict)
    pod_monitors: bool = False
    pod_groups: str = ""
    conflicts: Sequence[str] = ()
    refusal: str = ""
    claim: str = ""
    fresh: bool = False


@dataclass(frozen=True)
class Patch:
    """A merge patch of a child, on the condition that it is as observed."""

    child: Child
    body: Manifest


@dataclass(frozen=True)
class Relabel:
    """Labels that a pod is to have again, on the condition that it is as observed."""

    pod: Pod
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Happened:
    """An Event for the job."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, in this order: confirm (decide again on fresh reads), apply, patch, relabel, delete, status.

    first: these were never applied before, so their names must be free and the API server asked for its opinion.
    finalizers: all that the job is to have; None leaves them as they are. poll: what its server 0 is asked for;
    checkpoint: to make one. tell: what the servers are told, if they do not know it yet. tls: its pods speak TLS;
    keep: and their certificates are looked after, before all else.
    """

    confirm: bool = False
    applies: Sequence[Manifest] = ()
    first: bool = False
    patches: Sequence[Patch] = ()
    relabels: Sequence[Relabel] = ()
    deletes: Sequence[tuple[str, str, str, str]] = ()  # kind, name, uid, resource version
    delete_job: bool = False
    finalizers: tuple[str, ...] | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Happened] = ()
    poll: Literal["", "running", "last", "checkpoint"] = ""
    tell: Tell | None = None
    tls: Literal["", "use", "keep"] = ""
    again_s: float | None = None
