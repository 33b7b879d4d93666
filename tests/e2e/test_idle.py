"""What the operator does when there is nothing to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e.jobs import Job

FINISHED, AT_ONCE, RUNNING, QUIET_S = 20, 10, 5, 120
_REQUESTS = re.compile(r"^tablebay_operator_api_requests_total\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)


def writes(text: str) -> dict[str, float]:
    """Requests that change something, but for the lease, whose holder says every 2 s that it lives."""
    return {
        labels: float(value)
        for labels, value in _REQUESTS.findall(text)
        if not re.search(r'verb="(get|list|watch)"', labels) and 'resource="leases"' not in labels
    }


def _workers(*command: str) -> dict[str, Any]:
    container = {"name": "worker", "command": list(command)}
    return {
        "servers": {"replicas": 1},
        "workers": {"replicas": 1, "template": {"spec": {"containers": [container]}}},
    }


@pytest.mark.alone
def test_no_write_while_nothing_changes(
    job: Callable[..., Job], operator_metrics: Callable[[], str], scenario: dict[str, Any]
) -> None:
    """20 finished and 5 running jobs: in two minutes not one write to the API server."""
    running = [job(f"running-{number}", change=_workers("sleep", "3600")) for number in range(RUNNING)]
    finished = []
    for first in range(0, FINISHED, AT_ONCE):
        some = [job(f"finished-{first + number}", change=_workers("true")) for number in range(AT_ONCE)]
        for one in some:
            one.until_condition("Complete")
        finished += some
    for one in running:
        one.until_reason("Training")
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
    assert len(finished) == FINISHED
