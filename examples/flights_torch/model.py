"""DeepFM (Guo et al. 2017) and DLRM (Naumov et al. 2019) on the 12 fields of a flight, in plain PyTorch.

DeepFM: the score of an example is a linear weight for each field, a factorization machine's pairs over 8 factors for
each field, and a network over all factors. DLRM: a network makes one more vector of numbers, a second one scores it
beside the dot products of all pairs. Whose rows these are the models do not know: `tb.torch`'s layers or `torch.nn`'s.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tablebay.examples.flights.data import FIELD_SHIFT, FIELDS

FACTORS = 8
DLRM_FACTORS = 16
NUMBERS = 6


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


class Fields:
    """Keys (B, 12) as a KeyedJaggedTensor: for each field one id an example."""

    def __init__(self, keys: torch.Tensor) -> None:
        self._keys = keys

    def keys(self) -> list[str]:
        """The fields' names."""
        return list(FIELDS)

    def values(self) -> torch.Tensor:
        """int64 (12 * B,): the first field's ids, then the second's."""
        return self._keys.t().reshape(-1)

    def lengths(self) -> torch.Tensor:
        """(12 * B,), all 1."""
        return torch.ones(self._keys.numel(), dtype=torch.int64, device=self._keys.device)


class DLRM(nn.Module):
    """bags: from `Fields` of B examples something whose values() are (B, 12 * 16)."""

    def __init__(self, bags: nn.Module, seed: int) -> None:
        super().__init__()
        self.bags = bags
        vectors = len(FIELDS) + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bottom = nn.Sequential(
                nn.Linear(NUMBERS, 32), nn.ReLU(), nn.Linear(32, DLRM_FACTORS), nn.ReLU()
            )
            self.top = nn.Sequential(
                nn.Linear(DLRM_FACTORS + vectors * (vectors - 1) // 2, 64), nn.ReLU(), nn.Linear(64, 1)
            )
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, 1), persistent=False)

    def forward(self, keys: torch.Tensor) -> Any:
        """Log-odds (B,) of keys, int64 (B, 12)."""
        rows = self.bags(Fields(keys)).values().reshape(len(keys), len(FIELDS), DLRM_FACTORS)
        dense = self.bottom(numbers(keys).to(rows.device))
        vectors = torch.cat((dense[:, None], rows), dim=1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat((dense, products), dim=1))[:, 0]


def numbers(keys: torch.Tensor) -> torch.Tensor:
    """float32 (B, 6): hour, month and day of the week, each as a point of its circle."""
    turns = []
    for name, period in (("hour", 24), ("month", 12), ("dow", 7)):
        value = keys[:, FIELDS.index(name)] & ((1 << FIELD_SHIFT) - 1)
        angle = value.to(torch.float32) * (2 * math.pi / period)
        turns += [angle.sin(), angle.cos()]
    return torch.stack(turns, dim=1)
