"""What the operator does when there is nothing to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.conftest import RUNNING, Resting
from e2e.kube import items

QUIET_S = 120
_REQUESTS = re.compile(r"^tablebay_operator_api_requests_total\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)


def writes(text: str) -> dict[str, float]:
    """Requests that change something, but for the lease, whose holder says every 2 s that it lives."""
    return {
        labels: float(value)
        for labels, value in _REQUESTS.findall(text)
        if not re.search(r'verb="(get|list|watch)"', labels) and 'resource="leases"' not in labels
    }


@pytest.mark.alone
def test_no_write_while_nothing_changes(
    resting: Resting, operator_metrics: Callable[[], str], scenario: dict[str, Any]
) -> None:
    """20 finished and 5 running jobs: in two minutes not one write to the API server."""
    resting.settle()
    time.sleep(15)
    before = writes(operator_metrics())
    time.sleep(QUIET_S)
    after = writes(operator_metrics())
    changed = {
        labels: after[labels] - before.get(labels, 0)
        for labels in after
        if after[labels] != before.get(labels)
    }
    scenario["writes"] = sum(changed.values())
    assert not changed
    # They were there all the time.
    states = [one.get("status", {}).get("phase") for one in items("pods", resting.namespace)]
    assert states.count("Running") == 2 * RUNNING
    resting.end()
