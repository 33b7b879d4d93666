"""What the table and gRPC parts work on: rows with Adagrad, 80,000 unique keys a call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tablebay.native import _core

ROWS = 2_000_000
DIM = 16
KEYS = 80_000
CALLS = 10  # distinct sets of keys

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """all_keys: (rows,). calls: CALLS times (KEYS,), unique, random. grouped: the same in order of shard."""

    all_keys: Keys
    calls: list[Keys]
    grouped: list[Keys]
    gradients: Rows

    @classmethod
    def make(cls, rows: int = ROWS, dim: int = DIM, seed: int = 0) -> Workload:
        """From a fixed seed."""
        random = np.random.default_rng(seed)
        all_keys = np.unique(random.integers(0, 2**64, rows + 1000, dtype=np.uint64))
        all_keys = random.permutation(all_keys)[:rows]
        calls = [random.choice(all_keys, KEYS, replace=False) for _ in range(CALLS)]
        grouped = [in_shard_order(keys) for keys in calls]
        gradients = (random.standard_normal((KEYS, dim)) * 0.01).astype(np.float32)
        return cls(all_keys, calls, grouped, gradients)

    def batches(self, keys: int = KEYS) -> list[Keys]:
        """All keys, so many at a time."""
        return [self.all_keys[at : at + keys] for at in range(0, len(self.all_keys), keys)]


def in_shard_order(keys: Keys) -> Keys:
    """The order that suits a table best."""
    ordered: Keys = keys[np.argsort(_core.shards_of(keys), kind="stable")]
    return ordered


def new_store(dim: int = DIM) -> tuple[_core.Store, int]:
    """A store with one table as the workload wants it, and the table's id."""
    store = _core.Store()
    parameters = {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}
    normal = {"mean": 0.0, "stddev": 0.01}
    return store, store.create_table(
        "bench", dim, "float32", "Adagrad", parameters, "Normal", normal, 0, "Reject"
    )
