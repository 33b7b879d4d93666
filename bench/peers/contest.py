"""A peer and Tablebay in the same run, one call of each in turn."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .environments import Environment, python_of

DRIVERS = Path(__file__).with_name("drivers")
# Memory that was freed stays with its process: else pages that are given back and cleared again at each call would be
# what is measured of some peers, where that costs much, as on virtual machines.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "67108864",
}
# Before each call: threads of the other's last one may still spin for work that does not come, as OpenMP's do for some
# milliseconds, on a core that is this one's now.
PAUSE_S = 0.02


class Failed(Exception):
    """A driver ended, with its last words."""


class Contestant:
    """A driver's process."""

    def __init__(self, name: str, environment: Environment, folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        python = python_of(environment, folder)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [python, str(DRIVERS / f"{name}.py"), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | MEMORY,
            )
        found = self.ask("version")
        self.version: str = found["version"]
        self.can: list[str] = found["can"]

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Have one operation done. Raises Failed."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            words = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise Failed(f"{self.name} ended in {operation}: {' / '.join(words)}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def seconds(self, operation: str, **arguments: Any) -> float:
        """How long an operation took."""
        return float(self.ask(operation, **arguments)["seconds"])

    def close(self) -> None:
        """End the driver and what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def contestant(name: str, environment: Environment, folder: Path) -> Iterator[Contestant]:
    """One for the time of a block."""
    one = Contestant(name, environment, folder)
    try:
        yield one
    finally:
        one.close()


def in_turn(
    ours: Contestant,
    theirs: Contestant,
    operation: str,
    numbers: list[int],
    warm_up: int,
    before: Callable[[], object],
) -> list[tuple[float, float]]:
    """Seconds of both for each batch number after the first `warm_up`; who begins changes each time.

    before: is called before each turn of either, and not timed."""
    pairs = []
    for turn, number in enumerate(numbers):
        arguments = {} if operation in ("save", "load") else {"number": number}
        order = (ours, theirs) if turn % 2 == 0 else (theirs, ours)
        taken = {}
        for one in order:
            before()
            time.sleep(PAUSE_S)
            taken[one.name] = one.seconds(operation, **arguments)
        if turn >= warm_up:
            pairs.append((taken[ours.name], taken[theirs.name]))
    return pairs
