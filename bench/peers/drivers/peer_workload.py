"""The work that every peer does, the same arrays everywhere: batches of skewed ids over one table of 10 M rows.

A batch is 8192 examples of 26 features, 212,992 ids, drawn from a bounded Zipf distribution (exponent 1.05) over
NIDS ranks; some 71,000 of them differ. A rank's key is a mixed 62-bit integer, as hashed features are; its dense id,
for tables without an index, a fixed permutation of the ranks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXAMPLES, FEATURES, DIM = 8192, 26, 16
IDS = EXAMPLES * FEATURES
NIDS = int(os.environ.get("PEERS_NIDS", "10000000"))
EXPONENT = 1.05
BATCHES = 10
SEED = 20260101
LEARNING_RATE, EPSILON, ACCUMULATOR = 0.05, 1e-8, 0.1
FILL = 100_000
COLD_BATCH, COLD_BATCHES = 250_000, 20
# Ranks of keys that no batch has; a key's low 25 bits are its rank's.
COLD_FROM = 11_000_000


@dataclass(frozen=True)
class Batch:
    """ids: (IDS,) int64. unique: those that differ, ascending; inverse: ids = unique[inverse]."""

    ids: np.ndarray
    unique: np.ndarray
    inverse: np.ndarray


def keys_of(ranks: np.ndarray) -> np.ndarray:
    """Positive int64 keys, each rank's own: the finaliser of splitmix64 above the rank's low 25 bits."""
    r = ranks.astype(np.uint64)
    z = r + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    low = np.uint64(0x1FFFFFF)
    return ((z & np.uint64(0x3FFFFFFFFE000000)) | (r & low)).astype(np.int64)


def dense_of(ranks: np.ndarray) -> np.ndarray:
    """Ids below NIDS, so that often used rows do not lie side by side."""
    return (ranks.astype(np.int64) * 7_368_787 + 1_234_567) % NIDS


def ranks(folder: Path) -> np.ndarray:
    """(BATCHES, IDS); made once and kept in the folder."""
    path = folder / f"ranks-{NIDS}.npy"
    if not path.exists():
        weights = np.arange(1, NIDS + 1, dtype=np.float64) ** -EXPONENT
        share = np.cumsum(weights)
        share /= share[-1]
        random = np.random.default_rng(SEED)
        drawn = [np.searchsorted(share, random.random(IDS)) for _ in range(BATCHES)]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.minimum(np.stack(drawn), NIDS - 1))
    return np.load(path)


def batches(folder: Path, *, dense: bool) -> list[Batch]:
    """All batches, of keys or of dense ids."""
    made = []
    for one in ranks(folder):
        ids = dense_of(one) if dense else keys_of(one)
        unique, inverse = np.unique(ids, return_inverse=True)
        made.append(Batch(ids, unique, inverse.astype(np.int64)))
    return made


def fill_keys(first: int, last: int) -> list[np.ndarray]:
    """Keys of a range of ranks, FILL at a time."""
    return [keys_of(np.arange(at, min(last, at + FILL))) for at in range(first, last, FILL)]


def cold_keys(number: int) -> np.ndarray:
    """(COLD_BATCH,) keys that were never seen before this number."""
    first = COLD_FROM + number * COLD_BATCH
    return keys_of(np.arange(first, first + COLD_BATCH))


def gradients(count: int) -> np.ndarray:
    """(count, DIM) float32."""
    return (np.random.default_rng(7).standard_normal((count, DIM)) * 0.01).astype(np.float32)


def adagrad(rows: np.ndarray, accumulators: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """What a push must make of rows: for the check that a peer does the work it is timed for."""
    return rows - LEARNING_RATE * grads / (np.sqrt(accumulators + grads**2) + EPSILON)
