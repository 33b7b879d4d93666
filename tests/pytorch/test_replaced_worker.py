"""A worker of a process group is killed: what becomes of the group, of the steps and of the dense part."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tablebay.examples.flights_torch import train

EVERY, DIES_AT, STEPS = 10, 25, 64
JOB = Path(train.__file__).with_name("deepfm.yaml")

# The example's worker, but that one rank kills itself once: after backward, when all ranks have the gradients of the
# step and it has pushed nothing. So the other one is a step ahead of it.
WORKER = """
import hashlib, os, signal, sys
from pathlib import Path
import tablebay as tb
from tablebay.examples.flights_torch import train
from tablebay.examples.flights_torch.__main__ import main

struck, step, predict, number = Path("struck"), tb.torch.Optimizer.step, train.predict, 0
rank, at = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]

def dies(self, *given, **named):
    global number
    number += 1
    if os.environ["RANK"] == rank and number == at and not struck.exists():
        struck.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, *given, **named)

def shows(model, *given):
    dense = b"".join(one.detach().numpy().tobytes() for one in model.deep.parameters())
    print("dense", hashlib.sha256(dense).hexdigest(), flush=True)
    return predict(model, *given)

tb.torch.Optimizer.step, train.predict = dies, shows
sys.exit(main())
"""

CHECKPOINT = """
  checkpoint:
    destination: pvc://deepfm/run
    claim: {size: 64Mi}
    everySeconds: 3600
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_that_lost_a_worker_meets_again_and_goes_on(tmp_path: Path, rank: int) -> None:
    """kill -9 of either rank: both start again, with the dense part of one checkpoint, and each step is pushed once."""
    (tmp_path / "worker.py").write_text(WORKER)
    job = JOB.read_text("utf-8")
    command = "[python, -m, tablebay.examples.flights_torch]"
    assert command in job
    words = [rank, DIES_AT, "--checkpoint-every-steps", EVERY]
    job = job.replace(command, f"[python, worker.py, {', '.join(repr(str(word)) for word in words)}]")
    (tmp_path / "job.yaml").write_text(job.rstrip() + CHECKPOINT)
    ended = subprocess.run(
        [Path(sys.executable).with_name("tablebay"), "run", "job.yaml", "--run-dir", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "struck").exists()
    assert f"worker {rank} was killed by SIGKILL; starting it again" in ended.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    # The other worker's collective call failed, and it ended by itself.
    assert report["restarts"] == 2
    assert f"worker {1 - rank} exited with code 1; starting it again" in ended.stderr
    # On each server: every rank's steps, and 2 pushes of each for the metrics, as of a run that nothing stopped.
    assert (report["pushes_applied"], report["duplicates"]) == (2 * (2 * STEPS + 4), 0)
    assert report["auc"] > 0.78
    said = "rank (\\d) goes on at step (\\d+), dense parameters as rank 0 last kept them"
    # The killed one had not pushed its step, the other had.
    assert dict(re.findall(said, ended.stderr)) == {
        str(rank): str(DIES_AT - 1),
        str(1 - rank): str(DIES_AT),
    }
    dense = re.findall(r"dense ([0-9a-f]{64})", ended.stderr)
    assert len(dense) == 2
    assert len(set(dense)) == 1, "the ranks' dense parameters have drifted apart"
