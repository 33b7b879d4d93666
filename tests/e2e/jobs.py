"""A TrainingJob under test: its objects, how far it is, what is done to its processes."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import yaml
from e2e import elastic
from e2e.identity import Caller, Identity, made
from e2e.kube import FLIGHTS, condition, get, holds, items, kubectl, run, until

# Ends each process of a container that runs something, and nothing else.
_KILL = """
import os, signal, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        command = open(f"/proc/{pid}/cmdline", "rb").read()
    except OSError:
        continue
    if sys.argv[1].encode() in command and int(pid) != os.getpid():
        print(pid)
        os.kill(int(pid), signal.SIGKILL)
"""


# Of each worker of a slowed job: 261,877 examples, 2 workers, 256 to a batch. It reports after every 20 steps.
BATCH, STEPS = 256, 512
# A change that makes a job as small as one can be, where two of each show nothing more.
SMALL: dict[str, Any] = {"servers": {"replicas": 1}, "workers": {"replicas": 1}}
# In a worker's pod: once it is there, nothing slows the worker.
_FULL_SPEED = str(elastic.FULL_SPEED)


@dataclass
class Job:
    """A job that was applied."""

    namespace: str
    name: str
    # Whether its workers wait between their steps, and the uids of those that were told to wait no more.
    slowed: bool = False
    let_go: set[str] = field(default_factory=set)
    # What the test shows to the servers; None where they speak plain.
    shown: Identity | None = None
    failures: int = 0

    @classmethod
    def apply_all(cls, namespace: str, changes: dict[str, dict[str, Any]]) -> list[Job]:
        """Apply flights jobs, each with a change that is merged into its spec, all at once."""
        manifest = yaml.safe_load(FLIGHTS.read_text())
        manifest["spec"].pop("checkpoint", None)
        jobs = [
            {**manifest, "metadata": {"name": name}, "spec": merged(manifest["spec"], change)}
            for name, change in changes.items()
        ]
        applied(namespace, {"apiVersion": "v1", "kind": "List", "items": jobs})
        return [cls(namespace, name) for name in changes]

    @classmethod
    def apply(
        cls,
        namespace: str,
        name: str = "flights",
        *,
        lasts_s: float | None = None,
        arguments: tuple[str, ...] = (),
        shared_processes: bool = False,
        durable: bool = False,
        change: dict[str, Any] | None = None,
    ) -> Job:
        """Apply the flights job.

        lasts_s: its training takes that long, until the test waits for its end. durable: with its checkpoint.
        change: merged into its spec.
        """
        manifest = copy.deepcopy(yaml.safe_load(FLIGHTS.read_text()))
        if not durable:
            manifest["spec"].pop("checkpoint", None)
        manifest["metadata"] = {"name": name}
        words = list(arguments)
        if lasts_s is not None:
            words += ["--batch-size", str(BATCH), "--steps-per-second", f"{STEPS / lasts_s:g}"]
            words += ["--slow-until", _FULL_SPEED]
        pod = manifest["spec"]["workers"]["template"]["spec"]
        if words:
            pod["containers"][0]["args"] = words
        if shared_processes:
            pod["shareProcessNamespace"] = True
            manifest["spec"]["servers"]["template"] = {"spec": {"shareProcessNamespace": True}}
        manifest["spec"] = merged(manifest["spec"], change or {})
        applied(namespace, manifest)
        return cls(namespace, name, slowed=lasts_s is not None)

    # -- what is there --

    def body(self) -> dict[str, Any]:
        """The TrainingJob."""
        found = get("trainingjob", self.name, self.namespace)
        assert found is not None, f"{self.name} is gone"
        return found

    def status(self) -> dict[str, Any]:
        """Its status."""
        found: dict[str, Any] = self.body().get("status", {})
        return found

    def pods(self, role: str) -> dict[str, dict[str, Any]]:
        """Its pods by name, but for those that have ended or are about to."""
        found = items("pods", self.namespace, f"tablebay.dev/job={self.name},tablebay.dev/role={role}")
        return {
            pod["metadata"]["name"]: pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in ("Pending", "Running")
        }

    def worker(self, rank: int) -> dict[str, Any]:
        """The pod of a rank."""
        for pod in self.pods("worker").values():
            if pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == str(rank):
                return pod
        raise AssertionError(f"no pod of worker {rank}")

    def uids(self, role: str) -> dict[str, str]:
        """The uid of each pod by name."""
        return {name: pod["metadata"]["uid"] for name, pod in self.pods(role).items()}

    def worker_pods(self) -> set[str]:
        """The uid of every pod of the workers that is there, ended or not."""
        selector = f"tablebay.dev/job={self.name},tablebay.dev/role=worker"
        return {pod["metadata"]["uid"] for pod in items("pods", self.namespace, selector)}

    def events(self, reason: str) -> list[str]:
        """The messages of its Events for a reason."""
        return [
            event["message"]
            for event in items("events", self.namespace)
            if event["reason"] == reason and event["involvedObject"]["name"] == self.name
        ]

    def step(self) -> int:
        """The last step that a worker reported to server 0, 0 before the first; asked of the server itself."""
        return max(self.steps().values(), default=0)

    def steps(self) -> dict[int, int]:
        """The last step that each rank reported to server 0; none before the first, or while it is away."""
        return {rank: int(values.get("step", 0.0)) for rank, values in self.reported().items()}

    def reported(self) -> dict[int, dict[str, float]]:
        """All that each rank reported last to server 0."""
        pod = get("pod", f"{self.name}-server-0", self.namespace)
        if pod is None or not pod["status"].get("podIP"):
            return {}
        return self.reported_at(pod["status"]["podIP"])

    def reported_at(self, address: str) -> dict[int, dict[str, float]]:
        """The same, of the server at an address; the API server is not needed once it was asked."""
        if self.shown is None and get("secret", f"{self.name}-authority", self.namespace):
            self.shown = made(self.namespace, self.name, "operator")
        caller = Caller(self.name, address, self.shown)
        try:
            return caller.reported()
        except grpc.RpcError:
            # It may be away, or trust another authority by now.
            self.failures += 1
            if self.failures % 5 == 0:
                self.shown = None
            return {}
        finally:
            caller.close()

    # -- waiting --

    def until_step(self, step: int, seconds: float = 120) -> int:
        """Wait until the workers have come to a step; which one it is."""
        return until(
            lambda: (now := self.step()) >= step and now,
            lambda: f"step {step} of {self.name}: {self.ready_message()}",
            seconds,
            0.3,
        )

    def in_the_middle(self, after: int = 0) -> int:
        """Wait for a step past another one, which is not near the last; which one it is."""
        step = self.until_step(after + 10)
        assert after < step < STEPS - 20, f"step {step} of {STEPS} is not in the middle"
        return step

    def until_condition(self, type: str, seconds: float = 240) -> dict[str, Any]:
        """Wait for a condition; the job that has it. A slowed one trains at full speed from here to Complete."""

        def look() -> dict[str, Any] | None:
            body = self.body()
            if self.slowed and type == "Complete" and not holds(body, type):
                self.full_speed()
            other = {"Complete": "Failed", "Failed": "Complete"}.get(type, "")
            assert not holds(body, other), f"{self.name}: {condition(body, other)}"
            return body if holds(body, type) else None

        return until(look, lambda: f"{type} of {self.name}: {self.ready_message()}", seconds)

    def until_reason(self, reason: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until Ready has this reason; the condition."""

        def look() -> dict[str, Any] | None:
            found = condition(self.body(), "Ready")
            return found if found.get("reason") == reason else None

        return until(look, lambda: f"Ready for {reason} of {self.name}: {self.ready_message()}", seconds)

    def ready_message(self) -> str:
        """What Ready says now."""
        found = condition(self.body(), "Ready")
        return f"{found.get('reason')}: {found.get('message')}"

    # -- what is done to it --

    def patch(self, **spec: Any) -> None:
        """Change fields of its spec."""
        body = json.dumps({"spec": spec})
        kubectl("-n", self.namespace, "patch", "tj", self.name, "--type=merge", "-p", body)

    def full_speed(self) -> None:
        """Let workers that are slowed wait no more between their steps; pods that come later are slowed again."""
        for name, pod in self.pods("worker").items():
            uid, phase = pod["metadata"]["uid"], pod["status"]["phase"]
            if phase == "Running" and uid not in self.let_go:
                # It may be about to end, or not have begun yet.
                where = ("-n", self.namespace, "exec", name, "-c", "worker", "--")
                if run("kubectl", *where, "touch", _FULL_SPEED).returncode == 0:
                    self.let_go.add(uid)

    def kill(self, pod: str, container: str, command: str) -> None:
        """kill -9 of the process of that command line, in a pod whose containers share their processes."""
        where = ("-n", self.namespace, "exec", pod, "-c", container, "--")
        ended = run("kubectl", *where, "python", "-c", _KILL, command)
        # The container ends with its process, and may take this one with it before its words are out.
        struck = ended.returncode == 137 or (ended.returncode == 0 and ended.stdout.strip())
        assert struck, f"no process {command} in {pod}: {ended.stderr}"


def applied(namespace: str, manifest: dict[str, Any]) -> None:
    """kubectl apply, which nobody may warn of."""
    ended = run("kubectl", "-n", namespace, "apply", "-f", "-", input=json.dumps(manifest))
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr, ended.stderr


def merged(spec: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`spec` with `change` in it, mapping by mapping; lists are replaced."""
    result = dict(spec)
    for name, value in change.items():
        known = result.get(name)
        result[name] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def seconds_since(began: float) -> float:
    """For the report."""
    return round(time.monotonic() - began, 1)
