"""The operator over an API server in memory, in simulated time, with a fault in whichever of its calls is wanted.

All but the network is the operator's own: its queue, caches, decisions, writes. Nothing sleeps and nothing is random,
so the same faults give the same history.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import heapq
import itertools
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from operator_faults.api import ApiServer, Body, Event, of_job
from operator_faults.kubernetes import Kubernetes, job_of_pod

from tablebay.client.errors import TablebayError, Unavailable
from tablebay.client.tls import Source
from tablebay.operator import projections
from tablebay.operator.certificates import Certificates
from tablebay.operator.clock import Clock
from tablebay.operator.cluster import (
    FIELD_MANAGER,
    POD_MONITORS,
    PODS,
    ApiError,
    Cluster,
    Resource,
    resource_of,
)
from tablebay.operator.informers import Store
from tablebay.operator.jobcache import JobCache
from tablebay.operator.manifests import Defaults
from tablebay.operator.plans import Tell
from tablebay.operator.progress import Checkpoints, Poller
from tablebay.operator.reconcile import CHILDREN, Reconciler, Workers
from tablebay.operator.recorder import Recorder
from tablebay.operator.workqueue import Key, WorkQueue

BEGAN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
NAMESPACE = "ads"
# From a change to whoever watches; from a change to Kubernetes' controllers; of a look at a job.
WATCH_S, CONTROLLERS_S, LOOK_S = 0.05, 0.1, 0.01
RESTART_S, RELIST_S, DELAY_S, COMPARE_S, RESYNC_S = 5.0, 20.0, 15.0, 60.0, 600.0
CHECKPOINT_S = 3.0
# For so long Ready may be True of a job one of whose servers has just gone: nobody hears of it at once.
UNTRUE_S = 60.0
# Steps of each worker, of a second each: more than the longest trouble lasts, and its mending.
STEPS = 250


class Killed(Exception):
    """The operator's process has ended."""


@dataclass(frozen=True)
class Call:
    """A call of the operator's. write: it changes something, if it is let through."""

    number: int
    verb: str
    kind: str
    name: str
    write: bool

    def __str__(self) -> str:
        return f"call {self.number}, {self.verb} {self.kind} {self.name}"


# What a fault does in place of a call: it is given the simulation, the call, and the call itself.
Fault = Callable[["Simulation", Call, Callable[[], Any]], Any]
# What a fault does with an event of a watch: the seconds after which it is told, one for each time.
EventFault = Callable[["Simulation", "Process", Event], Sequence[float]]


class Facade:
    """`Cluster` over the API server in memory, for one process."""

    def __init__(self, simulation: Simulation, process: Process) -> None:
        self._simulation = simulation
        self._process = process

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        api = self._simulation.api
        return cast(
            "Body | None",
            await self._call(
                "get",
                resource,
                name,
                lambda at=None: api.get(resource.plural, namespace, name, at=at),
            ),
        )

    async def create(self, resource: Resource, namespace: str, body: Body) -> Body:
        api = self._simulation.api
        name = body["metadata"]["name"]
        return cast(
            "Body",
            await self._call(
                "create",
                resource,
                name,
                lambda: api.create(resource.plural, namespace, body, manager=FIELD_MANAGER),
            ),
        )

    async def apply(self, manifest: Body, *, dry_run: bool = False) -> Body:
        api, resource = self._simulation.api, resource_of(manifest)
        return cast(
            "Body",
            await self._call(
                "dry-run" if dry_run else "apply",
                resource,
                manifest["metadata"]["name"],
                lambda: api.apply(resource.plural, manifest, FIELD_MANAGER, dry_run=dry_run),
            ),
        )

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Body, *, subresource: str = ""
    ) -> Body:
        api = self._simulation.api
        return cast(
            "Body",
            await self._call(
                f"patch {subresource}".strip(),
                resource,
                name,
                lambda: api.patch(
                    resource.plural, namespace, name, body, subresource=subresource, manager=FIELD_MANAGER
                ),
            ),
        )

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str = ""
    ) -> None:
        api = self._simulation.api
        try:
            await self._call(
                "delete",
                resource,
                name,
                lambda: api.delete(
                    resource.plural, namespace, name, uid=uid, resource_version=resource_version
                ),
            )
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def list_all(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str] | None = None
    ) -> list[Body]:
        api, selector = self._simulation.api, (query or {}).get("labelSelector", "")
        account = (query or {}).get("fieldSelector", "").removeprefix("spec.serviceAccountName=")

        def read(at: int | None = None) -> list[Body]:
            found = api.list(resource.plural, namespace, selector, at=at)
            return [one for one in found if account in ("", one["spec"].get("serviceAccountName", ""))]

        return cast(
            "list[Body]",
            await self._call(
                "list",
                resource,
                selector or account,
                read,
            ),
        )

    async def names(self, resource: Resource, namespace: str | None) -> dict[Key, str]:
        api = self._simulation.api
        found = cast(
            "list[Body]",
            await self._call(
                "list", resource, "", lambda at=None: api.list(resource.plural, namespace, at=at)
            ),
        )
        return {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one["metadata"]["uid"] for one in found
        }

    async def _call(self, verb: str, resource: Resource, name: str, act: Callable[..., Any]) -> Any:
        simulation = self._simulation
        if not self._process.alive:
            raise Killed
        call = Call(len(simulation.calls), verb, resource.kind, name, verb not in ("get", "list", "dry-run"))
        simulation.calls.append(call)
        fault = simulation.faults.get(call.number) or simulation.trouble
        # What else the operator does at once comes in between.
        await asyncio.sleep(0)
        if not self._process.alive:
            raise Killed
        result = fault(simulation, call, act) if fault is not None else act()
        self._process.clock.heard(simulation.moment())
        return result


async def _at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """No thread, whose end nobody foresees."""
    return work(*arguments)


class _Poller(Poller):
    """Asks in the event loop: there is no network to wait for."""

    async def _call(self, key: Key, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except TablebayError:
            return None


class _Watched:
    """A reconciler whose unhandled errors are noted."""

    def __init__(self, inner: Reconciler, simulation: Simulation, process: Process) -> None:
        self._inner, self._simulation, self._process = inner, simulation, process

    async def reconcile(self, key: Key) -> None:
        try:
            await self._inner.reconcile(key)
        except (ApiError, Killed):
            raise
        except Exception as error:
            self._simulation.crashes.append(f"{type(error).__name__}: {error}")
            raise

    async def tell_fault(self, key: Key, error: BaseException) -> None:
        await self._inner.tell_fault(key, error)


class Process:
    """A process of the operator's: it lists what there is, and is told of what changes from then on."""

    def __init__(self, simulation: Simulation) -> None:
        self.alive = True
        # Until when nothing comes of a watch, by what it is of. A watch keeps the order of its events.
        self.slow: dict[str, float] = {}
        self._simulation = simulation
        self.clock = Clock(lambda: simulation.moment() + simulation.skew)
        self.queue = WorkQueue(clock=simulation.clock, randomness=random.Random(0))
        self.jobs = JobCache(self.queue.add, clock=simulation.clock)
        resources: dict[Resource, Any] = {**CHILDREN, PODS: projections.pod}
        if simulation.pod_monitors:
            resources[POD_MONITORS] = projections.child
        self.stores: dict[str, Store[Any]] = {
            resource.plural: Store(resource, project, changed=self.queue.add)
            for resource, project in resources.items()
        }
        self.poller = _Poller(
            self.queue.add,
            self.queue.add_after,
            ask=simulation.ask,
            ask_checkpoints=simulation.ask_checkpoints,
            tell=simulation.tell,
            clock=simulation.clock,
        )
        self._facade = cast("Cluster", Facade(simulation, self))
        reconciler = Reconciler(
            cluster=self._facade,
            jobs=self.jobs,
            children={one.resource.kind: one for one in self.stores.values() if one.resource is not PODS},
            pods=self.stores["pods"],
            poller=self.poller,
            recorder=Recorder(self._facade, "test", clock=simulation.clock),
            queue=self.queue,
            defaults=Defaults(simulation.image, "IfNotPresent"),
            certificates=Certificates(
                self._facade, now=lambda: simulation.moment() + simulation.skew, aside=_at_once
            ),
            now=self.clock.now,
        )
        self._workers = Workers(
            cast("Reconciler", _Watched(reconciler, simulation, self)),
            self.queue,
            lambda result, seconds: simulation.results.update([result]),
        )
        for body in simulation.api.list("trainingjobs", None):
            self.jobs.event(None, body)
        for plural in self.stores:
            self.relist(plural)

    def relist(self, plural: str, *, at: int | None = None) -> None:
        """What comes of a watch that broke off. at: from an API server that is behind."""
        if not self.alive:
            return
        if plural == "trainingjobs":
            # kopf says nothing of those that are gone.
            for body in self._simulation.api.list(plural, None, at=at):
                self.jobs.event(None, body)
            return
        store = self.stores.get(plural)
        if store is not None:
            api = self._simulation.api
            found = api.list(plural, None, projections.JOB_LABEL, at=at)
            version = api.version if at is None else at
            store.replace(None, [store.projected(body) for body in found], version)

    def told(self, event: Event) -> None:
        """An event of a watch."""
        if not self.alive:
            return
        if event.plural == "trainingjobs":
            self.jobs.event(event.kind, event.body)
        elif event.plural in self.stores:
            store = self.stores[event.plural]
            # One that has lost the label is gone, for a watch of those that bear it.
            kind = event.kind if of_job(event.body) else "DELETED"
            store.take(kind, store.projected(event.body))

    @property
    def has_work(self) -> bool:
        """Whether a key waits; asked, what is due is put there."""
        return self.queue.age_s >= 0 and self.queue.depth > 0

    @property
    def due(self) -> float:
        """When the next key is due."""
        return self.queue._later[0][0] if self.queue._later else float("inf")

    async def look(self) -> None:
        """One look at the next job."""
        await self._workers.one()
        while self.alive and self.poller._tasks:
            await asyncio.wait(self.poller._tasks)

    async def compare(self) -> None:
        """What the operator does once a minute."""
        with contextlib.suppress(Killed):
            await self.jobs.compare(self._facade, ())

    def resync(self) -> None:
        """What it does every ten minutes."""
        for body in self.jobs.bodies():
            self.queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))


@dataclass
class _Attempts:
    """The checkpoints of a job's server 0: asked for, ended, and when the last one ends.

    whole: when it began no worker could push any more. kept: the same of the one that has ended last.
    """

    epoch: str = ""
    ticket: int = 0
    ended: int = 0
    ends: float = 0.0
    whole: bool = False
    kept: bool = False


@dataclass
class Outcome:
    """What came of a run. states: of every object when all was quiet. left: after the job was deleted."""

    settled: dict[str, Any] = field(default_factory=dict)
    noise: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Simulation:
    """A cluster with an operator."""

    # How far the operator's clock is ahead of the others.
    skew = datetime.timedelta()
    # What the chart says of servers to an operator that starts.
    image = "registry/tablebay:1"

    def __init__(
        self,
        *,
        faults: Mapping[int, Fault] | None = None,
        event_faults: Mapping[int, EventFault] | None = None,
        pod_monitors: bool = False,
        operators: int = 1,
        steps: int = STEPS,
        grain_s: float = 0.001,
    ) -> None:
        random.seed(0)
        # Kubernetes' controllers look at all there is at multiples of this.
        self._grain_s = grain_s
        self.now = 0.0
        self.faults = dict(faults or {})
        self.event_faults = dict(event_faults or {})
        # A fault of every call, as long as it is set.
        self.trouble: Fault | None = None
        self.pod_monitors = pod_monitors
        self.calls: list[Call] = []
        self.crashes: list[str] = []
        # How often a look ended how.
        self.results: Counter[str] = Counter()
        self.struck: list[str] = []
        self.events = 0
        # Whether all was in a checkpoint when a job's servers were told to end, by the job's name.
        self.kept: list[tuple[str, bool]] = []
        self.untrue: list[str] = []
        # How many workers each life of a server 0 knows of.
        self.workers_known: dict[str, int] = {}
        self._untrue_since: dict[str, float] = {}
        self.processes: list[Process] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._ticks: set[float] = set()
        self.api = ApiServer(self.moment, self._changed)
        self.kubernetes = Kubernetes(self.api, self.clock, self.moment, self._wake, steps=steps)
        self._attempts: dict[str, _Attempts] = {}
        self.processes = [Process(self) for _ in range(operators)]
        self._compared = COMPARE_S
        self._resynced = RESYNC_S

    # -- time --

    def clock(self) -> float:
        """Seconds since the beginning."""
        return self.now

    def moment(self) -> datetime.datetime:
        """The time of day."""
        return BEGAN + datetime.timedelta(seconds=self.now)

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Have something done later."""
        heapq.heappush(self._heap, (time, next(self._numbers), act))

    def _wake(self, time: float) -> None:
        # Later than now in any case: the time must go on. Divided by whole numbers, or rounding would bring it back.
        per_s = round(1 / self._grain_s)
        time = max(math.ceil(time * per_s), math.floor(self.now * per_s) + 1) / per_s
        if time not in self._ticks:
            self._ticks.add(time)
            self.at(time, lambda: self._tick(time))

    def _tick(self, time: float) -> None:
        self._ticks.discard(time)
        self.kubernetes.tick()

    def _changed(self, event: Event) -> None:
        if event.plural == "events":
            return
        self._wake(self.now + CONTROLLERS_S)
        self._look_at(event)
        for process in self.processes:
            times: Sequence[float] = (max(WATCH_S, process.slow.get(event.plural, 0.0) - self.now),)
            if process.alive and (event.plural in process.stores or event.plural == "trainingjobs"):
                fault = self.event_faults.get(self.events)
                self.events += 1
                if fault is not None:
                    self.struck.append(f"{event.kind} of {event.plural}/{event.body['metadata']['name']}")
                    times = fault(self, process, event)
            for after in times:
                self.at(self.now + after, lambda process=process: process.told(event))  # type: ignore[misc]

    def _look_at(self, event: Event) -> None:
        """Note what no end state shows."""
        if event.plural == "statefulsets" and event.kind == "MODIFIED" and not event.body["spec"]["replicas"]:
            job = self.job(of_job(event.body))
            before = self.api.states["statefulsets", NAMESPACE, event.body["metadata"]["name"]][-2][1]
            if job is not None and before is not None and before["spec"]["replicas"]:
                known = self._attempts.get(job["metadata"]["uid"], _Attempts())
                self.kept.append((job["metadata"]["name"], known.kept and known.ended == known.ticket))
        if event.plural not in ("trainingjobs", "pods"):
            return
        one = event.body
        name = one["metadata"]["name"] if event.plural == "trainingjobs" else job_of_pod(one)
        body = self.job(name)
        if body is not None:
            if holds(body, "Ready") and not self.kubernetes.servers_ready(NAMESPACE, name):
                self._untrue_since.setdefault(name, self.now)
            else:
                since = self._untrue_since.pop(name, self.now)
                if self.now - since > UNTRUE_S:
                    self.untrue.append(
                        f"{name} was Ready for {self.now - since:.0f} s while a server was not"
                    )

    # -- the operator's processes --

    def kill(self) -> None:
        """End the operator's process; another one comes a moment later."""
        for process in self.processes:
            process.alive = False
        self.at(self.now + RESTART_S, self.start)

    def start(self) -> None:
        """Another process of the operator's."""
        self.processes = [process for process in self.processes if process.alive]
        self.processes.append(Process(self))

    # -- what servers answer --

    def ask(self, address: str, tls: Source | None) -> list[dict[str, float]]:
        """What workers have reported to server 0."""
        uid = self._asked(address)
        return [
            {"step": float(int(step)), "loss": 0.5} for _, step in sorted(self.kubernetes.steps(uid).items())
        ]

    def ask_checkpoints(self, address: str, tls: Source | None, begin: bool) -> Checkpoints:
        """How its checkpoints stand; one takes a while."""
        uid = self._asked(address)
        known = self._attempts.setdefault(uid, _Attempts())
        epoch = self.api.get("pods", NAMESPACE, address.split(".", maxsplit=1)[0])
        life = epoch["status"]["containerStatuses"][0]["containerID"] if epoch is not None else ""
        if known.epoch != life:
            known = self._attempts[uid] = _Attempts(epoch=life, ticket=known.ticket, ended=known.ticket)
        if self.now >= known.ends and known.ended < known.ticket:
            known.ended, known.kept = known.ticket, known.whole
        if begin:
            known.ticket += 1
            known.ends = self.now + CHECKPOINT_S
            known.whole = not live_pods(self.api, job_of(address), "worker")
        last = {"number": 1} if known.ended else {}
        return Checkpoints(
            last=last, epoch=zlib.crc32(life.encode()), ticket=known.ticket if begin else 0, ended=known.ended
        )

    def tell(self, addresses: Sequence[str], tls: Any, tell: Tell) -> None:
        """Server 0 hears how many workers there are."""
        self._asked(addresses[0])
        life = self._container(job_of(addresses[0]))
        self.workers_known[life] = tell.workers

    def _container(self, job: str) -> str:
        body = self.api.get("pods", NAMESPACE, f"{job}-server-0")
        statuses = (body or {}).get("status", {}).get("containerStatuses") or [{}]
        found: str = statuses[0].get("containerID", "")
        return found

    def _asked(self, address: str) -> str:
        job = job_of(address)
        body = self.api.get("trainingjobs", NAMESPACE, job)
        if body is None or not self.kubernetes.servers_ready(NAMESPACE, job):
            raise Unavailable(f"{address}: nobody answers")
        uid: str = body["metadata"]["uid"]
        return uid

    # -- running --

    async def until(self, done: Callable[[], bool], limit_s: float = 2000.0) -> bool:
        """Go on until something holds, or nothing happens any more, or so many seconds have passed."""
        end = self.now + limit_s
        while not done():
            if not await self._one(end):
                return done()
        return True

    async def _one(self, end: float) -> bool:
        """The next thing that happens; whether there was one."""
        if self._heap and self._heap[0][0] <= self.now:
            heapq.heappop(self._heap)[2]()
            return True
        for process in self.processes:
            if process.alive and process.has_work:
                await process.look()
                self.now += LOOK_S
                return True
        times = [self._heap[0][0] if self._heap else float("inf"), self._compared, self._resynced]
        times += [process.due for process in self.processes if process.alive]
        following = min(times)
        if following > end:
            self.now = max(self.now, end)
            return False
        self.now = max(self.now, following)
        if self.now >= self._compared:
            self._compared += COMPARE_S
            for process in self.processes:
                if process.alive:
                    await process.compare()
        if self.now >= self._resynced:
            self._resynced += RESYNC_S
            for process in self.processes:
                process.resync()
        return True

    # -- for users --

    def job(self, name: str) -> Body | None:
        """A TrainingJob."""
        return self.api.get("trainingjobs", NAMESPACE, name)

    def patch_job(self, name: str, spec: Mapping[str, Any]) -> None:
        """The user changes fields of the spec."""
        self.api.patch("trainingjobs", NAMESPACE, name, {"spec": dict(spec)}, manager="kubectl")


def job_of(address: str) -> str:
    """The job whose server 0 has that address."""
    return address.split("-server-0.", maxsplit=1)[0]


def live_pods(api: ApiServer, job: str, role: str) -> list[Body]:
    """The pods of a role that have not ended."""
    return [
        one
        for one in api.list("pods", NAMESPACE, f"{projections.JOB_LABEL}={job}")
        if one["metadata"]["labels"][projections.ROLE_LABEL] == role
        and one["status"]["phase"] in ("Pending", "Running")
    ]


def condition(body: Body | None, type: str) -> Body:
    """A condition of a job."""
    for one in ((body or {}).get("status") or {}).get("conditions", ()):
        if one["type"] == type:
            found: Body = one
            return found
    return {}


def holds(body: Body | None, type: str) -> bool:
    """Whether a condition is True."""
    return condition(body, type).get("status") == "True"


def reason(body: Body | None) -> str:
    """Of Ready."""
    found: str = condition(body, "Ready").get("reason", "")
    return found
