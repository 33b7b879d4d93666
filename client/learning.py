"""How good predictions are: AUC, logloss, GAUC, CTR, PCTR and COPC, exact, and over all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.tables import Add, Zeros

if TYPE_CHECKING:
    from tablebay.client.client import Client

# Rows of a worker in the table that gathers: the rank above, a number below.
_RANK_SHIFT = 40
_ROWS_PER_CALL = 1_000_000
# Counted example by example until there are so many.
_COMPACT_EVERY = 2_000_000

# group, score as its bits, label, how many.
_Counts = NDArray[np.int64]


class LearningMetrics:
    """Counts of (group, score, label), from which each figure is exact: parts merged in any order give the same.

    It grows with the different triples, 32 bytes each.
    """

    def __init__(self) -> None:
        self._parts: list[_Counts] = []
        self._loose = 0

    def update(self, scores: Any, labels: Any, groups: Any = None) -> None:
        """Add examples.

        scores: float32 or float64 (n,), predicted probabilities of a click, 0 to 1. labels: (n,), each 0 or 1, of any
            numbers or bool. groups: integers (n,), such as users, for GAUC; by default all are one.
        """
        found = np.asarray(scores)
        if found.dtype not in (np.float32, np.float64):
            raise errors.BadType(f"scores: found {found.dtype}, wanted float32 or float64")
        if found.ndim != 1:
            raise errors.BadRequest(f"scores: found shape {found.shape}, wanted (n,)")
        wide = found.astype(np.float64)
        outside = ~((wide >= 0.0) & (wide <= 1.0))
        if outside.any():
            position = int(outside.argmax())
            raise errors.BadRequest(f"scores: found {found[position]} at position {position}, wanted 0 to 1")
        clicks = np.asarray(labels)
        if clicks.shape != found.shape:
            raise errors.BadRequest(
                f"labels: found shape {clicks.shape}, wanted that of scores, {found.shape}"
            )
        wrong = (clicks != 0) & (clicks != 1)
        if wrong.any():
            position = int(wrong.argmax())
            raise errors.BadRequest(f"labels: found {clicks[position]} at position {position}, wanted 0 or 1")
        counts = np.ones((found.size, 4), np.int64)
        counts[:, 0] = 0 if groups is None else _groups(groups, found.shape)
        # Of -0.0 the bits are others than of 0.0.
        counts[:, 1] = (wide + 0.0).view(np.int64)
        counts[:, 2] = clicks != 0
        self._add(counts)

    def merge(self, other: LearningMetrics) -> None:
        """Add what another has."""
        self._add(other._counts().copy())

    def gather(self, client: Client, name: str) -> LearningMetrics:
        """What all workers have, the same on each. All call it, with a name of its own for each time.

        client: of tb.connect(). name: of a table that holds the counts meanwhile; its rows are deleted at the end. It
            takes steps of the client, so call it when training has ended, or where steps are not counted.
        """
        table = client.table(name, dim=4, dtype="int64", optimizer=Add(), initializer=Zeros())
        counts = self._counts()
        keys = np.arange(len(counts), dtype=np.uint64) + np.uint64((client.rank or 0) << _RANK_SHIFT)
        for begin in range(0, len(counts), _ROWS_PER_CALL):
            part = slice(begin, begin + _ROWS_PER_CALL)
            table.push(keys[part], counts[part])
        client.barrier(f"{name} counted")
        result = LearningMetrics()
        for part_of_all in table.items():
            result._add(part_of_all[1].copy())
        client.barrier(f"{name} read")
        for begin in range(0, len(counts), _ROWS_PER_CALL):
            table.delete(keys[begin : begin + _ROWS_PER_CALL])
        return result

    @property
    def examples(self) -> int:
        """How many were added."""
        return int(sum(part[:, 3].sum() for part in self._parts))

    def auc(self) -> float:
        """Area under the ROC curve; equal scores count half. Raises BadRequest unless both labels occur."""
        _, score, label, count = self._columns()
        return float(_aucs(np.zeros(len(score), np.int64), score, label, count, "AUC")[0][0])

    def gauc(self) -> float:
        """The mean of the groups' AUCs, weighted with their examples, over the groups that have both labels."""
        group, score, label, count = self._columns()
        aucs, weights = _aucs(
            np.unique(group, return_inverse=True)[1].reshape(-1), score, label, count, "GAUC"
        )
        return float((aucs * weights).sum() / weights.sum())

    def logloss(self) -> float:
        """Mean logistic loss in nats; a score is taken to be at least 2.2e-16 from 0 and 1."""
        _, score, label, count = self._columns()
        tiny = np.finfo(np.float64).eps
        right = np.where(label == 1, np.clip(score, tiny, 1 - tiny), 1 - np.clip(score, tiny, 1 - tiny))
        return float(-(np.log(right) * count).sum() / count.sum())

    def ctr(self) -> float:
        """The share of clicks: the mean label."""
        _, _, label, count = self._columns()
        return float((label * count).sum() / count.sum())

    def pctr(self) -> float:
        """The predicted share of clicks: the mean score."""
        _, score, _, count = self._columns()
        return float((score * count).sum() / count.sum())

    def copc(self) -> float:
        """Clicks over predicted clicks, CTR / PCTR: 1 where predictions are calibrated."""
        predicted = self.pctr()
        if predicted == 0.0:
            raise errors.BadRequest("COPC needs a score above 0; found only 0")
        return self.ctr() / predicted

    def _add(self, counts: _Counts) -> None:
        self._parts.append(counts)
        self._loose += len(counts)
        if self._loose >= _COMPACT_EVERY:
            self._counts()

    def _counts(self) -> _Counts:
        """Each (group, score, label) once, sorted."""
        every = np.concatenate(self._parts) if self._parts else np.empty((0, 4), np.int64)
        every = every[np.lexsort((every[:, 2], every[:, 1], every[:, 0]))]
        first = np.ones(len(every), np.bool_)
        first[1:] = (every[1:, :3] != every[:-1, :3]).any(axis=1)
        result = every[first]
        if len(every):
            result[:, 3] = np.add.reduceat(every[:, 3], np.flatnonzero(first))
        self._parts, self._loose = [result], 0
        return result

    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        counts = self._counts()
        if not len(counts):
            raise errors.BadRequest("found no examples; wanted at least one update()")
        return counts[:, 0], np.ascontiguousarray(counts[:, 1]).view(np.float64), counts[:, 2], counts[:, 3]


def _groups(groups: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
    found = np.asarray(groups)
    if found.dtype.kind not in "iu":
        raise errors.BadType(f"groups: found {found.dtype}, wanted integers")
    if found.shape != shape:
        raise errors.BadRequest(f"groups: found shape {found.shape}, wanted that of scores, {shape}")
    return found.astype(np.uint64).view(np.int64) if found.dtype == np.uint64 else found.astype(np.int64)


def _aucs(
    group: NDArray[np.int64],
    score: NDArray[np.float64],
    label: NDArray[np.int64],
    count: NDArray[np.int64],
    what: str,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AUC and examples of each group with both labels, by the rank statistic. group: 0 to n - 1."""
    order = np.lexsort((score, group))
    group, score, label, count = group[order], score[order], label[order], count[order]
    clicks, others = count * label, count * (1 - label)
    # Pairs of a click and a non-click of a lower score, and half of those of the same.
    new = np.ones(len(score), np.bool_)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    begin = np.flatnonzero(new)
    clicks, others, group = np.add.reduceat(clicks, begin), np.add.reduceat(others, begin), group[begin]
    groups = int(group[-1]) + 1
    total_clicks = np.bincount(group, clicks, groups)
    total_others = np.bincount(group, others, groups)
    before = np.cumsum(others) - others - (np.cumsum(total_others) - total_others)[group]
    pairs = np.bincount(group, clicks * (before + 0.5 * others), groups)
    both = (total_clicks > 0) & (total_others > 0)
    if not both.any():
        raise errors.BadRequest(
            f"{what} needs both labels{' in a group' if what == 'GAUC' else ''}; found "
            f"{int(total_clicks.sum())} clicks and {int(total_others.sum())} others"
        )
    weights = (total_clicks + total_others)[both].astype(np.int64)
    return pairs[both] / (total_clicks[both] * total_others[both]), weights
