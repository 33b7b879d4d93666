"""Changes of a job, taken and put back, and what must hold of them whatever strikes meanwhile: three more oracles.

O4 a change that is put back leaves all as it was, also one that is refused. O5 a job that was changed equals one that
was made so, but for what may not change: pods that run stay. O6 a change shows in the job's objects, or in a condition
that names it; nothing is ignored in silence.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from operator_faults.api import Body
from operator_faults.engine import (
    DURABLE,
    EVENT_FAULTS,
    READ_FAULTS,
    WRITE_FAULTS,
    Never,
    at_step,
    differences,
    job_body,
    name_of,
    plain,
    wait,
)
from operator_faults.simulation import NAMESPACE, Call, Simulation, holds

from tablebay.operator.cluster import ApiError
from tablebay.operator.projections import PAUSED_ANNOTATION, RATES_ANNOTATION, SERVERS_ANNOTATION

# After a change all has become quiet by then, whatever has struck: the longest trouble is of a minute.
SETTLED_S = 160.0
# What a change brings about is done by then, if nothing goes wrong.
BUSY_S = 10.0
# Nobody comes to the end of training meanwhile.
STEPS = 100_000
# What the API server of this cluster refuses in a pod's template.
NOT_HERE = "not-here"


@dataclass(frozen=True)
class Change:
    """Fields of a job's spec that are changed while it trains, or is suspended, and put back.

    before, after: these fields. refused: the change is the operator's or the API server's to refuse, and these words
    of a condition say so. showed: kinds of objects, or types of conditions, in which the change is to be seen.
    """

    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    showed: tuple[str, ...]
    suspended: bool = False
    refused: str = ""


@dataclass
class Seen:
    """What a run saw. busy: numbers of the calls and of the events just after the change, and after it is put back."""

    calls: list[Call] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    busy: list[tuple[range, range]] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _workers(**fields: Any) -> Body:
    found: Body = {**job_body({})["spec"]["workers"], **fields}
    return found


def _servers(node: str | None = None, **fields: Any) -> Body:
    template = {} if node is None else {"template": {"spec": {"nodeSelector": {"disk": node}}}}
    return {"replicas": 2, **template, **fields}


CHANGES = {
    one.name: one
    for one in (
        Change(
            "limits and objects, while it trains",
            {
                **DURABLE,
                "servers": _servers("fast"),
                "runPolicy": {"activeDeadlineSeconds": 90_000, "failurePolicy": {"maxRestarts": 3}},
            },
            {
                **DURABLE,
                "servers": _servers("slow", podDisruptionBudget={"maxUnavailable": 2}),
                "runPolicy": {"activeDeadlineSeconds": 80_000, "failurePolicy": {"maxRestarts": 7}},
                "network": {"tls": "Disabled", "policy": "Open"},
                "monitoring": {"podMonitor": "Enabled"},
            },
            ("StatefulSet", "Job", "PodDisruptionBudget", "NetworkPolicy", "Monitored"),
        ),
        Change(
            "elastic workers, while they train",
            {**DURABLE, "workers": _workers(replicas=2, minReplicas=1, maxReplicas=4)},
            {**DURABLE, "workers": _workers(replicas=4, minReplicas=1, maxReplicas=4)},
            ("Job", "Pod"),
        ),
        Change(
            "servers and checkpoints, while it is suspended",
            {**DURABLE, "servers": _servers()},
            {
                "checkpoint": {**DURABLE["checkpoint"], "everySeconds": 90, "when": ["Suspend"]},
                "servers": {"replicas": 3},
            },
            ("StatefulSet", "Job"),
            suspended=True,
        ),
        Change(
            "a template that the API server refuses",
            {"servers": _servers("fast")},
            {"servers": _servers(NOT_HERE)},
            ("Ready",),
            refused="spec.template.spec.nodeSelector: not-here",
        ),
        Change(
            "a suspension with nothing to go on from",
            {},
            {"suspend": True},
            ("Suspended",),
            refused="found suspend: true without checkpoint",
        ),
    )
}


def _admission(plural: str, body: Body) -> Body:
    template = body.get("spec", {}).get("template", {}) if plural == "statefulsets" else {}
    node = template.get("spec", {}).get("nodeSelector", {}).get("disk", "")
    if node == NOT_HERE:
        raise ApiError(422, "Invalid", f"spec.template.spec.nodeSelector: {node}: no such disk")
    return body


async def run(
    change: Change,
    *,
    faults: Mapping[int, Any] | None = None,
    event_faults: Mapping[int, Any] | None = None,
) -> Seen:
    """A job of `before`, changed, put back. States: `before`, `after`, and `back`."""
    simulation = Simulation(faults=faults, event_faults=event_faults, steps=STEPS)
    seen = Seen()
    try:
        await _begin(simulation, change, change.before)
        await simulation.until(lambda: False, BUSY_S)
        seen.states["before"] = state(simulation, change)
        for name, spec in (("after", change.after), ("back", change.before)):
            calls, events = len(simulation.calls), simulation.events
            _give(simulation, change, spec)
            await simulation.until(lambda: False, BUSY_S)
            seen.busy.append((range(calls, len(simulation.calls)), range(events, simulation.events)))
            await simulation.until(lambda: False, SETTLED_S)
            seen.states[name] = state(simulation, change)
    except Never as error:
        seen.problems.append(f"O4: {error}")
    seen.calls, seen.struck = simulation.calls, simulation.struck
    seen.problems += [f"O9: {crash}" for crash in simulation.crashes]
    seen.problems += [f"O8: {double}" for double in simulation.kubernetes.doubles]
    return seen


async def _begin(simulation: Simulation, change: Change, spec: Mapping[str, Any]) -> None:
    """A job of this spec that trains, or is suspended after that."""
    simulation.api.admission = _admission
    simulation.api.create("trainingjobs", NAMESPACE, job_body(spec))
    await wait(simulation, "step 5", lambda: at_step(simulation, 5))
    if change.suspended:
        simulation.patch_job("flights", {"suspend": True})
        await wait(simulation, "Suspended", lambda: holds(simulation.job("flights"), "Suspended"))


def _give(simulation: Simulation, change: Change, spec: Mapping[str, Any]) -> None:
    """The user writes the whole spec anew."""
    known = simulation.job("flights")
    assert known is not None
    wanted = {**job_body(spec)["spec"], **({"suspend": True} if change.suspended else {})}
    simulation.patch_job("flights", _patch(known["spec"], wanted))


def _patch(known: Any, wanted: Any) -> Any:
    """The merge patch from one to the other."""
    if not (isinstance(known, dict) and isinstance(wanted, dict)):
        return wanted
    gone = {name: None for name in known if name not in wanted}
    return {**gone, **{name: _patch(known.get(name), value) for name, value in wanted.items()}}


def state(simulation: Simulation, change: Change) -> dict[str, Any]:
    """All objects, less what goes on by itself and what counts changes.

    Of a suspended job less what its workers' Job has seen, and notes of that on the servers' set: another number of
    servers makes the Job anew.
    """
    found = {}
    for (plural, _, _), body in sorted(simulation.api.objects.items()):
        if plural == "events":
            continue
        one = plain(body)
        one["status"].pop("progress", None)
        one["status"].pop("checkpoint", None)
        if plural == "pods":
            # Whatever becomes of its template, a pod that runs stays as it was made.
            one["spec"] = {"serviceAccountName": one["spec"]["serviceAccountName"]}
        if not one["metadata"].get("finalizers"):
            one["metadata"].pop("finalizers", None)
        if change.suspended and plural in ("jobs", "statefulsets"):
            noted = one["metadata"]["annotations"]
            kept = (SERVERS_ANNOTATION,) if plural == "jobs" else (PAUSED_ANNOTATION, RATES_ANNOTATION)
            one["metadata"]["annotations"] = {name: noted[name] for name in noted if name not in kept}
            one["status"] = {} if plural == "jobs" else one["status"]
        found[name_of(body)] = _without_generations(one)
    return found


def _without_generations(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            name: _without_generations(value)
            for name, value in content.items()
            if name not in ("observedGeneration", "updateRevision", "controller-revision-hash")
        }
    return [_without_generations(one) for one in content] if isinstance(content, list) else content


def shown(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Kinds of objects, and types of conditions, that differ."""
    job = "TrainingJob/flights"
    kinds = {
        name.partition("/")[0] for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    }
    one, other = (
        {each["type"]: each for each in states[job]["status"]["conditions"]} for states in (before, after)
    )
    return (kinds - {"TrainingJob"}) | {
        type for type in one.keys() | other.keys() if one.get(type) != other.get(type)
    }


@functools.cache
def baseline(name: str) -> Seen:
    """The change without a fault."""
    return asyncio.run(run(CHANGES[name]))


@functools.cache
def fresh(name: str) -> dict[str, Any]:
    """What a new job of the changed spec has."""
    change = CHANGES[name]
    seen = asyncio.run(run(replace(change, before=change.after)))
    assert not seen.problems, seen.problems
    found: dict[str, Any] = seen.states["before"]
    return found


def problems_of(change: Change, seen: Seen) -> list[str]:
    """What the three oracles, and O9, hold against a run."""
    problems = list(seen.problems)
    if problems:
        return problems
    before, after, back = (seen.states[name] for name in ("before", "after", "back"))
    problems += [f"O4: back{line}" for line in differences(back, before)]
    if not change.refused:
        wanted = fresh(change.name)
        problems += [f"O5: changed{line}" for line in differences(after, wanted)]
    missing = set(change.showed) - shown(before, after)
    problems += [f"O6: the change does not show in {one}" for one in sorted(missing)]
    if change.refused:
        # What cannot be is said, and touches nothing.
        said = [
            one["message"]
            for one in after["TrainingJob/flights"]["status"]["conditions"]
            if change.refused in one["message"]
        ]
        problems += [] if said else [f"O6: no condition says {change.refused!r}"]
        kept = (
            {name: one for name, one in states.items() if name != "TrainingJob/flights"}
            for states in (after, before)
        )
        problems += [f"O6: refused{line}" for line in differences(*kept)]
    return problems


async def strike(name: str, mode: str, number: int) -> list[str]:
    """A change with this fault in a call or an event of that number; what does not hold, with what struck."""
    fault = (WRITE_FAULTS | READ_FAULTS).get(mode)
    seen = await run(
        CHANGES[name],
        faults={number: fault} if fault else None,
        event_faults={} if fault else {number: EVENT_FAULTS[mode]},
    )
    struck = [str(call) for call in seen.calls if fault and call.number == number] + seen.struck
    problems = problems_of(CHANGES[name], seen) if struck else ["the fault has struck nothing"]
    return [f"{name}, {mode} {number}: {', '.join(struck)}: {problem}" for problem in problems]


def numbers(name: str, mode: str) -> list[int]:
    """The calls, or the events, that the mode is for, of what the change brings about, and its end."""
    seen = baseline(name)
    if mode in EVENT_FAULTS:
        return [number for _, events in seen.busy for number in events]
    calls = [seen.calls[number] for calls, _ in seen.busy for number in calls]
    return [call.number for call in calls if call.write == (mode in WRITE_FAULTS)]
