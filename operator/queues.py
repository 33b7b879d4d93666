"""Kueue: the workers' Job waits in one of its queues. Pure.

A Job with Kueue's label is Kueue's to let run and to stop, by the Job's `suspend`. So the operator gives it the label
in place of `suspend: false`, once the servers are ready, and from then on never lets it run itself. To stop it, it
first makes the Job's Workload inactive, or Kueue would let it run again.
"""

from __future__ import annotations

import json
from typing import Any

from tablebay.operator.cluster import Manifest
from tablebay.operator.manifests import JobObject
from tablebay.operator.projections import (
    QUEUE_ANNOTATION,
    QUEUE_HELD,
    QUEUE_RELEASED,
    SERVERS_ANNOTATION,
    WorkerJob,
)
from tablebay.operator.world import World

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# On a Workload: the uid of its Job.
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


def asked(job: JobObject) -> bool:
    """Whether Kueue says when the workers run."""
    return job.model.spec.scheduling.gang == "Kueue"


def released(found: WorkerJob) -> bool:
    """Whether the Job is Kueue's to let run."""
    return found.annotations.get(QUEUE_ANNOTATION) == QUEUE_RELEASED


def outdated(world: World, found: WorkerJob) -> bool:
    """Whether other servers are ready than when the Job was given to Kueue, and nothing was trained yet."""
    if not world.unstarted:
        return False
    identities = world.identities()
    now = [identities.get(index) for index in range(world.server_replicas)]
    return json.dumps(now) != found.annotations.get(SERVERS_ANNOTATION)


def release(job: JobObject, body: Manifest) -> None:
    """What is written on the Job when its servers are ready."""
    meta: dict[str, Any] = body.setdefault("metadata", {})
    meta["labels"] = {QUEUE_LABEL: job.model.spec.scheduling.queue}
    meta.setdefault("annotations", {})[QUEUE_ANNOTATION] = QUEUE_RELEASED


def hold(body: Manifest) -> None:
    """What is written on it to stop it, or that Kueue does not let it run."""
    body.setdefault("spec", {})["suspend"] = True
    body.setdefault("metadata", {}).setdefault("annotations", {})[QUEUE_ANNOTATION] = QUEUE_HELD


def active(body: Manifest) -> bool | None:
    """What the Job's Workload is to be before this is written on the Job; None where it does not matter."""
    said = body.get("metadata", {}).get("annotations", {}).get(QUEUE_ANNOTATION)
    return None if said is None else bool(said == QUEUE_RELEASED)
