"""docs/metrics.md against what servers, workers and the operator expose."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tablebay.client import metrics as worker
from tablebay.client.tables import TableSpec
from tablebay.operator.telemetry import Metrics, State
from tablebay.ps_server.metrics import CheckpointFigures, registry
from tablebay.ps_server.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def server_registry() -> CollectorRegistry:
    """Of one with a destination, which has more to tell."""
    service = Service(tables=[TableSpec(name="t", dim=1)])
    figures = CheckpointFigures(restore_seconds=0.1, made={"Full": 1})
    return registry(lambda: replace(service.snapshot(), checkpoints=figures))


def worker_registry() -> CollectorRegistry:
    figures = worker.Figures()
    figures.reported({"loss": 0.5})
    return worker.registry(figures)


def operator_registry() -> CollectorRegistry:
    figures = Metrics("1")
    figures.request("get", "pods", "200")
    figures.reconciled("ok", 0.1)
    figures.watch(lambda: State(leader=True, queue_depth=0, queue_age_s=0, silent_s={"pods": 1}, jobs=[{}]))
    return figures.registry


def exposed(found: CollectorRegistry) -> dict[str, str]:
    """The type of each family of Tablebay's own, by the name of its samples."""
    families = {}
    for family in text_string_to_metric_families(generate_latest(found).decode()):
        if family.name.startswith("tablebay_"):
            families[family.name + ("_total" if family.type == "counter" else "")] = family.type
    return families


def documented(heading: str) -> dict[str, str]:
    """The type of each family in the table under a heading of the page."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^\| `(tablebay_\w+)` \| (\w+) \|", part, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "found"),
    [("Servers", server_registry()), ("Workers", worker_registry()), ("Operator", operator_registry())],
    ids=["server", "worker", "operator"],
)
def test_the_page_lists_each_metric_with_its_type_and_no_other(
    heading: str, found: CollectorRegistry
) -> None:
    """Every family that a process exposes is a row of its section, and every row is exposed."""
    assert documented(heading) == exposed(found)
