"""A limit: as many bytes as the rows have, copied from one place to another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peer_workload as workload
from driver import Driver, serve


class LimitMemcpy(Driver):
    """No table."""

    checked = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._there = np.zeros((workload.IDS, workload.DIM), np.float32)
        self._here = np.zeros_like(self._there)

    def version(self) -> str:
        return "limit: memcpy of the rows' bytes"

    def fill(self, first: int, last: int) -> None:
        pass

    def _copy(self, count: int) -> None:
        np.copyto(self._here[:count], self._there[:count])

    def pull_uniq(self, number: int) -> None:
        self._copy(len(self.batches[number].unique))

    def pull_raw(self, number: int) -> None:
        self._copy(workload.IDS)

    def push_uniq(self, number: int) -> None:
        self._copy(len(self.batches[number].unique))

    def push_raw(self, number: int) -> None:
        self._copy(workload.IDS)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)


if __name__ == "__main__":
    serve(LimitMemcpy)
