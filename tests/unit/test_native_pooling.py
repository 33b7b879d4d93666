"""Gradients of pooled rows, against a loop over the bags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.native import _core

ROWS, DIM = 9, 5


@pytest.fixture(params=_core.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each that this CPU has, in use."""
    before = _core.instruction_set()
    _core.use_instruction_set(request.param)
    yield request.param
    _core.use_instruction_set(before)


def looped(
    rows: NDArray[np.int64], begins: NDArray[np.int64], gradients: Any, out: Any, mean: bool, padding: int
) -> Any:
    """What the core should write, one occurrence after the other."""
    found = np.zeros_like(out)
    for bag, gradient in enumerate(gradients):
        mine = rows[begins[bag] : begins[bag + 1]]
        mine = mine[mine != padding]
        share = gradient / np.asarray(max(len(mine), 1), gradient.dtype) if mean else gradient
        for row in mine:
            found[row] += share
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [DIM, 8, 16])
@pytest.mark.usefixtures("instruction_set")
def test_each_rows_gradient_is_the_sum_of_its_bags_in_order(seed: int, dtype: Any, dim: int) -> None:
    """Sums and means, with and without padding, with empty bags and rows that come twice in one; bit for bit."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 5, 12)
    begins = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    rows = random.integers(0, ROWS, begins[-1])
    gradients = random.standard_normal((12, dim)).astype(dtype)
    for mean in (False, True):
        for padding in (-1, 3):
            out = random.standard_normal((ROWS, dim)).astype(dtype)
            wanted = looped(rows, begins, gradients, out, mean, padding)
            _core.sum_bag_gradients(rows, begins, gradients, out, mean, padding)
            np.testing.assert_array_equal(out, wanted, f"seed {seed}, mean {mean}, padding {padding}")


@pytest.mark.parametrize(
    ("rows", "begins", "message"),
    [
        ([0, 9], [0, 1, 2], "row 1 is 9, wanted 0 to 8"),
        ([0, -1], [0, 1, 2], "row 1 is -1, wanted 0 to 8"),
        ([0, 1], [0, 2, 1], "bag 2 begins at 1, wanted 2 to 2"),
        ([0, 1], [0, 1, 3], "bag 2 begins at 3, wanted 1 to 2"),
        ([0, 1], [0, 2], r"gradients are \(2, 5\), with 2 begins and out \(9, 5\)"),
    ],
)
def test_rows_and_bags_that_are_not_there_are_refused(
    rows: list[int], begins: list[int], message: str
) -> None:
    """Nothing is written beyond the arrays; the error names the place."""
    out = np.zeros((ROWS, DIM), np.float32)
    with pytest.raises(_core.StatusError, match=message):
        _core.sum_bag_gradients(np.array(rows), np.array(begins), np.ones((2, DIM), np.float32), out, False)
    assert not out.any()


def test_an_array_that_cannot_be_written_is_refused() -> None:
    """Rather than a copy of it filled."""
    out = np.zeros((ROWS, DIM), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        _core.sum_bag_gradients(
            np.zeros(2, np.int64), np.array([0, 1, 2]), np.ones((2, DIM), np.float32), out, False
        )
