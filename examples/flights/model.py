"""Factorization machine and logistic regression on rows of a table, in numpy.

Factorization machine: Rendle 2010, eq. 1 and lemma 3.1. A row is `[linear weight | factors]`, 1 + d floats
(d = 8 in job.yaml), so the score of an example whose 12 rows are (w_i, v_i) is

    bias + sum_i w_i + sum over pairs i < j of <v_i, v_j>,

the last sum being (|sum_i v_i|² - sum_i |v_i|²) / 2.

Logistic regression is the same with rows of dim 1, no factors. The bias is a row of the same table, of which
only the linear weight is used. The loss is the mean over the batch, so a gradient is of the order of 1/2048:
an Adagrad table needs an initial accumulator below the square of that, or its steps are far too small
(docs/flights.md has figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tablebay.examples.flights.data import BIAS_KEY, FIELDS, Examples, Keys, Labels

Floats = NDArray[np.float32]


class Pulled(Protocol):
    """What scoring needs of a table."""

    def pull(self, keys: Any, *, create: bool) -> Any:
        """Rows of keys, float32; zeros for those without one where create is False."""


def batch_keys(keys: Keys) -> Keys:
    """The keys whose rows a batch needs: uint64 (1 + B * 12,), the bias, then the examples' keys (B, 12)."""
    return np.concatenate((np.array([BIAS_KEY]), keys.reshape(-1)))


@dataclass(frozen=True)
class Forward:
    """What a forward pass knows of a batch of B examples.

    scores: float32 (B,), log-odds.
    factors: float32 (B, 12, d), a view of the rows.
    factor_sums: float32 (B, d).
    """

    scores: Floats
    factors: Floats
    factor_sums: Floats


def forward(rows: Floats) -> Forward:
    """Scores of a batch from its rows, float32 (1 + B * 12, dim), in the order of `batch_keys`."""
    dim = rows.shape[1]
    examples = rows[1:].reshape(-1, len(FIELDS), dim)
    factors = examples[:, :, 1:]
    factor_sums = factors.sum(axis=1)
    pairs = np.einsum("bd,bd->b", factor_sums, factor_sums) - np.einsum("bfd,bfd->b", factors, factors)
    scores = rows[0, 0] + examples[:, :, 0].sum(axis=1) + np.float32(0.5) * pairs
    return Forward(scores, factors, factor_sums)


def predict(table: Pulled, examples: Examples, batch_size: int) -> Floats:
    """Log-odds of each example: float32 (n,). Makes no rows: a key that was never trained counts nothing.

    table: of servers or of a checkpoint.
    """
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(examples), batch_size):
        keys = batch_keys(examples.keys[start : start + batch_size])
        parts.append(forward(table.pull(keys, create=False)).scores)
    return np.concatenate(parts)


def gradients(batch: Forward, labels: Labels) -> Floats:
    """d(mean logistic loss)/d(row) for each occurrence of a key, in the rows' order and shape: float32."""
    count, fields, factors = batch.factors.shape
    errors = (sigmoid(batch.scores) - labels) / np.float32(count)
    result = np.zeros((1 + count * fields, 1 + factors), np.float32)
    result[0, 0] = errors.sum()
    examples = result[1:].reshape(count, fields, 1 + factors)
    examples[:, :, 0] = errors[:, None]
    examples[:, :, 1:] = errors[:, None, None] * (batch.factor_sums[:, None, :] - batch.factors)
    return result


def sigmoid(scores: Floats) -> Floats:
    """1 / (1 + exp(-scores)), without overflow."""
    halves: Floats = np.tanh(np.float32(0.5) * scores)
    return np.float32(0.5) * (np.float32(1) + halves)


def logloss(scores: Floats, labels: Labels) -> float:
    """Mean logistic loss in nats of log-odds `scores` (n,) against `labels` (n,) of 0 and 1."""
    wide = scores.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, wide) - labels * wide))


def auc(scores: Floats, labels: Labels) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order.

    By the rank statistic; equal scores count half. Raises ValueError unless both labels occur.
    """
    positives = labels > 0.5
    positive_count = int(positives.sum())
    negative_count = len(labels) - positive_count
    if positive_count == 0 or negative_count == 0:
        raise ValueError(
            f"AUC needs both labels; found {positive_count} positive and {negative_count} negative"
        )
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2.0
    rank_sum = float(mean_rank[group.reshape(-1)][positives].sum())
    return (rank_sum - positive_count * (positive_count + 1) / 2.0) / (positive_count * negative_count)
