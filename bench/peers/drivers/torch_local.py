"""torch in one process: a dense embedding with sparse gradients and torch.optim.Adagrad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from driver import Driver, serve
from torch_table import TorchTable


class TorchLocal(Driver):
    """Ids are rows of the weight."""

    dense = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ids = [torch.from_numpy(batch.ids) for batch in self.batches]
        self._unique = [torch.from_numpy(batch.unique) for batch in self.batches]
        self._gradients = torch.from_numpy(self.gradients)

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def fill(self, first: int, last: int) -> None:
        if first == 0:
            self._table = TorchTable()

    def rows(self, number: int) -> np.ndarray:
        return self._table.pull(self._unique[number]).numpy()

    def pull_uniq(self, number: int) -> None:
        self._table.pull(self._unique[number])

    def pull_raw(self, number: int) -> None:
        self._table.pull(self._ids[number])

    def push_uniq(self, number: int) -> None:
        unique = self._unique[number]
        self._table.push(unique, self._gradients[: len(unique)], True)

    def push_raw(self, number: int) -> None:
        self._table.push(self._ids[number], self._gradients, False)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)


if __name__ == "__main__":
    serve(TorchLocal)
