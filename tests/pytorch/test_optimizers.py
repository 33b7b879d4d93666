"""Our optimizers beside torch.optim's, on the rows that are touched in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tablebay as tb

STEPS = 100
KEYS = 64
Make = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

# Ours, and what makes torch's of the parameters. FTRL, LAMB and what works by whole rows torch.optim has not.
PAIRS: dict[str, tuple[Any, Make]] = {
    "SGD": (tb.SGD(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "SGD with weight decay": (
        tb.SGD(0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    ),
    "Momentum": (tb.Momentum(0.01, 0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "Nesterov": (tb.Nesterov(0.01, 0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
    "Adagrad": (
        tb.Adagrad(0.05, 0.1, 1e-8),
        lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1, eps=1e-8),
    ),
    "Adam": (tb.Adam(0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "Adam, decayed": (
        tb.Adam(0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
    "AdamW": (tb.AdamW(0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    "AMSGrad": (tb.AMSGrad(0.01), lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True)),
    "RMSProp": (
        tb.RMSProp(0.01, 0.99, 1e-8),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.99, eps=1e-8),
    ),
    "AdaDelta": (
        tb.AdaDelta(1.0, 0.9, 1e-6),
        lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.9, eps=1e-6),
    ),
}


def compare(found: np.ndarray[Any, Any], wanted: torch.Tensor, words: str) -> None:
    """Within rtol 1e-5 and atol 1e-6."""
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=words)


@pytest.mark.parametrize("dim", [1, 8, 17])
@pytest.mark.parametrize("name", PAIRS)
def test_touched_rows_are_those_of_torch_optim(name: str, dim: int) -> None:
    """100 steps with repeats, from the same rows: torch's dense optimizer, which here sees every row in every step."""
    ours, make = PAIRS[name]
    random = np.random.default_rng(dim)
    table = tb.Table(dim, ours, tb.Normal(0.1), seed=dim)
    keys = np.arange(KEYS, dtype=np.uint64)
    weights = torch.nn.Parameter(torch.from_numpy(table.pull(keys).copy()))
    optimizer = make([weights])
    for _ in range(STEPS):
        order = random.permutation(np.concatenate([np.arange(KEYS), random.integers(0, KEYS, 20)]))
        gradients = random.standard_normal((len(order), dim)).astype(np.float32)
        table.push(order.astype(np.uint64), gradients)
        weights.grad = torch.zeros_like(weights).index_add_(
            0, torch.from_numpy(order), torch.from_numpy(gradients)
        )
        optimizer.step()
    compare(table.pull(keys), weights, f"{name}, dim and seed {dim}")


@pytest.mark.parametrize("dim", [1, 8, 17])
def test_the_global_clock_is_that_of_torchs_sparse_adam(dim: int) -> None:
    """SparseAdam: one step for the whole parameter, and the moments of rows without a gradient stay.

    Its epsilon is added before v is corrected; here it is too small to tell.
    """
    random = np.random.default_rng(dim)
    table = tb.Table(dim, tb.Adam(0.01, epsilon=1e-15, clock="Global"), tb.Normal(0.1), seed=dim)
    keys = np.arange(KEYS, dtype=np.uint64)
    layer = torch.nn.Embedding(KEYS, dim, sparse=True)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(table.pull(keys).copy()))
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.01, eps=1e-15)
    for _ in range(STEPS):
        some = random.integers(0, KEYS, 24)
        gradients = random.standard_normal((24, dim)).astype(np.float32)
        optimizer.zero_grad()
        layer(torch.from_numpy(some)).backward(torch.from_numpy(gradients))
        optimizer.step()
        table.push(some.astype(np.uint64), gradients)
    compare(table.pull(keys), layer.weight, f"dim and seed {dim}")
