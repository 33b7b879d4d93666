"""What the status and the Events say of a job: pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tablebay.client.environment import NO_CHECKPOINT_EXIT
from tablebay.operator import conditions as c
from tablebay.operator import failure_rules, manifests
from tablebay.operator.conditions import Fact
from tablebay.operator.manifests import WORKER
from tablebay.operator.mending import OVERDUE_S
from tablebay.operator.plans import Happened, Plan
from tablebay.operator.projections import SERVER_CONTAINER, Container, Pod
from tablebay.operator.world import World, how_it_ended, moment, named_container, text_of, trouble

HINT_MAX, WORDS_MAX = 300, 800
# Before what a server that does not start says of it.
_REFUSES = "tablebay-server: "
# What the kubelet says of an image that it cannot have.
_NO_IMAGE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
}


def readiness(world: World) -> list[Fact]:
    """How many of the servers and workers are ready."""
    servers, replicas = world.servers_ready, world.server_replicas
    found = world.worker_job
    workers = (found.ready + found.succeeded) if found is not None else 0
    return [
        Fact(
            c.SERVERS_READY,
            servers >= replicas,
            "AllReady" if servers >= replicas else "NotReady",
            f"{servers} of {replicas}",
        ),
        Fact(
            c.WORKERS_READY,
            workers >= world.worker_replicas,
            "AllReady" if workers >= world.worker_replicas else "NotReady",
            f"{workers} of {world.worker_replicas}",
        ),
    ]


def secure(world: World) -> Fact:
    """Whether the job's pods know each other by certificates."""
    if world.tls:
        return Fact(
            c.SECURE, True, c.MUTUAL_TLS, "each pod has a certificate of its own and speaks TLS alone"
        )
    open_to = "whoever reaches the servers' ports may read and write the job's rows"
    if world.job.model.spec.network.tls == "Disabled":
        return Fact(c.SECURE, False, c.TLS_DISABLED, f"spec.network.tls is Disabled: {open_to}")
    text = f"the job was begun by an operator that knew no TLS, and goes on without it: {open_to}"
    return Fact(c.SECURE, False, c.MADE_PLAIN, text)


def status_of(
    world: World,
    facts: Sequence[Fact],
    status: Mapping[str, Any],
    now: datetime.datetime,
    *,
    image: str = "",
) -> dict[str, Any]:
    """The whole status: these conditions, and the numbers that the objects show."""
    job, found = world.job, world.worker_job
    ready = world.servers_ready
    workers = found.ready + found.succeeded if found is not None else 0
    content: dict[str, Any] = {
        "servers": {
            "replicas": world.server_replicas,
            "ready": ready,
            "readyText": f"{ready}/{world.server_replicas}",
        },
        "workers": {
            # Of how many there are, by whom a scale of theirs is watched.
            "replicas": world.worker_replicas if found is None else found.completions,
            "ready": workers,
            "succeeded": found.succeeded if found is not None else 0,
            "failed": world.failures,
            "readyText": f"{workers}/{world.worker_replicas}",
            "selector": ",".join(
                f"{name}={value}" for name, value in manifests.selector(job, WORKER).items()
            ),
        },
        "restarts": {"total": world.failures},
    }
    if job.model.spec.run_policy.failure_policy.window_seconds is not None:
        content["restarts"]["inWindow"] = failure_rules.budget(world, now).used
    image = image or status.get("servers", {}).get("image", "")
    if image:
        content["servers"]["image"] = image
    if found is None and (c.is_true(status, c.COMPLETE) or c.is_true(status, c.FAILED)):
        # The workers' Job is gone, and with it the numbers.
        content["workers"] = dict(status.get("workers", content["workers"]))
        content["restarts"] = dict(status.get("restarts", content["restarts"]))
    if found is not None and (world.paused.started or found.started):
        content["startTime"] = world.paused.started or found.started
    if world.observed.progress.values:
        content["progress"] = {**status.get("progress", {}), **world.observed.progress.values}
    if world.observed.progress.checkpoint:
        content["checkpoint"] = {**status.get("checkpoint", {}), **world.observed.progress.checkpoint}
    if not status.get("firstFailure"):
        # Of a job that has ended the servers are deleted: that is no failure, unless it ended for want of one.
        over = any(
            fact.type in (c.COMPLETE, c.FAILED, c.FINISHING, c.SUSPENDED) and fact.reason != c.SERVER_LOST
            for fact in facts
        )
        failure = first_failure(world, servers_are_wanted=not over)
        if failure:
            content["firstFailure"] = failure
    return merged(status, facts, content, generation=job.generation, now=now)


def merged(
    status: Mapping[str, Any],
    facts: Sequence[Fact],
    content: Mapping[str, Any],
    *,
    generation: int,
    now: datetime.datetime,
) -> dict[str, Any]:
    """The status before with these conditions, and with this content in place of its own."""
    return {
        **{name: value for name, value in status.items() if name != "conditions"},
        **content,
        "observedGeneration": generation,
        "conditions": c.conditions(
            facts, status.get("conditions") or (), generation=generation, now=text_of(now)
        ),
    }


def first_failure(world: World, *, servers_are_wanted: bool = True) -> dict[str, Any]:
    """The container that failed first, of the pods that are still there and were not told to end."""
    found: list[tuple[str, dict[str, Any]]] = []
    for pod in (*world.workers, *(world.servers if servers_are_wanted else ())):
        if pod.deleting:
            continue
        for container in pod.containers:
            for ended in (container.ended_before, container.ended):
                if ended is None or (ended.exit_code == 0 and pod.role == WORKER):
                    continue
                failure: dict[str, Any] = {
                    "pod": pod.name,
                    "node": pod.node,
                    "container": container.name,
                    "exitCode": ended.exit_code,
                    "reason": ended.reason or "Error",
                    "message": ended.message,
                }
                if ended.signal:
                    failure["signal"] = ended.signal
                rule = failure_rules.rule_of(world, pod, ended)
                if rule:
                    failure["rule"] = rule
                if ended.finished:
                    failure["time"] = ended.finished
                found.append((ended.finished, failure))
    if found:
        return min(found, key=lambda one: one[0])[1]
    # One that comes back is no failure by itself.
    lost = world.lost_servers() if servers_are_wanted and not world.durable else []
    if lost:
        index, what = lost[0]
        return {"pod": f"{world.job.servers_name}-{index}", "reason": "Lost", "message": what}
    return {}


def hint(pods: Sequence[Pod], now: datetime.datetime) -> str:
    """Why the first pod that is not ready is not, in the words of the scheduler or the kubelet."""
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.ready or pod.phase == "Succeeded":
            continue
        if pod.ends and (now - moment(pod.ends, now)).total_seconds() >= OVERDUE_S:
            return (
                f"; {pod.name} was to end by {pod.ends}, and its node {pod.node} does not say that it has: no other "
                "is made before it is known to be gone"
            )
        reason, message = trouble(pod)
        if reason == "CrashLoopBackOff":
            # What the container said itself is worth more than when it is begun again.
            message = next((words for one in pod.containers if (words := _words(one))), message)
        if reason:
            said = message if pod.held else f"{reason}{f': {message}' if message else ''}"
            return f"; {pod.name}: {said[:HINT_MAX]}"
    return ""


def _words(container: Container) -> str:
    ended = container.ended_before if container.waiting else None
    return (
        f"{how_it_ended(ended)}: {_last_line(ended.message)}" if ended is not None and ended.message else ""
    )


def refusal(world: World) -> str:
    """Which server finds no checkpoint that it can use, in its own words; "" if none does."""
    for pod in sorted(world.servers, key=lambda pod: pod.index):
        container = named_container(pod, SERVER_CONTAINER)
        if pod.ready or container is None:
            continue
        # While it is begun again it is what it said before that counts.
        ended = container.ended or container.ended_before
        words = _last_line(ended.message) if ended is not None else ""
        if ended is not None and ended.exit_code == NO_CHECKPOINT_EXIT and words.startswith(_REFUSES):
            return f"server {pod.index} refuses to start: {words.removeprefix(_REFUSES)[:WORDS_MAX]}"
    return ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def images(world: World) -> list[Fact]:
    """Which image cannot be had, if one cannot."""
    for pod in sorted((*world.servers, *world.workers), key=lambda pod: (pod.role, pod.index)):
        reason, message = trouble(pod)
        if reason in _NO_IMAGE:
            return [Fact(c.IMAGE_PULL_FAILED, True, reason, f"{pod.name}: {message[:HINT_MAX]}")]
    return []


def with_event(plan: Plan, status: Mapping[str, Any], event: Happened) -> Plan:
    """The plan with an Event, unless Ready says the same thing already."""
    ready = c.found(status, c.READY)
    if ready.get("reason") == event.reason and ready.get("message") == event.message[: c.MESSAGE_MAX]:
        return plan
    return replace(plan, events=(*plan.events, event))
