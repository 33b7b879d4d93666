"""What every driver has in common: a process that is told operations as JSON lines and answers how long they took.

Only what a user would wait for is timed: from arrays (or the framework's own tensors of them) in the client to the
result in the client's memory. What an operation needs beforehand is made in `prepare_`, which is not timed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peer_workload as workload


class Driver:
    """A peer, behind methods that do one operation each. `work` is what the operation of a batch number needs.

    dense: whether ids are positions of a table without an index. checked: whether it has rows that pushes move. A
    method that is missing is a workload that the peer cannot do.
    """

    dense = False
    checked = True

    def __init__(self, folder: Path) -> None:
        self.batches = workload.batches(folder, dense=self.dense)
        self.most = max(len(batch.unique) for batch in self.batches)
        self.gradients = workload.gradients(workload.IDS)

    def version(self) -> str:
        """Of the peer."""
        raise NotImplementedError

    def fill(self, first: int, last: int) -> None:
        """Have rows for a range of ranks, with their optimizer's state."""
        raise NotImplementedError

    def holder(self) -> int:
        """The process that holds the table."""
        return os.getpid()

    def rows(self, number: int) -> np.ndarray:
        """The first rows of a batch's unique ids, for the check."""
        raise NotImplementedError

    def close(self) -> None:
        """End what was started."""


CHECKED = 200


def check(driver: Any) -> None:
    """Raises SystemExit where a push does not move rows as Adagrad does from its first accumulator."""
    number = workload.BATCHES - 1
    unique = driver.batches[number].unique
    before = driver.rows(number)[:CHECKED].copy()
    driver.step_uniq(number)
    after = driver.rows(number)[:CHECKED]
    accumulators = np.full_like(before, workload.ACCUMULATOR)
    wanted = workload.adagrad(before, accumulators, driver.gradients[: len(unique)][:CHECKED])
    if not np.allclose(after, wanted, rtol=1e-4, atol=1e-6):
        worst = np.abs(after - wanted).max()
        raise SystemExit(
            f"{type(driver).__name__}: a push moved rows otherwise than Adagrad does, by {worst}"
        )


def rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answer(driver: Any, request: dict[str, Any]) -> dict[str, Any]:
    operation = request["operation"]
    if operation == "version":
        return {"version": driver.version(), "can": [name for name in dir(driver) if name[0] != "_"]}
    if operation == "fill":
        driver.fill(request["first"], request["last"])
        return {"rss": rss_bytes(driver.holder())}
    if operation == "rss":
        return {"rss": rss_bytes(driver.holder())}
    if operation == "check":
        if driver.checked:
            check(driver)
        return {}
    arguments = [request["number"]] if "number" in request else []
    prepare = getattr(driver, f"prepare_{operation}", None)
    if prepare is not None:
        prepare(*arguments)
    call = getattr(driver, operation)
    began = time.perf_counter()
    call(*arguments)
    return {"seconds": time.perf_counter() - began}


def serve(make: type[Driver]) -> None:
    """Answers each line of stdin on stdout, which nothing else writes to."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver = make(Path(sys.argv[1]))
    try:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(driver, json.loads(line))) + "\n")
            answers.flush()
    finally:
        driver.close()
