"""Log lines, whatever is written into them, and the metrics."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tablebay.client import errors
from tablebay.native import _core
from tablebay.ps_server import telemetry
from tablebay.ps_server.metrics import BUCKETS, Counted, Snapshot, registry

CONTEXT = {"job": "flights", "role": "server", "index": 0, "epoch": 12}
PULL = 0  # the core's number for it
ROOT = Path(__file__).parents[2]
NASTY = 'a "b"\nERROR forged=1 \x1b[31m \u2028 =\\'


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What has been written to standard error; the logging of this process is in the end as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_text_line_has_the_event_its_facts_and_the_context(stderr: Callable[[], str]) -> None:
    """In the order time, level, event, facts, context."""
    telemetry.configure(level="info", style="text", context=CONTEXT)
    telemetry.Events("x").info("table.created", table="user", dim=16)
    time, rest = stderr().split(" ", 1)
    assert rest == "INFO table.created table=user dim=16 job=flights role=server index=0 epoch=12\n"
    assert time.endswith("Z")


def test_a_json_line_is_one_object(stderr: Callable[[], str]) -> None:
    """Numbers stay numbers."""
    telemetry.configure(level="info", style="json", context=CONTEXT)
    telemetry.Events("x").warning("table.created", table="user", dim=16, ratio=0.5, ready=True, none=None)
    line = json.loads(stderr())
    del line["time"]
    facts = {"table": "user", "dim": 16, "ratio": 0.5, "ready": True, "none": None}
    assert line == {"level": "warning", "event": "table.created", **CONTEXT, **facts}


@pytest.mark.parametrize("style", telemetry.FORMATS)
def test_no_value_can_forge_a_line(stderr: Callable[[], str], style: str) -> None:
    """Line ends, quotes, escapes of terminals: one event is one line of ASCII, and the value comes back whole."""
    telemetry.configure(level="info", style=style, context=CONTEXT)
    telemetry.Events("x").info("table.created", table=NASTY)
    text = stderr()
    assert text.isascii()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    if style == "json":
        assert json.loads(text)["table"] == NASTY
    else:
        quoted = text[text.index("table=") + len("table=") : text.index(" job=flights")]
        assert json.loads(quoted) == NASTY


@pytest.mark.parametrize("style", telemetry.FORMATS)
def test_a_value_of_any_size_makes_a_line_of_bounded_size(stderr: Callable[[], str], style: str) -> None:
    """It may come from a client."""
    telemetry.configure(level="info", style=style, context=CONTEXT)
    telemetry.Events("x").info("table.created", table="\u00fc" * 1_000_000)
    assert 1000 < len(stderr()) < 20_000


def test_levels_below_the_chosen_one_are_not_written(stderr: Callable[[], str]) -> None:
    """As TABLEBAY_LOG_LEVEL says."""
    telemetry.configure(level="warning", style="text", context=CONTEXT)
    events = telemetry.Events("x")
    events.debug("a.b")
    events.info("a.b")
    events.warning("a.c")
    text = stderr()
    assert "a.b" not in text
    assert "WARNING a.c" in text


@pytest.mark.parametrize("style", telemetry.FORMATS)
def test_a_fault_is_one_line_with_its_traceback(stderr: Callable[[], str], style: str) -> None:
    """And so is what another library logs."""
    telemetry.configure(level="info", style=style, context=CONTEXT)
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        telemetry.Events("x").failure("request.failed", error, method="Pull")
        logging.getLogger("library").exception("it %s", "broke")
    first, second = stderr().splitlines()
    assert "test_a_fault_is_one_line_with_its_traceback" in first
    assert "library.logged" in second
    assert "it broke" in second


def snapshot() -> Snapshot:
    """A server with one table and some calls behind it."""
    figures = _core.Figures()
    for code, sent in (("OK", 10), ("OK", 20), ("NOT_FOUND", 0)):
        figures.begin(PULL, 100)
        figures.end(PULL, 0.001, code, sent)
    figures.begin(PULL, 7)
    counters = {
        "keys_pulled": 10,
        "keys_missing": 4,
        "keys_pushed": 3,
        "keys_duplicate": 2,
        "nonfinite_rows": 1,
        "push_missing_created": 2,
        "push_missing_dropped": 1,
        "pushes_applied": 5,
        "duplicates": 6,
        "duplicates_changed": 0,
        "rows_created": 4,
        "rows_deleted": 0,
        "pushes_after_pull": 0,
        "calls_helped": 0,
        "bytes": 4096,
    }
    return Snapshot(
        version="1.2.3",
        commit="abc",
        instruction_set="avx2",
        epoch=12,
        draining=False,
        memory_limit=1 << 30,
        clients=2,
        counters=counters,
        tables=[("user", 6, 2048, {"ttl": 3})],
        methods={"Pull": Counted.read(figures, PULL)},
    )


def metrics() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of one scrape, by name and labels."""
    text = generate_latest(registry(snapshot)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_have_the_names_of_the_documentation() -> None:
    """With their values."""
    found = metrics()
    pull = (("method", "Pull"),)
    wanted = {
        ("tablebay_build_info", (("commit", "abc"), ("simd", "avx2"), ("version", "1.2.3"))): 1,
        ("tablebay_requests_total", (("code", "OK"), *pull)): 2,
        ("tablebay_requests_total", (("code", "NOT_FOUND"), *pull)): 1,
        ("tablebay_requests_in_flight", pull): 1,
        ("tablebay_request_duration_seconds_count", pull): 3,
        ("tablebay_received_bytes_total", pull): 307,
        ("tablebay_sent_bytes_total", pull): 30,
        ("tablebay_lookup_keys_total", (("result", "hit"),)): 6,
        ("tablebay_lookup_keys_total", (("result", "missing"),)): 4,
        ("tablebay_push_keys_total", (("result", "applied"),)): 3,
        ("tablebay_push_keys_total", (("result", "duplicate"),)): 2,
        ("tablebay_push_keys_total", (("result", "nonfinite"),)): 1,
        ("tablebay_duplicates_total", ()): 6,
        ("tablebay_pushes_applied_total", ()): 5,
        ("tablebay_table_rows", (("table", "user"),)): 6,
        ("tablebay_table_bytes", (("table", "user"),)): 2048,
        ("tablebay_evicted_rows_total", (("reason", "ttl"), ("table", "user"))): 3,
        ("tablebay_memory_limit_bytes", ()): 1 << 30,
        ("tablebay_draining", ()): 0,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


def test_metrics_follow_the_conventions_of_prometheus() -> None:
    """Help on each, counters end in _total, gauges do not, times in seconds; the histogram's buckets are fixed."""
    text = generate_latest(registry(snapshot)).decode()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("tablebay_"):
            assert family.documentation, family.name
            assert "_total" not in family.name
            assert "_ms" not in family.name
    bounds = {labels for name, labels in metrics() if name == "tablebay_request_duration_seconds_bucket"}
    assert len(bounds) == len(BUCKETS) + 1


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (5e-5, 0), (6e-5, 1), (2.5, 14), (2.6, 15), (1e9, 15)]
)
def test_a_call_is_counted_in_the_bucket_of_its_time(seconds: float, bucket: int) -> None:
    """The bound itself belongs below."""
    figures = _core.Figures()
    figures.begin(PULL, 0)
    figures.end(PULL, seconds, "OK", 0)
    wanted = [0] * (len(BUCKETS) + 1)
    wanted[bucket] = 1
    assert list(Counted.read(figures, PULL).buckets) == wanted


def test_calls_of_many_threads_are_all_counted() -> None:
    """No lock is taken for it, and no call is lost."""
    figures = _core.Figures()

    def calls() -> None:
        for _ in range(5000):
            figures.begin(PULL, 3)
            figures.end(PULL, 1e-6, "OK", 2)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = Counted.read(figures, PULL)
    assert (counted.in_flight, counted.codes, counted.buckets[0]) == (0, {"OK": 20_000}, 20_000)
    assert (counted.received_bytes, counted.sent_bytes) == (60_000, 40_000)
    assert counted.seconds == pytest.approx(0.02)
    assert Counted.read(figures, PULL + 1).codes == {"OK": 0}


def test_wrong_figures_are_refused() -> None:
    """A method that there is not, a code that gRPC does not have, a time that cannot be."""
    figures = _core.Figures()
    with pytest.raises(IndexError):
        figures.begin(1000, 0)
    with pytest.raises(ValueError, match="no gRPC status code is called FINE"):
        figures.end(PULL, 0.0, "FINE", 0)
    with pytest.raises(ValueError, match="seconds"):
        figures.end(PULL, -1.0, "OK", 0)


def test_the_core_counts_each_error_as_the_code_that_it_becomes() -> None:
    """It has a table of its own, of the errors that it makes."""
    made = set()
    for source in (ROOT / "native" / "src").glob("*.cc"):
        made |= set(re.findall(r'StatusError\("(\w+)"', source.read_text()))
    assert {"BadRequest", "CorruptMessage"} < made
    for kind in made:
        assert _core.status_code(kind) == errors.status_code(errors.error_named(kind, "")), kind
