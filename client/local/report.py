"""What a run has learnt and how fast: figures out of what workers reported and servers count."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tablebay.client.latency import LatencyHistogram

if TYPE_CHECKING:
    from tablebay.client.proto import tablebay_pb2

REPORT_FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of all workers and servers at one moment. None: not reported."""

    step: int | None = None
    examples: float | None = None
    loss: float | None = None
    auc: float | None = None
    logloss: float | None = None
    train_seconds: float | None = None
    rows: int | None = None
    pushes_applied: int | None = None
    duplicates: int | None = None
    pull_p50_ms: float | None = None
    pull_p99_ms: float | None = None

    @property
    def examples_per_second(self) -> float | None:
        """Examples of all workers over the training time of the one that took longest."""
        if self.examples is None or not self.train_seconds:
            return None
        return self.examples / self.train_seconds


def figures(
    workers: Sequence[tablebay_pb2.WorkerProgress], servers: Sequence[tablebay_pb2.StatsResponse]
) -> Figures:
    """Put together what each worker reported and what each server counted.

    examples are added up, the largest step and train_seconds count, loss is the mean; auc and logloss are
    those of the lowest rank that reported them, since a metric of the whole model is not a sum over ranks.
    """
    ranked = sorted(workers, key=lambda worker: worker.rank)
    reported = _Reported([worker.values for worker in ranked])
    pulls = LatencyHistogram()
    for worker in ranked:
        pulls.merge(LatencyHistogram.unpack(worker.pull_latency))
    return Figures(
        step=None if (step := reported.largest("step")) is None else int(step),
        examples=reported.total("examples"),
        loss=reported.mean("loss"),
        auc=reported.first("auc"),
        logloss=reported.first("logloss"),
        train_seconds=reported.largest("train_seconds"),
        rows=sum(table.rows for server in servers for table in server.tables) if servers else None,
        pushes_applied=_counted(servers, "pushes_applied"),
        duplicates=_counted(servers, "duplicates"),
        pull_p50_ms=pulls.quantile(0.50) * 1000 if pulls.count else None,
        pull_p99_ms=pulls.quantile(0.99) * 1000 if pulls.count else None,
    )


class _Reported:
    """The values of one name over all workers, in order of rank."""

    def __init__(self, values: Sequence[Mapping[str, float]]) -> None:
        self._values = values

    def _of(self, name: str) -> list[float]:
        return [values[name] for values in self._values if name in values]

    def total(self, name: str) -> float | None:
        return sum(found) if (found := self._of(name)) else None

    def largest(self, name: str) -> float | None:
        return max(self._of(name), default=None)

    def mean(self, name: str) -> float | None:
        return sum(found) / len(found) if (found := self._of(name)) else None

    def first(self, name: str) -> float | None:
        return next(iter(self._of(name)), None)


def _counted(servers: Iterable[tablebay_pb2.StatsResponse], name: str) -> int | None:
    counts = [server.counters[name] for server in servers if name in server.counters]
    return sum(counts) if counts else None


def report(
    found: Figures,
    *,
    job: str,
    servers: int,
    workers: int,
    restarts: int,
    server_restarts: int,
    version: str,
    commit: str,
) -> dict[str, Any]:
    """The report of a finished run, in its written order. A metric that JSON cannot hold (NaN) is null."""
    content = {
        "job": job,
        "auc": found.auc,
        "logloss": found.logloss,
        "examples_per_second": found.examples_per_second,
        "train_seconds": found.train_seconds,
        "servers": servers,
        "workers": workers,
        "rows": found.rows,
        "pushes_applied": found.pushes_applied,
        "duplicates": found.duplicates,
        "pull_p50_ms": found.pull_p50_ms,
        "pull_p99_ms": found.pull_p99_ms,
        "restarts": restarts,
        "server_restarts": server_restarts,
        "version": version,
        "commit": commit,
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }


def write_report(content: Mapping[str, Any], run_dir: Path) -> None:
    """Write report.json whole or not at all."""
    path = run_dir / REPORT_FILE
    unfinished = path.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
