"""A learning rate and a weight decay that a job file changes while the job trains."""

from __future__ import annotations

import copy
from typing import Any

from unit.operator_world import CHECKPOINT, World, job_object

from tablebay.operator.plans import Tell


def training(**change: Any) -> World:
    """As far as Training, with a checkpoint."""
    world = World(job_object({"checkpoint": CHECKPOINT, **change}))
    world.train()
    return world


def change_rate(world: World, rate: float) -> None:
    """The user sets the rate of the one table."""
    tables = copy.deepcopy(world.job.spec["tables"])
    tables[0]["optimizer"]["learningRate"] = rate
    world.ask(tables=tables)
    world.look()
    world.look()


def test_servers_are_told_of_a_rate_that_the_file_has_changed() -> None:
    """Not before: the workers' code may have set one. Back to what it was is a change too."""
    world = training()
    assert world.plan.tell is None
    for rate in (0.01, 0.05):
        change_rate(world, rate)
        told = (("fields", "learning_rate", rate),)
        assert world.plan.tell == Tell(workers=0, lives=("c-0", "c-1"), options=told)
        world.hear()
        world.look()
        assert world.plan.tell is None


def test_servers_are_told_of_a_weight_decay_that_the_file_has_changed() -> None:
    """Of it alone, and of the rate too once that has changed; taken away it is none."""
    world = training()
    tables = copy.deepcopy(world.job.spec["tables"])
    for options, told in (
        ({"weightDecay": 0.1}, {"weight_decay": 0.1}),
        ({"weightDecay": 0.2, "learningRate": 0.01}, {"weight_decay": 0.2, "learning_rate": 0.01}),
        ({"learningRate": 0.01}, {"weight_decay": 0.0, "learning_rate": 0.01}),
    ):
        tables[0]["optimizer"] = {"type": "Adagrad", "initialAccumulator": 1.0e-8, **options}
        world.ask(tables=copy.deepcopy(tables))
        world.look()
        world.look()
        assert world.plan.tell is not None
        assert {(table, option): value for table, option, value in world.plan.tell.options} == {
            ("fields", option): value for option, value in told.items()
        }
        world.hear()


def test_no_pod_is_touched_and_new_pods_begin_with_the_new_rate() -> None:
    """The set's template has it; the workers' Job stays as it is."""
    world = training()
    pods, job = copy.deepcopy(world.pods), copy.deepcopy(world.workers["spec"])
    change_rate(world, 0.01)
    assert world.pods == pods
    assert world.workers["spec"] == job
    (server,) = world.objects["StatefulSet", "flights-server"]["spec"]["template"]["spec"]["containers"]
    (tables,) = [one["value"] for one in server["env"] if one["name"] == "TABLEBAY_TABLES"]
    assert "0.01" in tables


def test_a_server_that_came_back_is_told_again() -> None:
    """Its checkpoint may be of before the change."""
    world = training()
    change_rate(world, 0.01)
    world.hear()
    world.server(1, container="c-1-again")
    world.look()
    assert world.plan.tell is not None
    assert world.plan.tell.lives == ("c-0", "c-1-again")


def test_an_operator_that_knows_nothing_tells_of_changed_rates_alone() -> None:
    """What it has said is lost with its process; what the file has changed is noted on the Job."""
    world = training()
    change_rate(world, 0.01)
    world.hear()
    world.progress = type(world.progress)()
    world.look()
    assert world.plan.tell is not None
    untouched = training()
    untouched.progress = type(untouched.progress)()
    untouched.look()
    assert untouched.plan.tell is None


def test_a_quiet_job_writes_nothing() -> None:
    """Also one whose rate has changed."""
    world = training()
    change_rate(world, 0.01)
    world.hear()
    world.look()
    writes = world.writes
    for _ in range(5):
        world.look()
    assert world.writes == writes
