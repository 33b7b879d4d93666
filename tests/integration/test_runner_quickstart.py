"""`tablebay quickstart`: the flights job, from any directory, without a file of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_quickstart_trains_a_model_from_an_empty_directory(tmp_path: Path) -> None:
    """Two servers and two workers train on the packaged data; the summary and the report say how well."""
    command = [sys.executable, "-m", "tablebay.client.cli", "quickstart"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    path = Path(".tablebay") / "flights" / "report.json"
    report = json.loads((tmp_path / path).read_text())
    assert report["auc"] >= 0.785
    assert (report["servers"], report["workers"], report["restarts"], report["duplicates"]) == (2, 2, 0, 0)
    assert [name for name, value in report.items() if value is None] == []
    lines = done.stdout.splitlines()
    assert lines[0] == "flights: done, 2 servers, 2 workers"
    assert f"{report['auc']:.4f}" in lines[1]
    assert lines[-1] == f"report: {path}"
