"""`tablebay logs`: one log as it is, several with each line after the name of who wrote it."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Sequence

from tablebay.client.errors import TablebayError
from tablebay.client.jobs.api import Jobs, Log
from tablebay.client.jobs.errors import ClusterError

FOLLOWED_MAX = 50
_WAIT_S = 0.5


def logs(
    name: str,
    *,
    role: str,
    index: int | None,
    follow: bool,
    previous: bool,
    tail: int | None,
    namespace: str | None,
    context: str | None,
) -> None:
    """Print logs to standard output. Raises TablebayError."""
    jobs = Jobs(namespace, context=context)
    found = jobs.logs_of(name, role=role, index=index, previous=previous)
    if len(found) == 1:
        for line in jobs.lines(found[0], follow=follow, tail=tail):
            _print(line, flush=follow)
    elif not follow:
        _all(jobs, found, tail)
    elif len(found) > FOLLOWED_MAX:
        raise ClusterError(
            f"{name}: found {len(found)} {role}s, wanted at most {FOLLOWED_MAX} to follow; choose --index"
        )
    else:
        _followed(jobs, found, tail)
    sys.stdout.flush()


def _all(jobs: Jobs, found: Sequence[Log], tail: int | None) -> None:
    """One log after the other. One that cannot be read hides no other, and is told at the end."""
    failed: list[TablebayError] = []
    for log in found:
        try:
            for line in jobs.lines(log, tail=tail):
                _print(_named(log, line))
        except ClusterError as error:
            failed.append(error)
    if failed:
        raise ClusterError("; ".join(map(str, failed)))


def _followed(jobs: Jobs, found: Sequence[Log], tail: int | None) -> None:
    """All logs at once, their lines in the order in which they come."""
    lines: queue.SimpleQueue[str | TablebayError | None] = queue.SimpleQueue()

    def read(log: Log) -> None:
        try:
            for line in jobs.lines(log, follow=True, tail=tail):
                lines.put(_named(log, line))
            lines.put(None)
        except TablebayError as error:
            lines.put(error)

    for log in found:
        # Daemons: Ctrl-C must not wait for a log that says nothing.
        threading.Thread(target=read, args=(log,), daemon=True).start()
    running, failed = len(found), []
    while running:
        try:
            line = lines.get(timeout=_WAIT_S)
        except queue.Empty:
            continue
        if isinstance(line, str):
            _print(line, flush=True)
            continue
        running -= 1
        if line is not None:
            failed.append(str(line))
    if failed:
        raise ClusterError("; ".join(failed))


def _named(log: Log, line: str) -> str:
    return f"{log.pod.title} | {line}"


def _print(line: str, *, flush: bool = False) -> None:
    sys.stdout.write(f"{line}\n")
    if flush:
        sys.stdout.flush()
