"""Jobs on a Kubernetes cluster, `tb.jobs`: submit, get, list, wait, suspend, resume, scale, delete, logs.

    tb.jobs.submit("job.yaml")
    tb.jobs.wait("flights", timeout=3600)

Needs the extra `tablebay[kubernetes]`. The cluster is that of $KUBECONFIG, else of ~/.kube/config, else the one
whose pod this process is in. `Jobs` is for another context, or for many calls over one connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tablebay.client.job import TrainingJob
from tablebay.client.jobs.api import Jobs
from tablebay.client.jobs.errors import (
    ChartMissing,
    ClusterError,
    ClusterUnreachable,
    JobExists,
    JobNotFound,
    JobRefused,
    NoCluster,
    NotPermitted,
    WaitTimeout,
)
from tablebay.client.jobs.model import Condition, Failure, Job, Pod, Progress

__all__ = [
    "ChartMissing",
    "ClusterError",
    "ClusterUnreachable",
    "Condition",
    "Failure",
    "Job",
    "JobExists",
    "JobNotFound",
    "JobRefused",
    "Jobs",
    "NoCluster",
    "NotPermitted",
    "Pod",
    "Progress",
    "WaitTimeout",
    "delete",
    "get",
    "list",
    "logs",
    "resume",
    "scale",
    "submit",
    "suspend",
    "wait",
]


def submit(
    job: str | os.PathLike[str] | Mapping[str, Any] | TrainingJob, namespace: str | None = None
) -> Job:
    """Check a job (a file's path, a dict, a TrainingJob) here, then give it to the cluster.

    The same job again changes nothing. Raises JobInvalid, JobExists for another job of that name, JobRefused.
    """
    return Jobs(namespace).submit(job)


def get(name: str, namespace: str | None = None) -> Job:
    """A job as the cluster has it now. Raises JobNotFound."""
    return Jobs(namespace).get(name)


def list(namespace: str | None = None, *, all_namespaces: bool = False) -> tuple[Job, ...]:
    """Every job of a namespace, or of all, by namespace and name."""
    return Jobs(namespace).list(all_namespaces=all_namespaces)


def wait(name: str, timeout: float | None = None, namespace: str | None = None) -> Job:
    """Wait until a job is complete. Raises JobFailed with the first failure, WaitTimeout, JobNotFound."""
    return Jobs(namespace).wait(name, timeout=timeout)


def delete(
    name: str, namespace: str | None = None, *, wait: bool = False, timeout: float | None = None
) -> None:
    """Delete a job; with `wait`, return when it is gone. Raises JobNotFound, WaitTimeout."""
    Jobs(namespace).delete(name, wait=wait, timeout=timeout)


def suspend(
    name: str, namespace: str | None = None, *, wait: bool = False, timeout: float | None = None
) -> Job:
    """End a job's pods and keep its rows; with `wait`, return when no pod is left. Raises JobRefused, WaitTimeout."""
    return Jobs(namespace).suspend(name, wait=wait, timeout=timeout)


def resume(
    name: str, namespace: str | None = None, *, wait: bool = False, timeout: float | None = None
) -> Job:
    """Let a suspended job go on; with `wait`, return when it trains, or has ended. Raises WaitTimeout."""
    return Jobs(namespace).resume(name, wait=wait, timeout=timeout)


def scale(
    name: str,
    workers: int,
    namespace: str | None = None,
    *,
    wait: bool = False,
    timeout: float | None = None,
) -> Job:
    """Give a job another number of workers; with `wait`, return when they all run. Raises JobRefused, WaitTimeout."""
    return Jobs(namespace).scale(name, workers, wait=wait, timeout=timeout)


def logs(
    name: str,
    role: str = "worker",
    index: int = 0,
    namespace: str | None = None,
    *,
    previous: bool = False,
    tail: int | None = None,
) -> str:
    """What a worker or a server has written; `previous`: before its last restart; `tail`: the last lines."""
    return Jobs(namespace).logs(name, role=role, index=index, previous=previous, tail=tail)
