"""The command line on a cluster with the CRD and the operator: submit, get, describe, logs, delete."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

JOB = Path(__file__).resolve().parents[2] / "examples" / "flights" / "job.yaml"
SECONDS = 240


def tablebay(*arguments: str, code: int = 0) -> str:
    """What a command prints; $KUBECONFIG names the cluster."""
    done = subprocess.run(
        [sys.executable, "-Im", "tablebay.client.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def as_json(*arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tablebay(*arguments, "--output", "json"))
    return content


@pytest.mark.deep
def test_a_job_from_submit_to_delete(namespace: str) -> None:
    """A user needs nothing but these commands, and each says what there is to know."""
    here = ("-n", namespace)
    assert tablebay("submit", str(JOB), *here) == f"flights: created in namespace {namespace}\n"
    assert tablebay("submit", str(JOB), *here).startswith(f"flights: unchanged in namespace {namespace}")
    assert as_json("get", "flights", *here)["metadata"]["namespace"] == namespace
    header, row = tablebay("get", *here).splitlines()
    assert header.split() == ["NAME", "READY", "STATE", "SERVERS", "WORKERS", "STEP", "RESTARTS", "AGE"]
    assert row.split()[0] == "flights"

    tablebay("submit", str(JOB), *here, "--wait", "--timeout", str(SECONDS - 20))
    described = tablebay("describe", "flights", *here)
    assert "state:      Completed" in described
    assert "Complete" in described
    # By its clean policy the operator may have removed the pods of a job that is complete.
    if as_json("describe", "flights", *here)["pods"]:
        assert tablebay("logs", "flights", "--index", "0", *here)

    tablebay("delete", "flights", *here, "--wait", "--timeout", "120")
    assert "no TrainingJob flights" in tablebay("get", "flights", *here, code=1)


@pytest.mark.deep
def test_the_logs_of_a_job_that_runs(namespace: str, tmp_path: Path) -> None:
    """Those of its servers and of its workers, as soon as there are any."""
    here = ("-n", namespace)
    # At full speed it may have ended before its pods are looked at.
    job = tmp_path / "job.yaml"
    command = "tablebay.examples.flights"
    job.write_text(JOB.read_text().replace(f"{command}]", f'{command}, --steps-per-second, "4"]'))
    tablebay("submit", str(job), *here)
    for role in ("server", "worker"):
        deadline = time.monotonic() + SECONDS
        while not any(
            pod["ready"] for pod in as_json("describe", "flights", *here)["pods"] if pod["role"] == role
        ):
            assert time.monotonic() < deadline, tablebay("describe", "flights", *here)
            time.sleep(0.5)
        # A worker says nothing before its end.
        while not tablebay("logs", "flights", "--role", role, "--index", "0", "--tail", "5", *here):
            assert time.monotonic() < deadline, f"no log of {role} 0"
            time.sleep(0.5)
    tablebay("delete", "flights", *here, "--wait", "--timeout", "120")


@pytest.mark.deep
def test_another_job_of_the_same_name_is_refused(namespace: str, tmp_path: Path) -> None:
    """The error says how to go on."""
    here = ("-n", namespace)
    tablebay("submit", str(JOB), *here)
    other = tmp_path / "job.yaml"
    other.write_text(JOB.read_text().replace("servers: {replicas: 2}", "servers: {replicas: 1}"))
    error = tablebay("submit", str(other), *here, code=1)
    assert f"delete it with: tablebay delete flights -n {namespace}" in error
    tablebay("delete", "flights", *here, "--wait", "--timeout", "120")
