"""Tablebay: a table in the process that trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peer_workload as workload
from driver import Driver, serve

import tablebay as tb


class TablebayLocal(Driver):
    """`tb.Table`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._table = tb.Table(
            workload.DIM,
            tb.Adagrad(workload.LEARNING_RATE, workload.ACCUMULATOR, workload.EPSILON),
            tb.Normal(0.01),
        )
        self._unique = np.empty((self.most, workload.DIM), np.float32)
        self._raw = np.empty((workload.IDS, workload.DIM), np.float32)
        self._new = np.empty((workload.COLD_BATCH, workload.DIM), np.float32)

    def version(self) -> str:
        return f"tablebay {tb.__version__}"

    def fill(self, first: int, last: int) -> None:
        for keys in workload.fill_keys(first, last):
            self._table.pull(keys)

    def rows(self, number: int) -> np.ndarray:
        return self._table.pull(self.batches[number].unique)

    def pull_uniq(self, number: int) -> None:
        unique = self.batches[number].unique
        self._table.pull(unique, out=self._unique[: len(unique)])

    def pull_raw(self, number: int) -> None:
        self._table.pull(self.batches[number].ids, out=self._raw)

    def push_uniq(self, number: int) -> None:
        unique = self.batches[number].unique
        self._table.push(unique, self.gradients[: len(unique)])

    def push_raw(self, number: int) -> None:
        self._table.push(self.batches[number].ids, self.gradients)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)

    def prepare_cold(self, number: int) -> None:
        self._cold = workload.cold_keys(number)

    def cold(self, number: int) -> None:
        self._table.pull(self._cold, out=self._new)


if __name__ == "__main__":
    serve(TablebayLocal)
