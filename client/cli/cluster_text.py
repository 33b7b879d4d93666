"""Jobs as text: the table, the line of a change, the description."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from tablebay.client.jobs.model import Event, Job, Pod

_COLUMNS = ("NAME", "READY", "STATE", "SERVERS", "WORKERS", "STEP", "RESTARTS", "AGE")
# Widths that a watch begins with, because it cannot know the lines to come.
_WIDTHS = (16, 16, 7, 16, 7, 7, 9, 8, 4)
_GAP = "   "
PODS_MAX = 20
EVENTS_MAX = 10


def table(jobs: Sequence[Job], *, namespaces: bool, now: datetime | None = None) -> str:
    """A line for each job below the names of the columns."""
    rows = [_header(namespaces), *(_cells(job, namespaces, now or _now()) for job in jobs)]
    return "\n".join(_aligned(rows))


class Rows:
    """The same table line by line, without a line that says nothing new."""

    def __init__(self, *, namespaces: bool) -> None:
        self._namespaces = namespaces
        self._widths = list(_WIDTHS if namespaces else _WIDTHS[1:])
        self._said: dict[str, tuple[str, ...]] = {}

    def header(self) -> str:
        """The names of the columns."""
        return self._line(_header(self._namespaces))

    def row(self, job: Job, *, deleted: bool = False) -> str | None:
        """A job's line; None where it is as it was but for its age."""
        cells = _cells(job, self._namespaces, _now())
        if deleted:
            state = _header(self._namespaces).index("STATE")
            cells = (*cells[:state], "Deleted", *cells[state + 1 :])
        if self._said.get(job.uid) == cells[:-1]:
            return None
        self._said[job.uid] = cells[:-1]
        return self._line(cells)

    def _line(self, cells: Sequence[str]) -> str:
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)]
        return _joined(cells, self._widths)


def line(job: Job) -> str:
    """What a job does now: state, servers, workers, and the figures that somebody reported."""
    return f"{job.name}: {job.state}  servers {job.servers}  workers {job.workers}{_figures(job, short=True)}"


def description(
    job: Job,
    pods: Sequence[Pod],
    events: Sequence[Event],
    problems: Sequence[str] = (),
    now: datetime | None = None,
) -> str:
    """All that is known of a job, for a person."""
    moment = now or _now()
    lines = [
        f"name:       {job.name}",
        f"namespace:  {job.namespace}",
        f"age:        {age(job.created, moment)}",
        f"state:      {job.state}",
        f"servers:    {job.servers}",
        f"workers:    {job.workers}",
        f"restarts:   {job.restarts}",
        f"progress:   {_figures(job, short=False).strip() or 'none reported'}",
    ]
    if job.failure is not None:
        lines.append(f"failure:    {job.failure.text}")
    lines += _section(
        "conditions",
        [("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE")],
        [(one.type, one.status, one.reason, age(one.since, moment), one.message) for one in job.conditions],
    )
    # The newest pod of an index is the one that counts.
    newest = {(pod.role, pod.index): pod for pod in reversed(pods)}
    troubled = [
        pod for pod in sorted(newest.values(), key=lambda pod: (pod.role, pod.index)) if _troubled(pod)
    ]
    lines += _section(
        "pods not ready",
        [("POD", "PHASE", "RESTARTS", "WHY")],
        [(pod.name, pod.phase, str(pod.restarts), pod.why) for pod in troubled[:PODS_MAX]],
    )
    if len(troubled) > PODS_MAX:
        lines.append(f"  and {len(troubled) - PODS_MAX} more")
    lines += _section(
        "events",
        [("AGE", "TYPE", "REASON", "MESSAGE")],
        [
            (
                age(one.time, moment),
                one.type,
                one.reason,
                one.message + (f" (x{one.count})" if one.count > 1 else ""),
            )
            for one in events[-EVENTS_MAX:]
        ],
    )
    lines += [f"unknown:    {problem}" for problem in problems]
    return "\n".join(lines)


def age(time: str, now: datetime) -> str:
    """How long ago a time of Kubernetes was: 45s, 12m, 3h, 5d; - where it is none."""
    try:
        then = datetime.fromisoformat(time)
        seconds = max(0, int((now - then).total_seconds()))
    except (ValueError, TypeError):
        return "-"
    for size, unit, most in ((1, "s", 120), (60, "m", 7200), (3600, "h", 172_800)):
        if seconds < most:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86_400}d"


def _now() -> datetime:
    return datetime.now(UTC)


def _troubled(pod: Pod) -> bool:
    return pod.phase != "Succeeded" and not pod.ready


def _header(namespaces: bool) -> tuple[str, ...]:
    return ("NAMESPACE", *_COLUMNS) if namespaces else _COLUMNS


def _cells(job: Job, namespaces: bool, now: datetime) -> tuple[str, ...]:
    step = f"{job.progress.step:,}" if job.progress.step is not None else "-"
    cells = (
        job.name,
        job.ready,
        job.state,
        job.servers,
        job.workers,
        step,
        str(job.restarts),
        age(job.created, now),
    )
    return (job.namespace, *cells) if namespaces else cells


def _figures(job: Job, *, short: bool) -> str:
    found = job.progress
    parts = [
        ("step", found.step, "{:,}"),
        ("loss", found.loss, "{:.4f}"),
        ("auc", found.auc, "{:.4f}"),
        ("logloss", None if short else found.logloss, "{:.4f}"),
        ("examples/s", None if short else found.examples_per_second, "{:,.0f}"),
    ]
    return "".join(f"  {name} {form.format(value)}" for name, value, form in parts if value is not None)


def _section(title: str, header: list[tuple[str, ...]], rows: list[tuple[str, ...]]) -> list[str]:
    return ["", f"{title}:", *(f"  {text}" for text in _aligned([*header, *rows]))] if rows else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_joined(row, widths) for row in rows]


def _joined(cells: Iterable[str], widths: Sequence[int]) -> str:
    return _GAP.join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
