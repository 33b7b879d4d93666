"""The operator's metrics and log lines."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tablebay.operator.telemetry import Metrics, State, configure_logs

READY = {"type": "Ready", "status": "True", "reason": "Training"}


def page() -> str:
    """What /metrics answers, with each metric used once."""
    metrics = Metrics("1.2.3")
    metrics.request("get", "pods", "200")
    metrics.request("list", "jobs", "error")
    metrics.reconciled("ok", 0.003)
    metrics.reconciled("error", 20.0)
    metrics.watch(
        lambda: State(
            leader=True,
            queue_depth=3,
            queue_age_s=0.25,
            silent_s={"pods": 12.0, "jobs": 0.0},
            jobs=[{}, {"status": None}, {"status": {"conditions": [READY]}}],
        )
    )
    return generate_latest(metrics.registry).decode()


@pytest.fixture
def logs() -> Iterator[None]:
    """The logging of the process as it was before, afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before


def test_names_are_as_prometheus_wants_them() -> None:
    """Counters end in _total, times in _seconds, and each has a help text."""
    families = [
        one for one in text_string_to_metric_families(page()) if one.name.startswith("tablebay_operator")
    ]
    assert len(families) >= 8
    for family in families:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
            if family.type == "gauge":
                assert not re.search(r"_(total|count|sum|bucket|milliseconds|ms)$", sample.name)
    for family in families:
        if "duration" in family.name or "age" in family.name or "timestamp" in family.name:
            assert family.name.endswith("_seconds")


def test_promtool_finds_nothing_to_improve() -> None:
    """Where Prometheus' own checker is installed; the test above holds without it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    ended = subprocess.run([promtool, "check", "metrics"], input=page(), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_page_says_how_the_operator_is() -> None:
    """Jobs by the reason of Ready, the queue, the leader, when each watch last gave a sign."""
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page())
        for sample in family.samples
    }
    assert values["tablebay_operator_jobs", "New"] == 2
    assert values["tablebay_operator_jobs", "Training"] == 1
    assert values["tablebay_operator_queue_depth",] == 3
    assert values["tablebay_operator_queue_age_seconds",] == 0.25
    assert values["tablebay_operator_is_leader",] == 1
    assert values["tablebay_operator_build_info", "1.2.3"] == 1
    assert values["tablebay_operator_reconcile_total", "error"] == 1
    assert values["tablebay_operator_reconcile_duration_seconds_count",] == 2
    assert values["tablebay_operator_api_requests_total", "error", "jobs", "list"] == 1
    last = "tablebay_operator_watch_last_event_timestamp_seconds"
    assert values[last, "jobs"] - values[last, "pods"] == pytest.approx(12.0)


@pytest.mark.usefixtures("logs")
def test_a_log_line_is_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the event, its fields, and an exception on the same line."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("info", "json")
    logging.getLogger("tablebay.operator.x").info("child.deleted", extra={"job": "ads/a", "kind": "Job"})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("tablebay.operator.x").exception("reconcile.failed")
    logging.getLogger("urllib3").info("not ours")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["job"], first["kind"]) == ("child.deleted", "ads/a", "Job")
    assert (first["level"], first["role"]) == ("info", "operator")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert "ValueError: two\nlines" in second["exception"]


@pytest.mark.usefixtures("logs")
def test_a_log_line_for_people_has_the_same_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time, level, event, fields."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs("warning", "text")
    logging.getLogger("tablebay.operator.x").info("unsaid")
    logging.getLogger("tablebay.operator.x").warning("watch.broken", extra={"resource": "pods"})
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning watch\.broken resource=pods\n", stream.getvalue())
