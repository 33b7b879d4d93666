"""A TrainingJob and its cluster, for tests of decisions: what each step of a job's life looks like to the operator."""

from __future__ import annotations

import copy
import datetime
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tablebay.client.job import parse_job
from tablebay.operator import manifests, projections
from tablebay.operator.decisions import decide
from tablebay.operator.manifests import Defaults, JobObject
from tablebay.operator.plans import Observed, Plan, Progress
from tablebay.operator.projections import SERVERS_ANNOTATION, Child, Pod
from tablebay.operator.run import Config

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights" / "job.yaml"
DEFAULTS = Defaults("registry/tablebay:1", "IfNotPresent", "tablebay-system")


def config_of(defaults: Defaults = DEFAULTS) -> Config:
    """Of an operator for all namespaces."""
    return Config(
        namespaces=(),
        defaults=defaults,
        lease_namespace="tablebay-system",
        lease_name="tablebay",
        http_port=0,
        concurrency=1,
        qps=1.0,
        burst=1,
        spread_s=1.0,
    )


BEGAN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


CHECKPOINT: dict[str, Any] = {
    "destination": "pvc://flights-checkpoints/run",
    "claim": {"size": "1Gi", "storageClassName": "fast", "accessModes": ["ReadWriteOnce"]},
    "everySeconds": 60,
    "when": ["Suspend", "Delete"],
    "timeoutSeconds": 120,
}


def job_object(change: dict[str, Any] | None = None) -> JobObject:
    """The flights job as the API server has it, without its checkpoint and with fields of its spec replaced."""
    document = yaml.safe_load(FLIGHTS.read_text())
    document["spec"].pop("checkpoint", None)
    document["spec"] |= change or {}
    document["metadata"]["namespace"] = "ads"
    return JobObject(
        namespace="ads",
        name="flights",
        uid="u-1",
        generation=1,
        created="2026-01-02T03:04:00Z",
        deleting=False,
        spec=document["spec"],
        model=parse_job(copy.deepcopy(document)),
    )


@dataclass
class World:
    """A cluster of one job. It does what it is told by plans, and what Kubernetes' own controllers would do."""

    job: JobObject = field(default_factory=job_object)
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    now: datetime.datetime = BEGAN
    progress: Progress = field(default_factory=Progress)
    settled: dict[str, int] = field(default_factory=dict)
    defaults: Defaults = DEFAULTS
    pod_groups: str = ""
    writes: int = 0
    plan: Plan = field(default_factory=Plan)

    def look(self) -> Plan:
        """Decide, on fresh reads if that is asked for, and do it."""
        self.plan = decide(self.job, self.observed(), self.status, self.defaults, self.now)
        if self.plan.confirm:
            fresh = replace(self.observed(), fresh=True)
            self.plan = decide(self.job, fresh, self.status, self.defaults, self.now)
            assert not self.plan.confirm, "asked for fresh reads on fresh reads"
        for manifest in self.plan.applies:
            self._apply(manifest)
        for patch in self.plan.patches:
            self._patch(patch.child, patch.body)
        for kind, name, uid, _ in self.plan.deletes:
            assert self.objects[kind, name]["metadata"]["uid"] == uid
            del self.objects[kind, name]
            self.writes += 1
            if kind == "StatefulSet":
                self.pods = {n: pod for n, pod in self.pods.items() if "-server-" not in n}
            if kind == "Job":
                self.pods = {n: pod for n, pod in self.pods.items() if "-worker-" not in n}
        if self.plan.finalizers is not None:
            self.job = replace(self.job, finalizers=self.plan.finalizers)
            self.writes += 1
        if self.plan.status and self.plan.status != self.status:
            self.status = copy.deepcopy(dict(self.plan.status))
            self.writes += 1
        return self.plan

    def observed(self) -> Observed:
        """What informers would have."""
        project = {"StatefulSet": projections.stateful_set, "Job": projections.worker_job}
        children: dict[tuple[str, str], Child] = {
            key: project.get(key[0], projections.child)(body) for key, body in self.objects.items()
        }
        pods: list[Pod] = [projections.pod(pod) for pod in self.pods.values()]
        return Observed(
            children=children,
            pods=pods,
            progress=self.progress,
            settled=self.settled,
            pod_groups=self.pod_groups,
        )

    def _apply(self, manifest: dict[str, Any]) -> None:
        key = (manifest["kind"], manifest["metadata"]["name"])
        body = copy.deepcopy(manifest)
        known = self.objects.get(key)
        body["metadata"] |= {
            "uid": known["metadata"]["uid"] if known else f"u-{key[0]}-{key[1]}",
            "resourceVersion": str(self.writes + 10),
            "generation": known["metadata"]["generation"] + 1 if known else 1,
        }
        body["status"] = known["status"] if known else {}
        # What was written there by patches stays.
        patched = known["metadata"]["annotations"] if known else {}
        body["metadata"]["annotations"] = {**patched, **body["metadata"]["annotations"]}
        self.objects[key] = body
        self.settled[body["metadata"]["uid"]] = body["metadata"]["generation"]
        self.writes += 1

    def _patch(self, child: Child, body: dict[str, Any]) -> None:
        live = self.objects[child.kind, child.name]
        assert live["metadata"]["resourceVersion"] == child.resource_version
        for what in ("annotations", "labels"):
            live["metadata"][what] |= body.get("metadata", {}).get(what, {})
        before = live["spec"].get("suspend")
        live["spec"] = {
            name: value
            for name, value in {**live["spec"], **body.get("spec", {})}.items()
            if value is not None
        }
        live["metadata"]["resourceVersion"] = str(self.writes + 10)
        self.writes += 1
        if child.kind == "Job" and live["spec"].get("suspend") != before:
            self._suspended(live)

    # -- what Kubernetes does --

    def _suspended(self, live: dict[str, Any]) -> None:
        """What the Job's controller does. As in 1.34 it looks at the deadline before it counts from the new start."""
        status, spec = live["status"], live["spec"]
        if spec["suspend"]:
            status["conditions"] = [{"type": "Suspended", "status": "True"}]
            return
        started = datetime.datetime.fromisoformat(status.get("startTime", text(self.now)))
        over = (self.now - started).total_seconds() >= spec.get("activeDeadlineSeconds", float("inf"))
        status["conditions"] = [
            {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
            if over
            else {"type": "Suspended", "status": "False"}
        ]
        status["startTime"] = text(self.now)

    @property
    def workers(self) -> dict[str, Any]:
        """The workers' Job."""
        return self.objects["Job", "flights-worker"]

    def server(self, index: int, *, container: str = "", ready: bool = True, **state: Any) -> None:
        """A server's pod; container: its id."""
        name = f"flights-server-{index}"
        self.pods[name] = pod(name, "server", index, container or f"c-{index}", ready, state)

    def servers(self) -> None:
        """All servers run."""
        for index in range(self.job.model.spec.servers.replicas):
            self.server(index)

    def worker(self, rank: int, suffix: str = "a", *, ready: bool = True, **state: Any) -> None:
        """A worker's pod."""
        name = f"flights-worker-{rank}-{suffix}"
        self.pods[name] = pod(name, "worker", rank, f"w-{rank}-{suffix}", ready, state)

    def counts(self, **counts: Any) -> None:
        """The status of the workers' Job."""
        self.workers["status"] |= counts

    def train(self) -> None:
        """As far as Training."""
        self.look()
        self.servers()
        self.look()
        for rank in range(self.job.model.spec.workers.replicas):
            self.worker(rank)
        self.counts(ready=self.job.model.spec.workers.replicas, active=2)
        self.look()
        assert self.reason == "Training", self.status

    def complete(self) -> None:
        """Every worker ends well."""
        self.counts(
            ready=0,
            succeeded=self.job.model.spec.workers.replicas,
            completionTime=text(self.now),
            conditions=[{"type": "Complete", "status": "True", "lastTransitionTime": text(self.now)}],
        )

    def ask(self, **change: Any) -> None:
        """The user sets fields of the spec."""
        self.job = replace(
            self.job,
            **vars(job_object({**self.job.spec, **change}))
            | {"generation": self.job.generation + 1, "finalizers": self.job.finalizers},
        )

    def workers_end(self, *, failed: int = 0) -> None:
        """Kubernetes has ended the workers' pods; failed: so many of them it counts as failures."""
        self.pods = {name: one for name, one in self.pods.items() if "-worker-" not in name}
        self.counts(ready=0, active=0, failed=self.workers["status"].get("failed", 0) + failed)

    def servers_end(self) -> None:
        """Kubernetes has ended the servers' pods."""
        self.pods = {name: one for name, one in self.pods.items() if "-server-" not in name}

    def keep(self, number: int = 7) -> None:
        """The last checkpoint that was asked for is made."""
        last = {"number": number, "time": text(self.now), "bytes": 1000, "durationSeconds": 0.5}
        self.progress = replace(self.progress, kept=True, checkpoint={"lastSuccessful": last})

    def suspend(self) -> None:
        """The user suspends the job, and all of it ends well."""
        self.ask(suspend=True)
        self.look()
        self.workers_end()
        self.keep()
        self.look()
        self.servers_end()
        self.look()

    def hear(self) -> None:
        """The servers are told what the plan has for them."""
        assert self.plan.tell is not None, "nothing is told"
        self.progress = replace(self.progress, told=self.plan.tell)

    def later(self, seconds: float) -> None:
        """Time goes by."""
        self.now += datetime.timedelta(seconds=seconds)

    # -- what is said --

    def condition(self, type: str) -> dict[str, Any]:
        """A condition of the status, or an empty dict."""
        return next((one for one in self.status.get("conditions", ()) if one["type"] == type), {})

    @property
    def reason(self) -> str:
        """Of Ready."""
        found: str = self.condition("Ready").get("reason", "")
        return found

    @property
    def recorded(self) -> list[str]:
        """The servers noted on the workers' Job."""
        found: list[str] = json.loads(self.workers["metadata"]["annotations"].get(SERVERS_ANNOTATION, "[]"))
        return found


def pod(
    name: str, role: str, index: int, container: str, ready: bool, state: dict[str, Any]
) -> dict[str, Any]:
    """A v1 Pod."""
    label = {"server": "apps.kubernetes.io/pod-index", "worker": "batch.kubernetes.io/job-completion-index"}[
        role
    ]
    kind = {"server": "StatefulSet", "worker": "Job"}[role]
    status = {"name": role, "containerID": container, "ready": ready, "state": {"running": {}}, **state}
    return {
        "metadata": {
            "name": name,
            "namespace": "ads",
            "uid": f"u-{name}-{container}",
            "resourceVersion": "1",
            "labels": {"tablebay.dev/job": "flights", "tablebay.dev/role": role, label: str(index)},
            "ownerReferences": [{"kind": kind, "uid": f"u-{kind}-flights-{role}", "controller": True}],
        },
        "spec": {"nodeName": "node-0"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [status],
        },
    }


def text(moment: datetime.datetime) -> str:
    """As Kubernetes writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def manifests_of(job: JobObject, **options: Any) -> list[dict[str, Any]]:
    """All children of a job."""
    return manifests.children(job, DEFAULTS, **options)
