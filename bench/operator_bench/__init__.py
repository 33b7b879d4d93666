"""200 TrainingJobs at once, by the operator and by a plain apply of the same objects: `make bench ONLY=operator`.

On a cluster of its own (tests/e2e/cluster), which needs root and is gone afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import ROOT, Figure, figure

CLUSTER = ROOT / "tests" / "e2e" / "cluster" / "cluster"
INSIDE = Path(__file__).with_name("inside.py")
PAIRS = 3
# Writes a second to the API server, and at once. None: the chart's defaults.
LIMITS: dict[str, tuple[int, int] | None] = {"": None, ".qps_1000": (1000, 2000)}


def run(folder: Path) -> dict[str, Figure]:
    if os.geteuid() != 0:
        raise SystemExit(
            "make bench ONLY=operator: needs root, to make a cluster (tests/e2e/cluster/README.md)"
        )
    os.environ["CLUSTER_NETNS"] = "bench"
    os.environ["CLUSTER_DIR"] = "/var/tmp/bench-cluster"  # noqa: S108 - root's, and new
    subprocess.run([CLUSTER, "packages"], check=True)
    subprocess.run([CLUSTER, "build"], check=True)
    subprocess.run([CLUSTER, "down"], check=True)
    figures: dict[str, Figure] = {}
    rss: list[float] = []
    try:
        subprocess.run([CLUSTER, "up"], check=True, stdout=subprocess.DEVNULL)
        for suffix, limits in LIMITS.items():
            found = _measured(limits, idle=limits is None)
            name = f"operator.jobs_200{suffix}"
            ratios = [a / b for a, b in zip(found["ours"], found["plain"], strict=True)]
            figures[f"{name}.over_plain_apply"] = figure(ratios, "ratio")
            figures[f"{name}.seconds"] = figure(found["ours"], "s")
            figures[f"{name}.plain_seconds"] = figure(found["plain"], "s")
            rss += found["rss_mb"]
            if found["idle_writes"]:
                figures["operator.idle_writes"] = figure(found["idle_writes"], "writes")
    finally:
        subprocess.run([CLUSTER, "down"], check=True)
    figures["operator.rss_mb"] = figure([max(rss)], "MB")
    return figures


def _measured(limits: tuple[int, int] | None, *, idle: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [CLUSTER, "exec", sys.executable, "-I", INSIDE, "--result", result, "--pairs", str(PAIRS)]
        if limits is not None:
            command += ["--qps", str(limits[0]), "--burst", str(limits[1])]
        if idle:
            command += ["--idle"]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(result.read_text())
    return found
