"""The slowed flights job with servers killed in the middle: it ends well, every push applied exactly once (G1, G3)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from importlib import resources
from pathlib import Path

MARK = "SERVER_KILLED_TEST_MARK"
DEADLINE_S = 300.0
DEEP = os.environ.get("TABLEBAY_DEEP") == "1"
KILLS = 20 if DEEP else 2
# 64 steps of each worker.
STEPS_PER_SECOND = 1.0 if DEEP else 6.0


def servers(mark: str) -> dict[int, int]:
    """Pids of the run's living servers, by index."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            variables = dict(
                one.split("=", 1)
                for one in (entry / "environ").read_bytes().decode().split("\0")
                if "=" in one
            )
        except OSError:
            continue
        if variables.get(MARK) == mark and variables.get("TABLEBAY_ROLE") == "server":
            found[int(variables["TABLEBAY_INDEX"])] = int(entry.name)
    return found


def test_killed_servers_lose_and_double_nothing(tmp_path: Path) -> None:
    """kill -9 of a random server, again and again; no worker is restarted, and the oracle finds each row exact."""
    seed = int(os.environ.get("TABLEBAY_SEED", "1"))
    chance = random.Random(seed)
    mark = uuid.uuid4().hex
    job = resources.files("tablebay.examples.flights") / "job.yaml"
    command = [
        sys.executable,
        "-m",
        "tablebay.client.cli",
        "run",
        str(job),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    command += ["--", "--oracle", "--steps-per-second", f"{STEPS_PER_SECOND:g}"]
    with open(tmp_path / "log", "wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, MARK: mark})
    said = lambda: (tmp_path / "log").read_text(errors="replace")  # noqa: E731
    where = f"REPRO: TABLEBAY_SEED={seed} pytest {__file__}"
    repairs: list[float] = []
    try:
        end = time.monotonic() + DEADLINE_S
        while "progress: " not in said():
            assert time.monotonic() < end and run.poll() is None, f"{said()[-3000:]}\n{where}"
            time.sleep(0.05)
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.2, 1.5))
            index = chance.randrange(2)
            pid = servers(mark)[index]
            assert run.poll() is None, f"all was done before the kill\n{where}"
            ready = said().count("server.ready")
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            while said().count("server.ready") <= ready:
                assert time.monotonic() < began + 60 and run.poll() is None, f"{said()[-3000:]}\n{where}"
                time.sleep(0.01)
            repairs.append(time.monotonic() - began)
        assert run.wait(max(1.0, end - time.monotonic())) == 0, f"{said()[-3000:]}\n{where}"
    finally:
        run.kill()
        run.wait()
    text = said()
    assert len(repairs) == KILLS
    assert text.count("was killed by SIGKILL") == KILLS, where
    assert re.search(r"oracle: \d+ rows equal", text), f"{text[-3000:]}\n{where}"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["server_restarts"] == KILLS
    assert report["restarts"] == 0
    print(
        f"{KILLS} kills, repaired in {min(repairs):.2f} to {max(repairs):.2f} s, median "
        f"{sorted(repairs)[KILLS // 2]:.2f}"
    )
