"""Pods that are not what their set or Job makes by itself: pure.

A set and a Job know their pods by labels. A pod whose label somebody has edited is given up by them: a set then cannot
make another of its name, and a Job makes a second one of its rank. And a set whose pods are replaced only when they
end never replaces one that cannot begin.
"""

from __future__ import annotations

import datetime

from tablebay.client.environment import JOB_LABEL, ROLE_LABEL
from tablebay.operator.manifests import SERVER, WORKER, JobObject
from tablebay.operator.plans import Relabel
from tablebay.operator.projections import INDEX_LABEL, RANK_LABEL, SERVER_CONTAINER, Pod
from tablebay.operator.world import World, moment, named_container, trouble

# From the time by which a pod was to have ended to the word that it has not.
OVERDUE_S = 10.0
# So long a pod may be missing without a word: those who make pods take a moment.
UNMADE_S = 10.0


def relabels(world: World) -> list[Relabel]:
    """The pods that have not the labels that they were made with."""
    job, result = world.job, []
    for pod in world.pods:
        if pod.deleting or pod.phase in ("Succeeded", "Failed"):
            continue
        wanted = _labels(job, pod)
        if wanted and any(pod.labels.get(name) != value for name, value in wanted.items()):
            result.append(Relabel(pod, wanted))
    return result


def _labels(job: JobObject, pod: Pod) -> dict[str, str]:
    """Those that it was made with; none of a pod that is not the job's, and of a worker's that its Job has given up."""
    if not pod.role or (pod.role == WORKER and not pod.owner):
        return {}
    number = INDEX_LABEL if pod.role == SERVER else RANK_LABEL
    return {JOB_LABEL: job.name, ROLE_LABEL: pod.role, number: str(pod.index)}


def unseen(world: World, *, trained: bool) -> bool:
    """Whether there may be pods that have lost the job's label, so that no watch tells of them.

    trained: all was well at the look before.
    """
    found, servers = world.worker_job, world.stateful_set
    if found is None or servers is None or servers.replicas == 0:
        return False
    indices = {pod.index for pod in world.servers}
    if world.began and not found.suspended and any(index not in indices for index in range(servers.replicas)):
        return True
    # Those that have ended are there too: the Job may not have heard of their end yet.
    return trained and found.active > len(world.workers)


def surplus(world: World) -> list[Pod]:
    """Workers' pods that their Job has given up: it makes others in their place, and nobody ends these."""
    return [] if world.worker_job is None or world.worker_job.deleting else orphans(world)


def orphans(world: World) -> list[Pod]:
    """Workers' pods that belong to nobody, not even to a job that ends."""
    return [pod for pod in world.workers if not pod.owner and not pod.deleting]


def stuck(world: World) -> list[Pod]:
    """Servers' pods that never ran and cannot, of another template than the set has now. They hold no rows."""
    servers = world.stateful_set
    if servers is None or servers.deleting or servers.observed != servers.generation or not servers.revision:
        return []
    return [
        pod
        for pod in world.servers
        if pod.owner == servers.uid
        and not pod.deleting
        and pod.phase == "Pending"
        and pod.revision not in ("", servers.revision)
        and trouble(pod)
        and not _has_run(pod)
    ]


def ran(world: World) -> bool:
    """Whether a server has ever run, of those that are there."""
    return any(_has_run(pod) for pod in world.servers)


def _has_run(pod: Pod) -> bool:
    container = named_container(pod, SERVER_CONTAINER)
    return container is not None and bool(
        container.id or container.running or container.restarts or container.ended or container.ended_before
    )


def unmade(
    world: World, role: str, since: datetime.datetime, now: datetime.datetime
) -> tuple[str, float | None]:
    """In words, which pods of a role are not made, and in how many seconds that may be said.

    since: when they began to be waited for.
    """
    found = world.stateful_set if role == SERVER else world.worker_job
    if found is None:
        return "", None
    if role == SERVER:
        there, wanted = {pod.index for pod in world.servers}, world.server_replicas
    else:
        assert world.worker_job is not None
        if world.worker_job.suspended:
            return "", None
        there = {pod.index for pod in world.workers if pod.phase != "Failed"}
        wanted = min(world.worker_job.parallelism, world.worker_job.completions)
    missing = [index for index in range(wanted) if index not in there]
    # Of ranks that wait after a failure the Job makes no pod yet.
    if not missing or len(there) >= wanted:
        return "", None
    left_s = UNMADE_S - (now - since).total_seconds()
    if left_s > 0:
        return "", left_s
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    what = f"{found.name}-{missing[0]}{more} not made"
    return f"; {what}: kubectl describe {found.kind.lower()} {found.name} says why", None


def overdue_s(world: World, now: datetime.datetime) -> float | None:
    """In how many seconds the first pod that ends will be late."""
    left = [(moment(pod.ends, now) - now).total_seconds() + OVERDUE_S for pod in world.servers if pod.ends]
    return min((one for one in left if one > 0), default=None)
