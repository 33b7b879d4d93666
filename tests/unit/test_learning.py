"""tb.LearningMetrics against scikit-learn, and merged in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import tablebay as tb

FIGURES = ("auc", "gauc", "logloss", "ctr", "pctr", "copc")


def examples(seed: int, count: int = 5000, dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """Scores, a third of which repeat, labels that lean to them, groups, some with one label only."""
    generator = np.random.default_rng(seed)
    scores = generator.random(count).astype(dtype)
    scores[::3] = np.round(scores[::3], 1)
    labels = generator.random(count) < scores
    groups = generator.integers(-300, 300, count)
    groups[:20] = np.arange(10_000, 10_020)
    return scores, labels, groups


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int, dtype: Any) -> None:
    """AUC and logloss are scikit-learn's, GAUC the weighted mean of its AUC by group; the rest are means."""
    scores, labels, groups = examples(seed, dtype=dtype)
    found = tb.LearningMetrics()
    found.update(scores, labels, groups)
    wide = scores.astype(np.float64)
    assert found.examples == 5000
    assert found.auc() == pytest.approx(roc_auc_score(labels, wide), rel=1e-12)
    assert found.logloss() == pytest.approx(log_loss(labels, wide), rel=1e-12)
    both = [g for g in np.unique(groups) if 0 < labels[groups == g].mean() < 1]
    assert 0 < len(both) < len(np.unique(groups))
    aucs = [roc_auc_score(labels[groups == g], wide[groups == g]) for g in both]
    weights = [(groups == g).sum() for g in both]
    assert found.gauc() == pytest.approx(np.average(aucs, weights=weights), rel=1e-12)
    assert found.ctr() == pytest.approx(labels.mean(), rel=1e-12)
    assert found.pctr() == pytest.approx(wide.mean(), rel=1e-12)
    assert found.copc() == pytest.approx(labels.sum() / wide.sum(), rel=1e-12)


def test_parts_in_any_order_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update, updates by hundreds, and two merged halves: each figure is the same number."""
    monkeypatch.setattr("tablebay.client.learning._COMPACT_EVERY", 700)
    scores, labels, groups = examples(1)
    whole, pieces, first, second = (tb.LearningMetrics() for _ in range(4))
    whole.update(scores, labels, groups)
    for begin in range(4900, -1, -100):
        part = slice(begin, begin + 100)
        pieces.update(scores[part], labels[part].astype(np.float32), groups[part].astype(np.int32))
    first.update(scores[:2000], labels[:2000], groups[:2000])
    second.update(scores[2000:], labels[2000:], groups[2000:])
    second.merge(first)
    for name in FIGURES:
        assert getattr(whole, name)() == getattr(pieces, name)() == getattr(second, name)(), name
    assert first.examples == 2000


def test_extreme_scores_are_counted() -> None:
    """0, -0.0 and 1 are scores; a wrong certainty costs 36 nats, as in scikit-learn's float64."""
    found = tb.LearningMetrics()
    scores, labels = np.array([0.0, -0.0, 1.0, 1.0]), np.array([0, 1, 1, 0])
    found.update(scores, labels)
    assert found.auc() == 0.5
    assert found.gauc() == 0.5
    assert found.logloss() == pytest.approx(log_loss(labels, scores), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([1, 0], [1, 0]), tb.BadType, "scores: found int64, wanted float32 or float64"),
        (([[0.5]], [1]), tb.BadRequest, r"scores: found shape \(1, 1\)"),
        (([0.5, 1.5], [1, 0]), tb.BadRequest, "scores: found 1.5 at position 1, wanted 0 to 1"),
        (([0.5, float("nan")], [1, 0]), tb.BadRequest, "scores: found nan at position 1"),
        (([0.5, 0.5], [1, 2]), tb.BadRequest, "labels: found 2 at position 1, wanted 0 or 1"),
        (([0.5, 0.5], [1]), tb.BadRequest, r"labels: found shape \(1,\)"),
        (([0.5], [1], [0.5]), tb.BadType, "groups: found float64, wanted integers"),
        (([0.5], [1], [1, 2]), tb.BadRequest, r"groups: found shape \(2,\)"),
    ],
)
def test_wrong_examples_are_named(arguments: Any, error: type[Exception], says: str) -> None:
    """What was found, where, and what is wanted; nothing is counted."""
    found = tb.LearningMetrics()
    with pytest.raises(error, match=says):
        found.update(*(np.array(one) for one in arguments))
    assert found.examples == 0


def test_figures_that_do_not_exist_are_refused() -> None:
    """No examples, one label only, no group with both, no predicted click."""
    found = tb.LearningMetrics()
    with pytest.raises(tb.BadRequest, match="found no examples"):
        found.logloss()
    found.update(np.array([0.0, 0.0]), np.array([1, 1]), np.array([1, 2]))
    with pytest.raises(tb.BadRequest, match="AUC needs both labels; found 2 clicks and 0 others"):
        found.auc()
    with pytest.raises(tb.BadRequest, match="COPC needs a score above 0"):
        found.copc()
    found.update(np.array([0.5]), np.array([0]), np.array([3]))
    with pytest.raises(tb.BadRequest, match="GAUC needs both labels in a group"):
        found.gauc()
