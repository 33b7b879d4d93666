"""Table options that a job changes while it trains: pure.

A worker's code may set a learning rate too. So the servers are told of a table's rate only once its job file has
changed it; from then on the file is the one that says. What it said last is noted on the workers' Job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tablebay.operator.projections import RATES_ANNOTATION, WorkerJob
from tablebay.operator.world import World


@dataclass(frozen=True)
class Rate:
    """A learning rate. changed: it is another one, or was, than the servers began with."""

    value: float
    changed: bool


def wanted(world: World) -> dict[str, float]:
    """The learning rate of each table that the job declares, where its optimizer has one."""
    found = {}
    for table in world.job.model.spec.tables:
        rate = table.optimizer.parameters().get("learning_rate")
        if rate is not None:
            found[table.name] = float(rate)
    return found


def noted(found: WorkerJob | None) -> dict[str, Rate]:
    """What is noted on the workers' Job; nothing where a hand has edited it."""
    try:
        known = json.loads(found.annotations[RATES_ANNOTATION]) if found is not None else {}
        return {name: Rate(float(value), bool(changed)) for name, (value, changed) in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def note(world: World, found: WorkerJob) -> str:
    """What is to be noted, or "" where that is so already."""
    known = noted(found)
    now = {
        name: Rate(value, name in known and (known[name].changed or known[name].value != value))
        for name, value in wanted(world).items()
    }
    return "" if now == known else _text(now)


def _text(rates: Mapping[str, Rate]) -> str:
    return json.dumps({name: [rate.value, rate.changed] for name, rate in rates.items()}, sort_keys=True)


def told(found: WorkerJob | None) -> tuple[tuple[str, float], ...]:
    """Table and learning rate, of those that the servers are to be told of."""
    return tuple(sorted((name, rate.value) for name, rate in noted(found).items() if rate.changed))
