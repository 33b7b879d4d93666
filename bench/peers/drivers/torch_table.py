"""A dense table of torch's with its sparse Adagrad."""

from __future__ import annotations

import peer_workload as workload
import torch


class TorchTable:
    """ids: (n,) int64 positions. The rows are there from the start."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        weight = torch.empty(workload.NIDS, workload.DIM).normal_(0.0, 0.01, generator=generator)
        self._weight = torch.nn.Parameter(weight)
        self._optimizer = torch.optim.Adagrad(
            [self._weight],
            lr=workload.LEARNING_RATE,
            initial_accumulator_value=workload.ACCUMULATOR,
            eps=workload.EPSILON,
        )

    def pull(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.embedding(ids, self._weight)

    def push(self, ids: torch.Tensor, gradients: torch.Tensor, unique: bool) -> None:
        """unique: the ids differ and ascend, so that torch need not sum and sort."""
        self._weight.grad = torch.sparse_coo_tensor(
            ids[None], gradients, self._weight.shape, is_coalesced=unique, check_invariants=False
        )
        self._optimizer.step()
        self._weight.grad = None
