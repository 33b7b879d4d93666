"""DeepFM (Guo et al. 2017) on the 12 fields of a flight, in plain PyTorch.

The score of an example is a linear weight for each field, a factorization machine's pairs over 8 factors for each
field, and a network over all factors. Whose rows these are the model does not know: `tb.torch`'s layers or
`torch.nn`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tablebay.examples.flights.data import FIELDS

FACTORS = 8


class DeepFM(nn.Module):
    """linear: bags of 12 keys to (B, 1). factors: keys (B, 12) to (B, 12, 8)."""

    def __init__(self, linear: nn.Module, factors: nn.Module, seed: int) -> None:
        super().__init__()
        self.linear = linear
        self.factors = factors
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.deep = nn.Sequential(
                nn.Linear(len(FIELDS) * FACTORS, 64),
                nn.ReLU(),
                nn.Linear(64, 32),
                nn.ReLU(),
                nn.Linear(32, 1),
            )

    def forward(self, keys: torch.Tensor) -> Any:
        """Log-odds (B,) of keys, int64 (B, 12)."""
        factors = self.factors(keys)
        pairs = (factors.sum(1) ** 2 - (factors**2).sum(1)).sum(1) / 2
        return self.linear(keys)[:, 0] + pairs + self.deep(factors.flatten(1))[:, 0]
