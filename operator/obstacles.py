"""What stands in the way of a job: plans that say so, and touch nothing. All else that the status says stays: pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tablebay.operator import conditions as c
from tablebay.operator.conditions import Fact
from tablebay.operator.manifests import JobObject
from tablebay.operator.plans import Happened, Plan
from tablebay.operator.statements import with_event
from tablebay.operator.world import text_of

CONFLICT_S = 5.0


def invalid(
    problems: Sequence[str], status: Mapping[str, Any], *, generation: int, now: datetime.datetime
) -> Plan:
    """For a job that the schema let through and the model refuses."""
    reason = c.INVALID_TEMPLATE if all(".template." in problem for problem in problems) else c.INVALID_SPEC
    return _in_the_way(status, reason, "; ".join(problems), generation=generation, now=now)


def waiting(
    job: JobObject, reason: str, problem: str, status: Mapping[str, Any], now: datetime.datetime
) -> Plan:
    """For one that wants what is not there."""
    plan = _in_the_way(status, reason, problem, generation=job.generation, now=now)
    return replace(plan, again_s=CONFLICT_S)


def conflicting(
    job: JobObject, taken: Sequence[str], status: Mapping[str, Any], now: datetime.datetime
) -> Plan:
    """For one whose objects' names something else has."""
    message = (
        f"{', '.join(sorted(set(taken)))} in namespace {job.namespace} belongs to something else; wanted these "
        "names free: delete it, or give the job another name"
    )
    plan = _in_the_way(status, c.NAME_CONFLICT, message, generation=job.generation, now=now)
    return replace(plan, again_s=CONFLICT_S)


def refused(job: JobObject, refusal: str, status: Mapping[str, Any], now: datetime.datetime) -> Plan:
    """For one whose objects the API server refuses."""
    plan = _in_the_way(status, c.INVALID_TEMPLATE, refusal, generation=job.generation, now=now)
    return replace(plan, again_s=60.0)


def _in_the_way(
    status: Mapping[str, Any], reason: str, message: str, *, generation: int, now: datetime.datetime
) -> Plan:
    ready = c.conditions(
        [Fact(c.READY, False, reason, message)],
        status.get("conditions") or (),
        generation=generation,
        now=text_of(now),
    )
    # A job that is suspended, or over, is that still.
    over = next((type for type in (c.COMPLETE, c.FAILED) if c.is_true(status, type)), "")
    dropped = {c.READY, c.LOOK_FAILED, c.COMPLETE, c.FAILED} - {over}
    others = [one for one in status.get("conditions") or () if one.get("type") not in dropped]
    changed = {**status, "observedGeneration": generation, "conditions": [*ready, *others]}
    return with_event(Plan(status=changed), status, Happened("Warning", reason, message))
