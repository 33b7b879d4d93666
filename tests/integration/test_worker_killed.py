"""The flights job with a worker killed in the middle: it ends well, every push applied exactly once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

from tablebay.client.control import Control
from tablebay.client.environment import expand_pattern
from tablebay.client.errors import TablebayError
from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share

MARK = "WORKER_KILLED_TEST_MARK"
DEADLINE_S = 120.0
RANK = 1
WORKERS = 2
BATCH = 2048
STEPS_PER_SECOND = 8.0

Found = TypeVar("Found")


def variables_of(pid: int) -> dict[str, str]:
    """A living process's environment; {} when it is gone or dead."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return {}
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def marked(mark: str) -> dict[int, dict[str, str]]:
    """The living processes of the run, with their environments."""
    found = {
        int(entry.name): variables_of(int(entry.name))
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
    }
    return {pid: variables for pid, variables in found.items() if variables.get(MARK) == mark}


def worker(mark: str) -> tuple[int, dict[str, str]] | None:
    """The process that has the rank now."""
    wanted = {"TABLEBAY_ROLE": "worker", "TABLEBAY_RANK": str(RANK)}
    return next(((pid, have) for pid, have in marked(mark).items() if wanted.items() <= have.items()), None)


def step_of(control: Control) -> int | None:
    """How many steps the rank has said that it has done."""
    try:
        workers = control.progress(timeout=2.0)
    except TablebayError:
        return None
    return next(
        (int(one.values["step"]) for one in workers if one.rank == RANK and "step" in one.values), None
    )


def wait_for(condition: Callable[[], Found], what: str, process: subprocess.Popen[str]) -> Found:
    """Wait until a condition is true, while the runner runs; what it was then."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not after {DEADLINE_S} s"
        assert process.poll() is None, f"{what}: the runner ended first: {process.communicate()}"
        time.sleep(0.02)
    return found


def test_a_worker_killed_in_the_middle_leaves_every_push_applied_once(tmp_path: Path) -> None:
    """After kill -9 of rank 1 between its first and its last step another process takes the rank, the job
    ends with code 0, the oracle finds every (rank, step) applied exactly once, and the AUC is a good one.
    """
    training, _ = data.split(data.load(), "random")
    last_step = Share(len(training), BATCH, 1, 0, RANK, WORKERS).steps
    mark = uuid.uuid4().hex
    with resources.as_file(resources.files("tablebay.examples.flights") / "job.yaml") as job:
        command = [
            sys.executable,
            "-m",
            "tablebay.client.cli",
            "run",
            str(job),
            "--run-dir",
            str(tmp_path / "run"),
        ]
        command += ["--", "--oracle", "--steps-per-second", str(STEPS_PER_SECOND)]
        process = subprocess.Popen(
            command,
            env={**os.environ, MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            first = wait_for(lambda: worker(mark), f"rank {RANK} is there", process)
            assert first is not None
            pid, variables = first
            with Control(expand_pattern(variables["TABLEBAY_SERVERS"])) as control:
                wait_for(lambda: (step_of(control) or 0) > 0, f"rank {RANK} has reported a step", process)
                before = step_of(control)
                os.kill(pid, signal.SIGKILL)
                assert 0 < (before or 0) < last_step, (before, last_step)
                wait_for(lambda: not variables_of(pid), f"process {pid} is dead", process)
                # A process that is about to become another program has no environment for a moment.
                successor = wait_for(lambda: worker(mark), f"another process has rank {RANK}", process)
                assert successor is not None
                assert successor[0] != pid
                # Had it been done already, there would be nothing left to take over.
                after = step_of(control)
                assert 0 < (after or 0) < last_step, (after, last_step)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            for left in marked(mark):
                os.kill(left, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, err
    assert f"worker {RANK} was killed by SIGKILL; starting it again" in err
    assert re.search(r"oracle: [1-9][0-9]* rows equal", err), err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["restarts"] == 1
    assert report["auc"] >= 0.785
    assert f"{report['auc']:.4f}" in out
