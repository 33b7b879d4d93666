"""A rule of the caller's own, in Python, behind the interface of a table in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tablebay as tb

DIM = 5
KEYS = np.arange(60, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def adagrad(weights: Any, gradients: Any, state: dict[str, Any]) -> None:
    """tb.Adagrad(0.1, 0.1, 1e-8), in numpy."""
    state["sum"] += gradients * gradients
    weights -= np.float32(0.1) * gradients / (np.sqrt(state["sum"]) + np.float32(1e-8))


def constant(keys: Any) -> Any:
    """Rows of the key's last digit."""
    return np.repeat((keys % np.uint64(10)).astype(np.float32)[:, None], DIM, axis=1)


def sgd(weights: Any, gradients: Any, state: dict[str, Any]) -> None:
    """Without state."""
    weights -= gradients


def test_a_rule_in_python_is_that_of_the_core() -> None:
    """200 random steps with repeats, pulls, assignments and deletions: as tb.Table with the same rule has it."""
    seed = 3
    random = np.random.default_rng(seed)
    ours = tb.PythonTable(DIM, adagrad, slots={"sum": 0.1})
    theirs = tb.Table(DIM, tb.Adagrad(0.1, 0.1, 1e-8), tb.Zeros())
    for _ in range(200):
        keys = random.choice(KEYS, int(random.integers(0, 20)))
        gradients = random.standard_normal((len(keys), DIM)).astype(np.float32)
        kind = random.integers(0, 10)
        for table in (ours, theirs):
            if kind == 0:
                table.assign(keys, gradients)
            elif kind == 1:
                table.delete(keys[:3])
            elif kind == 2:
                table.pull(keys.astype(np.int64).reshape(-1, 1))
            else:
                table.push(keys, gradients)
        assert len(ours) == len(theirs), f"seed {seed}"
    assert ours.contains(KEYS).tolist() == theirs.contains(KEYS).tolist()
    np.testing.assert_allclose(
        ours.pull(KEYS, create=False), theirs.pull(KEYS, create=False), rtol=1e-5, atol=1e-6
    )
    found, wanted = ours.optimizer_state(KEYS)["sum"], theirs.optimizer_state(KEYS)["accumulator"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    scanned = {
        int(key): row.tolist() for keys, rows in ours.items(7) for key, row in zip(keys, rows, strict=True)
    }
    there = KEYS[ours.contains(KEYS)]
    assert scanned == dict(zip(there.tolist(), ours.pull(there).tolist(), strict=True))


def test_first_rows_are_what_the_function_says() -> None:
    """For pulls that make rows, and for pushes; create=False reads zeros."""
    table = tb.PythonTable(DIM, sgd, initialize=constant)
    keys = np.array([[13, 25], [13, 7]], np.uint64)
    assert not table.pull(keys, create=False).any()
    assert table.pull(keys)[..., 0].tolist() == [[3, 5], [3, 7]]
    table.push(np.array([8, 8], np.uint64), np.ones((2, DIM), np.float32))
    assert table.pull(np.array([8], np.uint64)).tolist() == [[6.0] * DIM]
    assert len(table) == 4
    assert table.optimizer_state(keys) == {}


def test_what_a_function_does_wrong_changes_nothing() -> None:
    """It raises, returns something, or makes what is no number: told by name, and all rows are as they were."""
    seen: list[str] = []

    def faulty(weights: Any, gradients: Any, state: dict[str, Any]) -> Any:
        weights += 1
        state["n"] += 1
        if gradients[0, 0] == 1:
            raise KeyError("mine")
        if gradients[0, 0] == 2:
            return weights
        if gradients[0, 0] == 3:
            weights[:] = np.nan
        seen.append("whole")
        return None

    table = tb.PythonTable(DIM, faulty, slots={"n": 0.0}, initialize=constant)
    key = np.array([4], np.uint64)
    before = table.pull(key)
    for gradient, error, words in (
        (1.0, KeyError, "mine"),
        (2.0, tb.BadType, "update returned ndarray, wanted None"),
        (3.0, tb.NonFinite, "the row of key 4 has a NaN"),
        (np.inf, tb.NonFinite, "NaN or"),
    ):
        with pytest.raises(error, match=words):
            table.push(np.array([4, 5], np.uint64), np.full((2, DIM), gradient, np.float32))
        assert table.pull(key).tobytes() == before.tobytes()
        assert not table.optimizer_state(key)["n"].any()
        assert len(table) == 1
    table.push(key, np.zeros((1, DIM), np.float32))
    assert (table.pull(key) == before + 1).all()
    assert seen == ["whole", "whole"]

    def wrong(keys: Any) -> Any:
        return np.zeros((len(keys), DIM))

    with pytest.raises(tb.BadType, match=r"initialize gave float64 \(1, 5\), wanted float32"):
        tb.PythonTable(DIM, sgd, initialize=wrong).pull(key)


def test_what_cannot_be_is_refused_and_servers_take_no_function() -> None:
    """By name; an optimizer of a server's table is one of its own."""
    with pytest.raises(tb.BadRequest, match="a slot is called 'step'"):
        tb.PythonTable(DIM, sgd, slots={"step": 0})
    with pytest.raises(tb.BadRequest, match="65537 numbers|wanted at most 65536|dim"):
        tb.PythonTable(40_000, sgd, slots={"m": 0})
    with pytest.raises(tb.BadType, match="update is int, wanted a function"):
        tb.PythonTable(DIM, 3)  # type: ignore[arg-type]
    table = tb.PythonTable(DIM, sgd)
    with pytest.raises(tb.BadRequest, match="has no learning_rate"):
        table.set(learning_rate=0.1)
    with tb.local(servers=1) as client, pytest.raises(tb.BadRequest, match="optimizer"):
        client.table("t", dim=DIM, optimizer=sgd)  # type: ignore[arg-type]
