"""Bugs of other engines, each shown to be none of ours: docs/other-engines.md and its tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.tables import TableSpec
from tablebay.native import _core
from tests.unit.checkpoint_blocks import parse, whole

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "other-engines.md").read_text()
KEY = np.array([5], np.uint64)


def test_every_test_that_the_page_names_is_there() -> None:
    """Each row names some, in a file that has them."""
    found = {
        f"{path.name}::{name}"
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "elsewhere" not in line]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+\.py::test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        assert set(named) <= found, sorted(set(named) - found)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_gradient_of_zero_moves_nothing(name: str) -> None:
    """With the defaults of each optimizer, of rows that begin at 0 and elsewhere; what would make 0 / 0 is refused."""
    for initializer in (tb.Zeros(), tb.Constant(0.25)):
        decays = {"weight_decay": 0.0} if name in ("AdamW", "LAMB") else {}
        table = tb.Table(3, OPTIMIZERS[name](**decays), initializer)
        before = table.pull(KEY)
        for _ in range(3):
            table.push(KEY, np.zeros((1, 3), np.float32))
        np.testing.assert_allclose(table.pull(KEY), before, rtol=1e-6)
    if name in ("Adagrad", "RowwiseAdagrad", "TensorNetAdagrad"):
        with pytest.raises(tb.BadRequest, match="epsilon"):
            OPTIMIZERS[name](initial_accumulator=0.0, epsilon=0.0)


@pytest.mark.parametrize(
    "name", ["SGD", "Momentum", "Nesterov", "Adagrad", "DecayedAdagrad", "Adam", "AMSGrad", "RMSProp", "FTRL"]
)
def test_a_column_does_not_depend_on_the_dim(name: str) -> None:
    """Of a rule that works by element: the first column is the same bits in a row of 1, 7, 8, 9, 16 and 17."""
    seed = 2
    gradients = np.random.default_rng(seed).standard_normal((20, 17)).astype(np.float32)
    gradients[:] = gradients[:, :1]
    found = set()
    for dim in (1, 7, 8, 9, 16, 17):
        table = tb.Table(dim, OPTIMIZERS[name](), tb.Zeros())
        for gradient in gradients:
            table.push(KEY, gradient[None, :dim].copy())
        row = table.pull(KEY)[0]
        assert len(set(row.tolist())) == 1, f"seed {seed}: the end of a row of {dim} is another"
        found.add(row[0].tobytes())
    assert len(found) == 1, f"seed {seed}"


def test_one_sum_a_row_is_of_the_mean() -> None:
    """Gradients 3, 1, 1, 1 make a sum of 12 / 4 that the same push divides by; neither 9 nor what was there before."""
    table = tb.Table(4, tb.RowwiseAdagrad(1.0, initial_accumulator=1.0, epsilon=1e-8), tb.Zeros())
    table.push(KEY, np.array([[3, 1, 1, 1]], np.float32))
    assert table.optimizer_state(KEY)["accumulator"].tolist() == [4.0]
    np.testing.assert_allclose(table.pull(KEY), [[-1.5, -0.5, -0.5, -0.5]], rtol=1e-6)


def test_a_velocity_does_not_hold_the_learning_rate() -> None:
    """After a change of it the next step is the new rate times all of the velocity."""
    table = tb.Table(1, tb.Momentum(1.0, 0.5), tb.Zeros())
    table.push(KEY, np.array([[8.0]], np.float32))
    assert table.pull(KEY).tolist() == [[-8.0]]
    table.set(learning_rate=0.25)
    table.push(KEY, np.array([[0.0]], np.float32))
    assert table.pull(KEY).tolist() == [[-9.0]], "0.25 * (0.5 * 8), where a folded rate would give 1.0 * 4"


@pytest.mark.parametrize("l1", [0.0, 0.5])
def test_ftrl_is_symmetric_and_moves_more_by_a_higher_rate(l1: float) -> None:
    """Gradients of the other sign give weights of the other sign, bit for bit, against the gradient."""
    seed = 4
    gradients = np.random.default_rng(seed).standard_normal((30, 1, 8)).astype(np.float32)

    def after(sign: float, rate: float, steps: int) -> Any:
        table = tb.Table(8, tb.FTRL(rate, l1=l1, l2=1.0, beta=1.0), tb.Zeros())
        for gradient in gradients[:steps]:
            table.push(KEY, np.float32(sign) * gradient)
        return table.pull(KEY)

    rows = after(1.0, 0.1, 30)
    assert (rows == -after(-1.0, 0.1, 30)).all(), f"seed {seed}"
    first = after(1.0, 0.1, 1)
    moved = first != 0
    assert moved.any()
    assert (np.sign(first[moved]) == -np.sign(gradients[0][moved])).all(), f"seed {seed}"
    assert np.abs(after(1.0, 0.2, 1)).sum() > np.abs(first).sum(), f"seed {seed}"


def test_a_row_of_zeros_is_no_deletion() -> None:
    """Trained to 0 it is a row in the delta, there after a load; a deleted one is among the deleted."""
    spec = TableSpec("t", 2, optimizer=tb.SGD(1.0), initializer=tb.Zeros())
    store = _core.Store()
    table = store.create_table(*spec.arguments())
    keys = np.array([1, 2, 3], np.uint64)
    store.push(table, keys, np.ones((3, 2), np.float32))
    full = store.take([], 0.0, True)
    files = [whole(full, table)]
    full.commit()
    store.push(table, keys[:1], -np.ones((1, 2), np.float32))
    store.delete(table, keys[1:2])
    delta = store.take([], 0.0, False)
    files.append(whole(delta, table))
    layout = dict(delta.tables)[table]
    blocks = parse(files[1], layout[0])
    assert blocks.deleted == [2]
    assert [row[: layout[2] + 8] for row in blocks.rows if row[layout[2] : layout[2] + 8] == bytes(8)]
    loaded = _core.Store(epoch=2)
    loader = loaded.load(list(range(1024)))
    loader.create_table(*spec.arguments())
    for number, content in enumerate(files):
        loader.begin(table, None, number > 0).feed(content)
    loader.finish()
    assert np.asarray(loaded.contains(table, keys)).tolist() == [True, False, True]
