"""What can go wrong with jobs on a cluster.

ClusterError (TablebayError)
├─ NoCluster            nothing says which cluster, or its package is not installed
├─ ClusterUnreachable   the API server does not answer, or cannot now
├─ NotPermitted         who asks is unknown (401) or may not (403)
├─ ChartMissing         the cluster does not know TrainingJobs
├─ JobNotFound
├─ JobExists            another job has the name
├─ JobRefused           (ValueError) what the API server finds wrong with a job
└─ WaitTimeout          (TimeoutError)
"""

from __future__ import annotations

from collections.abc import Sequence

from tablebay.client.errors import TablebayError


class ClusterError(TablebayError):
    """A request to a cluster failed."""


class NoCluster(ClusterError):
    """Nothing says which cluster is meant, or the package that talks to it is not installed."""


class ClusterUnreachable(ClusterError):
    """The API server does not answer, or says that it cannot now. Asking again later may help."""


class NotPermitted(ClusterError):
    """The API server does not know who asks, or who asks may not do it."""


class ChartMissing(ClusterError):
    """The cluster does not know TrainingJobs: Tablebay's chart is not installed there."""


class JobNotFound(ClusterError):
    """No job has this name, or it was deleted meanwhile."""


class JobExists(ClusterError):
    """Another job has this name already."""


class JobRefused(ClusterError, ValueError):
    """The API server finds a job wrong. problems: each with its field's path where there is one."""

    def __init__(self, problems: Sequence[str], source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        where = f"{source}: " if source else ""
        super().__init__(where + "\n  ".join(self.problems))

    def __reduce__(self) -> tuple[type[JobRefused], tuple[list[str], str]]:
        return JobRefused, (self.problems, self.source)


class WaitTimeout(ClusterError, TimeoutError):
    """The time to wait was up. The job goes on."""
