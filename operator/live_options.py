"""Table options that a job changes while it trains: pure.

A worker's code may set one too. So the servers are told of a table's option only once its job file has changed it; from
then on the file is the one that says. What it said last is noted on the workers' Job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tablebay.operator.projections import RATES_ANNOTATION, WorkerJob
from tablebay.operator.world import World

_RATE = "learning_rate"


@dataclass(frozen=True)
class Option:
    """A value. changed: it is another one, or was, than the servers began with."""

    value: float
    changed: bool


def _name(table: str, option: str) -> str:
    """In the annotation. No table has a slash in its name; of the rate it is the name alone."""
    return table if option == _RATE else f"{table}/{option}"


def wanted(world: World) -> dict[str, float]:
    """The live options of each table that the job declares, as far as its optimizer has them."""
    return {
        _name(table.name, option): float(value)
        for table in world.job.model.spec.tables
        for option, value in table.live_options().items()
    }


def noted(found: WorkerJob | None) -> dict[str, Option]:
    """What is noted on the workers' Job; nothing where a hand has edited it."""
    try:
        known = json.loads(found.annotations[RATES_ANNOTATION]) if found is not None else {}
        return {name: Option(float(value), bool(changed)) for name, (value, changed) in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def note(world: World, found: WorkerJob) -> str:
    """What is to be noted, or "" where that is so already."""
    known = noted(found)
    now = {
        name: Option(value, name in known and (known[name].changed or known[name].value != value))
        for name, value in wanted(world).items()
    }
    return "" if now == known else _text(now)


def _text(options: Mapping[str, Option]) -> str:
    return json.dumps({name: [one.value, one.changed] for name, one in options.items()}, sort_keys=True)


def told(found: WorkerJob | None) -> tuple[tuple[str, str, float], ...]:
    """Table, option and value, of those that the servers are to be told of."""
    result = []
    for name, option in noted(found).items():
        table, _, what = name.partition("/")
        if option.changed:
            result.append((table, what or _RATE, option.value))
    return tuple(sorted(result))
