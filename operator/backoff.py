"""How long the ranks whose workers failed stay without one: pure.

Kubernetes makes another pod for a rank 10 s after its failure, and has no setting for it. It makes no more pods at once
than the Job's `parallelism` says, so that is lowered to those that run until the time has come, and no pod is touched.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass

from tablebay.operator import failure_rules
from tablebay.operator.projections import BACKOFF_ANNOTATION, WorkerJob
from tablebay.operator.world import World, moment, text_of


@dataclass(frozen=True)
class Wait:
    """No worker is begun again before `until`, for failures up to the one that ended at `after`."""

    after: str
    until: str

    def text(self) -> str:
        """For the annotation."""
        return json.dumps({"after": self.after, "until": self.until})


def noted(found: WorkerJob | None) -> Wait:
    """What the Job's annotation says; nothing where a hand has edited it."""
    try:
        known = json.loads(found.annotations[BACKOFF_ANNOTATION]) if found is not None else {}
        return Wait(after=str(known["after"]), until=str(known["until"]))
    except (ValueError, KeyError, TypeError):
        return Wait("", "")


def wait(world: World, found: WorkerJob, now: datetime.datetime) -> Wait | None:
    """The wait that lasts, if any. It begins when the operator hears of a failure, and is timed by one clock."""
    backoff = world.job.model.spec.run_policy.failure_policy.backoff
    if backoff is None or found.suspended:
        return None
    newest = failure_rules.newest_counted(world)
    failures = failure_rules.budget(world, now).used
    known = noted(found)
    if not newest or not failures:
        return None
    delay_s = backoff.delay_s(failures)
    if newest > known.after:
        return Wait(newest, text_of(now + datetime.timedelta(seconds=delay_s)))
    left_s = (moment(known.until, now) - now).total_seconds()
    # Another operator's clock may have said until when.
    return known if 0 < left_s <= delay_s + 1 else None


def left_s(waits: Wait, now: datetime.datetime) -> float:
    """For how many seconds more."""
    return max(0.0, (moment(waits.until, now) - now).total_seconds())


def parallelism(world: World, found: WorkerJob, waits: Wait | None) -> int:
    """How many pods the Job may have at once."""
    if waits is None or found.suspended:
        return found.completions
    # By the pods: `status.active` of the Job tells of a failure only when the next pod is made.
    run = {pod.index for pod in world.workers if pod.phase not in ("Succeeded", "Failed")}
    left = found.completions - found.succeeded
    return len(run) if len(run) < left else found.parallelism
