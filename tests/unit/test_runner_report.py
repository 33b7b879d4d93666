"""The figures of a run, out of what workers reported and servers counted, and how they are shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tablebay.client.cli.run import summary
from tablebay.client.latency import LatencyHistogram
from tablebay.client.local.report import Figures, figures, report, write_report
from tablebay.client.proto import tablebay_pb2

REPORT_FIELDS = {
    "auc",
    "logloss",
    "examples_per_second",
    "train_seconds",
    "servers",
    "workers",
    "rows",
    "pushes_applied",
    "duplicates",
    "pull_p50_ms",
    "pull_p99_ms",
    "version",
    "commit",
    "job",
    "restarts",
    "server_restarts",
}


def worker(rank: int, pulls: tuple[float, ...] = (), **values: float) -> tablebay_pb2.WorkerProgress:
    """What a worker reported. pulls: seconds."""
    histogram = LatencyHistogram()
    for seconds in pulls:
        histogram.record(seconds)
    return tablebay_pb2.WorkerProgress(
        rank=rank, values=values, pull_latency=histogram.pack() if pulls else b""
    )


def server(rows: tuple[int, ...], **counters: int) -> tablebay_pb2.StatsResponse:
    """What a server counted. rows: of each table."""
    return tablebay_pb2.StatsResponse(
        tables=[tablebay_pb2.Table(rows=count) for count in rows], counters=counters
    )


def made(found: Figures) -> dict[str, object]:
    """The report of these figures."""
    return report(
        found, job="toy", servers=2, workers=2, restarts=1, server_restarts=2, version="1.2.3", commit="abc"
    )


def test_workers_are_put_together_by_what_each_value_means() -> None:
    """Examples are added up, the longest training time and the highest step count, the loss is the mean."""
    found = figures(
        [
            worker(0, step=10, examples=600, loss=0.4, train_seconds=2.0),
            worker(1, step=12, examples=400, loss=0.6, train_seconds=4.0),
        ],
        [],
    )
    assert (found.step, found.examples, found.loss, found.train_seconds) == (12, 1000, 0.5, 4.0)
    assert found.examples_per_second == 250.0


def test_a_metric_of_the_whole_model_is_that_of_the_lowest_rank_that_has_it() -> None:
    """Rank 1 measured the model, rank 0 did not, rank 2 measured it too: rank 1's counts, in any order."""
    reported = [worker(2, auc=0.7, logloss=0.5), worker(1, auc=0.8, logloss=0.4), worker(0, loss=1.0)]
    assert (figures(reported, []).auc, figures(reported, []).logloss) == (0.8, 0.4)


def test_rows_and_counters_are_added_up_over_servers_and_tables() -> None:
    """Each server has rows of its own."""
    found = figures(
        [], [server((3, 4), pushes_applied=5, duplicates=0), server((5,), pushes_applied=6, duplicates=2)]
    )
    assert (found.rows, found.pushes_applied, found.duplicates) == (12, 11, 2)


def test_pull_latencies_are_merged_over_workers() -> None:
    """The quantiles are those of all pulls together, to within a bucket's tenth."""
    found = figures([worker(0, pulls=(0.001,) * 98), worker(1, pulls=(0.1,) * 2)], [])
    assert found.pull_p50_ms == pytest.approx(1.0, rel=0.1)
    assert found.pull_p99_ms == pytest.approx(100.0, rel=0.1)


def test_what_nobody_reported_is_null_and_not_made_up() -> None:
    """A run whose workers reported nothing has a whole report with null for each metric."""
    content = made(figures([worker(0)], [server((1,))]))
    assert set(content) == REPORT_FIELDS
    unknown = {name for name, value in content.items() if value is None}
    assert unknown == {
        "auc",
        "logloss",
        "examples_per_second",
        "train_seconds",
        "pushes_applied",
        "duplicates",
        "pull_p50_ms",
        "pull_p99_ms",
    }


def test_a_metric_that_is_no_number_is_null_in_the_report(tmp_path: Path) -> None:
    """JSON has no NaN, and a report with one could not be read by others."""
    write_report(made(figures([worker(0, auc=math.nan, logloss=math.inf)], [])), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["auc"], content["logloss"]) == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json"]


def test_the_summary_leaves_out_what_nobody_reported() -> None:
    """A line for each figure there is, and where the report is."""
    text = summary(made(figures([worker(0, auc=0.79)], [server((12345,))])), Path("runs/report.json"))
    assert text.split("\n")[0] == "toy: done, 2 servers, 2 workers"
    assert text.split("\n")[-1] == "report: runs/report.json"
    assert "0.7900" in text
    assert "12,345" in text
    assert "logloss" not in text
    assert "None" not in text
    assert "null" not in text
