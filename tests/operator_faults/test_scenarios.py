"""Misfortunes that are no single call's: the operator away, two of it, a user who changes his mind, bad jobs."""

from __future__ import annotations

import asyncio
import base64
import datetime
import gc
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from operator_faults.api import Event
from operator_faults.engine import (
    CHECKPOINT,
    DURABLE,
    FIXTURES,
    at_step,
    baseline,
    faulty,
    job_body,
    killed_after,
    killed_before,
    look_at_certificates,
    make,
    run,
    wait,
    worker_pod,
)
from operator_faults.simulation import (
    NAMESPACE,
    STEPS,
    Call,
    Fault,
    Process,
    Simulation,
    condition,
    holds,
    live_pods,
    reason,
)

from tablebay.client.tls import AUTHORITIES
from tablebay.operator import reconcile
from tablebay.operator.authority import LIFE, ROTATE_ANNOTATION
from tablebay.operator.certificates import LOOK_EVERY_S
from tablebay.operator.cluster import ApiError


def refuses(which: Callable[[Call], bool], status: int = 503) -> Fault:
    """Some calls are refused, the others let through."""

    def fault(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
        if which(call):
            raise ApiError(status, "Refused", f"{status}: {call.kind} {call.name}")
        return act()

    return fault


async def to_step(simulation: Simulation, step: int, **spec: Any) -> None:
    """A job that trains, as far as a step."""
    make(simulation, spec)
    await wait(simulation, f"step {step}", lambda: at_step(simulation, step))


async def gone(simulation: Simulation) -> None:
    """Nothing of the job is left, but claims."""
    await simulation.until(lambda: False, 200.0)
    left = {key for key in simulation.api.objects if key[0] not in ("events", "persistentvolumeclaims")}
    assert not left


@pytest.mark.parametrize("kind", ["Service", "StatefulSet", "Job", "PodDisruptionBudget"])
def test_bug_f16_a_write_that_is_answered_after_the_end_of_its_job_is_in_no_later_jobs_way(kind: str) -> None:
    """All that there was is deleted, and that is told, before the operator hears that its write was done."""

    def told_at_once(simulation: Simulation, process: Process, event: Event) -> list[float]:
        process.told(event)
        return []

    def answered_late(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
        result = act()
        if (call.verb, call.kind) == ("apply", kind):
            simulation.trouble = None
            simulation.api.delete("trainingjobs", NAMESPACE, "flights")
            simulation.kubernetes.tick()
            assert not simulation.api.list(plural, NAMESPACE)
            simulation.event_faults.clear()
        return result

    plural = f"{kind.lower()}s"

    async def life() -> None:
        simulation = Simulation(event_faults=dict.fromkeys(range(1000), told_at_once))
        simulation.trouble = answered_late
        make(simulation, {})
        await wait(simulation, "the end", lambda: simulation.trouble is None)
        await gone(simulation)
        make(simulation, {})
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))
        assert not simulation.crashes

    asyncio.run(life())


@pytest.mark.parametrize("name", FIXTURES)
def test_f16_a_job_deleted_at_any_moment_leaves_nothing(name: str) -> None:
    """Whatever the operator is about to do: the user's deletion comes in between, and every object goes."""

    def deletes(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
        if simulation.job("flights") is not None:
            simulation.api.delete("trainingjobs", NAMESPACE, "flights")
        return act()

    calls = baseline(name).calls[::2]

    async def each() -> list[str]:
        problems = []
        for call in calls:
            found = await run(FIXTURES[name], faults={call.number: deletes})
            problems += [
                f"deleted before {call}: {problem}"
                for problem in found.problems
                if problem[:2] in ("O7", "O9") or "quiet never comes" in problem
            ]
        return problems

    problems = asyncio.run(each())
    assert not problems, "\n".join(problems[:5])


def test_f14_of_five_changes_at_once_the_last_one_counts() -> None:
    """Within a tenth of a second; the status is of the newest generation."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 3)
        for restarts in (1, 2, 3, 4, 5):
            simulation.patch_job("flights", {"runPolicy": {"failurePolicy": {"maxRestarts": restarts}}})
            await simulation.until(lambda: False, 0.02)
        await simulation.until(lambda: False, 5.0)
        body = simulation.job("flights")
        assert body is not None
        assert body["status"]["observedGeneration"] == body["metadata"]["generation"] == 6
        assert simulation.api.objects["jobs", NAMESPACE, "flights-worker"]["spec"]["backoffLimit"] == 5

    asyncio.run(life())


def elastic(workers: int) -> dict[str, Any]:
    """An elastic job of so many workers, with checkpoints."""
    spec = job_body({})["spec"]
    return {
        **DURABLE,
        "workers": {**spec["workers"], "replicas": workers, "minReplicas": 1, "maxReplicas": 4},
    }


def running(simulation: Simulation) -> set[int]:
    """The ranks that run, and that server 0 is to know of."""
    return {
        int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])
        for pod in live_pods(simulation.api, "flights", "worker")
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    }


async def scaled(simulation: Simulation, workers: int, hit: str) -> None:
    """So many workers are asked for, and something dies in the same moment; wait until they run."""
    simulation.patch_job("flights", {"workers": {"replicas": workers}})
    if hit == "operator":
        await simulation.until(lambda: False, 0.1)
        simulation.kill()
    elif hit:
        name = worker_pod(simulation, 0) if hit == "worker" else f"flights-server-{hit[-1]}"
        simulation.kubernetes.delete_pod(NAMESPACE, name)
    await wait(simulation, f"{workers} workers", lambda: running(simulation) == set(range(workers)))


@pytest.mark.parametrize("hit", ["", "operator", "worker", "server 0", "server 1"])
def test_f39_workers_scaled_with_a_death_at_each_step(hit: str) -> None:
    """2 to 4 to 1: the ranks that are wanted run, no others, server 0 knows of each, and the job is trained."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 5, **elastic(2))
        for workers in (4, 1):
            await scaled(simulation, workers, hit)
            await simulation.until(lambda: False, 30.0)
            assert running(simulation) == set(range(workers))
            assert list(simulation.workers_known.values())[-1] == workers
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))
        assert not simulation.crashes

    asyncio.run(life())


def test_f15_a_change_while_workers_come_or_go() -> None:
    """The newest number counts, and whatever else was changed meanwhile."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 5, **elastic(2))
        for workers in (4, 1, 3):
            simulation.patch_job("flights", {"workers": {"replicas": workers}})
            await simulation.until(lambda: False, 0.3)
        simulation.patch_job("flights", {"runPolicy": {"failurePolicy": {"maxRestarts": 9}}})
        await wait(simulation, "3 workers", lambda: running(simulation) == {0, 1, 2})
        await simulation.until(lambda: False, 30.0)
        assert running(simulation) == {0, 1, 2}
        body = simulation.job("flights")
        assert body is not None
        assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
        job = simulation.api.objects["jobs", NAMESPACE, "flights-worker"]["spec"]
        assert (job["parallelism"], job["completions"]) == (3, 3)
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


def test_f17_a_job_deleted_while_no_operator_runs() -> None:
    """It waits for its last checkpoint until an operator is there again, and then goes."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 5, **DURABLE)
        simulation.processes[0].alive = False
        simulation.api.delete("trainingjobs", NAMESPACE, "flights")
        await simulation.until(lambda: False, 5.0)
        assert simulation.job("flights") is not None
        simulation.start()
        await wait(simulation, "the end", lambda: simulation.job("flights") is None)
        assert simulation.kept == [("flights", True)]
        await gone(simulation)

    asyncio.run(life())


def test_f18_a_server_dies_while_no_operator_runs() -> None:
    """It comes back, and the workers train to their end; the operator that comes an hour later sees it Complete."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 5, **DURABLE)
        simulation.processes[0].alive = False
        simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
        await simulation.until(lambda: False, 3600.0)
        assert at_step(simulation, STEPS)
        assert not live_pods(simulation.api, "flights", "worker")
        simulation.start()
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


@pytest.mark.parametrize("durable", [True, False])
def test_f19_a_server_dies_together_with_the_operator(durable: bool) -> None:
    """With checkpoints the job goes on; without it fails and says why, whoever looks first at what is there."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 5, **(DURABLE if durable else {}))
        simulation.kill()
        simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
        wanted = "Complete" if durable else "Failed"
        await wait(simulation, wanted, lambda: holds(simulation.job("flights"), wanted))
        if not durable:
            assert condition(simulation.job("flights"), "Failed")["reason"] == "ServerLost"

    asyncio.run(life())


@pytest.mark.parametrize("name", FIXTURES)
def test_f20_two_operators_at_once_are_one(name: str) -> None:
    """Both act on everything: the same end state, each object made and deleted once, and nothing written then."""
    problems = faulty(asyncio.run(run(FIXTURES[name], operators=2)), baseline(name))
    assert not problems, "\n".join(problems[:5])


def test_f22_f7_the_api_server_refuses_all_for_ten_minutes() -> None:
    """No pod is touched, training goes on to its end, and the operator asks ever more seldom, not in a loop."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 3)
        pods = {name for plural, _, name in simulation.api.objects if plural == "pods"}
        simulation.trouble = refuses(lambda call: True)
        simulation.kubernetes.delete_pod(NAMESPACE, "flights-worker-1-1")
        before = len(simulation.calls)
        await simulation.until(lambda: False, 600.0)
        assert at_step(simulation, STEPS)
        assert len(simulation.calls) - before < 70
        assert {name for name in pods if "server" in name} <= {
            name for plural, _, name in simulation.api.objects if plural == "pods"
        }
        simulation.trouble = None
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


EDITS: dict[str, Any] = {
    "Service": {"spec": {"publishNotReadyAddresses": False}},
    "ServiceAccount": {"automountServiceAccountToken": True},
    "PodDisruptionBudget": {"spec": {"maxUnavailable": 5}},
    "NetworkPolicy": {"spec": {"ingress": []}},
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("how", ["deleted", "edited"])
def test_f34_f35_a_child_that_a_hand_deletes_or_edits_is_as_before(kind: str, how: str) -> None:
    """In the middle of training, once; nothing else is touched."""

    async def life() -> None:
        simulation = Simulation()
        await to_step(simulation, 3)
        api = simulation.api
        key = next(key for key, body in api.objects.items() if body.get("kind") == kind)
        pods = {name for plural, _, name in api.objects if plural == "pods"}
        before = api.objects[key]
        if how == "deleted":
            api.delete(*key)
        else:
            api.patch(*key, EDITS[kind], manager="kubectl-edit")
        await simulation.until(lambda: False, 5.0)
        now = api.objects[key]
        assert {**now, "metadata": now["metadata"]["labels"]} == {
            **before,
            "metadata": before["metadata"]["labels"],
        }
        changes = [one for one in api.history if one.version > int(before["metadata"]["resourceVersion"])]
        mine = [
            one.kind for one in changes if one.body["metadata"]["name"] == key[2] and one.plural == key[0]
        ]
        assert mine == (["DELETED", "ADDED"] if how == "deleted" else ["MODIFIED", "MODIFIED"])
        assert {name for plural, _, name in api.objects if plural == "pods"} == pods

    asyncio.run(life())


def test_f37_a_status_that_can_never_be_written_holds_nothing_up() -> None:
    """The job is trained, its servers go; as soon as it can be written the status says Complete."""

    async def life() -> None:
        simulation = Simulation()
        make(simulation, {})
        simulation.trouble = refuses(lambda call: call.verb == "patch status", 500)
        await wait(simulation, "the last step", lambda: at_step(simulation, STEPS))
        await simulation.until(
            lambda: ("statefulsets", NAMESPACE, "flights-server") not in simulation.api.objects, 1200.0
        )
        assert ("statefulsets", NAMESPACE, "flights-server") not in simulation.api.objects
        assert not (simulation.job("flights") or {}).get("status")
        simulation.trouble = None
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


def test_f42_a_namespace_that_ends_takes_no_new_objects() -> None:
    """Creates are refused: the job says so, is asked for now and then only, and goes with the namespace."""

    async def life() -> None:
        simulation = Simulation()
        simulation.trouble = refuses(lambda call: call.verb in ("apply", "create"), 403)
        make(simulation, {})
        await simulation.until(lambda: False, 600.0)
        assert reason(simulation.job("flights")) == "InvalidTemplate"
        assert len(simulation.calls) < 240
        simulation.api.delete("trainingjobs", NAMESPACE, "flights")
        await gone(simulation)

    asyncio.run(life())


def end_namespace(simulation: Simulation) -> None:
    """kubectl delete namespace: all in it is deleted in no order, and nothing can be made there any more."""

    def ends(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
        there = any(call.name == name for _, _, name in simulation.api.objects)
        if call.verb == "create" or (call.verb == "apply" and not there):
            raise ApiError(403, "Forbidden", f"403: {call.kind} {call.name}: namespace is being terminated")
        return act()

    simulation.trouble = ends
    for key in sorted(simulation.api.objects):
        if key in simulation.api.objects:
            simulation.api.delete(*key)


@pytest.mark.parametrize("tls", ["Enabled", "Disabled"])
@pytest.mark.parametrize("step", [0, 5])
def test_f42_a_job_that_waits_for_its_last_checkpoint_does_not_hold_a_namespace_up(
    tls: str, step: int
) -> None:
    """Its servers end with the namespace, so it goes as soon as they are gone, and is asked for seldom until then."""

    async def life() -> None:
        simulation = Simulation()
        make(simulation, {**DURABLE, "network": {"tls": tls}})
        await wait(simulation, "a finalizer", lambda: bool(finalizers(simulation)))
        if step:
            await wait(simulation, f"step {step}", lambda: at_step(simulation, step))
        began, calls = simulation.now, len(simulation.calls)
        end_namespace(simulation)
        assert finalizers(simulation), "it waits for something"
        await wait(simulation, "the end", lambda: simulation.job("flights") is None)
        assert simulation.now - began < 60
        assert len(simulation.calls) - calls < 60
        assert not simulation.crashes
        await gone(simulation)

    def finalizers(simulation: Simulation) -> list[str]:
        body = simulation.job("flights")
        return list(body["metadata"].get("finalizers") or ()) if body is not None else []

    asyncio.run(life())


@pytest.mark.parametrize("durable", [False, True])
def test_bug_a_refusal_in_other_words_each_time_is_no_storm(durable: bool) -> None:
    """Each writes another status, which is a reason to look again: it was tried without a pause."""

    async def life() -> None:
        simulation = Simulation()
        refusals = 0

        def refuse(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
            nonlocal refusals
            if call.verb in ("apply", "create") and call.kind != "Event":
                refusals += 1
                raise ApiError(403, "Forbidden", f"exceeded quota, request {refusals}")
            return act()

        simulation.trouble = refuse
        make(simulation, DURABLE if durable else {})
        await simulation.until(lambda: False, 600.0)
        assert reason(simulation.job("flights")) == "InvalidTemplate"
        assert 5 <= refusals <= 30
        assert len(simulation.calls) < 350
        # A change of the job is tried at once.
        before = refusals
        simulation.patch_job("flights", {"runPolicy": {"failurePolicy": {"maxRestarts": 8}}})
        await simulation.until(lambda: False, 0.5)
        assert refusals > before
        simulation.trouble = None
        await wait(simulation, "step 5", lambda: at_step(simulation, 5))

    asyncio.run(life())


@pytest.mark.parametrize(
    ("name", "hours"),
    [(name, hours) for name in ("plain", "suspended", "worker lost", "deleted") for hours in (-1, 1)],
)
def test_f43_an_operator_whose_clock_is_wrong_ends_nothing_early(
    name: str, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour, either way: the same end state, and all is in a checkpoint where that is wanted."""
    monkeypatch.setattr(Simulation, "skew", datetime.timedelta(hours=hours))
    problems = faulty(asyncio.run(run(FIXTURES[name])), baseline(name))
    assert not problems, "\n".join(problems[:5])


@pytest.mark.parametrize("hours", [-1, 1])
def test_f43_windows_and_deadlines_are_measured_by_the_api_servers_clock(hours: int) -> None:
    """The operator dies and goes on beside a clock that is wrong by an hour, in each wait that counts by time.

    The deadline until all run, and the time that failures count, are what they are with a right one."""

    async def life(skew: datetime.timedelta) -> list[tuple[str, float]]:
        simulation = Simulation()
        simulation.kubernetes.quota = 2
        policy = {"maxRestarts": 2, "windowSeconds": 300, "backoff": {"initialSeconds": 40}}
        make(simulation, {"runPolicy": {"preRunningDeadlineSeconds": 500, "failurePolicy": policy}})
        seen: list[tuple[str, float]] = []

        async def until(what: str, done: Callable[[], bool]) -> None:
            await wait(simulation, what, done)
            seen.append((what, simulation.now))

        await simulation.until(lambda: False, 100.0)
        simulation.skew = skew
        simulation.kill()
        await simulation.until(lambda: False, 100.0)
        assert not holds(simulation.job("flights"), "Failed")
        simulation.kubernetes.quota = 100
        await until("step 5", lambda: at_step(simulation, 5))
        for failure in range(3):
            simulation.kubernetes.end_container(NAMESPACE, worker_pod(simulation, 1), 1)
            if failure == 1:
                simulation.skew = -simulation.skew
                simulation.kill()
            if failure < 2:
                await until("again", lambda: running(simulation) == {0, 1})
        await until("Failed", lambda: holds(simulation.job("flights"), "Failed"))
        failed = condition(simulation.job("flights"), "Failed")
        assert failed["reason"] == "WorkersFailed"
        assert "3 times within 300 s" in failed["message"]
        return seen

    right = asyncio.run(life(datetime.timedelta()))
    wrong = asyncio.run(life(datetime.timedelta(hours=hours)))
    assert [what for what, _ in wrong] == [what for what, _ in right]
    for (what, at), (_, wanted) in zip(wrong, right, strict=True):
        assert abs(at - wanted) < 5, f"{what} at {at:.0f} s, wanted {wanted:.0f} s"


@pytest.mark.parametrize("hours", [-1, 1])
def test_f43_a_deadline_comes_when_it_should_though_the_clock_is_wrong(hours: int) -> None:
    """Neither an hour early nor an hour late, also of an operator that comes in between."""

    async def life() -> None:
        simulation = Simulation()
        simulation.kubernetes.quota = 2
        make(simulation, {"runPolicy": {"preRunningDeadlineSeconds": 500}})
        await simulation.until(lambda: False, 100.0)
        simulation.skew = datetime.timedelta(hours=hours)
        simulation.kill()
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        assert 495 <= simulation.now <= 515
        assert condition(simulation.job("flights"), "Failed")["reason"] == "PreRunningDeadlineExceeded"

    asyncio.run(life())


def named(name: str) -> dict[str, Any]:
    """A job of another name."""
    body = job_body({})
    body["metadata"]["name"] = name
    return body


def completed(simulation: Simulation, names: list[str]) -> bool:
    """Whether all of these are."""
    return all(holds(simulation.job(name), "Complete") for name in names)


def footprint(roots: list[Any]) -> int:
    """Bytes of all that these hold, each object once; less code, and what is not the operator's."""
    seen: set[int] = set()
    total, left = 0, list(roots)
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(
            one, type | types.ModuleType | types.FunctionType | types.MethodType
        ):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        left += gc.get_referents(one)
    return total


@pytest.mark.parametrize("jobs", [40, pytest.param(500, marks=pytest.mark.deep)])
def test_f44_many_jobs_at_the_operators_start_all_come_to_their_end(jobs: int) -> None:
    """Made while no operator runs; each costs as many calls as one alone, and little memory of the operator's."""
    alone = baseline("plain").calls

    async def life() -> None:
        simulation = Simulation(operators=0, grain_s=1.0)
        names = [f"job-{number}" for number in range(jobs)]
        for name in names:
            simulation.api.create("trainingjobs", NAMESPACE, named(name))
        simulation.start()
        process, most = simulation.processes[0], 0

        def all_done() -> bool:
            nonlocal most
            most = max(most, process.queue.depth)
            return completed(simulation, names[-1:]) and completed(simulation, names)

        await wait(simulation, "all", all_done)
        for write in (True, False):
            one = sum(call.write == write for call in alone)
            assert sum(call.write == write for call in simulation.calls) <= jobs * (one + 3)
        # What it knows of each: far below what the API server keeps of the same objects.
        assert most <= jobs
        known = footprint([process.jobs, *process.stores.values()])
        assert known / jobs < 24 * 1024, f"{known / jobs:.0f} bytes of a job"
        for name in names:
            simulation.api.delete("trainingjobs", NAMESPACE, name)
        await simulation.until(lambda: False, 200.0)
        assert not list(process.jobs.bodies())
        assert not any(len(store) for store in process.stores.values())
        # A dict that was large stays so.
        left = footprint([process.jobs, *process.stores.values(), process.queue])
        assert left < known / 10 + 64 * 1024, f"{left} bytes are left of {known}"

    asyncio.run(life())


def test_f45_a_job_that_fails_for_ever_leaves_the_others_alone() -> None:
    """Its every write is refused, for an hour; its neighbour is trained as if it were alone, and it costs little."""

    async def life() -> None:
        simulation = Simulation()
        bad = refuses(lambda call: call.write and call.name.startswith("bad"), 500)
        simulation.trouble = bad
        for name in ("bad", "good"):
            simulation.api.create("trainingjobs", NAMESPACE, named(name))
        await wait(simulation, "the good one", lambda: completed(simulation, ["good"]))
        assert simulation.now < STEPS + 60
        await simulation.until(lambda: False, 3600.0)
        assert sum(call.name.startswith("bad") for call in simulation.calls) < 400

    asyncio.run(life())


def test_f46_a_bug_in_a_look_is_tried_again_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arbitrary error a hundred times: the job's status says so, the neighbour is trained, and it too in the end."""
    real, left = reconcile.decide, [100]

    def decide(job: Any, *arguments: Any) -> Any:
        if job.name == "bad" and left[0] > 0:
            left[0] -= 1
            raise ZeroDivisionError("a bug, " + "of many words " * left[0])
        return real(job, *arguments)

    monkeypatch.setattr(reconcile, "decide", decide)

    async def life() -> None:
        simulation = Simulation()
        for name in ("bad", "good"):
            simulation.api.create("trainingjobs", NAMESPACE, named(name))
        await wait(simulation, "the good one", lambda: completed(simulation, ["good"]))
        assert simulation.now < STEPS + 60
        assert 70 < left[0] < 100
        assert len([call for call in simulation.calls if call.write and call.name == "bad"]) <= 100 - left[0]
        failed = condition(simulation.job("bad"), "LookFailed")
        assert (failed["status"], failed["reason"]) == ("True", "ZeroDivisionError")
        assert failed["message"].startswith("ZeroDivisionError: a bug, of many words")
        assert simulation.results["fault"] == 100 - left[0]
        assert not condition(simulation.job("good"), "LookFailed")
        left[0] = 1
        await simulation.until(lambda: completed(simulation, ["bad"]), 1200.0)
        assert completed(simulation, ["bad"])
        assert not condition(simulation.job("bad"), "LookFailed")

    asyncio.run(life())


CLAIM = ("persistentvolumeclaims", NAMESPACE, "checkpoints")


def message(simulation: Simulation) -> str:
    """Of Ready."""
    found: str = condition(simulation.job("flights"), "Ready").get("message", "")
    return found


async def suspended(simulation: Simulation) -> None:
    """A job that has trained, kept all, and is suspended."""
    await to_step(simulation, 5, **DURABLE)
    simulation.patch_job("flights", {"suspend": True})
    await wait(simulation, "Suspended", lambda: holds(simulation.job("flights"), "Suspended"))
    assert simulation.kept == [("flights", True)]


async def unusable(simulation: Simulation, words: str) -> None:
    """No server starts, and Ready says these words."""
    await wait(simulation, "ClaimUnusable", lambda: reason(simulation.job("flights")) == "ClaimUnusable")
    await simulation.until(lambda: False, 60.0)
    assert words in message(simulation)
    assert not live_pods(simulation.api, "flights", "server")


def test_f33_a_claim_that_is_deleted_while_its_job_is_suspended_is_not_made_anew_in_silence() -> None:
    """On its way, then gone: the job waits and says so. One that a hand makes is taken, and the job goes on."""

    async def life() -> None:
        simulation = Simulation()
        api = simulation.api
        await suspended(simulation)
        api.patch(*CLAIM, {"metadata": {"finalizers": ["kubernetes.io/pvc-protection"]}}, manager="kubelet")
        api.delete(*CLAIM)
        simulation.patch_job("flights", {"suspend": False})
        await unusable(simulation, "PersistentVolumeClaim checkpoints is being deleted")
        api.patch(*CLAIM, {"metadata": {"finalizers": None}}, manager="kubelet")
        await unusable(
            simulation, "found no PersistentVolumeClaim checkpoints in namespace ads, which held checkpoint 1"
        )
        assert api.get(*CLAIM) is None
        claim = {"metadata": {"name": CLAIM[2]}, "spec": {"accessModes": ["ReadWriteOnce"]}}
        api.create(CLAIM[0], NAMESPACE, claim)
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))
        assert not simulation.crashes

    asyncio.run(life())


def test_f33_a_claim_whose_volume_is_lost_is_said() -> None:
    """While its job is suspended; when the volume is back the job goes on."""

    async def life() -> None:
        simulation = Simulation()
        await suspended(simulation)
        for phase in ("Lost", "Bound"):
            status = {"status": {"phase": phase}}
            simulation.api.patch(*CLAIM, status, subresource="status", manager="kube-controller-manager")
            simulation.patch_job("flights", {"suspend": False})
            if phase == "Lost":
                await unusable(simulation, "PersistentVolumeClaim checkpoints is Lost")
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


def test_f33_a_claim_that_no_class_binds_is_said_in_the_schedulers_words() -> None:
    """Pending without a StorageClass: nothing loops or is deleted; bound, the job begins."""
    words = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."

    async def life() -> None:
        simulation = Simulation()
        simulation.kubernetes.unscheduled = words
        make(simulation, DURABLE)
        await simulation.until(lambda: False, 60.0)
        assert reason(simulation.job("flights")) == "StartingServers"
        assert words in message(simulation)
        before = len(simulation.calls)
        await simulation.until(lambda: False, 400.0)
        assert not [call for call in simulation.calls[before:] if call.write]
        simulation.kubernetes.unscheduled = ""
        simulation.kubernetes.tick()
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


def test_f33_a_claim_that_is_missing_is_said_and_none_is_made() -> None:
    """The job describes none: it waits for one that a hand makes."""

    async def life() -> None:
        simulation = Simulation()
        make(simulation, {"checkpoint": {**CHECKPOINT, "claim": None}})
        await simulation.until(lambda: False, 20.0)
        assert reason(simulation.job("flights")) == "ClaimUnusable"
        claim = {"metadata": {"name": "checkpoints"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        simulation.api.create("persistentvolumeclaims", NAMESPACE, claim)
        await wait(simulation, "Complete", lambda: holds(simulation.job("flights"), "Complete"))

    asyncio.run(life())


def _trusted(simulation: Simulation) -> bytes:
    """The authorities that workers trust."""
    body = simulation.api.get("secrets", NAMESPACE, "flights-worker-tls-0")
    assert body is not None
    return base64.b64decode(body["data"][AUTHORITIES])


@pytest.mark.parametrize("when", ["before", "after"])
def test_f41_an_authority_is_replaced_though_the_operator_dies_at_any_write_of_it(when: str) -> None:
    """Of each Secret in each of the steps: the next operator goes on, and in the end one new authority is trusted.

    No pod is another one, and the job trains on."""

    async def life(at: int) -> bool:
        """Whether there was such a write."""
        simulation = Simulation(steps=1500)
        await to_step(simulation, 3, network={"tls": "Enabled"})
        first, pods = _trusted(simulation), {one["metadata"]["uid"] for one in _pods(simulation)}
        written = 0

        def dies(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
            nonlocal written
            if call.write and call.kind == "Secret":
                written += 1
                if written == at:
                    return {"before": killed_before, "after": killed_after}[when](simulation, call, act)
            return act()

        simulation.trouble = dies
        note = {"metadata": {"annotations": {ROTATE_ANNOTATION: "now"}}}
        simulation.api.patch("trainingjobs", NAMESPACE, "flights", note, manager="kubectl")
        await wait(simulation, "a second authority", lambda: _trusted(simulation).count(b"BEGIN") == 2)
        assert first in _trusted(simulation)
        await wait(simulation, "one alone", lambda: _trusted(simulation).count(b"BEGIN") == 1)
        assert _trusted(simulation) != first
        problems: list[str] = []
        look_at_certificates(simulation, problems.append)
        assert not problems, f"write {at}: {problems}"
        assert {one["metadata"]["uid"] for one in _pods(simulation)} == pods
        assert reason(simulation.job("flights")) == "Training"
        return written >= at

    async def lives() -> int:
        at = 1
        while await life(at):
            at += 1
        return at - 1

    # An authority that is about to sign, one that signs, and one alone: each is three Secrets.
    assert asyncio.run(lives()) >= 8


def test_f41_a_pair_that_has_expired_or_was_damaged_is_made_anew_by_the_next_look() -> None:
    """Nobody tells the operator of Secrets; it looks every ten minutes or so."""

    async def life() -> None:
        simulation = Simulation(steps=2500)
        await to_step(simulation, 3, network={"tls": "Enabled"})
        damage = {"data": {"1.crt": base64.b64encode(b"no certificate").decode()}}
        simulation.api.patch("secrets", NAMESPACE, "flights-worker-tls-0", damage, manager="kubectl")
        problems: list[str] = []
        look_at_certificates(simulation, problems.append)
        assert problems
        await simulation.until(lambda: False, 1.2 * LOOK_EVERY_S)
        problems = []
        look_at_certificates(simulation, problems.append)
        assert not problems
        # Half of a pair's life later by the operator's clock: each is another one.
        before = simulation.api.get("secrets", NAMESPACE, "flights-worker-tls-0")
        simulation.skew = LIFE / 2
        await simulation.until(lambda: False, 1.2 * LOOK_EVERY_S)
        after = simulation.api.get("secrets", NAMESPACE, "flights-worker-tls-0")
        assert before is not None and after is not None
        assert all(before["data"][name] != after["data"][name] for name in ("0.crt", "1.crt"))
        assert reason(simulation.job("flights")) == "Training"

    asyncio.run(life())


def _pods(simulation: Simulation) -> list[Any]:
    return [one for role in ("server", "worker") for one in live_pods(simulation.api, "flights", role)]
