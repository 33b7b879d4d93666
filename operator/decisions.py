"""What to do for a job: pure. (job, what is observed, now) to a Plan; nothing here reads a clock or the network.

A status is never taken for the truth about the world. It is read for three things that the world forgets: when a
condition began to hold, what failed first, and, once the workers' Job itself is gone, how the job ended.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tablebay.operator import (
    backoff,
    elastic,
    failure_rules,
    gangs,
    halting,
    live_options,
    manifests,
    mending,
    obstacles,
    prerunning,
    queues,
    resizing,
)
from tablebay.operator import conditions as c
from tablebay.operator.cluster import PODS, Manifest
from tablebay.operator.conditions import Fact
from tablebay.operator.manifests import SERVER, WORKER, Defaults, JobObject
from tablebay.operator.native_policy import judged_here
from tablebay.operator.plans import Happened, Observed, Patch, Plan
from tablebay.operator.projections import (
    BACKOFF_ANNOTATION,
    FAILED_ANNOTATION,
    FINALIZER,
    HASH_ANNOTATION,
    PAUSED_ANNOTATION,
    RAN_ANNOTATION,
    RATES_ANNOTATION,
    SERVERS_ANNOTATION,
    TRAINED_ANNOTATION,
    Child,
    WorkerJob,
)
from tablebay.operator.statements import (
    HINT_MAX,
    first_failure,
    hint,
    images,
    readiness,
    refusal,
    secure,
    status_of,
    with_event,
)
from tablebay.operator.world import Paused, Trained, World, moment, text_of

# How long the servers are kept for the last report of the workers to be read.
LAST_REPORT_S = 30.0
# How long a job's end may wait to be in its status before anything is deleted.
UNRECORDED_S = 120.0
# How long a deletion lasts at most whose beginning cannot be noted.
UNSAID_S = 86_400.0


@dataclass(frozen=True)
class _End:
    """How a job ends. own: the workers' Job does not show it, so it is noted there."""

    type: str
    reason: str
    message: str
    at: str
    own: bool = False


def decide(
    job: JobObject,
    observed: Observed,
    status: Mapping[str, Any],
    defaults: Defaults,
    now: datetime.datetime,
) -> Plan:
    """The next step for a job that the model accepts."""
    if job.deleting and FINALIZER not in job.finalizers:
        # Owner references do the rest.
        return Plan()
    # What else bears the job's label is none of ours.
    own = manifests.child_names(job)
    observed = replace(
        observed, children={key: child for key, child in observed.children.items() if key in own}
    )
    foreign = [f"{child.kind} {child.name}" for child in observed.children.values() if child.owner != job.uid]
    if job.deleting:
        own_children = {key: one for key, one in observed.children.items() if one.owner == job.uid}
        world = World(job, replace(observed, children=own_children))
        return replace(_deleting(world, status, now), tls="use" if world.tls else "")
    if foreign or observed.conflicts:
        return obstacles.conflicting(job, [*foreign, *observed.conflicts], status, now)
    if observed.refusal:
        return obstacles.refused(job, observed.refusal, status, now)
    if observed.claim:
        return obstacles.waiting(job, c.CLAIM_UNUSABLE, observed.claim, status, now)
    reason, text = gangs.missing(job.model.spec.scheduling.gang, observed.pod_groups, defaults)
    if reason and not observed.children:
        return obstacles.waiting(job, reason, text, status, now)
    world = World(job, observed)
    end = _end(world, status, now)
    if end is not None:
        return replace(_ending(world, end, status, now), tls="use" if world.tls else "")
    return replace(_running(world, status, defaults, now), tls="keep" if world.tls else "")


# ---- how a job ends


def _end(world: World, status: Mapping[str, Any], now: datetime.datetime) -> _End | None:
    found = world.worker_job
    if found is None:
        # Whoever deleted the workers' Job of a job that had ended does not want it trained again.
        for type in (c.COMPLETE, c.FAILED):
            known = c.found(status, type)
            if known.get("status") == "True":
                return _End(
                    type,
                    known.get("reason", ""),
                    known.get("message", ""),
                    known.get("lastTransitionTime", ""),
                )
        return _rows_lost(world, status)
    if FAILED_ANNOTATION in found.annotations:
        # Noted there, so that it holds whatever becomes of the pods, or of the status.
        noted = _noted(found.annotations[FAILED_ANNOTATION])
        return _End(c.FAILED, noted["reason"], noted["message"], noted["time"])
    held = {one.type: one for one in found.conditions if one.status == "True"}
    if "Complete" in held:
        operator = world.job.model.spec.run_policy.success_policy.operator
        by = "" if operator == "All" else f", as spec.runPolicy.successPolicy.operator {operator} asks"
        text = f"{found.succeeded} workers have ended well{by}"
        return _End(c.COMPLETE, c.COMPLETED, text, found.completed or held["Complete"].since)
    # Kubernetes says the second of these while pods still end.
    for type in ("Failed", "FailureTarget"):
        if type in held:
            reason = held[type].reason
            if reason == "DeadlineExceeded":
                limit = world.job.model.spec.run_policy.active_deadline_seconds
                text = f"the job trained longer than spec.runPolicy.activeDeadlineSeconds, which is {limit}"
                return _End(c.FAILED, c.DEADLINE_EXCEEDED, text, held[type].since)
            if reason == "PodFailurePolicy":
                failure = failure_rules.fatal_of_workers(world)
                text = failure.words if failure is not None else held[type].message
                return _End(c.FAILED, c.FAILURE_RULE, text, held[type].since)
            limit = world.job.model.spec.run_policy.failure_policy.max_restarts
            text = (
                f"workers failed {world.failures} times, and spec.runPolicy.failurePolicy.maxRestarts "
                f"is {limit}{_last_words(world)}"
            )
            return _End(c.FAILED, c.WORKERS_FAILED, text, held[type].since)
    return _rows_lost(world, status) or _judged(world, now) or _late(world, status, now)


def _rows_lost(world: World, status: Mapping[str, Any]) -> _End | None:
    """How a job without checkpoints ends that has lost a server, or cannot know whether it has."""
    if world.durable:
        return None
    lost = world.lost_servers()
    if lost:
        index, what = lost[0]
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        text = (
            f"server {index} was lost in the middle of training{more}: {what}; without checkpoints its rows "
            "are gone, so the job cannot go on"
        )
        return _End(c.FAILED, c.SERVER_LOST, text, "", own=True)
    if "startTime" in status and not world.began and world.noted is None:
        text = (
            "the workers' Job and the servers' set were deleted in the middle of training, and with them what says "
            "which servers had the job's rows; without checkpoints the job cannot go on"
        )
        return _End(c.FAILED, c.SERVER_LOST, text, "", own=True)
    return None


def _judged(world: World, now: datetime.datetime) -> _End | None:
    """How the failure policy ends the job, as far as Kubernetes does not see to that."""
    failure = failure_rules.fatal(world)
    if failure is not None:
        return _End(c.FAILED, c.FAILURE_RULE, failure.words, "", own=True)
    policy = world.job.model.spec.run_policy.failure_policy
    if judged_here(policy):
        used = failure_rules.budget(world, now).used
        if used > policy.max_restarts:
            within = f" within {policy.window_seconds} s" if policy.window_seconds is not None else ""
            text = (
                f"workers failed {used} times{within}, and spec.runPolicy.failurePolicy.maxRestarts is "
                f"{policy.max_restarts}{_last_words(world)}"
            )
            return _End(c.FAILED, c.WORKERS_FAILED, text, "", own=True)
    return None


def _late(world: World, status: Mapping[str, Any], now: datetime.datetime) -> _End | None:
    """How a job ends whose workers did not all run in time."""
    left_s = prerunning.left_s(world, status, now)
    if left_s is None or left_s > 0:
        return None
    limit = world.job.model.spec.run_policy.pre_running_deadline_seconds
    why = hint(world.servers, now) or hint(world.workers, now)
    text = f"not all workers ran within spec.runPolicy.preRunningDeadlineSeconds, which is {limit}{why}"
    return _End(c.FAILED, c.PRE_RUNNING_DEADLINE, text, "", own=True)


def _noted(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
        return {name: str(found[name]) for name in ("reason", "message", "time")}
    except (ValueError, KeyError, TypeError):
        return {"reason": c.SERVER_LOST, "message": "what was noted of it cannot be read", "time": ""}


def _last_words(world: World) -> str:
    failed = first_failure(world, servers_are_wanted=False)
    if not failed:
        return ""
    return f"; first, worker pod {failed['pod']} ended with exit code {failed.get('exitCode', 0)}"


def _ending(world: World, end: _End, status: Mapping[str, Any], now: datetime.datetime) -> Plan:
    job, observed = world.job, world.observed
    at = end.at or text_of(now)
    since_s = max(0.0, (now - moment(at, now)).total_seconds())
    recorded = c.is_true(status, end.type)
    if end.type == c.COMPLETE and not recorded:
        # The servers know what the workers reported last, so they stay until it is read, for a while by this clock.
        # Of a condition of its own, since Ready may have been False all along.
        known = c.found(status, c.FINISHING)
        waited_s = 0.0
        if known.get("status") == "True":
            waited_s = max(0.0, (now - moment(known.get("lastTransitionTime", ""), now)).total_seconds())
        poll, what, left_s = _last_wishes(world, waited_s)
        if poll:
            facts = [
                Fact(c.READY, False, c.FINISHING, f"the workers have ended; {what}"),
                *readiness(world),
                Fact(c.FINISHING, True, c.FINISHING, "the servers are kept for the last report"),
            ]
            return Plan(status=status_of(world, facts, status, now), poll=poll, again_s=left_s + 0.1)
    noted = world.worker_job is not None and FAILED_ANNOTATION in world.worker_job.annotations
    if end.own and not recorded and not observed.fresh:
        # A cache may be behind; nothing is ended on its word alone.
        return Plan(confirm=True)
    facts = [
        Fact(c.READY, False, end.reason, end.message),
        *readiness(world),
        Fact(end.type, True, end.reason, end.message, since=at),
    ]
    # What the servers and their pods told is in the status before they go: an operator that ends in between would have
    # to ask what is not there any more. A status that cannot be written holds them up for a while only.
    deletes = _leftovers(world, end, recorded=recorded) if recorded or since_s >= UNRECORDED_S else []
    if end.type == c.FAILED:
        deletes += [(PODS.kind, pod.name, pod.uid, pod.resource_version) for pod in mending.orphans(world)]
    if deletes and not observed.fresh:
        return Plan(confirm=True)
    changed = status_of(world, facts, status, now)
    changed.setdefault("completionTime", at)
    ttl = job.model.spec.run_policy.ttl_seconds_after_finished
    # Deleted with our finalizer it would be held for nothing: that goes first.
    expired = ttl is not None and since_s >= ttl and recorded and FINALIZER not in job.finalizers
    if expired and not observed.fresh:
        return Plan(confirm=True)
    body = _ending_patch(world, end, at, noted=noted)
    patches = [Patch(world.worker_job, body)] if body and world.worker_job is not None else []
    plan = Plan(
        status=changed,
        patches=patches,
        deletes=deletes,
        delete_job=expired,
        # Nothing is left to be kept.
        finalizers=_finalizers(job, wanted=False) if recorded else None,
        again_s=None if ttl is None or expired else max(1.0, ttl - since_s),
    )
    event = Happened("Normal" if end.type == c.COMPLETE else "Warning", end.reason, end.message)
    return with_event(plan, status, event)


def _last_wishes(world: World, waited_s: float) -> tuple[Literal["", "last", "checkpoint"], str, float]:
    """What the servers of a job that is complete are still asked for, in words, and for how many seconds."""
    progress, checkpoint = world.observed.progress, world.job.model.spec.checkpoint
    if not progress.last and waited_s < LAST_REPORT_S:
        return "last", "their last report is read", LAST_REPORT_S - waited_s
    if checkpoint is not None and not progress.kept and world.servers:
        left_s = LAST_REPORT_S + checkpoint.timeout_seconds - waited_s
        if left_s > 0:
            return "checkpoint", f"a last checkpoint is made{_trouble(world)}", left_s
    return "", "", 0.0


def _trouble(world: World) -> str:
    trouble = world.observed.progress.trouble
    return f"; the try before failed: {trouble[:HINT_MAX]}" if trouble else ""


def _ending_patch(world: World, end: _End, at: str, *, noted: bool) -> Manifest:
    """What is written on the workers' Job of a job that ends: why, and that its pods end."""
    found = world.worker_job
    body: Manifest = {}
    if found is None or found.deleting or end.type != c.FAILED:
        return body
    if end.own and not noted:
        note = json.dumps({"reason": end.reason, "message": end.message, "time": at})
        body["metadata"] = {"annotations": {FAILED_ANNOTATION: note}}
    ended = found.completed or any(
        one.type in ("Failed", "FailureTarget") and one.status == "True" for one in found.conditions
    )
    policy = world.job.model.spec.run_policy.clean_policy
    # A lost server ends its workers by itself. Any other end that is not the Job's own has none that would.
    ends = policy.on_failure != "None" or end.reason != c.SERVER_LOST
    if ended:
        return body
    if queues.released(found) and (ends or found.suspended):
        queues.hold(body)
    elif not found.suspended and ends:
        body["spec"] = {"suspend": True}
    return body


def _leftovers(world: World, end: _End, *, recorded: bool) -> list[tuple[str, str, str, str]]:
    """What is deleted of a job that has ended."""
    policy = world.job.model.spec.run_policy.clean_policy
    pods = policy.on_success if end.type == c.COMPLETE else policy.on_failure
    doomed: list[Child] = []
    for (kind, name), child in world.observed.children.items():
        if child.deleting:
            continue
        if kind in ("PodDisruptionBudget", "PodGroup"):
            # They would hold up the node, and a place in a queue, for nothing.
            doomed.append(child)
        if world.job.model.spec.servers.on_finish == "Delete" and (
            kind == "StatefulSet" or (kind, name) == ("Service", f"{world.job.name}-servers")
        ):
            doomed.append(child)
        if pods == "All" and kind == "Job" and recorded:
            # Its pods go with it. How the job ended is in the status by now.
            doomed.append(child)
    return [(child.kind, child.name, child.uid, "") for child in doomed]


# ---- how a job runs


def _running(world: World, status: Mapping[str, Any], defaults: Defaults, now: datetime.datetime) -> Plan:
    job, observed = world.job, world.observed
    if world.began or mending.ran(world):
        defaults = defaults.as_begun(world.stateful_set)
    # What has begun without checkpoints has nothing to go on from.
    suspend = job.model.spec.suspend and (world.durable or not (world.began or world.trained_with))
    halt = _halt(world, status, now) if suspend else None
    if halt is not None and not observed.fresh and _ends_something(world, halt):
        # A cache may be behind, also of what the user wants by now.
        return Plan(confirm=True)
    servers_run = (halt is None or halt.stage in ("workers", "checkpoint")) and not resizing.stale(world)
    gang = (
        observed.pod_groups
        and job.model.spec.scheduling.gang == observed.pod_groups
        and not queues.asked(job)
    )
    wanted = manifests.children(
        job,
        defaults,
        pod_monitors=observed.pod_monitors,
        servers_run=servers_run,
        pods_at_once=gangs.members(world, released=_released(world, suspend=suspend)) if gang else 0,
        tls=world.tls,
    )
    applies = [
        manifest
        for manifest in wanted
        if not _settled(
            observed.children.get((manifest["kind"], manifest["metadata"]["name"])), manifest, observed
        )
    ]
    first = not observed.children
    if first and not observed.fresh and moment(job.created, now) < now - datetime.timedelta(seconds=60):
        # An old job without a single child: the cache may speak of one that is gone.
        return Plan(confirm=True)
    replaced = [*mending.surplus(world), *(mending.stuck(world) if not applies else ())]
    if not observed.fresh and (replaced or mending.unseen(world, trained=c.is_true(status, c.READY))):
        return Plan(confirm=True)
    patches = []
    found = world.worker_job
    if found is None and world.stateful_set is not None:
        kept = world.stateful_set.annotations
        applies = [resizing.remade(one, kept) if one["kind"] == "Job" else one for one in applies]
    if found is not None and not found.deleting and resizing.stale(world) and not applies:
        return _remade(world, found, status, now)
    if found is None and not first and not observed.fresh:
        # Made anew it would wait for the servers; so it is looked for once more.
        return Plan(confirm=True)
    if found is not None:
        body = _worker_job_patch(world, found, now, suspend=suspend)
        fewer_at_once = body.get("spec", {}).get("parallelism", found.parallelism) < found.parallelism
        if fewer_at_once and not observed.fresh:
            # Of more pods than that some would end.
            return Plan(confirm=True)
        patches += [*_trained_note(world, found, body), *([Patch(found, body)] if body else ())]
    identities = world.identities()
    missing = [index for index in range(world.server_replicas) if index not in identities]
    running = found is not None and SERVERS_ANNOTATION in found.annotations and not found.suspended
    ready = (found.ready + found.succeeded) if found is not None else 0
    unmade, unmade_s = _unmade(world, SERVER if missing else WORKER, status, now)
    if halt is not None:
        state = _halted(world, halt, status)
    elif missing and refusal(world):
        state = Fact(c.READY, False, c.CHECKPOINT_UNUSABLE, refusal(world))
    elif missing and running and world.durable:
        state = Fact(c.READY, False, c.SERVER_RECOVERING, _recovery(world, missing, now) + unmade)
    elif missing:
        text = f"{world.server_replicas - len(missing)} of {world.server_replicas} servers are ready"
        state = Fact(c.READY, False, c.STARTING_SERVERS, text + (hint(world.servers, now) or unmade))
    elif world.queued:
        queue = job.model.spec.scheduling.queue
        state = Fact(
            c.READY, False, c.QUEUED, f"the workers wait for Kueue to admit them from its queue {queue}"
        )
    elif ready < world.worker_replicas:
        text = f"{ready} of {world.worker_replicas} workers are ready"
        waits = backoff.wait(world, found, now) if found is not None else None
        again = f"; those that failed begin again at {waits.until}" if waits is not None else ""
        text += again + (hint(world.workers, now) or unmade)
        state = Fact(c.READY, False, c.STARTING_WORKERS, text)
    else:
        state = Fact(c.READY, True, c.TRAINING, f"{world.worker_replicas} workers train")
    facts = [state, *readiness(world), secure(world), *images(world)]
    facts += gangs.fact(world, defaults, next((one for one in wanted if one["kind"] == "PodGroup"), None))
    if halt is not None:
        facts.append(Fact(c.SUSPENDED, halt.stage == "done", state.reason, state.message))
    elif job.model.spec.suspend:
        text = "found suspend: true without checkpoint; wanted a checkpoint to go on from, so the job goes on"
        facts.append(Fact(c.SUSPENDED, False, c.NO_CHECKPOINT, text))
    left_s = prerunning.left_s(world, status, now)
    if left_s is not None:
        limit = job.model.spec.run_policy.pre_running_deadline_seconds
        facts.append(Fact(c.WAITING, True, c.WAITING, f"all workers must run within {limit} s of this"))
    if job.model.spec.monitoring.pod_monitor == "Enabled":
        text = "" if observed.pod_monitors else "the cluster knows no PodMonitors (monitoring.coreos.com/v1)"
        facts.append(
            Fact(
                c.MONITORED,
                not text,
                "PodMonitor" if not text else "NoPodMonitors",
                text or "a PodMonitor is there",
            )
        )
    surplus = (observed.children.get(key) for key in manifests.unwanted(job, servers_run=servers_run))
    deletes = [(one.kind, one.name, one.uid, "") for one in surplus if one is not None and not one.deleting]
    deletes += [(PODS.kind, pod.name, pod.uid, pod.resource_version) for pod in replaced]
    plan = Plan(
        applies=applies,
        first=first,
        patches=patches,
        relabels=mending.relabels(world),
        deletes=deletes,
        status={
            **status_of(world, facts, status, now, image=manifests.server_image(job, defaults)),
            # Of a status written by hand: a job that runs has no end.
            **({"completionTime": None} if "completionTime" in status else {}),
        },
        finalizers=_finalizers(job, wanted=_waits_on(job, "Delete")),
        poll="running" if running else "",
        tell=elastic.news(world, found) if halt is None else None,
    )
    if halt is not None:
        plan = replace(
            plan,
            poll="checkpoint" if halt.stage == "checkpoint" else "",
            again_s=None if halt.stage == "done" else max(1.0, halt.left_s),
        )
    else:
        plan = replace(plan, again_s=_next_look(world, left_s, unmade_s, now))
    for fact in images(world):
        if not c.is_true(status, fact.type):
            plan = replace(plan, events=(*plan.events, Happened("Warning", fact.type, fact.message)))
    before = c.found(status, c.READY).get("reason")
    if state.status and not c.is_true(status, c.READY):
        return with_event(plan, status, Happened("Normal", c.TRAINING, state.message))
    if state.reason != before and state.reason in (
        c.SERVER_RECOVERING,
        c.NOT_ALL_KEPT,
        c.CHECKPOINT_UNUSABLE,
    ):
        return with_event(plan, status, Happened("Warning", state.reason, state.message))
    if state.reason != before and state.reason in (c.SUSPENDING, c.SUSPENDED):
        return with_event(plan, status, Happened("Normal", state.reason, state.message))
    return plan


def _remade(world: World, found: WorkerJob, status: Mapping[str, Any], now: datetime.datetime) -> Plan:
    """The workers' Job of a job that has another number of servers now goes, and is made anew by the next look."""
    if not world.observed.fresh:
        return Plan(confirm=True)
    servers, kept = world.stateful_set, resizing.kept(world)
    patches = []
    if servers is not None and any(servers.annotations.get(name) != value for name, value in kept.items()):
        patches.append(Patch(servers, {"metadata": {"annotations": kept}}))
    text = f"the workers' Job is made anew for {world.server_replicas} servers"
    known = c.found(status, c.SUSPENDED)
    facts = [Fact(c.READY, False, known.get("reason") or c.STARTING_SERVERS, text), *readiness(world)]
    if known:
        facts.append(
            Fact(c.SUSPENDED, known.get("status") == "True", known["reason"], known.get("message", ""))
        )
    return Plan(
        status=status_of(world, facts, status, now),
        patches=patches,
        deletes=[(found.kind, found.name, found.uid, "")],
        again_s=1.0,
    )


def _unmade(
    world: World, role: str, status: Mapping[str, Any], now: datetime.datetime
) -> tuple[str, float | None]:
    """Which pods of a role that is not ready are not made, and in how many seconds that may be said."""
    found = world.worker_job
    if role == WORKER and found is not None and backoff.wait(world, found, now) is not None:
        # That is said by itself.
        return "", None
    known = c.found(status, c.SERVERS_READY if role == SERVER else c.WORKERS_READY)
    since = moment(known.get("lastTransitionTime", ""), now) if known.get("status") == "False" else now
    return mending.unmade(world, role, since, now)


def _next_look(
    world: World, left_s: float | None, unmade_s: float | None, now: datetime.datetime
) -> float | None:
    """In how many seconds time alone changes something."""
    waits_s = (left_s, unmade_s, mending.overdue_s(world, now))
    due = [one + 0.1 for one in waits_s if one is not None]
    if judged_here(world.job.model.spec.run_policy.failure_policy):
        eases_s = failure_rules.budget(world, now).eases_s
        due += [] if eases_s is None else [eases_s + 0.1]
    waits = backoff.wait(world, world.worker_job, now) if world.worker_job is not None else None
    if waits is not None:
        due.append(backoff.left_s(waits, now) + 0.1)
    return min(due, default=None)


def _recovery(world: World, missing: Sequence[int], now: datetime.datetime) -> str:
    lost = dict(world.lost_servers())
    named = "; ".join(
        f"server {index} comes back: {lost.get(index, 'it is not ready')}" for index in missing[:3]
    )
    more = f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""
    return (
        f"{named}{more}; {world.server_replicas - len(missing)} of {world.server_replicas} servers are ready"
        f"{hint(world.servers, now)}"
    )


# ---- how a job is suspended, or ends before it is deleted


@dataclass(frozen=True)
class _Halt:
    stage: halting.Stage
    left_s: float


def _halt(world: World, status: Mapping[str, Any], now: datetime.datetime) -> _Halt:
    """How far a job is that is to be suspended."""
    known = c.found(status, c.SUSPENDED)
    if known.get("status") == "True" and not _scaled(world):
        # Of a suspension before this one, of which the status has not been written since.
        known = {}
    began = moment(known.get("lastTransitionTime", ""), now) if known else now
    return _stage(
        world, "Suspend", max(0.0, (now - began).total_seconds()), done=known.get("status") == "True"
    )


def _stage(world: World, occasion: str, elapsed_s: float, *, done: bool = False) -> _Halt:
    job = world.job
    checkpoint = job.model.spec.checkpoint
    server_s, worker_s = manifests.server_grace_seconds(job), manifests.worker_grace_seconds(job)
    limits = halting.Limits(
        workers_s=worker_s + halting.SLACK_S,
        checkpoint_s=checkpoint.timeout_seconds if checkpoint is not None else 0,
        servers_s=server_s + halting.SLACK_S,
    )
    if done and not world.servers:
        return _Halt("done", 0.0)
    standing = halting.Standing(
        began=world.began,
        workers=sum(1 for pod in world.workers if pod.phase not in ("Succeeded", "Failed")),
        servers=len(world.servers),
        scaled=_scaled(world),
        checkpoint=_waits_on(job, occasion),
        kept=world.observed.progress.kept,
        elapsed_s=limits.total_s if done else elapsed_s,
    )
    return _Halt(*halting.stage(standing, limits))


def _ends_something(world: World, halt: _Halt) -> bool:
    """Whether the next step of ending takes pods away, or holds that no worker is left that pushes."""
    found = world.worker_job
    holds = found is not None and not found.suspended and not found.deleting
    progress = world.observed.progress
    if halt.stage == "checkpoint" and not progress.kept and not progress.asking:
        return True
    return holds or (halt.stage in ("servers", "done") and not _scaled(world))


def _scaled(world: World) -> bool:
    return world.stateful_set is None or world.stateful_set.replicas == 0 or world.stateful_set.deleting


def _waits_on(job: JobObject, occasion: str) -> bool:
    """Whether the job waits for a last checkpoint then."""
    checkpoint = job.model.spec.checkpoint
    return checkpoint is not None and occasion in checkpoint.when


def _finalizers(job: JobObject, *, wanted: bool) -> tuple[str, ...] | None:
    """The job's, with or without ours; None where they are right."""
    if (FINALIZER in job.finalizers) == wanted:
        return None
    others = tuple(one for one in job.finalizers if one != FINALIZER)
    return (*others, FINALIZER) if wanted else others


def _halted(world: World, halt: _Halt, status: Mapping[str, Any]) -> Fact:
    """Ready of a job that is suspended, or about to be."""
    if halt.stage != "done":
        return Fact(c.READY, False, c.SUSPENDING, _halting(world, halt))
    known = c.found(status, c.SUSPENDED)
    if known.get("status") == "True":
        # What became of the last checkpoint is known at the moment of it alone.
        return Fact(c.READY, False, known.get("reason", c.SUSPENDED), known.get("message", ""))
    if not world.began and "startTime" not in status:
        return Fact(c.READY, False, c.SUSPENDED, "training has not begun; suspend: false lets it begin")
    number = world.observed.progress.checkpoint.get("lastSuccessful", {}).get("number")
    last = f"checkpoint {number}" if number is not None else "the newest checkpoint"
    if world.observed.progress.kept:
        return Fact(c.READY, False, c.SUSPENDED, f"all is in {last}; suspend: false goes on from there")
    if not _waits_on(world.job, "Suspend"):
        return Fact(c.READY, False, c.SUSPENDED, "suspend: false goes on from the newest checkpoint")
    text = f"no last checkpoint was made in time{_trouble(world)}; suspend: false goes on from {last}"
    return Fact(c.READY, False, c.NOT_ALL_KEPT, text)


def _halting(world: World, halt: _Halt) -> str:
    if halt.stage == "workers":
        return "the workers end"
    if halt.stage == "checkpoint":
        return f"a last checkpoint is made{_trouble(world)}"
    return "the servers end"


def _deleting(world: World, status: Mapping[str, Any], now: datetime.datetime) -> Plan:
    """For a job that its user has deleted, and that waits for a last checkpoint."""
    job, found = world.job, world.worker_job
    # From the first look at it, by the clock that looks: one that hears of it late ends nothing early. A status that
    # cannot be written keeps no job for ever.
    known = c.found(status, c.DELETING)
    began = moment(known.get("lastTransitionTime", ""), now) if known.get("status") == "True" else now
    elapsed_s = max(
        (now - began).total_seconds(), (now - moment(job.deleted, now)).total_seconds() - UNSAID_S
    )
    halt = _stage(world, "Delete", max(0.0, elapsed_s))
    ended = (
        found is None
        or found.completed
        or any(one.type in ("Complete", "Failed") and one.status == "True" for one in found.conditions)
    )
    if halt.stage == "done" or not world.began or (ended and not world.servers):
        return Plan(finalizers=_finalizers(job, wanted=False))
    if not world.observed.fresh and not ended and _ends_something(world, halt):
        return Plan(confirm=True)
    patches = []
    if found is not None and not ended and not found.deleting:
        body: Manifest = {}
        if queues.released(found):
            queues.hold(body)
        elif not found.suspended:
            body = {"spec": {"suspend": True}}
        if body:
            patches.append(Patch(found, body))
    servers = world.stateful_set
    if halt.stage == "servers" and servers is not None and not _scaled(world):
        patches.append(Patch(servers, {"spec": {"replicas": 0}}))
    facts = [
        Fact(c.READY, False, c.DELETING, _halting(world, halt)),
        *readiness(world),
        Fact(c.DELETING, True, c.DELETING, "it goes when a last checkpoint is made, or its time is over"),
    ]
    return Plan(
        status=status_of(world, facts, status, now),
        patches=patches,
        poll="checkpoint" if halt.stage == "checkpoint" else "",
        again_s=max(1.0, halt.left_s),
    )


def _settled(child: Child | None, manifest: Manifest, observed: Observed) -> bool:
    """Whether a child is as the manifest wants it, as far as is known without reading it whole."""
    if child is None:
        return False
    if child.deleting or child.kind == "Job":
        # A Job's template can never change; the rest of it is patched.
        return True
    if child.hash != manifest["metadata"]["annotations"][HASH_ANNOTATION]:
        return False
    known = observed.settled.get(child.uid)
    if known is None:
        return not child.edited
    # Kinds without a generation: what somebody else writes after us has another resource version.
    return (
        child.generation == known
        if child.generation
        else not child.edited or child.resource_version == str(known)
    )


def _released(world: World, *, suspend: bool) -> bool:
    """Whether the workers, which are held back, are let run now."""
    found, identities = world.worker_job, world.identities()
    return (
        found is not None
        and found.suspended
        and not suspend
        and not found.deleting
        and (not queues.released(found) or queues.outdated(world, found))
        and all(identities.get(index) for index in range(world.server_replicas))
        and elastic.may_start(world)
        # It is noted there with which servers training begins.
        and (world.durable or world.stateful_set is not None)
    )


def _trained_note(world: World, found: WorkerJob, body: Manifest) -> list[Patch]:
    """What the servers' set is to say of training, before the write that `body` is of lets the workers run."""
    if world.durable or world.stateful_set is None:
        return []
    released = body.get("metadata", {}).get("annotations", {}).get(SERVERS_ANNOTATION)
    if released is not None:
        note = Trained(found.uid, tuple(json.loads(released)), before=bool(world.trained_with))
    else:
        # Of a set that was made anew meanwhile, or of an operator that knew no such note.
        note = Trained(found.uid, world.trained_with)
        known = world.noted
        if not world.began or not note.servers or (known is not None and known.job == found.uid):
            return []
    return [Patch(world.stateful_set, {"metadata": {"annotations": {TRAINED_ANNOTATION: note.text()}}})]


def _worker_job_patch(world: World, found: WorkerJob, now: datetime.datetime, *, suspend: bool) -> Manifest:
    """What is changed of the workers' Job: its limits, and whether its pods run."""
    paused = before = world.paused
    identities = world.identities()
    release = _released(world, suspend=suspend)
    given = queues.released(found)
    hold = suspend and (not found.suspended or given) and not found.deleting
    # What the Job's controller says: it may not have seen yet what was written last.
    stands = any(one.type == "Suspended" and one.status == "True" for one in found.conditions)
    if hold:
        counts = found.started and not stands
        trained_s = (now - moment(found.started, now)).total_seconds() if counts else 0.0
        paused = replace(
            paused,
            failed_before=found.failed if paused.failed_before is None else paused.failed_before,
            trained_s=paused.trained_s + max(0, int(trained_s)),
            started=paused.started or found.started,
        )
    elif queues.asked(world.job) and (release or given):
        paused = _queued(paused, found)
    elif release and paused.failed_before is not None:
        paused = replace(paused, forgiven=paused.forgiven_now(found.failed), failed_before=None)
    # Kubernetes may count each pod that a suspension ends as one that failed.
    spared = max(world.worker_replicas, found.parallelism) if paused.failed_before is not None else 0
    # A Job that is resumed still has its old start when its controller looks at the deadline: past it, it would fail
    # at once. So it has none until its controller has begun to count anew.
    counts_not = paused != Paused() and (found.suspended or hold or stands)
    limits = manifests.worker_limits(
        world.job,
        forgiven=paused.forgiven_now(found.failed) + spared,
        trained_s=None if counts_not else paused.trained_s,
    )
    body: Manifest = {}
    if found.hash != manifests.digest(limits):
        body = {
            "metadata": {"annotations": {HASH_ANNOTATION: manifests.digest(limits)}},
            "spec": {"activeDeadlineSeconds": None, **limits},
        }
    annotations: dict[str, str] = {}
    if paused != before:
        annotations[PAUSED_ANNOTATION] = paused.text()
    if release:
        # With the same write, so that no worker ever runs beside servers that nobody knows.
        servers = [identities[index] for index in range(world.server_replicas)]
        annotations[SERVERS_ANNOTATION] = json.dumps(servers)
    rates = live_options.note(world, found) if release or world.began else ""
    if rates and not found.deleting:
        annotations[RATES_ANNOTATION] = rates
    if prerunning.ran(world, found):
        annotations[RAN_ANNOTATION] = text_of(now)
    if queues.asked(world.job):
        if release:
            queues.release(world.job, body)
        elif hold:
            queues.hold(body)
    elif release or hold:
        body.setdefault("spec", {})["suspend"] = hold
    waits = None if suspend else backoff.wait(world, found, now)
    if waits is not None and waits != backoff.noted(found) and not found.deleting:
        annotations[BACKOFF_ANNOTATION] = waits.text()
    resized = {} if found.deleting else elastic.resized(world, found, waits)
    if resized:
        body.setdefault("spec", {}).update(resized)
    if annotations:
        body.setdefault("metadata", {}).setdefault("annotations", {}).update(annotations)
    return body


def _queued(paused: Paused, found: WorkerJob) -> Paused:
    """What a Job of Kueue's is not to count: failures of the pods that Kueue ends, when it stops the Job for others."""
    if found.suspended:
        return paused if paused.failed_before is not None else replace(paused, failed_before=found.failed)
    started = paused.started or found.started
    if paused.failed_before is None:
        return replace(paused, started=started)
    return replace(paused, forgiven=paused.forgiven_now(found.failed), failed_before=None, started=started)
