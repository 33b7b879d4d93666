"""What Kubernetes does by itself with a job's objects: sets make pods, pods run, Jobs count, garbage goes.

All of it is a function of the objects and the time, so it goes on however the operator fares.
"""

from __future__ import annotations

import datetime
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from operator_faults.api import ApiServer, Body, text

from tablebay.operator.cluster import ApiError

CONTROLLER, KUBELET = "kube-controller-manager", "kubelet"
# How often a controller tries again to make a pod that was refused.
REFUSED_S = 20.0
START_S, GRACE_S, RESTART_S = 2.0, 1.0, 2.0
# From a worker's failure to the next pod of any rank: doubled with each, up to ten minutes.
JOB_BACKOFF_S, JOB_BACKOFF_MAX_S = 10.0, 600.0
# The clock goes in thousandths.
EARLY_S = 0.002
RANK = "batch.kubernetes.io/job-completion-index"
OF_JOB = "batch.kubernetes.io/controller-uid"
REVISION = "controller-revision-hash"


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
        # Names of pods by namespace and the name of what makes them, as of this tick.
        self._pods: dict[tuple[str, str], list[str]] = {}
        self._suffix: dict[str, int] = {}
        # By a Job's uid: before when it makes no pods.
        self._backoff: dict[str, float] = {}
        # Of a set's template, by the set's uid and generation.
        self._revisions: dict[tuple[str, int], str] = {}
        self._seen = 0.0
        self.training: dict[str, Training] = {}
        # Pods on a node of which nothing is heard: they may run, and nobody can end them.
        self._unheard: set[str] = set()
        # No registry has these.
        self.no_images: set[str] = set()
        # Why the scheduler takes no server: while its claim is not bound, say.
        self.unscheduled = ""
        # Exit code and last words of processes that end as soon as they begin, by role and number.
        self.refusing: dict[tuple[str, int], tuple[int, str]] = {}
        # How many pods a ResourceQuota lets there be.
        self.quota = 1_000_000
        self._servers_of: dict[str, tuple[str, str]] = {}
        # Servers that began while another one of the same index ran.
        self.doubles: list[str] = []

    # -- misfortunes --

    def lose_node(self, namespace: str, pod: str) -> None:
        """Nothing is heard of its node any more: it is not ready, and told to end, which nobody does."""
        body = self._api.get("pods", namespace, pod)
        assert body is not None, f"no pod {pod}"
        self._unheard.add(body["metadata"]["uid"])
        conditions = [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]
        self._api.patch(
            "pods",
            namespace,
            pod,
            {"status": {"conditions": conditions}},
            subresource="status",
            manager=CONTROLLER,
        )
        self._api.delete("pods", namespace, pod)

    def end_node(self, namespace: str, pod: str) -> None:
        """The node of a pod is known to be gone: so is the pod."""
        body = self._api.get("pods", namespace, pod)
        assert body is not None, f"no pod {pod}"
        uid = body["metadata"]["uid"]
        self._unheard.discard(uid)
        self._lives[uid].running = False
        self._api.remove_pod(namespace, pod)

    def end_container(self, namespace: str, pod: str, code: int, words: str = "") -> None:
        """Its process ends with this exit code and last words; the kubelet starts another where the pod wants that."""
        body = self._api.get("pods", namespace, pod)
        assert body is not None, f"no pod {pod}"
        life = self._lives[body["metadata"]["uid"]]
        assert life.running, f"{pod} does not run"
        life.running = False
        life.last = {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "finishedAt": text(self._moment()),
            # As of a container whose terminationMessagePolicy falls back to its log.
            **({"message": words} if words and code else {}),
        }
        if _role(body) == "worker":
            self._pod_status(body, "Failed" if code else "Succeeded", life)
            return
        life.number += 1
        life.begins = self._clock() + RESTART_S
        self._pod_status(body, "Running", life)
        self._wake(life.begins)

    def orphan(self, plural: str, namespace: str, name: str) -> None:
        """kubectl delete --cascade=orphan: what it has made stays, and belongs to nobody."""
        body = self._api.get(plural, namespace, name)
        assert body is not None, f"no {plural} {name}"
        for kind, space, made in list(self._api.objects):
            owners = self._api.objects[kind, space, made]["metadata"].get("ownerReferences") or ()
            others = [one for one in owners if one["uid"] != body["metadata"]["uid"]]
            if len(others) < len(owners):
                change = {"metadata": {"ownerReferences": others}}
                self._api.patch(kind, space, made, change, manager=CONTROLLER)
        self._api.delete(plural, namespace, name)

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
        self._pods = {}
        for body in self._api.list("pods", None):
            of = body["metadata"]["namespace"], f"{job_of_pod(body)}-{_role(body)}"
            self._pods.setdefault(of, []).append(body["metadata"]["name"])
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
            life = self._lives.get(body["metadata"]["uid"])
            if _role(body) != "worker" or life is None or not life.running:
                continue
            namespace, job = body["metadata"]["namespace"], job_of_pod(body)
            owner = self._api.get("trainingjobs", namespace, job)
            found = self._api.get("statefulsets", namespace, f"{job}-server")
            servers = self._servers(found) if found is not None else None
            if owner is None or not servers or "deletionTimestamp" in body["metadata"]:
                continue
            training = self.training.setdefault(owner["metadata"]["uid"], Training())
            if training.servers and training.servers[-1] != servers and "checkpoint" not in owner["spec"]:
                # Its clients push nothing to another life of a server.
                continue
            rank = _rank(body)
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
            if body["metadata"]["uid"] in self._unheard:
                return None
            result.append(_container_id(body, life))
        return tuple(result)

    # -- controllers --

    def _stateful_set(self, body: Body) -> None:
        meta, spec = body["metadata"], body["spec"]
        of = meta["uid"], meta["generation"]
        if of not in self._revisions:
            text_of = json.dumps(spec["template"], sort_keys=True)
            self._revisions[of] = f"{zlib.crc32(text_of.encode()):08x}"
        revision = self._revisions[of]
        ready = 0
        for pod in self._named_after(meta):
            if not self._claims(body, pod, spec["selector"]["matchLabels"], f"{meta['name']}-"):
                continue
            ready += _ready(pod)
            gone = int(pod["metadata"]["name"].rpartition("-")[2]) >= spec["replicas"]
            if gone and "deletionTimestamp" not in pod["metadata"]:
                self._api.delete("pods", meta["namespace"], pod["metadata"]["name"])
        for index in range(spec["replicas"]):
            name = f"{meta['name']}-{index}"
            if self._api.get("pods", meta["namespace"], name) is None:
                labels = {"apps.kubernetes.io/pod-index": str(index), REVISION: revision}
                if not self._make_pod(body, name, labels):
                    break
            for template in spec.get("volumeClaimTemplates", ()):
                self._make_claim(body, f"{template['metadata']['name']}-{name}", template)
        status = {
            "replicas": spec["replicas"],
            "readyReplicas": ready,
            "updateRevision": revision,
            "observedGeneration": meta["generation"],
        }
        self._status("statefulsets", body, status)

    def _named_after(self, meta: Body) -> list[Body]:
        """The pods that bear a set's or a Job's name, as they are now."""
        names = self._pods.get((meta["namespace"], meta["name"]), ())
        found = (self._api.get("pods", meta["namespace"], name) for name in names)
        return [body for body in found if body is not None]

    def _claims(self, owner: Body, pod: Body, selector: Body, prefix: str) -> bool:
        """Whether a pod is of a set or a Job. By its labels it is given up, or taken in, as its owner does."""
        meta, labels = pod["metadata"], pod["metadata"].get("labels") or {}
        if not meta["name"].startswith(prefix):
            return False
        owners = meta.get("ownerReferences") or ()
        mine = any(one["uid"] == owner["metadata"]["uid"] for one in owners)
        alike = all(labels.get(name) == value for name, value in selector.items())
        if mine == alike or (owners and not mine) or (alike and "deletionTimestamp" in meta):
            return mine
        reference = {"kind": owner["kind"], "uid": owner["metadata"]["uid"], "controller": True}
        change = {"metadata": {"ownerReferences": [reference] if alike else []}}
        self._api.patch("pods", meta["namespace"], meta["name"], change, manager=CONTROLLER)
        return alike

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
            for pod in self._named_after(meta)
            if self._claims(body, pod, {OF_JOB: meta["uid"]}, f"{meta['name']}-")
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
        done = {_rank(pod) for pod in pods if pod["status"].get("phase") == "Succeeded"}
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
            ranks = {_rank(pod) for pod in active}
            room = max(0, spec["parallelism"] - len(active))
            # Ranks that are no longer wanted go first, then the youngest.
            by_age = sorted(active, key=lambda pod: (_rank(pod) >= spec["completions"], _number(pod)))
            for pod in by_age[spec["parallelism"] :]:
                if "deletionTimestamp" not in pod["metadata"]:
                    self._api.delete("pods", meta["namespace"], pod["metadata"]["name"])
            for rank in sorted(set(range(spec["completions"])) - ranks - done)[:room]:
                # Kubernetes draws it, so that no Job of the same name makes a pod of the same name.
                prefix = f"{meta['namespace']}/{meta['name']}-{rank}"
                number = self._suffix[prefix] = self._suffix.get(prefix, 0) + 1
                labels = {RANK: str(rank), OF_JOB: meta["uid"], "batch.kubernetes.io/job-name": meta["name"]}
                if not self._make_pod(body, f"{meta['name']}-{rank}-{number}", labels):
                    break
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

    def _make_pod(self, owner: Body, name: str, labels: dict[str, str]) -> bool:
        """Whether the API server takes it."""
        if len(self._api.list("pods", None)) >= self.quota:
            # Refused with 403, of which the owner's Events tell.
            self._wake(self._clock() + REFUSED_S)
            return False
        meta, template = owner["metadata"], owner["spec"]["template"]
        body = {
            "metadata": {
                "name": name,
                "labels": {**template["metadata"]["labels"], **labels},
                "ownerReferences": [{"kind": owner["kind"], "uid": meta["uid"], "controller": True}],
            },
            "spec": {
                "nodeName": f"node-{name.removeprefix(meta['name']).split('-')[1]}",
                "serviceAccountName": template["spec"]["serviceAccountName"],
                "containers": template["spec"]["containers"],
            },
            "status": {"phase": "Pending"},
        }
        made = self._api.create("pods", meta["namespace"], body, manager=CONTROLLER)
        life = self._lives[made["metadata"]["uid"]] = Life(self._clock() + START_S)
        self._wake(life.begins)
        return True

    # -- the kubelet --

    def _kubelet(self, body: Body) -> None:
        meta, now = body["metadata"], self._clock()
        life = self._lives[meta["uid"]]
        if meta["uid"] in self._unheard:
            return
        if "deletionTimestamp" in meta:
            if life.ends is None:
                life.ends = now + GRACE_S
                self._wake(life.ends)
            if life.ends <= now + EARLY_S:
                life.running = False
                self._api.remove_pod(meta["namespace"], meta["name"])
            return
        if body["status"]["phase"] in ("Succeeded", "Failed"):
            return
        if not life.running:
            role, image = _role(body), body["spec"]["containers"][0].get("image", "")
            if self.unscheduled and role == "server":
                self._cannot_schedule(body)
            elif image in self.no_images:
                self._cannot_pull(body, role, image)
            elif life.begins <= now + EARLY_S and (role, _index(body)) in self.refusing:
                self._refuses(body, life, self.refusing[role, _index(body)])
            elif life.begins <= now + EARLY_S:
                life.running = True
                if role == "server":
                    self._only_one(body)
                self._pod_status(body, "Running", life)
            return
        if _role(body) != "worker":
            return
        rank, job = _rank(body), job_of_pod(body)
        owner = self._api.get("trainingjobs", meta["namespace"], job)
        training = self.training.get(owner["metadata"]["uid"]) if owner is not None else None
        left = self._steps - (training.steps.get(rank, 0.0) if training is not None else 0.0)
        if training is not None and left <= EARLY_S:
            training.steps[rank] = float(self._steps)
            life.running = False
            life.last = {"exitCode": 0, "reason": "Completed", "finishedAt": text(self._moment())}
            self._pod_status(body, "Succeeded", life)
        elif self.servers_ready(meta["namespace"], job):
            self._wake(now + left)

    def _refuses(self, body: Body, life: Life, how: tuple[int, str]) -> None:
        """It ends at once, and the kubelet waits longer each time before it begins it again."""
        code, words = how
        life.last = {
            "exitCode": code,
            "reason": "Error",
            "message": words,
            "finishedAt": text(self._moment()),
        }
        life.number += 1
        life.begins = self._clock() + min(300.0, RESTART_S * 2.0 ** min(life.number, 10))
        self._pod_status(body, "Running", life)
        self._wake(life.begins)

    def _only_one(self, body: Body) -> None:
        meta = body["metadata"]
        for uid, name in self._servers_of.items():
            if name == (meta["namespace"], meta["name"]) and uid != meta["uid"] and self._lives[uid].running:
                self.doubles.append(f"{meta['name']} began while another one ran")
        self._servers_of[meta["uid"]] = meta["namespace"], meta["name"]

    def _cannot_schedule(self, body: Body) -> None:
        held = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        status = {"phase": "Pending", "conditions": [{**held, "message": self.unscheduled}]}
        self._status("pods", body, status)

    def _cannot_pull(self, body: Body, role: str, image: str) -> None:
        waiting = {"reason": "ErrImagePull", "message": f"failed to pull {image}: not found"}
        container = {"name": role, "ready": False, "restartCount": 0, "state": {"waiting": waiting}}
        status = {"phase": "Pending", "containerStatuses": [container]}
        if body["status"] != status:
            self._told_by_kubelet(body["metadata"], status)

    def _told_by_kubelet(self, meta: Body, status: Body) -> None:
        whose = {"subresource": "status", "manager": KUBELET}
        self._api.patch("pods", meta["namespace"], meta["name"], {"status": status}, **whose)

    def _pod_status(self, body: Body, phase: str, life: Life) -> None:
        meta, role = body["metadata"], _role(body)
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
            self._told_by_kubelet(meta, status)
        except ApiError:
            raise AssertionError(f"the pod {meta['name']} is gone") from None


def _container_id(body: Body, life: Life, *, before: bool = False) -> str:
    number = max(1, life.number - 1) if before and life.number > 1 else life.number
    return f"c-{body['metadata']['uid']}-{number}"


def _role(pod: Body) -> str:
    """Of what it runs, whatever its labels say."""
    return "server" if "-server-" in pod["metadata"]["name"] else "worker"


def job_of_pod(pod: Body) -> str:
    """Whose it is, whatever its labels say."""
    name: str = pod["metadata"]["name"]
    return name.rpartition(f"-{_role(pod)}-")[0]


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
    return int(pod["metadata"]["name"].split("-")[-2])


def _index(pod: Body) -> int:
    """Of a server, or the rank of a worker."""
    return _rank(pod) if _role(pod) == "worker" else int(pod["metadata"]["name"].rpartition("-")[2])


def _number(pod: Body) -> int:
    return int(pod["metadata"]["uid"][1:])
