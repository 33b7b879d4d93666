"""The deadline until all workers run for the first time: pure. It does not count while the job is suspended.

When it began is the time of the condition Waiting, which a job has while it counts; that all ran once is noted on the
workers' Job.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from tablebay.operator import conditions as c
from tablebay.operator.projections import RAN_ANNOTATION, WorkerJob
from tablebay.operator.world import World, moment


def left_s(world: World, status: Mapping[str, Any], now: datetime.datetime) -> float | None:
    """Seconds that are left; None where the deadline does not count."""
    spec = world.job.model.spec
    limit_s = spec.run_policy.pre_running_deadline_seconds
    if limit_s is None or spec.suspend:
        return None
    found = world.worker_job
    if found is not None and (RAN_ANNOTATION in found.annotations or ran(world, found)):
        return None
    known = c.found(status, c.WAITING)
    began = moment(known.get("lastTransitionTime", ""), now) if known.get("status") == "True" else now
    return limit_s - (now - began).total_seconds()


def ran(world: World, found: WorkerJob) -> bool:
    """Whether all workers run, which is to be noted."""
    if world.job.model.spec.run_policy.pre_running_deadline_seconds is None:
        return False
    all_run = world.began and found.ready + found.succeeded >= world.worker_replicas
    return all_run and RAN_ANNOTATION not in found.annotations
