"""What can be done with jobs on a cluster."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tablebay.client.environment import JOB_LABEL, ROLE_LABEL
from tablebay.client.errors import BadRequest, BadType, JobFailed, JobInvalid
from tablebay.client.job import API_VERSION, KIND, Spec, TrainingJob, parse_job
from tablebay.client.jobs import source
from tablebay.client.jobs.cluster import Cluster, core_request, job_request
from tablebay.client.jobs.errors import ClusterError, JobExists, JobNotFound, WaitTimeout
from tablebay.client.jobs.model import (
    ROLES,
    Event,
    Job,
    Pod,
    event_of,
    job_of,
    mapping,
    pod_of,
)
from tablebay.client.jobs.watch import DELETED, follow

_PAGE = 500
_GONE_EVERY_S = 0.5
_STARTED_EVERY_S = 1.0
_LOG_READ_S = 60.0
# What the API server says of a log whose container does not run yet.
_NOT_STARTED = "waiting to start"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Log:
    """Whose log to read; previous: of its container before the present one."""

    pod: Pod
    previous: bool = False


class Jobs:
    """The jobs of a namespace: the one given, else that of the kubeconfig's context or of this pod.

    Raises NoCluster when nothing says which cluster.
    """

    def __init__(self, namespace: str | None = None, *, context: str | None = None) -> None:
        if namespace is not None:
            checked(namespace, "namespace")
        self._cluster = Cluster(context)
        self._chosen = namespace
        self.namespace = namespace or self._cluster.namespace

    def submit(self, job: str | os.PathLike[str] | Mapping[str, Any] | TrainingJob) -> Job:
        """Check a job here, then give it to the cluster; the same job again changes nothing.

        Raises JobInvalid before anything is sent, JobExists for another job of that name, JobRefused.
        """
        return self.send(source.manifest_of(job))[0]

    def send(self, manifest: Mapping[str, Any]) -> tuple[Job, bool]:
        """Give a checked job to the cluster: the job, and whether it is new."""
        metadata = manifest["metadata"]
        name, own = metadata["name"], metadata.get("namespace")
        if own and self._chosen and own != self._chosen:
            raise BadRequest(f"{name}: metadata.namespace is {own}, wanted {self._chosen}, or none")
        namespace = own or self.namespace
        request = job_request(
            "create",
            namespace,
            name,
            query={"fieldValidation": "Strict", "fieldManager": "tablebay"},
            body=manifest,
        )
        try:
            return job_of(self._cluster.ask(request)), True
        except JobExists:
            there = self._get(name, namespace)
        if there.deleting:
            raise JobExists(
                f"{name}: is being deleted in namespace {namespace}; "
                f"wait for its end with: tablebay delete {name} -n {namespace} --wait"
            )
        if not _same_spec(there.manifest, manifest):
            raise JobExists(
                f"{name}: exists already in namespace {namespace}, with another spec; "
                f"delete it with: tablebay delete {name} -n {namespace}, or choose another metadata.name"
            )
        return there, False

    @property
    def address(self) -> str:
        """The API server's."""
        return self._cluster.address

    def dry_run(self, manifest: Mapping[str, Any]) -> None:
        """Have the API server check a job and keep nothing of it. Raises JobRefused, JobExists, NotPermitted."""
        query = {"fieldValidation": "Strict", "fieldManager": "tablebay", "dryRun": "All"}
        name = manifest["metadata"]["name"]
        self._cluster.ask(job_request("create", self.namespace, name, query=query, body=manifest))

    def get(self, name: str) -> Job:
        """A job as the cluster has it now. Raises JobNotFound."""
        return self._get(checked(name, "job"), self.namespace)

    def list(self, *, all_namespaces: bool = False) -> tuple[Job, ...]:
        """Every job of the namespace, or of all, by namespace and name."""
        found = self._items(job_request, None if all_namespaces else self.namespace)
        return tuple(sorted(map(job_of, found), key=lambda job: (job.namespace, job.name)))

    def changes(
        self,
        name: str | None = None,
        *,
        all_namespaces: bool = False,
        timeout: float | None = None,
        since: Sequence[Job] = (),
    ) -> Iterator[tuple[str, Job]]:
        """LISTED and each job there is, then ADDED, MODIFIED or DELETED and a job, until the time is up.

        since: the jobs as they were seen before; then there is no LISTED, only what has changed since.
        """
        selector = {"fieldSelector": f"metadata.name={checked(name, 'job')}"} if name else {}
        namespace = None if all_namespaces else self.namespace
        deadline = None if timeout is None else time.monotonic() + timeout
        before = [job.manifest for job in since]
        for kind, item in follow(self._cluster, namespace, selector, deadline, before):
            yield kind, job_of(item)

    def progress(self, name: str, *, timeout: float | None = None) -> Iterator[Job]:
        """A job at each change, the last time when it is finished. Raises WaitTimeout, JobNotFound."""
        last = self.get(name)
        yield last
        if last.finished:
            return
        for kind, job in self.changes(name, timeout=timeout, since=[last]):
            if kind == DELETED or job.uid != last.uid:
                raise JobNotFound(
                    f"{name}: was deleted from namespace {self.namespace} before it was finished"
                )
            last = job
            yield job
            if job.finished:
                return
        raise WaitTimeout(f"{name}: not finished after {timeout:g} s, its state is {last.state}; it goes on")

    def wait(self, name: str, *, timeout: float | None = None) -> Job:
        """Wait until a job is complete. Raises JobFailed with the first failure, WaitTimeout, JobNotFound."""
        for job in self.progress(name, timeout=timeout):
            last = job
        return finished_well(last)

    def delete(self, name: str, *, wait: bool = False, timeout: float | None = None) -> None:
        """Delete a job; with `wait`, return when it is gone. Raises JobNotFound, WaitTimeout."""
        answer = self._cluster.ask(job_request("delete", self.namespace, checked(name, "job")))
        # The job where something has yet to be done before it goes, else a Status.
        uid = mapping(answer, "metadata").get("uid") or mapping(answer, "details").get("uid")
        deadline = None if timeout is None else time.monotonic() + timeout
        while wait:
            try:
                job = self._get(name, self.namespace)
            except JobNotFound:
                return
            if job.uid != uid:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"{name}: not gone after {timeout:g} s; the cluster goes on deleting it")
            time.sleep(_GONE_EVERY_S)

    def suspend(self, name: str, *, wait: bool = False, timeout: float | None = None) -> Job:
        """End a job's pods and keep its rows; with `wait`, return when no pod is left.

        Raises JobRefused for a job without checkpoint, JobNotFound, WaitTimeout.
        """
        job = self._change(name, {"suspend": True})
        return self._until(job, "Suspended", timeout) if wait else job

    def resume(self, name: str, *, wait: bool = False, timeout: float | None = None) -> Job:
        """Let a suspended job go on; with `wait`, return when it trains, or has ended."""
        job = self._change(name, {"suspend": False})
        return self._until(job, "Ready", timeout) if wait else job

    def scale(self, name: str, workers: int, *, wait: bool = False, timeout: float | None = None) -> Job:
        """Give a job another number of workers; with `wait`, return when they all run, or it has ended.

        Raises JobRefused for a number beyond its minReplicas and maxReplicas, JobNotFound, WaitTimeout.
        """
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise BadType(f"workers: found {type(workers).__name__}, wanted an int")
        job = self._change(name, {"workers": {"replicas": workers}})
        return self._until(job, "WorkersReady", timeout) if wait else job

    def _change(self, name: str, spec: Mapping[str, Any]) -> Job:
        """Write fields of a job's spec. Raises ClusterError for a job that has ended."""
        job = self.get(name)
        if job.finished:
            raise ClusterError(f"{name}: has ended ({job.state}), so nothing is left to change")
        request = job_request(
            "patch",
            self.namespace,
            name,
            query={"fieldValidation": "Strict", "fieldManager": "tablebay"},
            # Of a job that was deleted and made anew meanwhile nothing is changed.
            body={"metadata": {"uid": job.uid}, "spec": spec},
        )
        return job_of(self._cluster.ask(request))

    def _until(self, job: Job, condition: str, timeout: float | None) -> Job:
        """The job once a condition holds of the spec that it has now, or once it has ended."""
        if job.finished or job.shows(condition):
            return job
        last = job
        for kind, last in self.changes(job.name, timeout=timeout, since=[job]):
            if kind == DELETED or last.uid != job.uid:
                raise JobNotFound(f"{job.name}: was deleted from namespace {self.namespace} meanwhile")
            if last.finished or last.shows(condition):
                return last
        raise WaitTimeout(f"{job.name}: after {timeout:g} s its state is {last.state}; it goes on")

    def pods(self, name: str, role: str | None = None) -> tuple[Pod, ...]:
        """The pods of a job, of one role or of both, by role and index, the newest of an index first."""
        selector = f"{JOB_LABEL}={checked(name, 'job')}"
        if role is not None:
            if role not in ROLES:
                raise BadRequest(f"found the role {role!r}, wanted {' or '.join(ROLES)}")
            selector += f",{ROLE_LABEL}={role}"
        found = self._items(core_request, "pods", self.namespace, labelSelector=selector)
        newest_first = sorted(map(pod_of, found), key=lambda pod: pod.created, reverse=True)
        return tuple(sorted(newest_first, key=lambda pod: (pod.role, pod.index)))

    def events(self, job: Job) -> tuple[Event, ...]:
        """What Kubernetes wrote down of a job, the newest last."""
        selector = f"involvedObject.name={job.name},involvedObject.uid={job.uid}"
        found = self._items(core_request, "events", job.namespace, fieldSelector=selector)
        return tuple(sorted(map(event_of, found), key=lambda event: event.time))

    def logs(
        self,
        name: str,
        *,
        role: str = "worker",
        index: int = 0,
        previous: bool = False,
        tail: int | None = None,
    ) -> str:
        """What a worker or a server has written; `previous`: before its last restart; `tail`: the last lines."""
        (log,) = self.logs_of(name, role=role, index=index, previous=previous)
        return "".join(f"{line}\n" for line in self.lines(log, tail=tail))

    def logs_of(
        self, name: str, *, role: str = "worker", index: int | None = None, previous: bool = False
    ) -> tuple[Log, ...]:
        """The log of each index of a role, or of one index. Raises JobNotFound when there is none."""
        by_index: dict[int, list[Pod]] = {}
        for pod in self.pods(name, role):
            by_index.setdefault(pod.index, []).append(pod)
        chosen = [pods for number, pods in by_index.items() if index in (None, number)]
        if not chosen:
            state = self.get(name).state
            which = role if index is None else f"{role} {index}"
            raise JobNotFound(
                f"{name}: no pod of {which} in namespace {self.namespace} (the job's state: {state})"
            )
        return tuple(_previous(pods) if previous else Log(pod=pods[0]) for pods in chosen)

    def lines(self, log: Log, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """A log's lines; `follow`: from before its container begins until it ends."""
        query = {"container": log.pod.container}
        query |= {"follow": "true"} if follow else {}
        query |= {"previous": "true"} if log.previous else {}
        query |= {"tailLines": str(tail)} if tail is not None else {}
        request = core_request("get", "pods/log", self.namespace, log.pod.name, query=query)
        while True:
            try:
                for line in self._cluster.stream(request, read_s=None if follow else _LOG_READ_S):
                    yield line.decode("utf-8", "replace")
                return
            except ClusterError as error:
                if not follow or _NOT_STARTED not in str(error):
                    raise
            time.sleep(_STARTED_EVERY_S)

    def _get(self, name: str, namespace: str) -> Job:
        return job_of(self._cluster.ask(job_request("get", namespace, name)))

    def _items(self, request: Any, *where: Any, **query: str) -> Sequence[dict[str, Any]]:
        """All items of a list, page by page."""
        items: Sequence[dict[str, Any]] = ()
        more = ""
        while True:
            page = {**query, "limit": str(_PAGE)} | ({"continue": more} if more else {})
            answer = self._cluster.ask(request("list", *where, query=page))
            items = (*items, *(answer.get("items") or ()))
            more = (answer.get("metadata") or {}).get("continue") or ""
            if not more:
                return items


def checked(name: str, what: str) -> str:
    """`name`, which can be one. Raises BadRequest: an empty one would mean all of them to the API server."""
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise BadRequest(
            f"found the {what} name {name!r}, wanted lower-case letters, digits and '-', "
            "with a letter or digit at both ends, at most 63 characters"
        )
    return name


def finished_well(job: Job) -> Job:
    """A job that is complete. Raises JobFailed with the first failure."""
    if job.failed:
        raise JobFailed(f"{job.name}: failed: {job.cause}")
    return job


def _previous(pods: Sequence[Pod]) -> Log:
    """The log before the last restart: of the container before this one, or of the pod before this one."""
    newest, *older = pods
    if newest.restarts:
        return Log(pod=newest, previous=True)
    if older:
        return Log(pod=older[0])
    raise ClusterError(f"{newest.name}: was not started again, so it has no previous log")


def _same_spec(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two jobs ask for the same, with what is not said in its default."""
    if one.get("spec") == other.get("spec"):
        return True
    try:
        return _spec(one) == _spec(other)
    except JobInvalid:
        # The cluster's has a field that this version does not know.
        return False


def _spec(manifest: Mapping[str, Any]) -> Spec:
    name = manifest["metadata"]["name"]
    plain = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": manifest.get("spec"),
    }
    return parse_job(plain).spec
