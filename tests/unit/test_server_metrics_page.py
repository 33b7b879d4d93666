"""docs/metrics.md against what a server exposes."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tablebay.client.tables import TableSpec
from tablebay.ps_server.metrics import registry
from tablebay.ps_server.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def exposed() -> dict[str, str]:
    """The type of each family of a server's own, by the name of its samples."""
    service = Service(tables=[TableSpec(name="t", dim=1)])
    text = generate_latest(registry(service.snapshot)).decode()
    families = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("tablebay_"):
            families[family.name + ("_total" if family.type == "counter" else "")] = family.type
    return families


def test_the_page_lists_each_metric_with_its_type_and_no_other() -> None:
    """Every family that a server exposes is a row of the page, and every row is exposed."""
    rows = re.findall(r"^\| `(tablebay_\w+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == exposed()
