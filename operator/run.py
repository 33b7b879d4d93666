"""The operator's life: probes, the lease, the watches, the workers, the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import kopf

from tablebay import __version__
from tablebay.client.environment import JOB_LABEL
from tablebay.operator import handlers, probes, projections
from tablebay.operator.certificates import Certificates
from tablebay.operator.cluster import (
    POD_GROUPS,
    POD_MONITORS,
    PODS,
    WORKLOADS,
    ApiError,
    Cluster,
    Resource,
)
from tablebay.operator.informers import Informer, Store
from tablebay.operator.jobcache import JobCache
from tablebay.operator.lease import Lease
from tablebay.operator.manifests import Defaults
from tablebay.operator.progress import Poller
from tablebay.operator.reconcile import CHILDREN, Reconciler, Workers
from tablebay.operator.recorder import Recorder
from tablebay.operator.telemetry import Metrics, State
from tablebay.operator.workqueue import WorkQueue

_LOG = logging.getLogger(__name__)

RESYNC_S = 600.0
COMPARE_S = 60.0
DISCOVER_S = 300.0
# Past these the process is better started anew.
SILENT_MAX_S, STALE_MAX_S, QUEUE_AGE_MAX_S = 180.0, 240.0, 300.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """The operator's settings.

    namespaces: none means all of them. spread_s: after it what a Secret holds is in every pod.
    """

    namespaces: tuple[str, ...]
    defaults: Defaults
    lease_namespace: str
    lease_name: str
    http_port: int
    concurrency: int
    qps: float
    burst: int
    spread_s: float


def run(config: Config) -> int:
    """Until SIGTERM or SIGINT (0), or until the lease or kopf is lost (1)."""
    return asyncio.run(_Operator(config).run())


class _Operator:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.urandom(4).hex()}"
        self._metrics = Metrics(__version__)
        self._queue = WorkQueue()
        self._jobs = JobCache(self._queue.add)
        self._lease: Lease | None = None
        self._informers: dict[str, Informer[Any]] = {}
        self._kopf_ready = asyncio.Event()
        # Whether the cluster knows PodGroups has been asked, where they are wanted.
        self._gang_asked = asyncio.Event()

    async def run(self) -> int:
        """The whole life; its exit code."""
        config = self._config
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        cluster = Cluster(
            threads=max(16, 2 * config.concurrency),
            qps=config.qps,
            burst=config.burst,
            on_request=self._metrics.request,
        )
        self._lease = Lease(
            cluster,
            config.lease_namespace,
            config.lease_name,
            self._identity,
            account=os.environ.get("POD_SERVICE_ACCOUNT", ""),
        )
        self._metrics.watch(self._state)
        server = await probes.serve(
            config.http_port, self._metrics.registry, alive=self._wrong, ready=self._not_ready
        )
        _LOG.info(
            "operator.started",
            extra={
                "version": __version__,
                "api": cluster.address,
                "namespaces": list(config.namespaces) or "all",
            },
        )
        try:
            if not await _first(self._lease.acquire(), stop.wait()):
                return await self._lead(cluster, stop)
            return 0
        finally:
            await self._lease.release()
            for informer in self._informers.values():
                informer.stop()
            await server.cleanup()
            _LOG.info("operator.ended")

    async def _lead(self, cluster: Cluster, stop: asyncio.Event) -> int:
        config = self._config
        assert self._lease is not None
        # The reconciler's own, so that a kind may come later.
        children: dict[str, Store[Any]] = {}
        for resource, project in CHILDREN.items():
            children[resource.kind] = self._watch(cluster, resource, project)
        pods = self._watch(cluster, PODS, projections.pod)
        poller = Poller(self._queue.add, self._queue.add_after)
        reconciler = Reconciler(
            cluster=cluster,
            jobs=self._jobs,
            children=children,
            pods=pods,
            poller=poller,
            recorder=Recorder(cluster, self._identity),
            queue=self._queue,
            defaults=config.defaults,
            certificates=Certificates(cluster, spread_s=config.spread_s, now=cluster.clock.now),
            now=cluster.clock.now,
        )
        workers = Workers(reconciler, self._queue, self._metrics.reconciled)
        stop_kopf = asyncio.Event()
        watch = kopf.operator(
            registry=handlers.registry(self._jobs),
            settings=handlers.settings(),
            # Or it would look for the name of the user that it runs as, which a container need not have.
            identity=self._identity,  # type: ignore[arg-type,unused-ignore] # a NewType of str
            standalone=True,
            clusterwide=not config.namespaces,
            namespaces=config.namespaces,
            ready_flag=self._kopf_ready,
            stop_flag=stop_kopf,
        )
        tasks = {
            "kopf": asyncio.create_task(watch),
            "lease": asyncio.create_task(self._lease.keep()),
            "stop": asyncio.create_task(stop.wait()),
            "compare": asyncio.create_task(self._compare(cluster)),
            "monitors": asyncio.create_task(self._find(cluster, POD_MONITORS, children)),
            "resync": asyncio.create_task(self._resync()),
            "workers": asyncio.create_task(self._work(workers)),
        }
        gang = config.defaults.gang
        if gang in POD_GROUPS:
            tasks["gang"] = asyncio.create_task(self._find(cluster, POD_GROUPS[gang], children))
        elif gang:
            tasks["gang"] = asyncio.create_task(self._find_queues(cluster, reconciler))
        else:
            self._gang_asked.set()
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        ended = next(name for name, task in tasks.items() if task.done())
        if ended == "lease":
            # Another replica may act already: no farewell, no write.
            os._exit(1)
        error = tasks[ended].exception() if ended != "stop" else None
        if error is not None:
            _LOG.error("operator.failed", extra={"part": ended}, exc_info=error)
        stop_kopf.set()
        for name, task in tasks.items():
            if name != "kopf":
                task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.gather(*tasks.values(), return_exceptions=True)
        # kopf takes signals for itself, and returns on them.
        return 1 if error is not None else 0

    def _watch(
        self, cluster: Cluster, resource: Resource, project: Callable[[Mapping[str, Any]], Any]
    ) -> Informer[Any]:
        informer = self._informers[resource.kind] = Informer(
            cluster,
            resource,
            project,
            selector=JOB_LABEL,
            namespaces=self._config.namespaces,
            changed=self._queue.add,
        )
        return informer

    async def _find(self, cluster: Cluster, resource: Resource, children: dict[str, Store[Any]]) -> None:
        """Objects of a kind of somebody else's are made where the cluster knows it, also if it learns it later."""
        while True:
            try:
                if await cluster.serves(resource):
                    break
                if resource.kind == "PodGroup":
                    self._gang_asked.set()
            except ApiError as error:
                _LOG.info("kind.unknown", extra={"kind": resource.kind, "cause": str(error)})
            await asyncio.sleep(DISCOVER_S)
        informer = self._watch(cluster, resource, projections.child)
        await informer.synced()
        children[resource.kind] = informer
        if resource.kind == "PodGroup":
            self._gang_asked.set()
        for body in self._jobs.bodies():
            self._queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))
        await asyncio.Event().wait()

    async def _find_queues(self, cluster: Cluster, reconciler: Reconciler) -> None:
        """Whether the cluster knows Kueue, also if it learns it later. Nothing of Kueue's is watched."""
        while reconciler.workloads is None:
            try:
                served = [resource for resource in WORKLOADS if await cluster.serves(resource)]
                reconciler.workloads = next(iter(served), None)
                self._gang_asked.set()
            except ApiError as error:
                _LOG.info("kind.unknown", extra={"kind": "Workload", "cause": str(error)})
            if reconciler.workloads is None:
                await asyncio.sleep(DISCOVER_S)
        for body in self._jobs.bodies():
            self._queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))
        await asyncio.Event().wait()

    async def _work(self, workers: Workers) -> None:
        await self._gang_asked.wait()
        for informer in list(self._informers.values()):
            await informer.synced()
        _LOG.info("watches.synced", extra={"objects": {k: len(i) for k, i in self._informers.items()}})
        async with asyncio.TaskGroup() as group:
            for _ in range(self._config.concurrency):
                group.create_task(workers.run())

    async def _compare(self, cluster: Cluster) -> None:
        while True:
            await asyncio.sleep(COMPARE_S * (0.9 + 0.2 * random.random()))
            await self._jobs.compare(cluster, self._config.namespaces)

    async def _resync(self) -> None:
        """Every job now and then, each at its own moment."""
        while True:
            await asyncio.sleep(RESYNC_S)
            for body in self._jobs.bodies():
                key = (body["metadata"]["namespace"], body["metadata"]["name"])
                self._queue.add_after(key, RESYNC_S * 0.4 * random.random())

    # -- probes --

    def _state(self) -> State:
        return State(
            leader=self._lease is not None and self._lease.held,
            queue_depth=self._queue.depth,
            queue_age_s=self._queue.age_s,
            silent_s={one.resource.plural: one.silent_s for one in self._informers.values()},
            jobs=self._jobs.bodies(),
        )

    def _wrong(self) -> str:
        """That this is answered at all shows that the event loop runs."""
        for informer in self._informers.values():
            if informer.silent_s > SILENT_MAX_S:
                return (
                    f"the watch of {informer.resource.plural} has been silent for {informer.silent_s:.0f} s"
                )
        if self._jobs.stale_s > STALE_MAX_S:
            return f"kopf's view of TrainingJobs has been wrong for {self._jobs.stale_s:.0f} s"
        if self._queue.age_s > QUEUE_AGE_MAX_S:
            return f"a job has waited {self._queue.age_s:.0f} s to be looked at"
        return ""

    def _not_ready(self) -> str:
        if self._lease is None:
            return "starting"
        if not self._lease.held:
            # A warm standby is as ready as it gets.
            return ""
        behind = [one.resource.plural for one in self._informers.values() if not one.is_synced]
        return f"the first lists are not there yet: {', '.join(behind)}" if behind else ""


async def _first(wanted: Any, other: Any) -> bool:
    """Waits for either; whether `other` came first."""
    tasks = [asyncio.create_task(wanted), asyncio.create_task(other)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task not in done:
            task.cancel()
    if tasks[0] in done:
        tasks[0].result()
        return False
    return True
