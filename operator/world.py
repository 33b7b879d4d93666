"""A job and its children, with the questions that decisions ask of them."""

from __future__ import annotations

import datetime
import functools
import json
from dataclasses import dataclass, replace

from tablebay.operator.manifests import SERVER, WORKER, JobObject
from tablebay.operator.plans import Observed
from tablebay.operator.projections import (
    PAUSED_ANNOTATION,
    QUEUE_ANNOTATION,
    QUEUE_RELEASED,
    RAN_ANNOTATION,
    SERVER_CONTAINER,
    SERVERS_ANNOTATION,
    TLS_ANNOTATION,
    TRAINED_ANNOTATION,
    Container,
    Ended,
    Pod,
    StatefulSet,
    WorkerJob,
)


class World:
    """A job and its children, with the questions that decisions ask of them."""

    def __init__(self, job: JobObject, observed: Observed) -> None:
        self.job = job
        self.observed = observed
        found = observed.children.get(("StatefulSet", job.servers_name))
        self.stateful_set = found if isinstance(found, StatefulSet) else None
        of_set = self.stateful_set.uid if self.stateful_set is not None else ""
        # By their names, which nobody can edit. Pods of a set that was deleted before may still be about to go.
        named = [_named(job, pod) for pod in observed.pods]
        self.pods = [pod for pod in named if pod.role != SERVER or pod.owner in ("", of_set)]
        self.servers = [pod for pod in self.pods if pod.role == SERVER]
        self.workers = [pod for pod in self.pods if pod.role == WORKER]
        found = observed.children.get(("Job", job.workers_name))
        self.worker_job = found if isinstance(found, WorkerJob) else None

    @property
    def durable(self) -> bool:
        """Whether a server comes back with its rows."""
        return self.job.model.spec.durable

    @property
    def tls(self) -> bool:
        """Whether its pods speak TLS: as they were made, which no later operator changes; else as the job says."""
        made = self.worker_job or self.stateful_set
        if made is not None:
            return TLS_ANNOTATION in made.annotations
        return self.job.model.spec.network.tls == "Enabled"

    @property
    def began(self) -> bool:
        """Whether workers were ever let run."""
        return self.worker_job is not None and SERVERS_ANNOTATION in self.worker_job.annotations

    @property
    def queued(self) -> bool:
        """Whether Kueue has not let the workers run, or go on, yet."""
        found = self.worker_job
        given = found is not None and found.annotations.get(QUEUE_ANNOTATION) == QUEUE_RELEASED
        return given and found is not None and found.suspended

    @property
    def unstarted(self) -> bool:
        """Whether they wait for that for the first time, so that servers that are lost meanwhile had learnt nothing."""
        found = self.worker_job
        if found is None or not self.queued:
            return False
        return not (
            found.started or found.failed or self.paused.started or RAN_ANNOTATION in found.annotations
        )

    @property
    def paused(self) -> Paused:
        """What earlier suspensions left."""
        return paused(self.worker_job)

    @property
    def failures(self) -> int:
        """Failures of workers, less those that a suspension made."""
        if self.worker_job is None:
            return 0
        return max(0, self.worker_job.failed - self.paused.forgiven_now(self.worker_job.failed))

    @property
    def server_replicas(self) -> int:
        """Wanted."""
        return self.job.model.spec.servers.replicas

    @property
    def worker_replicas(self) -> int:
        """Wanted."""
        return self.job.model.spec.workers.replicas

    def identities(self) -> dict[int, str]:
        """Which container each ready server is now."""
        result = {}
        for pod in self.servers:
            container = named_container(pod, SERVER_CONTAINER)
            if pod.ready and not pod.deleting and container is not None and container.running:
                result[pod.index] = container.id
        return result

    @property
    def servers_ready(self) -> int:
        """How many of those wanted are ready."""
        return sum(1 for index in self.identities() if index < self.server_replicas)

    @property
    def trained_with(self) -> tuple[str, ...]:
        """The containers of the servers with which training began; none before that, or where nothing says so.

        The workers' Job says so. One that a hand has deleted says nothing, and the next one has not begun: so of a job
        whose rows no checkpoint has, the servers' set says it too.
        """
        if self.began and self.worker_job is not None:
            return () if self.unstarted else _identities(self.worker_job.annotations[SERVERS_ANNOTATION])
        known = self.noted
        if known is None or self.durable:
            return ()
        # It is noted before the Job is let run: of one that is there and was not let run, it says nothing.
        not_yet = self.worker_job is not None and self.worker_job.uid == known.job and not known.before
        return () if not_yet else known.servers

    @property
    def noted(self) -> Trained | None:
        """What the servers' set says of the servers with which training began."""
        if self.stateful_set is None or TRAINED_ANNOTATION not in self.stateful_set.annotations:
            return None
        return _trained(self.stateful_set.annotations[TRAINED_ANNOTATION])

    def lost_servers(self) -> list[tuple[int, str]]:
        """The servers that are not those with which training began, and what is there instead."""
        lost = []
        for index, identity in enumerate(self.trained_with):
            pod = next((pod for pod in self.servers if pod.index == index), None)
            container = None if pod is None else named_container(pod, SERVER_CONTAINER)
            if pod is None:
                lost.append((index, "its pod is gone"))
            elif container is None or not container.id:
                lost.append((index, "its pod was replaced"))
            elif container.id != identity:
                before = container.ended_before
                lost.append(
                    (index, f"its process {how_it_ended(before)}" if before else "its pod was replaced")
                )
            elif not container.running:
                # While it waits to be started again the kubelet goes on showing the old container's id.
                ended = container.ended or container.ended_before
                lost.append((index, f"its process {how_it_ended(ended)}" if ended else "its process is gone"))
        return lost


@dataclass(frozen=True)
class Trained:
    """A note on the servers' set: the workers' Job, and the servers' containers, with which training began.

    before: an earlier Job had trained with them.
    """

    job: str
    servers: tuple[str, ...]
    before: bool = False

    def text(self) -> str:
        """For the annotation."""
        return json.dumps({"job": self.job, "servers": list(self.servers), "before": self.before})


@functools.lru_cache(maxsize=1024)
def _trained(text: str) -> Trained | None:
    """What an annotation says; nothing where a hand has edited it."""
    try:
        known = json.loads(text)
        return Trained(str(known["job"]), tuple(str(one) for one in known["servers"]), bool(known["before"]))
    except (ValueError, KeyError, TypeError):
        return None


@functools.lru_cache(maxsize=1024)
def _identities(text: str) -> tuple[str, ...]:
    try:
        known = json.loads(text)
    except ValueError:
        return ()
    return tuple(known) if isinstance(known, list) else ()


@dataclass(frozen=True, kw_only=True)
class Paused:
    """What a Job that was suspended is not to count.

    forgiven: failures of pods that suspensions ended. failed_before: at the beginning of the one that lasts, None if
    none does. trained_s: until then. started: when training began first.
    """

    forgiven: int = 0
    failed_before: int | None = None
    trained_s: int = 0
    started: str = ""

    def forgiven_now(self, failed: int) -> int:
        """Failures that are not counted, with those of the suspension that lasts."""
        return self.forgiven + (0 if self.failed_before is None else max(0, failed - self.failed_before))

    def text(self) -> str:
        """For the annotation."""
        return json.dumps(
            {
                "forgiven": self.forgiven,
                "failedBefore": self.failed_before,
                "trainedSeconds": self.trained_s,
                "started": self.started,
            }
        )


def paused(found: WorkerJob | None) -> Paused:
    """What is noted on the workers' Job; nothing where a hand has edited it."""
    if found is None or PAUSED_ANNOTATION not in found.annotations:
        return Paused()
    return _paused(found.annotations[PAUSED_ANNOTATION])


@functools.lru_cache(maxsize=1024)
def _paused(text: str) -> Paused:
    """What an annotation says; a look asks for it many times."""
    try:
        known = json.loads(text)
        before = known["failedBefore"]
        return Paused(
            forgiven=int(known["forgiven"]),
            failed_before=None if before is None else int(before),
            trained_s=int(known["trainedSeconds"]),
            started=str(known["started"]),
        )
    except (ValueError, KeyError, TypeError):
        return Paused()


def _named(job: JobObject, pod: Pod) -> Pod:
    """The pod with the role and the index that its name says; without a role where it is none of the job's."""
    role, index = "", -1
    for prefix, of in ((job.servers_name, SERVER), (job.workers_name, WORKER)):
        first, _, last = pod.name.removeprefix(f"{prefix}-").partition("-")
        if pod.name.startswith(f"{prefix}-") and first.isdecimal() and (of == WORKER) == last.isalnum():
            role, index = of, int(first)
    return pod if pod.index == index and pod.role == role else replace(pod, role=role, index=index)


def trouble(pod: Pod) -> tuple[str, str]:
    """Why a pod does not begin, in the words of the scheduler or the kubelet: reason and message, or two empty ones."""
    if pod.held:
        return "Unschedulable", pod.held
    for container in pod.containers:
        if container.waiting and container.waiting[0] not in ("ContainerCreating", "PodInitializing"):
            return container.waiting
    return "", ""


def named_container(pod: Pod, name: str) -> Container | None:
    """A pod's container, if it is known."""
    return next((one for one in pod.containers if one.name == name), None)


def how_it_ended(ended: Ended) -> str:
    """In words that follow "its process"."""
    if ended.reason == "OOMKilled":
        return "was killed for its memory (OOMKilled)"
    if ended.signal:
        return f"was ended by signal {ended.signal}"
    return f"ended with exit code {ended.exit_code}"


def moment(text: str, otherwise: datetime.datetime) -> datetime.datetime:
    """The time that a text says; `otherwise` where a hand has written another thing."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return otherwise
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def text_of(moment: datetime.datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
