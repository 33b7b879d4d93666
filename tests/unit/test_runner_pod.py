"""A container of the job file as a command and an environment of this machine."""

from __future__ import annotations

import copy
import os
import random
import socket
import sys
from typing import Any

import pytest

from tablebay.client.errors import JobInvalid
from tablebay.client.job import Container, TrainingJob, parse_job
from tablebay.client.local import pod, ports

JOB: dict[str, Any] = {
    "apiVersion": "tablebay.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "toy"},
    "spec": {
        "servers": {"replicas": 1},
        "workers": {
            "replicas": 2,
            "template": {"spec": {"containers": [{"name": "worker", "command": ["true"]}]}},
        },
    },
}


def job_with(**fields: Any) -> TrainingJob:
    """JOB with fields of its workers' container."""
    job = copy.deepcopy(JOB)
    job["spec"]["workers"]["template"]["spec"]["containers"][0].update(fields)
    return parse_job(job)


def container(**fields: Any) -> Container:
    """The workers' container with these fields."""
    return job_with(**fields).spec.workers.container


def test_the_command_is_command_then_args_then_arguments() -> None:
    """What the user gives after `--` comes last."""
    command = pod.command(container(command=["train"], args=["--epochs", "2"]), ["--seed", "1"], {})
    assert command == ["train", "--epochs", "2", "--seed", "1"]


@pytest.mark.parametrize("name", ["python", "python3"])
def test_python_is_the_python_that_runs_the_job(name: str) -> None:
    """A job's `python` finds the packages that the runner has, not those of another one on the path."""
    assert pod.command(container(command=[name, "-m", "x"]), [], {}) == [sys.executable, "-m", "x"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(RANK)", "1"),
        ("a$(RANK)b$(RANK)", "a1b1"),
        ("$(NONE)", "$(NONE)"),
        ("$$(RANK)", "$(RANK)"),
        ("$RANK", "$RANK"),
    ],
)
def test_references_are_replaced_as_kubernetes_does(text: str, expanded: str) -> None:
    """Known names are replaced, unknown ones stay, $$ is a dollar sign, and the shell's form is none."""
    assert pod.expand(text, {"RANK": "1"}) == expanded


def test_variables_see_those_before_them() -> None:
    """A container's variable may be made of the environment and of its variables above it."""
    env = [{"name": "A", "value": "$(HOME)/a"}, {"name": "B", "value": "$(A)/b"}, {"name": "C"}]
    assert pod.variables(container(env=env), {"HOME": "/h"}) == {
        "HOME": "/h",
        "A": "/h/a",
        "B": "/h/a/b",
        "C": "",
    }


def test_what_the_user_gives_after_the_dashes_is_left_as_it_is() -> None:
    """Arguments of the command line have been through a shell already."""
    assert pod.command(container(command=["x"]), ["$(RANK)"], {"RANK": "1"}) == ["x", "$(RANK)"]


def test_the_cores_are_shared_out_among_the_workers() -> None:
    """Each worker's thread pools get its share of the cores, at least one, unless told otherwise."""
    cores = len(os.sched_getaffinity(0))
    assert set(pod.thread_limits(1, {}).values()) == {str(cores)}
    assert set(pod.thread_limits(10 * cores, {}).values()) == {"1"}
    assert "OMP_NUM_THREADS" not in pod.thread_limits(1, {"OMP_NUM_THREADS": "7"})


def test_a_job_whose_command_is_in_its_image_is_refused_here() -> None:
    """Without an image there is no command to take from it, and the error says so."""
    job = job_with(command=[], image="registry/train:1")
    with pytest.raises(
        JobInvalid, match=r"containers\[worker\]\.command: a required field is missing for a local run"
    ):
        pod.check(job)


def test_what_only_a_cluster_gives_is_listed_by_its_path() -> None:
    """Every field that is set and not used here is named, and nothing else."""
    job = copy.deepcopy(JOB)
    job["metadata"]["namespace"] = "ads"
    job["spec"]["image"] = "registry/train:1"
    job["spec"]["servers"]["template"] = {
        "spec": {"containers": [{"name": "server", "env": [{"name": "A", "value": "1"}]}]}
    }
    job["spec"]["servers"] |= {"storage": {"size": "1Gi"}, "onFinish": "Retain"}
    job["spec"]["runPolicy"] = {
        "activeDeadlineSeconds": 60,
        "ttlSecondsAfterFinished": 60,
        "cleanPolicy": {"onSuccess": "All"},
    }
    job["spec"]["scheduling"] = {"priorityClassName": "prod", "schedulerName": ""}
    job["spec"]["monitoring"] = {"podMonitor": "Disabled"}
    template = job["spec"]["workers"]["template"]
    template["metadata"] = {"labels": {"a": "b"}}
    template["spec"]["nodeSelector"] = {"disk": "nvme"}
    template["spec"]["containers"][0] |= {
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    template["spec"]["containers"].append({"name": "logs"})
    where = "spec.workers.template.spec"
    assert sorted(pod.cluster_only(parse_job(job))) == sorted(
        [
            "metadata.namespace",
            "spec.image",
            "spec.servers.storage",
            "spec.servers.onFinish",
            "spec.runPolicy.ttlSecondsAfterFinished",
            "spec.runPolicy.cleanPolicy",
            "spec.scheduling.priorityClassName",
            "spec.monitoring.podMonitor",
            "spec.workers.template.metadata",
            f"{where}.nodeSelector",
            f"{where}.containers[worker].resources",
            f"{where}.containers[worker].env[KEY].valueFrom",
            f"{where}.containers[logs]",
        ]
    )


def test_a_plain_job_needs_no_cluster() -> None:
    """A job of command and variables alone has nothing to list."""
    assert pod.cluster_only(job_with(env=[{"name": "A", "value": "1"}], args=["x"])) == []


def test_of_checkpoints_only_what_needs_a_cluster_is_listed() -> None:
    """A local run has a folder in place of the claim, always makes a last checkpoint, and is never suspended."""
    job = job_with()
    content = job.model_dump(by_alias=True, exclude_unset=True)
    content["spec"]["suspend"] = True
    content["spec"]["checkpoint"] = {
        "destination": "pvc://rows/run",
        "everySeconds": 5,
        "claim": {"size": "1Gi"},
        "on": ["Delete"],
    }
    assert pod.cluster_only(parse_job(content)) == [
        "spec.suspend",
        "spec.checkpoint.claim",
        "spec.checkpoint.on",
    ]


def test_a_free_block_has_no_port_in_use() -> None:
    """With one port of a candidate block taken, another block is found."""
    first = ports.free_block(3, randomness=random.Random(1))
    assert first is not None
    with socket.socket() as listener:
        listener.bind((ports.HOST, first + 1))
        again = ports.free_block(3, randomness=random.Random(1))
    assert again is not None
    assert first + 1 not in range(again, again + 3)


def test_a_block_of_more_ports_than_there_are_is_not_found() -> None:
    """The answer is None, not an endless search."""
    assert ports.free_block(60_000, randomness=random.Random(1)) is None
