"""What Kubernetes does by itself with a job's objects: sets make pods, pods run, Jobs count, garbage goes.

All of it is a function of the objects and the time, so it goes on however the operator fares.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from operator_faults.api import ApiServer, Body, of_job, text

from tablebay.operator.cluster import ApiError

CONTROLLER, KUBELET = "kube-controller-manager", "kubelet"
START_S, GRACE_S, RESTART_S = 2.0, 1.0, 2.0
# From a worker's failure to the next pod of any rank: doubled with each, up to ten minutes.
JOB_BACKOFF_S, JOB_BACKOFF_MAX_S = 10.0, 600.0
# The clock goes in thousandths.
EARLY_S = 0.002
RANK = "batch.kubernetes.io/job-completion-index"


@dataclass
class Life:
    """A pod's container. number: of its lives so far."""

    begins: float
    number: int = 1
    running: bool = False
    ends: float | None = None
    last: Body | None = None


@dataclass
class Training:
    """How far the workers of a job are, in steps of one second; kept while it has servers to train with."""

    steps: dict[int, float] = field(default_factory=dict)
    # Server containers with which each rank has trained, in order.
    servers: list[tuple[str, ...]] = field(default_factory=list)


class Kubernetes:
    """The controllers and the kubelet of a cluster. wake: have `tick` called at a time."""

    def __init__(
        self,
        api: ApiServer,
        clock: Callable[[], float],
        moment: Callable[[], datetime.datetime],
        wake: Callable[[float], None],
        *,
        steps: int,
    ) -> None:
        self._api = api
        self._clock = clock
        self._moment = moment
        self._wake = wake
        self._steps = steps
        self._lives: dict[str, Life] = {}
        self._suffix: dict[tuple[str, int], int] = {}
        # By a Job's uid: before when it makes no pods.
        self._backoff: dict[str, float] = {}
        self._seen = 0.0
        self.training: dict[str, Training] = {}

    # -- misfortunes --

    def end_container(self, namespace: str, pod: str, code: int) -> None:
        """Its process ends with this exit code, and the kubelet starts another where the pod wants that."""
        body = self._api.get("pods", namespace, pod)
        assert body is not None, f"no pod {pod}"
        life = self._lives[body["metadata"]["uid"]]
        assert life.running, f"{pod} does not run"
        life.running = False
        life.last = {"exitCode": code, "reason": "Error", "finishedAt": text(self._moment())}
        if body["metadata"]["labels"]["tablebay.dev/role"] == "worker":
            self._pod_status(body, "Failed", life)
            return
        life.number += 1
        life.begins = self._clock() + RESTART_S
        self._pod_status(body, "Running", life)
        self._wake(life.begins)

    def delete_pod(self, namespace: str, pod: str) -> None:
        """kubectl delete pod."""
        self._api.delete("pods", namespace, pod)

    # -- what is known --

    def steps(self, uid: str) -> dict[int, float]:
        """The step of each rank of a job."""
        self._train()
        found = self.training.get(uid)
        return dict(found.steps) if found is not None else {}

    def servers_ready(self, namespace: str, job: str) -> bool:
        """Whether all servers that are wanted are there and ready."""
        found = self._api.get("statefulsets", namespace, f"{job}-server")
        return found is not None and found["spec"]["replicas"] > 0 and self._servers(found) is not None

    # -- what is done --

    def tick(self) -> None:
        """All controllers once. Whatever changes brings the next."""
        self._train()
        self._api.collect()
        for body in self._api.list("statefulsets", None):
            self._stateful_set(body)
        for body in self._api.list("jobs", None):
            self._job(body)
        for body in self._api.list("pods", None):
            self._kubelet(body)

    def _train(self) -> None:
        """Let the workers train from the last look until now."""
        now = self._clock()
        passed, self._seen = now - self._seen, now
        if passed <= 0:
            return
        for body in self._api.list("pods", None):
            labels = body["metadata"].get("labels", {})
            life = self._lives.get(body["metadata"]["uid"])
            if labels.get("tablebay.dev/role") != "worker" or life is None or not life.running:
                continue
            namespace, job = body["metadata"]["namespace"], of_job(body)
            owner = self._api.get("trainingjobs", namespace, job)
            found = self._api.get("statefulsets", namespace, f"{job}-server")
            servers = self._servers(found) if found is not None else None
            if owner is None or not servers or "deletionTimestamp" in body["metadata"]:
                continue
            training = self.training.setdefault(owner["metadata"]["uid"], Training())
            if training.servers and training.servers[-1] != servers and "checkpoint" not in owner["spec"]:
                # Its clients push nothing to another life of a server.
                continue
            rank = int(labels[RANK])
            training.steps[rank] = min(float(self._steps), training.steps.get(rank, 0.0) + passed)
            if training.servers[-1:] != [servers]:
                training.servers.append(servers)

    def _servers(self, stateful_set: Body) -> tuple[str, ...] | None:
        """Which container each server is, or None where one does not run."""
        meta = stateful_set["metadata"]
        result = []
        for index in range(stateful_set["spec"]["replicas"]):
            name = f"{meta['name']}-{index}"
            body = self._api.get("pods", meta["namespace"], name)
            life = self._lives.get(body["metadata"]["uid"]) if body is not None else None
            if body is None or life is None or not life.running or "deletionTimestamp" in body["metadata"]:
                return None
            result.append(_container_id(body, life))
        return tuple(result)

    # -- controllers --

    def _stateful_set(self, body: Body) -> None:
        meta, spec = body["metadata"], body["spec"]
        ready = 0
        for pod in self._api.list("pods", meta["namespace"]):
            owners = pod["metadata"].get("ownerReferences") or ()
            if not any(owner["uid"] == meta["uid"] for owner in owners):
                continue
            ready += _ready(pod)
            gone = int(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"]) >= spec["replicas"]
            if gone and "deletionTimestamp" not in pod["metadata"]:
                self._api.delete("pods", meta["namespace"], pod["metadata"]["name"])
        for index in range(spec["replicas"]):
            name = f"{meta['name']}-{index}"
            if self._api.get("pods", meta["namespace"], name) is None:
                self._make_pod(body, name, {"apps.kubernetes.io/pod-index": str(index)})
            for template in spec.get("volumeClaimTemplates", ()):
                self._make_claim(body, f"{template['metadata']['name']}-{name}", template)
        self._status("statefulsets", body, {"replicas": spec["replicas"], "readyReplicas": ready})

    def _make_claim(self, owner: Body, name: str, template: Body) -> None:
        meta = owner["metadata"]
        if self._api.get("persistentvolumeclaims", meta["namespace"], name) is not None:
            return
        policy = owner["spec"].get("persistentVolumeClaimRetentionPolicy", {})
        owners = (
            [{"kind": "StatefulSet", "uid": meta["uid"]}] if policy.get("whenDeleted") == "Delete" else []
        )
        claim = {
            "metadata": {"name": name, "labels": template["metadata"]["labels"], "ownerReferences": owners},
            "spec": template["spec"],
        }
        self._api.create("persistentvolumeclaims", meta["namespace"], claim, manager=CONTROLLER)

    def _job(self, body: Body) -> None:
        meta, spec, status = body["metadata"], body["spec"], dict(body.get("status") or {})
        held = {one["type"]: one for one in status.get("conditions", ())}
        pods = [
            pod
            for pod in self._api.list("pods", meta["namespace"])
            if any(owner["uid"] == meta["uid"] for owner in pod["metadata"].get("ownerReferences") or ())
        ]
        active = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
        over = held.get("Complete", held.get("Failed"))
        stands = held.get("Suspended", {}).get("status") == "True"
        if over is None and spec["suspend"]:
            if not stands:
                held = {"Suspended": self._condition("Suspended", "True")}
        elif over is None:
            limit = spec.get("activeDeadlineSeconds")
            began = status.get("startTime")
            # As in 1.34 the deadline is looked at before it is counted from the new start.
            expired = (
                limit is not None
                and began is not None
                and (self._moment() - datetime.datetime.fromisoformat(began)).total_seconds() >= limit
            )
            if expired:
                held["Failed"] = over = self._condition("Failed", "True", "DeadlineExceeded")
            elif stands:
                held["Suspended"] = self._condition("Suspended", "False")
                status["startTime"] = text(self._moment())
            elif began is None:
                status["startTime"] = text(self._moment())
            if limit is not None and not expired:
                begun = datetime.datetime.fromisoformat(status["startTime"])
                left = limit - (self._moment() - begun).total_seconds()
                self._wake(self._clock() + left)
        counted = set(status.get("counted", ()))
        failed = {pod["metadata"]["uid"] for pod in pods if pod["status"].get("phase") == "Failed"} - counted
        if failed:
            times = len(counted | failed) - 1
            after = self._clock() + min(JOB_BACKOFF_MAX_S, JOB_BACKOFF_S * 2.0**times)
            self._backoff[meta["uid"]] = after
            self._wake(after)
        status["counted"] = sorted(counted | failed)
        status["failed"] = status.get("failed", 0) + len(failed)
        done = {
            int(pod["metadata"]["labels"][RANK]) for pod in pods if pod["status"].get("phase") == "Succeeded"
        }
        status["succeeded"] = len(done)
        if over is None and status["failed"] > spec["backoffLimit"]:
            held["Failed"] = over = self._condition("Failed", "True", "BackoffLimitExceeded")
        done = {rank for rank in done if rank < spec["completions"]}
        if over is None and len(done) == spec["completions"]:
            held["Complete"] = over = self._condition("Complete", "True")
            status["completionTime"] = text(self._moment())
        if over is not None or spec["suspend"]:
            for pod in active:
                if "deletionTimestamp" not in pod["metadata"]:
                    self._api.delete("pods", meta["namespace"], pod["metadata"]["name"])
        elif self._clock() + EARLY_S >= self._backoff.get(meta["uid"], 0.0):
            ranks = {int(pod["metadata"]["labels"][RANK]) for pod in active}
            room = max(0, spec["parallelism"] - len(active))
            # Ranks that are no longer wanted go first, then the youngest.
            by_age = sorted(active, key=lambda pod: (_rank(pod) >= spec["completions"], _number(pod)))
            for pod in by_age[spec["parallelism"] :]:
                if "deletionTimestamp" not in pod["metadata"]:
                    self._api.delete("pods", meta["namespace"], pod["metadata"]["name"])
            for rank in sorted(set(range(spec["completions"])) - ranks - done)[:room]:
                number = self._suffix[meta["uid"], rank] = self._suffix.get((meta["uid"], rank), 0) + 1
                self._make_pod(body, f"{meta['name']}-{rank}-{number}", {RANK: str(rank)})
        if self._clock() + EARLY_S >= self._backoff.get(meta["uid"], 0.0):
            # As in 1.34: a pod that failed counts until the next one is made.
            status["active"] = len(active)
        status["ready"] = sum(_ready(pod) for pod in pods)
        status["conditions"] = list(held.values())
        self._status("jobs", body, status)

    def _condition(self, type: str, status: str, reason: str = "") -> Body:
        return {"type": type, "status": status, "reason": reason, "lastTransitionTime": text(self._moment())}

    def _status(self, plural: str, body: Body, status: Body) -> None:
        meta = body["metadata"]
        if status != (body.get("status") or {}):
            self._api.patch(
                plural,
                meta["namespace"],
                meta["name"],
                {"status": status},
                subresource="status",
                manager=CONTROLLER,
            )

    def _make_pod(self, owner: Body, name: str, labels: dict[str, str]) -> None:
        meta, template = owner["metadata"], owner["spec"]["template"]
        body = {
            "metadata": {
                "name": name,
                "labels": {**template["metadata"]["labels"], **labels},
                "ownerReferences": [{"kind": owner["kind"], "uid": meta["uid"], "controller": True}],
            },
            "spec": {"nodeName": "node-0", "containers": template["spec"]["containers"]},
            "status": {"phase": "Pending"},
        }
        made = self._api.create("pods", meta["namespace"], body, manager=CONTROLLER)
        life = self._lives[made["metadata"]["uid"]] = Life(self._clock() + START_S)
        self._wake(life.begins)

    # -- the kubelet --

    def _kubelet(self, body: Body) -> None:
        meta, now = body["metadata"], self._clock()
        life = self._lives[meta["uid"]]
        if "deletionTimestamp" in meta:
            if life.ends is None:
                life.ends = now + GRACE_S
                self._wake(life.ends)
            if life.ends <= now + EARLY_S:
                self._api.remove_pod(meta["namespace"], meta["name"])
            return
        if body["status"]["phase"] in ("Succeeded", "Failed"):
            return
        if not life.running:
            if life.begins <= now + EARLY_S:
                life.running = True
                self._pod_status(body, "Running", life)
            return
        if meta["labels"].get("tablebay.dev/role") != "worker":
            return
        rank = int(meta["labels"][RANK])
        owner = self._api.get("trainingjobs", meta["namespace"], of_job(body))
        training = self.training.get(owner["metadata"]["uid"]) if owner is not None else None
        left = self._steps - (training.steps.get(rank, 0.0) if training is not None else 0.0)
        if training is not None and left <= EARLY_S:
            training.steps[rank] = float(self._steps)
            life.running = False
            life.last = {"exitCode": 0, "reason": "Completed", "finishedAt": text(self._moment())}
            self._pod_status(body, "Succeeded", life)
        elif self.servers_ready(meta["namespace"], of_job(body)):
            self._wake(now + left)

    def _pod_status(self, body: Body, phase: str, life: Life) -> None:
        meta, role = body["metadata"], body["metadata"]["labels"]["tablebay.dev/role"]
        over = phase in ("Succeeded", "Failed")
        state: Body
        if over:
            state = {"terminated": life.last}
        elif life.running:
            state = {"running": {}}
        else:
            state = {"waiting": {"reason": "CrashLoopBackOff"}}
        container = {
            "name": role,
            # While it waits to be started again the kubelet goes on showing the old container's id.
            "containerID": _container_id(body, life, before=not life.running),
            "ready": life.running,
            "restartCount": life.number - 1,
            "state": state,
            **({"lastState": {"terminated": life.last}} if life.last and not over else {}),
        }
        status = {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": "True" if life.running else "False"}],
            "containerStatuses": [container],
        }
        try:
            self._api.patch(
                "pods",
                meta["namespace"],
                meta["name"],
                {"status": status},
                subresource="status",
                manager=KUBELET,
            )
        except ApiError:
            raise AssertionError(f"the pod {meta['name']} is gone") from None


def _container_id(body: Body, life: Life, *, before: bool = False) -> str:
    number = max(1, life.number - 1) if before and life.number > 1 else life.number
    return f"c-{body['metadata']['uid']}-{number}"


def _ready(pod: Body) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ())
    )


def jobs_pods(api: ApiServer, job: str, role: str) -> list[dict[str, Any]]:
    """The pods of a role of a job."""
    return [
        body
        for body in api.list("pods", None, f"tablebay.dev/job={job}")
        if body["metadata"]["labels"]["tablebay.dev/role"] == role
    ]


def _rank(pod: Body) -> int:
    return int(pod["metadata"]["labels"][RANK])


def _number(pod: Body) -> int:
    return int(pod["metadata"]["uid"][1:])
