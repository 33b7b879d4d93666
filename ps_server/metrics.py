"""All of a server's figures in the form that Prometheus reads. What counts them is the native core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tablebay.native import _core

# Seconds; the last bucket is everything beyond.
BUCKETS = tuple(_core.time_buckets())


@dataclass(frozen=True)
class Counted:
    """The calls of one method so far. The figures of calls that end meanwhile may be a call apart."""

    in_flight: int
    codes: Mapping[str, int]
    buckets: Sequence[int]
    seconds: float
    received_bytes: int
    sent_bytes: int

    @classmethod
    def read(cls, figures: _core.Figures, method: int) -> Counted:
        """Of the method of that number."""
        return cls(*figures.read(method))


CHECKPOINT_KINDS = ("Delta", "Full")


@dataclass(frozen=True, kw_only=True)
class CheckpointFigures:
    """Of the server that makes checkpoints, server 0; restore_seconds of any. last_*: of the newest complete one."""

    restore_seconds: float
    made: Mapping[str, int] = field(default_factory=dict)
    failures: int = 0
    last_created: float = 0.0
    last_seconds: float = 0.0
    last_pause_seconds: float = 0.0
    last_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A server's figures at one moment.

    tables: (name, rows, bytes, rows evicted by reason). counters: as Store.counters().
    """

    version: str
    commit: str
    instruction_set: str
    epoch: int
    draining: bool
    memory_limit: int
    clients: int
    counters: Mapping[str, int]
    tables: Iterable[tuple[str, int, int, Mapping[str, int]]]
    methods: Mapping[str, Counted] = field(default_factory=dict)
    checkpoints: CheckpointFigures | None = None


class ServerCollector(Collector):
    """Reads one snapshot a scrape; nothing is done for metrics between scrapes but counting."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering takes no snapshot."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric of the server."""
        found = self._snapshot()
        yield from _of_server(found)
        yield from _of_requests(found.methods)
        yield from _of_keys(found.counters)
        yield from _of_tables(found.tables)
        if found.checkpoints is not None:
            yield from _of_checkpoints(found.checkpoints)


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """A registry with the server's metrics and those of its process."""
    result = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=result)
    PlatformCollector(registry=result)
    GCCollector(registry=result)
    result.register(ServerCollector(snapshot))
    return result


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _of_server(found: Snapshot) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "tablebay_build_info", "Build of the server", labels=("version", "commit", "simd")
    )
    info.add_metric((found.version, found.commit, found.instruction_set), 1)
    yield info
    yield _gauge("tablebay_epoch", "Number of this life of the server", found.epoch)
    yield _gauge("tablebay_draining", "1 while the server takes no more data calls", found.draining)
    yield _gauge("tablebay_clients", "Clients known", found.clients)
    yield _gauge("tablebay_memory_bytes", "Memory of rows, indexes and step windows", found.counters["bytes"])
    yield _gauge("tablebay_memory_limit_bytes", "Limit of that memory, 0 without one", found.memory_limit)


def _of_requests(methods: Mapping[str, Counted]) -> Iterator[Metric]:
    total = CounterMetricFamily("tablebay_requests", "Requests finished", labels=("method", "code"))
    duration = HistogramMetricFamily(
        "tablebay_request_duration_seconds",
        "Time in the server, from the whole request on",
        labels=("method",),
    )
    in_flight = GaugeMetricFamily("tablebay_requests_in_flight", "Requests being handled", labels=("method",))
    received = CounterMetricFamily("tablebay_received_bytes", "Bytes of requests", labels=("method",))
    sent = CounterMetricFamily("tablebay_sent_bytes", "Bytes of answers", labels=("method",))
    for method, counted in methods.items():
        for code, number in counted.codes.items():
            total.add_metric((method, code), number)
        duration.add_metric((method,), _cumulative(counted.buckets), counted.seconds)
        in_flight.add_metric((method,), counted.in_flight)
        received.add_metric((method,), counted.received_bytes)
        sent.add_metric((method,), counted.sent_bytes)
    yield from (total, duration, in_flight, received, sent)


def _cumulative(buckets: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(str(bound) for bound in BUCKETS), "+Inf"]
    so_far = 0
    result: list[tuple[str, float]] = []
    for name, number in zip(names, buckets, strict=True):
        so_far += number
        result.append((name, so_far))
    return result


def _of_keys(counters: Mapping[str, int]) -> Iterator[Metric]:
    lookup = CounterMetricFamily("tablebay_lookup_keys", "Keys looked up by pulls", labels=("result",))
    # Read one after the other while calls go on: the difference may be off by a call, never below 0.
    lookup.add_metric(("hit",), max(0, counters["keys_pulled"] - counters["keys_missing"]))
    lookup.add_metric(("missing",), counters["keys_missing"])
    yield lookup
    push = CounterMetricFamily("tablebay_push_keys", "Keys of pushes", labels=("result",))
    push.add_metric(("applied",), counters["keys_pushed"])
    push.add_metric(("duplicate",), counters["keys_duplicate"])
    push.add_metric(("nonfinite",), counters["nonfinite_rows"])
    yield push
    missing = CounterMetricFamily(
        "tablebay_push_missing_keys", "Keys of pushes that had no row", labels=("result",)
    )
    missing.add_metric(("created",), counters["push_missing_created"])
    missing.add_metric(("dropped",), counters["push_missing_dropped"])
    yield missing
    for name, text in (
        ("pushes_applied", "Pushes and steps applied"),
        ("duplicates", "Pushes and steps sent again, all of which had been applied"),
        ("duplicates_changed", "Shards on which a step was sent again with other content"),
        ("rows_created", "Rows made"),
        ("rows_deleted", "Rows removed"),
        (
            "pushes_after_pull",
            "Pushes to a table that began where a pull of the same keys had found their rows",
        ),
        ("calls_helped", "Pushes and steps, and pulls of a table, that idle processors helped with"),
    ):
        yield CounterMetricFamily(f"tablebay_{name}", text, value=counters[name])


def _of_tables(tables: Iterable[tuple[str, int, int, Mapping[str, int]]]) -> Iterator[Metric]:
    rows = GaugeMetricFamily("tablebay_table_rows", "Rows in the table", labels=("table",))
    size = GaugeMetricFamily("tablebay_table_bytes", "Memory of the table", labels=("table",))
    evicted = CounterMetricFamily(
        "tablebay_evicted_rows", "Rows that left the table by themselves", labels=("table", "reason")
    )
    for name, row_count, byte_count, left in tables:
        rows.add_metric((name,), row_count)
        size.add_metric((name,), byte_count)
        for reason, number in left.items():
            evicted.add_metric((name, reason), number)
    yield from (rows, size, evicted)


def _of_checkpoints(found: CheckpointFigures) -> Iterator[Metric]:
    yield _gauge(
        "tablebay_restore_duration_seconds", "Time to restore rows at the start", found.restore_seconds
    )
    made = CounterMetricFamily("tablebay_checkpoints", "Checkpoints made in this life", labels=("kind",))
    for kind in CHECKPOINT_KINDS:
        made.add_metric((kind,), found.made.get(kind, 0))
    yield made
    yield CounterMetricFamily("tablebay_checkpoint_failures", "Checkpoints given up", value=found.failures)
    yield _gauge(
        "tablebay_checkpoint_last_success_timestamp_seconds", "When the newest was made", found.last_created
    )
    yield _gauge("tablebay_checkpoint_duration_seconds", "Time that the newest took", found.last_seconds)
    yield _gauge(
        "tablebay_checkpoint_pause_seconds", "How long the newest held pushes up", found.last_pause_seconds
    )
    yield _gauge("tablebay_checkpoint_bytes", "Bytes written for the newest", found.last_bytes)
