"""The operator's metrics and its log lines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

FORMATS = ("text", "json")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What the operator counts."""

    def __init__(self, version: str) -> None:
        # A time of birth beside each counter is of no use to anybody here.
        disable_created_metrics()  # type: ignore[no-untyped-call,unused-ignore]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = Counter(
            "tablebay_operator_reconcile",
            "Looks at jobs, by result",
            ["result"],
            registry=self.registry,
        )
        self.durations = Histogram(
            "tablebay_operator_reconcile_duration_seconds",
            "Time of a look at a job",
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.requests = Counter(
            "tablebay_operator_api_requests",
            "Requests to the API server, by verb, resource and status code",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._version = version

    def request(self, verb: str, resource: str, code: str) -> None:
        """A request to the API server has been answered."""
        self.requests.labels(verb, resource, code).inc()

    def reconciled(self, result: str, seconds: float) -> None:
        """A look at a job is over."""
        self.reconciles.labels(result).inc()
        self.durations.observe(seconds)

    def watch(self, read: Callable[[], State]) -> None:
        """Read the rest at each scrape."""
        self.registry.register(_StateCollector(read, self._version))


class State:
    """The operator at one moment."""

    def __init__(
        self,
        *,
        leader: bool,
        queue_depth: int,
        queue_age_s: float,
        silent_s: Mapping[str, float],
        jobs: Iterable[Mapping[str, Any]],
    ) -> None:
        self.leader = leader
        self.queue_depth = queue_depth
        self.queue_age_s = queue_age_s
        self.silent_s = silent_s
        self.jobs: dict[str, int] = {}
        for body in jobs:
            reason = "New"
            for condition in (body.get("status") or {}).get("conditions") or ():
                if condition["type"] == "Ready":
                    reason = condition["reason"]
            self.jobs[reason] = self.jobs.get(reason, 0) + 1


class _StateCollector(Collector):
    def __init__(self, read: Callable[[], State], version: str) -> None:
        self._read = read
        self._version = version

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        state = self._read()
        info = GaugeMetricFamily("tablebay_operator_build_info", "Build of the operator", labels=("version",))
        info.add_metric((self._version,), 1)
        yield info
        yield GaugeMetricFamily(
            "tablebay_operator_is_leader", "1 in the replica that acts", value=float(state.leader)
        )
        yield GaugeMetricFamily(
            "tablebay_operator_queue_depth", "Jobs that wait to be looked at", value=state.queue_depth
        )
        yield GaugeMetricFamily(
            "tablebay_operator_queue_age_seconds",
            "How long the oldest of them has waited",
            value=state.queue_age_s,
        )
        last = GaugeMetricFamily(
            "tablebay_operator_watch_last_event_timestamp_seconds",
            "When a watch last showed a sign of life",
            labels=("resource",),
        )
        now = time.time()
        for resource, silent_s in state.silent_s.items():
            last.add_metric((resource,), now - silent_s)
        yield last
        jobs = GaugeMetricFamily("tablebay_operator_jobs", "Jobs, by the reason of Ready", labels=("reason",))
        for reason, number in sorted(state.jobs.items()):
            jobs.add_metric((reason,), number)
        yield jobs


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "role": "operator",
            **_extra(record),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()} {extra}"
        return text.rstrip() + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    if not record.name.startswith("tablebay"):
        # Other packages hang objects on their records.
        return {"logger": record.name}
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def configure_logs(level: str, style: str) -> None:
    """Everything to stderr, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = _Json() if style == "json" else _Text()
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What these say of each request and object is no event of ours.
    for name in ("kopf", "aiohttp", "urllib3", "kubernetes", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
