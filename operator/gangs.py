"""Gang scheduling: a PodGroup says how many of a job's pods must find room at once. Pure.

The servers come first, and the workers' pods only once they are ready: a group that wanted all from the start would
wait for pods that wait for it. So it wants the servers, and from the workers' release on the workers beside them.
"""

from __future__ import annotations

from typing import Any

from tablebay.operator.cluster import POD_GROUPS
from tablebay.operator.conditions import GANG, Fact
from tablebay.operator.manifests import Defaults
from tablebay.operator.world import World

MADE, NO_POD_GROUPS, NOT_ENABLED = "PodGroup", "NoPodGroups", "GangNotEnabled"
KUEUE, NO_KUEUE = "Kueue", "NoKueue"


def missing(gang: str, served: str, defaults: Defaults) -> tuple[str, str]:
    """Why a job's gang cannot be asked for: reason and words, or two empty ones. served: whose PodGroups are known."""
    if gang in ("None", served):
        return "", ""
    if gang != defaults.gang:
        found = defaults.gang or "none"
        return (
            NOT_ENABLED,
            f"found spec.scheduling.gang {gang} and the chart's gang.scheduler {found}; wanted the same",
        )
    if gang == KUEUE:
        return NO_KUEUE, "the cluster knows no Workloads (kueue.x-k8s.io); wanted Kueue installed"
    return NO_POD_GROUPS, f"the cluster knows no PodGroups ({POD_GROUPS[gang].api}); wanted {gang} installed"


def members(world: World, *, released: bool) -> int:
    """How many pods must find room at once. released: the workers are let run by the same look.

    Of the workers no more than may run: those that are done need no room, and those that wait after a failure would
    keep a server from coming back.
    """
    found, workers = world.worker_job, world.job.model.spec.workers
    if found is None or (found.suspended and not released):
        return world.server_replicas
    least = workers.min_replicas if workers.min_replicas is not None else workers.replicas
    return world.server_replicas + max(0, min(least, found.completions - found.succeeded, found.parallelism))


def fact(world: World, defaults: Defaults, made: dict[str, Any] | None) -> list[Fact]:
    """What the condition says of a job that runs."""
    gang = world.job.model.spec.scheduling.gang
    if gang == "None":
        return []
    reason, words = missing(gang, world.observed.pod_groups, defaults)
    if reason:
        return [Fact(GANG, False, reason, words)]
    if gang == KUEUE:
        queue = world.job.model.spec.scheduling.queue
        return [Fact(GANG, True, KUEUE, f"Kueue says when the workers run, by its queue {queue}")]
    text = f"{made['spec']['minMember']} pods at once" if made is not None else "no pod is wanted"
    return [Fact(GANG, True, MADE, f"{gang}: {text}")]
