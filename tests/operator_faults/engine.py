"""Five jobs, the faults that strike them, and what must hold whatever struck: the oracles.

O1 the same end state as without a fault. O2 each object was made and deleted as often. O3 then nothing is written.
O7 a deleted job leaves nothing but claims. O8 no rows are lost: a job without checkpoints is Complete only if its
servers were never others, one that is suspended or deleted has all in a checkpoint, and no server begins while another
one of its index runs. O9 no unhandled error; the
status is of the newest generation; Ready is not True for long while a server is down. (O4 to O6 are of changes of the
job, and are not asked here.)
"""

from __future__ import annotations

import asyncio
import base64
import copy
import functools
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from operator_faults.api import Body, Event
from operator_faults.simulation import (
    DELAY_S,
    NAMESPACE,
    RELIST_S,
    STEPS,
    WATCH_S,
    Call,
    EventFault,
    Fault,
    Killed,
    Process,
    Simulation,
    holds,
    reason,
)

from tablebay.client.tls import AUTHORITIES
from tablebay.operator import authority
from tablebay.operator.cluster import ApiError

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights" / "job.yaml"
NOTE = "example.com/note"
QUIET_S = 130.0
CHECKPOINT: Body = {
    "destination": "pvc://checkpoints/run",
    "claim": {"size": "1Gi", "storageClassName": "", "accessModes": ["ReadWriteOnce"]},
    "everySeconds": 60,
    "when": ["Suspend", "Delete"],
    "timeoutSeconds": 600,
}
DURABLE: Body = {"checkpoint": CHECKPOINT}


class Never(Exception):
    """What a script waits for does not come."""


# ---- the jobs


@dataclass(frozen=True)
class Fixture:
    """A job and what its user and fate do to it. spec: fields in place of the flights job's."""

    name: str
    spec: Mapping[str, Any]
    script: Callable[[Simulation], Awaitable[None]]
    pod_monitors: bool = False
    durable: bool = False


async def wait(simulation: Simulation, what: str, done: Callable[[], bool]) -> None:
    """Go on until something holds. Raises Never."""
    if not await simulation.until(done):
        state = simulation.job("flights")
        ready = list(((state or {}).get("status") or {}).get("conditions", ()))
        raise Never(f"{what} never comes; {ready}")


def make(simulation: Simulation, spec: Mapping[str, Any]) -> None:
    """The user makes the job; spec: fields in place of its own."""
    simulation.api.create("trainingjobs", NAMESPACE, job_body(spec))


def job_body(spec: Mapping[str, Any]) -> Body:
    """The flights job without its checkpoint."""
    body: Body = copy.deepcopy(_flights())
    body["spec"].pop("checkpoint", None)
    # Keys take time to make: one job has certificates, and their Secrets' faults.
    body["spec"]["network"] = {"tls": "Disabled"}
    body["spec"].update(copy.deepcopy(dict(spec)))
    body["metadata"]["namespace"] = NAMESPACE
    return body


@functools.cache
def _flights() -> Body:
    found: Body = yaml.safe_load(FLIGHTS.read_text())
    return found


def at_step(simulation: Simulation, step: int) -> bool:
    """Whether a rank of the job has come to a step."""
    job = simulation.job("flights")
    return (
        job is not None
        and max(simulation.kubernetes.steps(job["metadata"]["uid"]).values(), default=0) >= step
    )


def worker_pod(simulation: Simulation, rank: int) -> str:
    """The name of the pod of a rank that runs."""
    for body in simulation.api.list("pods", NAMESPACE, "tablebay.dev/job=flights"):
        labels = body["metadata"]["labels"]
        if labels.get("batch.kubernetes.io/job-completion-index") == str(rank) and (
            body["status"]["phase"] == "Running"
        ):
            found: str = body["metadata"]["name"]
            return found
    raise Never(f"a pod of worker {rank} never comes")


async def _complete(simulation: Simulation) -> None:
    """Trained to its end."""
    await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))


async def _suspended(simulation: Simulation) -> None:
    """Suspended in the middle, resumed, a server lost, and trained to its end."""
    await wait(simulation, "step 5", lambda: at_step(simulation, 5))
    simulation.patch_job("flights", {"suspend": True})
    await wait(simulation, "Suspended", lambda: holds(simulation.job("flights"), "Suspended"))
    simulation.patch_job("flights", {"suspend": False})
    await wait(simulation, "step 10", lambda: at_step(simulation, 10))
    await wait(
        simulation, "server 1", lambda: simulation.api.get("pods", NAMESPACE, "flights-server-1") is not None
    )
    simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
    await _complete(simulation)


async def _deleted(simulation: Simulation) -> None:
    """Deleted in the middle, when a last checkpoint is wanted."""
    await wait(simulation, "step 5", lambda: at_step(simulation, 5))
    simulation.api.delete("trainingjobs", NAMESPACE, "flights")
    await wait(simulation, "the end", lambda: simulation.job("flights") is None)


async def _server_lost(simulation: Simulation) -> None:
    """A server's process ends in the middle; the job fails, and deletes itself."""
    await wait(simulation, "step 5", lambda: at_step(simulation, 5))
    simulation.kubernetes.end_container(NAMESPACE, "flights-server-1", 137)
    await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
    await wait(simulation, "the end", lambda: simulation.job("flights") is None)


async def _worker_lost(simulation: Simulation) -> None:
    """A worker fails, more failures are allowed, a budget is deleted by hand, and it is trained to its end."""
    await wait(simulation, "step 5", lambda: at_step(simulation, 5))
    simulation.kubernetes.end_container(NAMESPACE, worker_pod(simulation, 1), 1)
    simulation.patch_job("flights", {"runPolicy": {"failurePolicy": {"maxRestarts": 7}}})
    simulation.api.delete("poddisruptionbudgets", NAMESPACE, "flights-servers")
    await wait(simulation, "step 12", lambda: at_step(simulation, 12))
    await _complete(simulation)


FIXTURES = {
    one.name: one
    for one in (
        Fixture("plain", {"network": {"tls": "Enabled"}}, _complete),
        Fixture("suspended", DURABLE, _suspended, durable=True),
        Fixture("deleted", DURABLE, _deleted, durable=True),
        Fixture(
            "server lost",
            {"runPolicy": {"ttlSecondsAfterFinished": 60, "cleanPolicy": {"onFailure": "All"}}},
            _server_lost,
        ),
        Fixture(
            "worker lost",
            {
                "servers": {
                    "replicas": 2,
                    "onFinish": "Retain",
                    "template": {"spec": {"nodeSelector": {"disk": "fast"}}},
                    "storage": {"size": "1Gi", "retention": {"whenDeleted": "Retain"}},
                },
                "runPolicy": {
                    "activeDeadlineSeconds": 3600,
                    "cleanPolicy": {"onSuccess": "All"},
                    "failurePolicy": {"backoff": {"initialSeconds": 15}},
                },
                "monitoring": {"podMonitor": "Enabled"},
            },
            _worker_lost,
            pod_monitors=True,
        ),
    )
}


# ---- the faults


def killed_before(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F1: the process ends before the call."""
    simulation.kill()
    raise Killed


def killed_after(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F2: the process ends before it sees what the call did."""
    try:
        act()
    finally:
        simulation.kill()
    raise Killed


def reset(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F7: the connection breaks before the API server hears of it."""
    raise ApiError(0, "Unreachable", "connection reset")


def timeout(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F3: applied, and the answer is lost."""
    act()
    raise ApiError(0, "Unreachable", "timed out")


def server_error(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F3: applied, and the answer is 500."""
    act()
    raise ApiError(500, "InternalError", "etcdserver: request timed out")


def conflict(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F4: 409."""
    raise ApiError(409, "Conflict", "the object has been modified")


def edited(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F4: somebody notes something on the object between its read and this write."""
    for plural, namespace, name in list(simulation.api.objects):
        if name == call.name and simulation.api.objects[plural, namespace, name].get("kind") == call.kind:
            note = {"metadata": {"annotations": {NOTE: "mine"}}}
            simulation.api.patch(plural, namespace, name, note, manager="kubectl-annotate")
    return act()


def _refused(status: int, why: str) -> Fault:
    def fault(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
        raise ApiError(status, why, f"{why}: a policy of this cluster")

    return fault


def _stale(changes: int) -> Fault:
    def fault(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
        # After another fault the call of this number may be a write.
        if call.write or call.verb == "dry-run":
            return act()
        return act(at=max(0, simulation.api.version - changes))

    return fault


def trouble(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
    """F7: 503 from this call on, for a minute."""
    simulation.trouble = _refused(503, "ServiceUnavailable")

    def over() -> None:
        simulation.trouble = None

    simulation.at(simulation.now + 60.0, over)
    raise ApiError(503, "ServiceUnavailable", "no etcd")


WRITE_FAULTS: dict[str, Fault] = {
    "killed before": killed_before,
    "killed after": killed_after,
    "reset": reset,
    "timeout though applied": timeout,
    "500 though applied": server_error,
    "409": conflict,
    "edited in between": edited,
    "422": _refused(422, "Invalid"),
    "403": _refused(403, "Forbidden"),
    "429": _refused(429, "TooManyRequests"),
    "503": _refused(503, "ServiceUnavailable"),
    "503 for a while": trouble,
}
READ_FAULTS: dict[str, Fault] = {
    "read: killed before": killed_before,
    "read: reset": reset,
    "read: 403": _refused(403, "Forbidden"),
    "read: stale by one change": _stale(1),
    "read: stale by ten changes": _stale(10),
}


def missed(simulation: Simulation, process: Process, event: Event) -> list[float]:
    """F10, F12: the watch breaks off, and a new list comes later."""
    simulation.at(simulation.now + RELIST_S, lambda: process.relist(event.plural))
    return []


def twice(simulation: Simulation, process: Process, event: Event) -> list[float]:
    """F11: told twice."""
    return [WATCH_S, WATCH_S + 1.0]


def late(simulation: Simulation, process: Process, event: Event) -> list[float]:
    """F11: one watch is slow for a while, so what other watches tell comes before what came earlier."""
    process.slow[event.plural] = simulation.now + DELAY_S
    return [DELAY_S]


def lagging(simulation: Simulation, process: Process, event: Event) -> list[float]:
    """F9: the watch goes over to an API server that is behind, and tells again what has been."""
    at = max(0, event.version - 20)

    def again() -> None:
        process.relist(event.plural, at=at)
        for one in simulation.api.history:
            if one.version > at and one.plural == event.plural:
                process.told(one)

    simulation.at(simulation.now + WATCH_S, again)
    return []


EVENT_FAULTS: dict[str, EventFault] = {
    "event: missed": missed,
    "event: twice": twice,
    "event: late": late,
    "event: told by a lagging server": lagging,
}


# ---- a run, and what is held against it


@dataclass
class Run:
    """What came of a run."""

    calls: list[Call] = field(default_factory=list)
    events: int = 0
    struck: list[str] = field(default_factory=list)
    settled: dict[str, Any] = field(default_factory=dict)
    left: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def run(
    fixture: Fixture,
    *,
    faults: Mapping[int, Fault] | None = None,
    event_faults: Mapping[int, EventFault] | None = None,
    operators: int = 1,
) -> Run:
    """A job from its making to its deletion."""
    simulation = Simulation(
        faults=faults, event_faults=event_faults, pod_monitors=fixture.pod_monitors, operators=operators
    )
    result = Run()
    problem = result.problems.append
    try:
        make(simulation, fixture.spec)
        await fixture.script(simulation)
        await _settle(simulation)
        result.settled = _state(simulation)
        await _stay_quiet(simulation, problem)
        _look_at_status(simulation, problem)
        look_at_certificates(simulation, problem)
        if simulation.job("flights") is not None:
            simulation.api.delete("trainingjobs", NAMESPACE, "flights")
        await _settle(simulation)
    except Never as error:
        problem(f"O1: {error}")
    result.calls, result.events, result.struck = simulation.calls, simulation.events, simulation.struck
    result.left = _state(simulation)
    made = Counter((event.kind, name_of(event.body)) for event in simulation.api.history)
    result.counts = {
        name: (made["ADDED", name], made["DELETED", name])
        for name in sorted({name for _, name in made})
        if not name.startswith("Event/")
    }
    for name in result.left:
        if not name.startswith("PersistentVolumeClaim/"):
            problem(f"O7: {name} is left")
    _look_at_rows(simulation, fixture, problem)
    result.problems += [f"O9: {crash}" for crash in simulation.crashes]
    result.problems += [f"O9: {untrue}" for untrue in simulation.untrue]
    return result


async def _settle(simulation: Simulation) -> None:
    for _ in range(30):
        before = simulation.api.version
        await simulation.until(lambda: False, QUIET_S)
        if simulation.api.version == before:
            return
    raise Never("quiet")


async def _stay_quiet(simulation: Simulation, problem: Callable[[str], None]) -> None:
    before = len(simulation.calls)
    for _ in range(10):
        for process in simulation.processes:
            process.resync()
        await simulation.until(lambda: False, 1.0)
    written = [str(call) for call in simulation.calls[before:] if call.write]
    if written:
        problem(f"O3: ten more looks wrote: {written[:3]}")


def _look_at_status(simulation: Simulation, problem: Callable[[str], None]) -> None:
    body = simulation.job("flights")
    if body is None:
        return
    seen, wanted = (body.get("status") or {}).get("observedGeneration"), body["metadata"]["generation"]
    if seen != wanted:
        problem(f"O9: observedGeneration is {seen}, wanted {wanted}")
    if holds(body, "Ready") and reason(body) != "Training":
        problem(f"O9: Ready is True for {reason(body)}")


def look_at_certificates(simulation: Simulation, problem: Callable[[str], None]) -> None:
    """Each pair is by the job's authority, and all trust it."""
    secrets = {body["metadata"]["name"]: body for body in simulation.api.list("secrets", NAMESPACE)}
    if not secrets:
        return
    found = authority.read_authority(secrets.pop("flights-authority"))
    if found is None:
        problem("O9: the authority cannot be read")
        return
    signer = x509.load_pem_x509_certificate(found.signer.certificate)
    for name, body in secrets.items():
        data = {key: base64.b64decode(value) for key, value in body["data"].items()}
        if data.pop(AUTHORITIES) != found.trusted:
            problem(f"O9: {name} trusts another authority")
        for key in [key for key in data if key.endswith(".crt")]:
            try:
                x509.load_pem_x509_certificate(data[key]).verify_directly_issued_by(signer)
            except (ValueError, InvalidSignature) as error:
                problem(f"O9: {key} of {name} is by another authority: {error!r}")


def _look_at_rows(simulation: Simulation, fixture: Fixture, problem: Callable[[str], None]) -> None:
    for double in simulation.kubernetes.doubles:
        problem(f"O8: {double}")
    for training in simulation.kubernetes.training.values():
        if not fixture.durable and len(training.servers) > 1 and min(training.steps.values()) >= STEPS:
            problem(f"O8: trained to its end over other servers: {training.servers}")
    if fixture.durable:
        for job, kept in simulation.kept:
            if not kept:
                problem(f"O8: the servers of {job} were told to end before all was in a checkpoint")


def name_of(body: Body) -> str:
    """Kind and name; of a pod that has no kind, its role."""
    kind = body.get("kind") or ("PersistentVolumeClaim" if "accessModes" in body.get("spec", {}) else "Pod")
    return f"{kind}/{body['metadata']['name']}"


def _state(simulation: Simulation) -> dict[str, Any]:
    return {
        name_of(body): plain(body)
        for (plural, _, _), body in sorted(simulation.api.objects.items())
        if plural != "events"
    }


_MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\bu\d+\b"), "UID"),
    (re.compile(r'(trainedSeconds\\?": )\d+'), r"\1N"),
)
_MASKED = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation")


def plain(body: Body) -> Any:
    """An object less what differs from run to run."""
    meta = {name: value for name, value in body["metadata"].items() if name not in _MASKED}
    annotations = {name: value for name, value in (meta.get("annotations") or {}).items() if name != NOTE}
    meta["annotations"] = annotations
    status = {name: value for name, value in (body.get("status") or {}).items() if name != "counted"}
    if body.get("kind") == "StatefulSet":
        status.pop("observedGeneration", None)
    if "progress" in status:
        status["progress"] = {"step": status["progress"].get("step")}
    spec = dict(body.get("spec") or {})
    if "activeDeadlineSeconds" in spec:
        # Less what was trained before a suspension, which a fault may make longer.
        spec["activeDeadlineSeconds"] = "N"
        annotations.pop("tablebay.dev/hash", None)
    content = {**body, "metadata": meta, "status": status, "spec": spec}
    if body.get("kind") == "Secret":
        # Keys are new each time.
        content["data"] = sorted(body["data"])
    text = json.dumps(content, sort_keys=True)
    for pattern, word in _MASKS:
        text = pattern.sub(word, text)
    return json.loads(text)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two states differ: the path, what is found, what is wanted."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for name in sorted(one.keys() | other.keys()):
            found += differences(one.get(name), other.get(name), f"{path}.{name}")
        return found
    return [] if one == other else [f"{path}: found {str(one)[:300]}, wanted {str(other)[:300]}"]


def faulty(found: Run, wanted: Run) -> list[str]:
    """What a run with a fault has that one without has not, or the other way round."""
    problems = list(found.problems)
    problems += [f"O1: settled{line}" for line in differences(found.settled, wanted.settled)]
    problems += [f"O1: left{line}" for line in differences(found.left, wanted.left)]
    problems += [f"O2: made and deleted {line}" for line in differences(found.counts, wanted.counts)]
    return problems


@functools.cache
def baseline(name: str) -> Run:
    """The run without a fault."""
    return asyncio.run(run(FIXTURES[name]))


# Of all single faults `make test` has every seventh, `make test-deep` those between.
_EVERY = 7
PARTS = ("some", pytest.param("the rest", marks=pytest.mark.deep))


def part_of(numbers: Sequence[int], part: str, mode: str) -> list[int]:
    """The numbers of that part; of two modes that strike the same calls, some strike others."""
    modes = [*WRITE_FAULTS, *READ_FAULTS, *EVENT_FAULTS]
    first = 2 * modes.index(mode) % min(_EVERY, max(1, len(numbers)))
    some = numbers[first::_EVERY]
    return list(some) if part == "some" else sorted(set(numbers) - set(some))


async def strike(name: str, modes: Iterable[tuple[str, int]]) -> list[str]:
    """Run a job with these faults, each in a call or an event of that number; what does not hold, with what struck."""
    faults = {number: fault for mode, number in modes if (fault := (WRITE_FAULTS | READ_FAULTS).get(mode))}
    events = {number: fault for mode, number in modes if (fault := EVENT_FAULTS.get(mode))}
    found = await run(FIXTURES[name], faults=faults, event_faults=events)
    struck = [str(call) for call in found.calls if call.number in faults] + found.struck
    where = f"{name}, {list(modes)}: {', '.join(struck)}"
    problems = faulty(found, baseline(name))
    # The first of several may leave nothing for the others to strike.
    if not struck:
        problems.append("the fault has struck nothing")
    return [f"{where}: {problem}" for problem in problems]
