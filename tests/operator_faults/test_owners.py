"""The set of servers, or the workers' Job, deleted by a hand in training, with its pods or without them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from operator_faults.engine import DURABLE, at_step, make, wait
from operator_faults.simulation import (
    NAMESPACE,
    Call,
    Killed,
    Simulation,
    condition,
    holds,
    live_pods,
    reason,
)
from operator_faults.test_pods import ended, pods, quiet, trained, training

SERVERS, WORKERS = ("statefulsets", NAMESPACE, "flights-server"), ("jobs", NAMESPACE, "flights-worker")


def delete(simulation: Simulation, key: tuple[str, str, str]) -> str:
    """kubectl delete, which takes its pods along; the uid of what there was."""
    uid: str = simulation.api.objects[key]["metadata"]["uid"]
    simulation.api.delete(*key)
    return uid


def owners(simulation: Simulation, role: str) -> set[str]:
    """The uids of whom the live pods of a role belong to."""
    return {
        one["uid"]
        for body in live_pods(simulation.api, "flights", role)
        for one in body["metadata"]["ownerReferences"]
    }


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("away", [False, True])
def test_f35_the_servers_whose_set_is_deleted_without_them_are_taken_in_by_another(
    durable: bool, away: bool
) -> None:
    """No pod is made or ended, also if no operator runs meanwhile; the new set is as the old one was."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **(DURABLE if durable else {}))
        before = simulation.api.objects[SERVERS]
        all_pods = {**pods(simulation, "server"), **pods(simulation, "worker")}
        if away:
            simulation.processes[0].alive = False
        simulation.kubernetes.orphan(*SERVERS)
        if away:
            await simulation.until(lambda: False, 60.0)
            assert SERVERS not in simulation.api.objects
            simulation.start()
        await simulation.until(lambda: False, 20.0)
        now = simulation.api.objects[SERVERS]
        assert now["metadata"]["uid"] != before["metadata"]["uid"]
        assert now["spec"] == before["spec"]
        assert {**pods(simulation, "server"), **pods(simulation, "worker")} == all_pods
        assert owners(simulation, "server") == {now["metadata"]["uid"]}
        assert not ended(simulation)
        assert reason(simulation.job("flights")) == "Training"
        await trained(simulation)

    asyncio.run(life())


@pytest.mark.parametrize("durable", [True, False])
def test_f35_the_servers_whose_set_is_deleted_with_them_come_back_or_are_lost(durable: bool) -> None:
    """With checkpoints the workers wait for them and train on; without, the job fails and says of what."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **(DURABLE if durable else {}))
        workers = pods(simulation, "worker")
        delete(simulation, SERVERS)
        if durable:
            await trained(simulation)
            assert pods(simulation, "worker") == workers
            return
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        assert condition(simulation.job("flights"), "Failed")["reason"] == "ServerLost"
        assert await quiet(simulation) == []
        assert not pods(simulation, "server")
        assert SERVERS not in simulation.api.objects

    asyncio.run(life())


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("with_pods", [True, False])
def test_f35_the_workers_whose_job_is_deleted_begin_again_one_of_each_rank(
    durable: bool, with_pods: bool
) -> None:
    """No server notices; a worker that the old Job has left behind ends, and the next of its rank trains on."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation, **(DURABLE if durable else {}))
        servers, workers = pods(simulation, "server"), pods(simulation, "worker")
        if with_pods:
            delete(simulation, WORKERS)
        else:
            simulation.kubernetes.orphan(*WORKERS)
        await simulation.until(lambda: False, 60.0)
        assert pods(simulation, "server") == servers
        live = {body["metadata"]["name"]: body["metadata"]["uid"] for body in running(simulation)}
        assert sorted(name.split("-")[-2] for name in live) == ["0", "1"]
        assert set(live.values()).isdisjoint(workers.values())
        assert owners(simulation, "worker") == {simulation.api.objects[WORKERS]["metadata"]["uid"]}
        assert sorted(ended(simulation)) == ([] if with_pods else sorted(workers))
        assert reason(simulation.job("flights")) == "Training"
        assert at_step(simulation, 30)
        await trained(simulation)

    asyncio.run(life())


@pytest.mark.parametrize("how", ["its pod", "its process", "the set with all"])
@pytest.mark.parametrize("begun_before", [False, True])
def test_f35_a_server_that_is_lost_while_there_is_no_workers_job_is_not_taken_for_one_with_rows(
    how: str, begun_before: bool
) -> None:
    """Without checkpoints: no operator runs, a hand deletes the Job, and a server is lost. The job fails and says so.

    begun_before: the Job was deleted once before, and made anew."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation)
        if begun_before:
            delete(simulation, WORKERS)
            await simulation.until(lambda: False, 60.0)
            assert reason(simulation.job("flights")) == "Training"
        simulation.processes[0].alive = False
        delete(simulation, WORKERS)
        if how == "its pod":
            simulation.kubernetes.delete_pod(NAMESPACE, "flights-server-1")
        elif how == "its process":
            simulation.kubernetes.end_container(NAMESPACE, "flights-server-1", 137)
        else:
            delete(simulation, SERVERS)
        await simulation.until(lambda: False, 30.0)
        simulation.start()
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        assert condition(simulation.job("flights"), "Failed")["reason"] == "ServerLost"
        assert not running(simulation)
        assert await quiet(simulation) == []
        assert not simulation.crashes

    asyncio.run(life())


@pytest.mark.parametrize("trained_before", [False, True])
def test_f35_a_server_that_is_lost_as_training_is_about_to_begin(trained_before: bool) -> None:
    """The operator dies between what it notes of the servers and the workers' release. Of the first Job it is no loss.

    trained_before: of the second Job, since the first one was deleted in training, the job fails."""

    async def life() -> None:
        simulation = Simulation()

        def dies(simulation: Simulation, call: Call, act: Callable[..., Any]) -> Any:
            result = act()
            if call.verb == "patch" and call.kind == "StatefulSet":
                simulation.trouble = None
                simulation.kill()
                simulation.kubernetes.end_container(NAMESPACE, "flights-server-1", 137)
                raise Killed
            return result

        if trained_before:
            await training(simulation)
            delete(simulation, WORKERS)
        else:
            make(simulation, {})
        simulation.trouble = dies
        await wait(simulation, "the note", lambda: simulation.trouble is None)
        if not trained_before:
            await trained(simulation)
            return
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        assert condition(simulation.job("flights"), "Failed")["reason"] == "ServerLost"

    asyncio.run(life())


def test_f35_what_no_note_is_left_of_is_not_trained_on() -> None:
    """Set and Job deleted at once, without their pods: nothing says whose rows the servers have."""

    async def life() -> None:
        simulation = Simulation()
        await training(simulation)
        simulation.processes[0].alive = False
        simulation.kubernetes.orphan(*SERVERS)
        simulation.kubernetes.orphan(*WORKERS)
        await simulation.until(lambda: False, 5.0)
        simulation.start()
        await wait(simulation, "Failed", lambda: holds(simulation.job("flights"), "Failed"))
        failed = condition(simulation.job("flights"), "Failed")
        assert failed["reason"] == "ServerLost"
        assert "were deleted in the middle of training" in failed["message"]
        await simulation.until(lambda: False, 30.0)
        assert not pods(simulation, "worker")
        assert not simulation.crashes

    asyncio.run(life())


def running(simulation: Simulation) -> list[Any]:
    """The workers' pods that run."""
    return [
        body
        for body in live_pods(simulation.api, "flights", "worker")
        if body["status"]["phase"] == "Running"
    ]
