"""One look at a job: read what is known, decide, do it, write the status once."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tablebay.client.environment import DATA_PORT, JOB_LABEL
from tablebay.client.errors import JobInvalid
from tablebay.client.job import TrainingJob, parse_job
from tablebay.operator import manifests, projections, queues
from tablebay.operator.certificates import Certificates
from tablebay.operator.cluster import (
    CLAIMS,
    DISRUPTION_BUDGETS,
    JOBS,
    NETWORK_POLICIES,
    POD_GROUPS,
    POD_MONITORS,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    TRAINING_JOBS,
    ApiError,
    Cluster,
    Manifest,
    Resource,
    resource_of,
)
from tablebay.operator.conditions import with_fault
from tablebay.operator.decisions import decide
from tablebay.operator.informers import Store
from tablebay.operator.jobcache import JobCache
from tablebay.operator.manifests import Defaults, JobObject
from tablebay.operator.obstacles import invalid
from tablebay.operator.plans import Observed, Plan
from tablebay.operator.progress import Poller
from tablebay.operator.recorder import Recorder
from tablebay.operator.workqueue import Key, WorkQueue
from tablebay.operator.world import text_of

_LOG = logging.getLogger(__name__)

CHILDREN: dict[Resource, Callable[[Mapping[str, Any]], projections.Child]] = {
    STATEFUL_SETS: projections.stateful_set,
    JOBS: projections.worker_job,
    SERVICES: projections.child,
    SERVICE_ACCOUNTS: projections.child,
    DISRUPTION_BUDGETS: projections.child,
    NETWORK_POLICIES: projections.child,
}
_RESOURCES = {resource.kind: resource for resource in (*CHILDREN, PODS, POD_MONITORS)}


# A job whose objects are refused is tried again after so long, and ever later.
REFUSED_FIRST_S, REFUSED_MAX_S = 1.0, 60.0


@dataclass(frozen=True)
class _Refused:
    """What the API server said of a job of this generation, how often in a row, and until when it is not asked."""

    generation: int
    words: str
    times: int
    until: float


class Reconciler:
    """Brings jobs a step nearer to what they should be."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        jobs: JobCache,
        children: dict[str, Store[Any]],
        pods: Store[projections.Pod],
        poller: Poller,
        recorder: Recorder,
        queue: WorkQueue,
        defaults: Defaults,
        certificates: Certificates,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._certificates = certificates
        self._cluster = cluster
        self._jobs = jobs
        self._children = children
        self._pods = pods
        self._poller = poller
        self._recorder = recorder
        self._queue = queue
        self._defaults = defaults
        self._resources = dict(_RESOURCES)
        # Kueue's, where the chart's gang.scheduler is Kueue and the cluster knows them.
        self.workloads: Resource | None = None
        if defaults.gang in POD_GROUPS:
            self._resources["PodGroup"] = POD_GROUPS[defaults.gang]
        self._now = now
        # By uid and generation: the model, and what was made of it.
        self._models: dict[Key, tuple[str, int, TrainingJob, dict[Any, list[Manifest]]]] = {}
        # By uid of a child: the generation at which the last write of ours left it.
        self._settled: dict[Key, dict[str, int]] = {}
        self._refused: dict[Key, _Refused] = {}

    async def reconcile(self, key: Key) -> None:
        """One look. Raises ApiError where the look is to be repeated later."""
        body = self._jobs.get(key)
        if body is None:
            self._forget(key)
            return
        plan, job, body = await self._decide(key, body, fresh=False)
        if plan.confirm:
            live = await self._cluster.get(TRAINING_JOBS, *key)
            if live is None or live["metadata"]["uid"] != body["metadata"]["uid"]:
                self._jobs.drop(key)
                return
            if int(live["metadata"]["resourceVersion"]) < int(body["metadata"]["resourceVersion"]):
                # Of an API server that is behind: a job that has ended would be begun again.
                raise ApiError(409, "Conflict", "the job was read as it was before what is known of it")
            self._jobs.remember(live)
            plan, job, body = await self._decide(key, live, fresh=True)
        if job is not None:
            problem = await self._carry_out(key, job, plan)
            if problem:
                observed = replace(self._observed(key, job), **problem)
                plan = decide(job, observed, body.get("status") or {}, self._defaults, self._now())
            if plan.finalizers is not None:
                live = await self._set_finalizers(key, body, plan.finalizers)
                if live is None:
                    return
                body = live
        # Before the status, which may be refused for ever: what the servers know is asked for all the same.
        if job is not None and plan.poll in ("", "running") and not (job.model.spec.suspend or job.deleting):
            self._poller.goes_on(key)
        if job is not None and plan.poll:
            address = f"{job.servers_name}-0.{job.name}-servers.{job.namespace}.svc:{DATA_PORT}"
            tls = await self._certificates.source(job) if plan.tls else None
            self._poller.want(key, job.uid, address, plan.poll, tls=tls, durable=job.model.spec.durable)
        if job is not None and plan.tell is not None:
            tls = await self._certificates.source(job) if plan.tls else None
            self._poller.tell(key, job.uid, job.server_addresses, plan.tell, tls=tls)
        due_s = self._certificates.due_s(key)
        if plan.tls == "keep" and due_s is not None:
            self._queue.add_after(key, due_s)
        await self._write_status(key, body, plan)
        for happened in plan.events:
            await self._recorder.record(*key, body["metadata"]["uid"], happened)
        if plan.again_s is not None:
            self._queue.add_after(key, plan.again_s)

    async def _set_finalizers(self, key: Key, body: Manifest, finalizers: tuple[str, ...]) -> Manifest | None:
        """The job with these finalizers, or None where it is gone, or on its way, with them."""
        # A list is replaced whole, so nobody else may have changed it meanwhile.
        version = body["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version, "finalizers": list(finalizers)}}
        try:
            live = await self._cluster.patch(TRAINING_JOBS, *key, patch)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        if "deletionTimestamp" in live["metadata"]:
            return None
        self._jobs.remember(live)
        return live

    async def tell_fault(self, key: Key, error: BaseException) -> None:
        """Have the job's status say that a look at it ended with an error of the operator's own. Raises nothing."""
        body = self._jobs.get(key)
        if body is None:
            return
        try:
            status = body.get("status") or {}
            generation = body["metadata"]["generation"]
            changed = with_fault(status, error, generation=generation, now=text_of(self._now()))
            await self._write_status(key, body, Plan(status=changed))
        except Exception as other:  # noqa: BLE001 - the log has the first one, and a later look may tell of it
            _LOG.warning("fault.untold", extra={"job": "/".join(key), "cause": str(other)})

    def _forget(self, key: Key) -> None:
        self._models.pop(key, None)
        self._settled.pop(key, None)
        self._refused.pop(key, None)
        self._poller.forget(key)
        self._certificates.forget(key)
        self._queue.forget(key)

    async def _decide(
        self, key: Key, body: Manifest, *, fresh: bool
    ) -> tuple[Plan, JobObject | None, Manifest]:
        status = body.get("status") or {}
        try:
            job = self._job(key, body)
        except JobInvalid as error:
            plan = invalid(error.problems, status, generation=body["metadata"]["generation"], now=self._now())
            return plan, None, body
        observed = await self._live(key, job) if fresh else self._observed(key, job)
        return decide(job, observed, status, self._defaults, self._now()), job, body

    def _job(self, key: Key, body: Manifest) -> JobObject:
        meta = body["metadata"]
        known = self._models.get(key)
        if known is not None and known[:2] == (meta["uid"], meta["generation"]):
            model, made = known[2:]
        else:
            model = parse_job(
                {
                    "apiVersion": body["apiVersion"],
                    "kind": body["kind"],
                    "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
                    "spec": body.get("spec"),
                }
            )
            made = {}
            self._models[key] = (meta["uid"], meta["generation"], model, made)
        return JobObject(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            generation=meta["generation"],
            created=meta["creationTimestamp"],
            deleting="deletionTimestamp" in meta,
            spec=body["spec"],
            model=model,
            deleted=meta.get("deletionTimestamp") or "",
            finalizers=tuple(meta.get("finalizers") or ()),
            annotations=meta.get("annotations") or {},
            made=made,
        )

    # -- what is there --

    @property
    def _gang_served(self) -> str:
        return self._defaults.gang if self.workloads is not None or "PodGroup" in self._children else ""

    def _observed(self, key: Key, job: JobObject) -> Observed:
        return Observed(
            children={
                (child.kind, child.name): child
                for informer in self._children.values()
                for child in informer.of_job(key).values()
            },
            pods=list(self._pods.of_job(key).values()),
            progress=self._poller.of_job(key, job.uid),
            settled=self._settled.get(key, {}),
            pod_monitors="PodMonitor" in self._children,
            pod_groups=self._gang_served,
        )

    async def _live(self, key: Key, job: JobObject) -> Observed:
        query = {"labelSelector": f"{JOB_LABEL}={key[1]}"}
        # Those too that have lost the label: a hand can edit that, and their account never.
        of_account = {"fieldSelector": f"spec.serviceAccountName={job.account_name}"}
        resources = [PODS, *(self._resources[kind] for kind in self._children)]
        lists = await asyncio.gather(
            *(self._cluster.list_all(one, key[0], of_account if one is PODS else query) for one in resources)
        )
        children: dict[tuple[str, str], projections.Child] = {}
        pods: list[projections.Pod] = []
        for resource, bodies in zip(resources, lists, strict=True):
            for body in bodies:
                if resource is PODS:
                    item: Any = projections.pod(body)
                    pods.append(item)
                else:
                    item = CHILDREN.get(resource, projections.child)({"kind": resource.kind, **body})
                    children[(item.kind, item.name)] = item
                store = self._pods if resource is PODS else self._children[resource.kind]
                if store.knows_newer(item):
                    # Of an API server that is behind: what was noted since would be lost.
                    raise ApiError(409, "Conflict", f"{resource.kind} {item.name} was read as it was before")
        return Observed(
            children=children,
            pods=pods,
            progress=self._poller.of_job(key, job.uid),
            settled=self._settled.get(key, {}),
            pod_monitors="PodMonitor" in self._children,
            pod_groups=self._gang_served,
            fresh=True,
        )

    # -- what is done --

    async def _carry_out(self, key: Key, job: JobObject, plan: Plan) -> dict[str, Any]:
        """Do it. What stands in the way of it: `conflicts` or `refusal` for another decision."""
        refused = self._refused.get(key)
        # Each refusal may be in other words, and so another status, of which the watch tells: a reason to look.
        held = refused is not None and refused.generation == job.generation
        if plan.applies and refused is not None and held and self._queue.now() < refused.until:
            return {"refusal": refused.words}
        if plan.first:
            taken = await self._taken(job, plan)
            if taken:
                return {"conflicts": taken}
        try:
            if job.model.spec.durable and any(one["kind"] == "StatefulSet" for one in plan.applies):
                problem = await self._claim(job, _kept(plan.status))
                if problem:
                    return {"claim": problem}
            foreign = await self._apply(key, job, plan)
            if foreign:
                return {"conflicts": foreign}
        except ApiError as error:
            if not error.refused:
                raise
            self._hold(key, job, error.message)
            return {"refusal": error.message}
        if plan.applies:
            self._refused.pop(key, None)
        for patch in plan.patches:
            active = queues.active(patch.body)
            if active is not None:
                await self._set_workloads(key, patch.child.uid, active=active)
            body = {**patch.body, "metadata": dict(patch.body.get("metadata", {}))}
            body["metadata"]["resourceVersion"] = patch.child.resource_version
            resource = self._resources[patch.child.kind]
            live = await self._cluster.patch(resource, key[0], patch.child.name, body)
            self._remember(key, live)
        for relabel in plan.relabels:
            meta = {"resourceVersion": relabel.pod.resource_version, "labels": dict(relabel.labels)}
            live = await self._cluster.patch(PODS, key[0], relabel.pod.name, {"metadata": meta})
            self._pods.remember(live)
            _LOG.warning("pod.relabelled", extra={"job": "/".join(key), "pod": relabel.pod.name})
        for kind, name, uid, version in plan.deletes:
            await self._cluster.delete(self._resources[kind], key[0], name, uid=uid, resource_version=version)
            _LOG.info("child.deleted", extra={"job": "/".join(key), "kind": kind, "child": name})
        if plan.delete_job:
            await self._cluster.delete(TRAINING_JOBS, *key, uid=job.uid)
            _LOG.info("job.expired", extra={"job": "/".join(key)})
        return {}

    async def _set_workloads(self, key: Key, uid: str, *, active: bool) -> None:
        """Say to Kueue whether it may let a Job run: by the Workload that it has made of it, if it has."""
        if self.workloads is None:
            # Kueue is not there, so it lets nothing run.
            return
        query = {"labelSelector": f"{queues.JOB_UID_LABEL}={uid}"}
        try:
            found = await self._cluster.list_all(self.workloads, key[0], query)
        except ApiError as error:
            if error.status == 404:
                # It is there no more.
                return
            raise
        for body in found:
            if body["spec"].get("active", True) != active:
                meta = {"resourceVersion": body["metadata"]["resourceVersion"]}
                change = {"metadata": meta, "spec": {"active": active}}
                await self._cluster.patch(self.workloads, key[0], body["metadata"]["name"], change)

    def _hold(self, key: Key, job: JobObject, words: str) -> None:
        """Ask the API server for the same no sooner than in a while, each time later."""
        known = self._refused.get(key)
        times = known.times + 1 if known is not None and known.generation == job.generation else 0
        hold_s = min(REFUSED_MAX_S, REFUSED_FIRST_S * 2.0 ** min(times, 30))
        self._refused[key] = _Refused(job.generation, words, times, self._queue.now() + hold_s)
        self._queue.add_after(key, hold_s)

    async def _claim(self, job: JobObject, kept: int | None) -> str:
        """Make the claim of the job's checkpoints if there is none and the job describes it; why it cannot be used.

        kept: the number of the job's last checkpoint, None before the first.
        """
        checkpoint = job.model.spec.checkpoint
        assert checkpoint is not None
        name = manifests.split_destination(checkpoint.destination)[0]
        found = await self._cluster.get(CLAIMS, job.namespace, name)
        wanted = manifests.claim(job)
        if found is None and wanted is not None and kept is None:
            try:
                await self._cluster.create(CLAIMS, job.namespace, wanted)
            except ApiError as error:
                # Somebody else has made it in between: look again.
                if error.status == 409:
                    raise ApiError(
                        409, "Conflict", f"PersistentVolumeClaim {name} was made meanwhile"
                    ) from None
                raise
            _LOG.info("claim.created", extra={"job": f"{job.namespace}/{job.name}", "claim": name})
            return ""
        return manifests.claim_problem(job, found, kept=kept)

    async def _taken(self, job: JobObject, plan: Plan) -> list[str]:
        """The names of a new job's children that something else has."""

        async def look(manifest: Manifest) -> str:
            name = manifest["metadata"]["name"]
            found = await self._cluster.get(resource_of(manifest), job.namespace, name)
            if found is None:
                return ""
            owners = found["metadata"].get("ownerReferences") or ()
            mine = any(owner["uid"] == job.uid for owner in owners)
            return "" if mine else f"{manifest['kind']} {name}"

        found = [taken for taken in await asyncio.gather(*(look(one) for one in plan.applies)) if taken]
        return [*found, *(await self._certificates.taken(job) if plan.tls else ())]

    async def _apply(self, key: Key, job: JobObject, plan: Plan) -> list[str]:
        """Apply the children; the names of Secrets that something else has, before which it ends."""
        applies = list(plan.applies)
        if plan.first:
            # A job's templates are the user's, and only the API server knows all that may be wrong with them. It is
            # asked before anything is made: for the servers by a dry run, for the workers by their Job itself, which
            # is held back, so that nothing comes of it if what follows is refused.
            servers = job.model.spec.servers
            if servers.template is not None or servers.storage is not None:
                (asked,) = (one for one in applies if one["kind"] == "StatefulSet")
                await self._cluster.apply(asked, dry_run=True)
            (workers,) = (one for one in applies if one["kind"] == "Job")
            self._remember(key, await self._cluster.apply(workers))
            applies.remove(workers)
        else:
            applies = [one for one in applies if not await self._relabelled(key, job, one)]
        if plan.tls == "keep":
            # Before any pod, which would wait for them.
            foreign = await self._certificates.keep(job)
            if foreign:
                return foreign
        results = await asyncio.gather(*(self._cluster.apply(one) for one in applies), return_exceptions=True)
        failed = None
        for manifest, result in zip(applies, results, strict=True):
            if isinstance(result, ApiError) and manifest["kind"] == POD_MONITORS.kind:
                # Monitoring is not worth a job.
                _LOG.warning("podmonitor.failed", extra={"job": "/".join(key), "cause": str(result)})
            elif isinstance(result, BaseException):
                failed = failed or result
            else:
                self._remember(key, result)
        if failed is not None:
            raise failed
        if applies:
            _LOG.info(
                "children.applied",
                extra={
                    "job": "/".join(key),
                    "children": [f"{one['kind']}/{one['metadata']['name']}" for one in applies],
                },
            )
        return []

    async def _relabelled(self, key: Key, job: JobObject, manifest: Manifest) -> bool:
        """Whether a workers' Job that seemed gone had lost its labels only. Applied again it would end its workers."""
        if manifest["kind"] != "Job":
            return False
        name = manifest["metadata"]["name"]
        live = await self._cluster.get(JOBS, key[0], name)
        if live is None or not any(
            one["uid"] == job.uid for one in live["metadata"].get("ownerReferences") or ()
        ):
            return False
        body = {"metadata": {"labels": manifest["metadata"]["labels"]}}
        self._remember(key, await self._cluster.patch(JOBS, key[0], name, body))
        return True

    def _remember(self, key: Key, body: Manifest) -> None:
        child = self._children[body["kind"]].remember(body)
        self._settled.setdefault(key, {})[child.uid] = child.generation or int(child.resource_version)

    async def _write_status(self, key: Key, body: Manifest, plan: Plan) -> None:
        if not plan.status or plan.delete_job or plan.status == (body.get("status") or {}):
            return
        patch = {
            "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
            "status": plan.status,
        }
        try:
            live = await self._cluster.patch(TRAINING_JOBS, *key, patch, subresource="status")
        except ApiError as error:
            if error.status == 404:
                return
            raise
        self._jobs.remember(live)


class Workers:
    """The tasks that take keys from the queue."""

    def __init__(
        self, reconciler: Reconciler, queue: WorkQueue, observe: Callable[[str, float], None]
    ) -> None:
        self._reconciler = reconciler
        self._queue = queue
        self._observe = observe

    async def run(self) -> None:
        """One worker, for ever."""
        while True:
            await self.one()

    async def one(self) -> None:
        """Wait for a key, and look at it."""
        key = await self._queue.get()
        began = time.perf_counter()
        result = "ok"
        try:
            await self._reconciler.reconcile(key)
            self._queue.succeeded(key)
        except ApiError as error:
            # Somebody else wrote in between: look again soon.
            result = "conflict" if error.status == 409 else "error"
            wait = self._queue.retry(key, after_s=error.retry_after_s)
            if error.status != 409:
                _LOG.warning(
                    "reconcile.failed", extra={"job": "/".join(key), "cause": str(error), "retry_s": wait}
                )
        except Exception as error:  # noqa: BLE001 - one job's trouble must not end the others'
            result = "fault"
            before = self._queue.failures(key)
            wait = self._queue.retry(key)
            _LOG.exception("reconcile.failed", extra={"job": "/".join(key), "retry_s": wait})
            if self._queue.failures(key) > before:
                # Not of each look that an event brings meanwhile: what is told is such an event itself.
                await self._reconciler.tell_fault(key, error)
        finally:
            self._queue.done(key)
            self._observe(result, time.perf_counter() - began)


def _kept(status: Mapping[str, Any] | None) -> int | None:
    """The number of the last checkpoint that a status tells of."""
    number: int | None = (((status or {}).get("checkpoint") or {}).get("lastSuccessful") or {}).get("number")
    return number
