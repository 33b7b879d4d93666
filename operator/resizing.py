"""Another number of servers for a suspended job: pure.

Workers find their servers' addresses in the template of their Job, which Kubernetes never changes. So the Job is made
anew, while it has no pod. What it has noted, and a new one is to know, is kept on the servers' set meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tablebay.operator.cluster import Manifest
from tablebay.operator.projections import (
    PAUSED_ANNOTATION,
    RAN_ANNOTATION,
    RATES_ANNOTATION,
    SERVER_COUNT_ANNOTATION,
)
from tablebay.operator.world import World

_KEPT = (PAUSED_ANNOTATION, RAN_ANNOTATION, RATES_ANNOTATION)


def stale(world: World) -> bool:
    """Whether the workers' Job was made for another number of servers."""
    found = world.worker_job
    made = found.annotations.get(SERVER_COUNT_ANNOTATION, "") if found is not None else ""
    return made.isdecimal() and int(made) != world.server_replicas


def kept(world: World) -> dict[str, str]:
    """Annotations of the Job that a new one is to have."""
    found = world.worker_job
    if found is None:
        return {}
    result = {name: found.annotations[name] for name in _KEPT if name in found.annotations}
    if PAUSED_ANNOTATION in result:
        # A new Job has counted no failure yet.
        result[PAUSED_ANNOTATION] = replace(world.paused, forgiven=0, failed_before=0).text()
    return result


def remade(manifest: Manifest, annotations: Mapping[str, str]) -> Manifest:
    """The Job with what was kept on the servers' set."""
    known = {name: annotations[name] for name in _KEPT if name in annotations}
    metadata = {**manifest["metadata"], "annotations": {**manifest["metadata"]["annotations"], **known}}
    return {**manifest, "metadata": metadata}
