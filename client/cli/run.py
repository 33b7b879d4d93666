"""`tablebay run` and `tablebay quickstart`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tablebay.client.cli.view import open_view
from tablebay.client.job import load_job
from tablebay.client.local.report import REPORT_FILE
from tablebay.client.local.runner import Interrupted, RunOptions, default_run_dir, run_job

INTERRUPTED = 130

# Name in the report, words, how to write the value.
_SUMMARY = (
    ("auc", "test AUC", "{:.4f}"),
    ("logloss", "test logloss", "{:.4f}"),
    ("examples_per_second", "examples/s", "{:,.0f}"),
    ("train_seconds", "train seconds", "{:.1f}"),
    ("rows", "rows", "{:,}"),
    ("pushes_applied", "pushes applied", "{:,}"),
    ("duplicates", "duplicates", "{:,}"),
    ("pull_p50_ms", "pull p50, ms", "{:.2f}"),
    ("pull_p99_ms", "pull p99, ms", "{:.2f}"),
    ("restarts", "restarts", "{:,}"),
    ("server_restarts", "server restarts", "{:,}"),
)


def run_example(name: str, *, arguments: Sequence[str], run_dir: Path | None, as_json: bool) -> int:
    """Run the job of an example that is part of the package, from wherever the user stands."""
    with resources.as_file(resources.files(f"tablebay.examples.{name}") / "job.yaml") as path:
        return run_file(path, arguments=arguments, run_dir=run_dir, as_json=as_json)


def run_file(path: Path, *, arguments: Sequence[str], run_dir: Path | None, as_json: bool) -> int:
    """Run a job file; the exit code. The result goes to standard output, all else to standard error."""
    job = load_job(path)
    where = run_dir or default_run_dir(job)
    try:
        with open_view(sys.stderr) as view:
            report = run_job(job, RunOptions(run_dir=where, arguments=tuple(arguments)), view)
    except Interrupted:
        return INTERRUPTED
    print(json.dumps(report, indent=2) if as_json else summary(report, where / REPORT_FILE))
    return 0


def summary(report: Mapping[str, Any], path: Path) -> str:
    """What a run has learnt, without what nobody reported, and where the report is."""
    rows = [
        (words, form.format(report[name])) for name, words, form in _SUMMARY if report.get(name) is not None
    ]
    labels, values = max(len(words) for words, _ in rows), max(len(value) for _, value in rows)
    title = (
        f"{report['job']}: done, {_count(report['servers'], 'server')}, {_count(report['workers'], 'worker')}"
    )
    lines = [f"  {words:<{labels}}  {value:>{values}}" for words, value in rows]
    return "\n".join([title, *lines, f"report: {path}"])


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
