"""In which order a job's processes end, when it is suspended or deleted: pure, and never stuck.

Workers end first, so that nothing is pushed any more; then a checkpoint is made of what they have pushed; then the
servers end. Each of the three has a time limit, after which the next begins all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Over what a pod was given: for its last step, the kubelet's and the controllers' own time.
SLACK_S = 30.0

Stage = Literal["workers", "checkpoint", "servers", "done"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds that each stage may take."""

    workers_s: float
    checkpoint_s: float
    servers_s: float

    @property
    def total_s(self) -> float:
        """Of all three."""
        return self.workers_s + self.checkpoint_s + self.servers_s


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far it is. began: training has begun once, so there is something to keep.

    workers, servers: pods that have not ended. scaled: the servers' set wants no pod, or is gone. checkpoint: a last
    one is asked for. kept: all that was pushed is in one. elapsed_s: since it was asked to end.
    """

    began: bool
    workers: int
    servers: int
    scaled: bool
    checkpoint: bool
    kept: bool
    elapsed_s: float


def stage(standing: Standing, limits: Limits) -> tuple[Stage, float]:
    """What is waited for now, and how many seconds it may still take."""
    if standing.scaled:
        # Never back: the servers that would make a checkpoint are told to end.
        left_s = limits.total_s - standing.elapsed_s
        return ("servers", left_s) if standing.servers and left_s > 0 else ("done", 0.0)
    left_s = limits.workers_s - standing.elapsed_s
    if standing.workers and left_s > 0:
        return "workers", left_s
    left_s = limits.workers_s + limits.checkpoint_s - standing.elapsed_s
    if standing.began and standing.servers and standing.checkpoint and not standing.kept and left_s > 0:
        return "checkpoint", left_s
    return "servers", max(0.0, limits.total_s - standing.elapsed_s)
