"""The conditions of a TrainingJob: their types, their reasons, and the one place where they are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

READY, SERVERS_READY, WORKERS_READY = "Ready", "ServersReady", "WorkersReady"
COMPLETE, FAILED = "Complete", "Failed"
MONITORED, GANG = "Monitored", "Gang"
SUSPENDED = "Suspended"
SECURE = "Secure"
# An image of a pod cannot be had. There only while that is so.
IMAGE_PULL_FAILED = "ImagePullFailed"
# The operator itself fails at this job, for no reason of the API server's. There only while that is so.
LOOK_FAILED = "LookFailed"

# Why Ready is what it is.
INVALID_SPEC, INVALID_TEMPLATE, NAME_CONFLICT = "InvalidSpec", "InvalidTemplate", "NameConflict"
STARTING_SERVERS, STARTING_WORKERS, TRAINING = "StartingServers", "StartingWorkers", "Training"
QUEUED = "Queued"
FINISHING, COMPLETED = "Finishing", "Completed"
SERVER_RECOVERING, SUSPENDING, DELETING = "ServerRecovering", "Suspending", "Deleting"
# Of a destination that cannot be used; of a job that has nothing to be suspended to.
CLAIM_UNUSABLE, NO_CHECKPOINT = "ClaimUnusable", "NoCheckpoint"
# A server finds no checkpoint that it can go on from, and starts no more than that.
CHECKPOINT_UNUSABLE = "CheckpointUnusable"
# Why Secure is what it is.
MUTUAL_TLS, TLS_DISABLED, MADE_PLAIN = "MutualTLS", "TLSDisabled", "MadePlain"
# The servers ended without a last checkpoint.
NOT_ALL_KEPT = "NotAllKept"
SERVER_LOST, WORKERS_FAILED, DEADLINE_EXCEEDED = "ServerLost", "WorkersFailed", "DeadlineExceeded"
# By a rule of the failure policy; not all workers ran in time. WAITING: since when that time counts.
FAILURE_RULE, PRE_RUNNING_DEADLINE, WAITING = "FailureRule", "PreRunningDeadlineExceeded", "Waiting"

MESSAGE_MAX = 1024


@dataclass(frozen=True)
class Fact:
    """What a condition says now. since: when it began, where the world knows that."""

    type: str
    status: bool
    reason: str
    message: str = ""
    since: str = ""


def conditions(
    facts: Sequence[Fact], previous: Sequence[Mapping[str, Any]], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """The list for the status. A condition's time changes only when its status does."""
    before = {one.get("type"): one for one in previous}
    result = []
    for fact in facts:
        status = "True" if fact.status else "False"
        known = before.get(fact.type, {})
        since = known.get("lastTransitionTime") if known.get("status") == status else None
        result.append(
            {
                "type": fact.type,
                "status": status,
                "reason": fact.reason,
                "message": fact.message[:MESSAGE_MAX],
                "lastTransitionTime": since or fact.since or now,
                "observedGeneration": generation,
            }
        )
    return result


def found(status: Mapping[str, Any], type: str) -> Mapping[str, Any]:
    """A condition of a status, or an empty mapping."""
    for one in status.get("conditions") or ():
        if one.get("type") == type:
            result: Mapping[str, Any] = one
            return result
    return {}


def is_true(status: Mapping[str, Any], type: str) -> bool:
    """Whether a status has this condition, and it holds."""
    return found(status, type).get("status") == "True"


def with_fault(
    status: Mapping[str, Any], error: BaseException, *, generation: int, now: str
) -> dict[str, Any]:
    """A status that says which error a look ended with. All else stays: nothing new is known of the job."""
    name = type(error).__name__
    text = f"{name}: {error}; the operator tries again ever more seldom, and its log has more"
    others = [one for one in status.get("conditions") or () if one.get("type") != LOOK_FAILED]
    fact = Fact(LOOK_FAILED, True, name, text)
    added = conditions([fact], status.get("conditions") or (), generation=generation, now=now)
    return {**status, "conditions": [*others, *added]}
