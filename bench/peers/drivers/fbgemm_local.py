"""FBGEMM's CPU kernel: forward, and a backward pass that updates with Adagrad."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import peer_workload as workload
import torch
from driver import Driver, serve
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)


class FbgemmLocal(Driver):
    """A bag for each id, so that rows come back as they are."""

    dense = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ids = [torch.from_numpy(batch.ids) for batch in self.batches]
        self._unique = [torch.from_numpy(batch.unique) for batch in self.batches]
        self._gradients = torch.from_numpy(self.gradients)
        self._offsets = torch.arange(workload.IDS + 1)

    def version(self) -> str:
        return f"fbgemm-gpu-cpu {metadata.version('fbgemm-gpu-cpu')} on torch {torch.__version__}"

    def fill(self, first: int, last: int) -> None:
        if first != 0:
            return
        self._table = SplitTableBatchedEmbeddingBagsCodegen(
            [(workload.NIDS, workload.DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ADAGRAD,
            learning_rate=workload.LEARNING_RATE,
            eps=workload.EPSILON,
            pooling_mode=PoolingMode.SUM,
        )
        self._table.init_embedding_weights_uniform(-0.01, 0.01)
        (states,) = self._table.split_optimizer_states()
        for state in states:
            state.fill_(workload.ACCUMULATOR)

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self._table(ids, self._offsets[: len(ids) + 1])

    def rows(self, number: int) -> np.ndarray:
        with torch.no_grad():
            return self._forward(self._unique[number]).numpy()

    def pull_uniq(self, number: int) -> None:
        with torch.no_grad():
            self._forward(self._unique[number])

    def pull_raw(self, number: int) -> None:
        with torch.no_grad():
            self._forward(self._ids[number])

    def step_uniq(self, number: int) -> None:
        rows = self._forward(self._unique[number])
        rows.backward(self._gradients[: len(rows)])

    def step_raw(self, number: int) -> None:
        self._forward(self._ids[number]).backward(self._gradients)


if __name__ == "__main__":
    serve(FbgemmLocal)
