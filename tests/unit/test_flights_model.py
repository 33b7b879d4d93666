"""The flights model: its score, its gradient and its figures, each against a slower second way."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from tablebay.examples.flights import data, model

FIELDS = len(data.FIELDS)


def random_rows(seed: int, batch: int, dim: int) -> model.Floats:
    """Rows of a batch of `batch` examples: float32 (1 + batch * 12, dim)."""
    return (np.random.default_rng(seed).standard_normal((1 + batch * FIELDS, dim)) * 0.3).astype(np.float32)


def scores_by_definition(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[float]:
    """Rendle's sum over all pairs, as it is written."""
    scores = []
    for start in range(1, len(rows), FIELDS):
        example = rows[start : start + FIELDS]
        pairs = sum(float(first[1:] @ second[1:]) for first, second in combinations(example, 2))
        scores.append(float(rows[0, 0]) + float(example[:, 0].sum()) + pairs)
    return scores


def loss_by_definition(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]], labels: model.Floats
) -> float:
    """Mean over the batch of -log p(label)."""
    losses = []
    for score, label in zip(scores_by_definition(rows), labels, strict=True):
        probability = 1 / (1 + math.exp(-score))
        losses.append(-math.log(probability if label else 1 - probability))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dim", [1, 2, 9])
def test_scores_are_the_sum_over_all_pairs(dim: int) -> None:
    """The linear-time score equals bias + weights + every pair's product of factors, for each dim."""
    rows = random_rows(dim, batch=7, dim=dim)
    found = model.forward(rows).scores
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scores_by_definition(rows.astype(np.float64)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 9])
def test_gradients_are_the_slopes_of_the_mean_loss(dim: int) -> None:
    """Each gradient equals a central difference of the loss by definition; the bias's factors have none."""
    rows = random_rows(dim, batch=3, dim=dim)
    labels = np.array([1, 0, 1], np.float32)
    found = model.gradients(model.forward(rows), labels)
    assert found.shape == rows.shape and found.dtype == np.float32
    wide, width = rows.astype(np.float64), 1e-5
    slopes = np.zeros_like(wide)
    for place in np.ndindex(*wide.shape):
        above, below = wide.copy(), wide.copy()
        above[place] += width
        below[place] -= width
        slopes[place] = (loss_by_definition(above, labels) - loss_by_definition(below, labels)) / (2 * width)
    np.testing.assert_allclose(found, slopes, atol=2e-6)
    assert not found[0, 1:].any()


def test_batch_keys_begin_with_the_bias() -> None:
    """A batch of B examples needs 1 + 12 B keys: the bias, then each example's keys in order."""
    keys = np.arange(1, 25, dtype=np.uint64).reshape(2, 12)
    found = model.batch_keys(keys)
    assert found.dtype == np.uint64
    assert found.tolist() == [int(data.BIAS_KEY), *range(1, 25)]


def test_logloss_is_the_mean_of_minus_log_probability() -> None:
    """Equal to the definition on moderate scores, finite on extreme ones."""
    scores = np.array([-2.0, 0.0, 0.5, 3.0], np.float32)
    labels = np.array([0, 1, 1, 0], np.float32)
    wanted = [math.log1p(math.exp(-2)), math.log(2), math.log1p(math.exp(-0.5)), math.log1p(math.exp(3))]
    assert model.logloss(scores, labels) == pytest.approx(sum(wanted) / 4, rel=1e-6)
    assert model.logloss(np.array([1000, -1000], np.float32), np.array([0, 1], np.float32)) == pytest.approx(
        1000
    )


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    """Equal to counting all (positive, negative) pairs, ties as half, in 20 random cases."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        scores = generator.integers(0, 10, 60).astype(np.float32)
        labels = (generator.random(60) < 0.3).astype(np.float32)
        above = scores[labels == 1][:, None] - scores[labels == 0][None, :]
        wanted = ((above > 0) + 0.5 * (above == 0)).mean()
        assert model.auc(scores, labels) == pytest.approx(wanted, abs=1e-12), f"seed {seed}"


def test_auc_of_one_class_is_refused() -> None:
    """Where only one label occurs there is no pair to order; the error says how many of each there are."""
    with pytest.raises(ValueError, match="found 3 positive and 0 negative"):
        model.auc(np.zeros(3, np.float32), np.ones(3, np.float32))
