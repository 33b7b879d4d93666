"""Each optimizer against its formula, written here from the paper, and against three steps worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.native import _core

Row = NDArray[np.float64]
State = dict[str, Any]


def sgd(w: Row, g: Row, state: State, p: dict[str, float]) -> Row:
    """Robbins, Monro 1951: w - lr g."""
    return w - p["learning_rate"] * g


def adagrad(w: Row, g: Row, state: State, p: dict[str, float]) -> Row:
    """Duchi, Hazan, Singer 2011, diagonal form: G += g g; w - lr g / (sqrt(G) + eps)."""
    state["G"] = state.get("G", np.full_like(w, p["initial_accumulator"])) + g * g
    return w - p["learning_rate"] * g / (np.sqrt(state["G"]) + p["epsilon"])


def adam(w: Row, g: Row, state: State, p: dict[str, float]) -> Row:
    """Kingma, Ba 2015, algorithm 1; t counts the row's own updates."""
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = p["beta1"] * state.get("m", np.zeros_like(w)) + (1 - p["beta1"]) * g
    state["v"] = p["beta2"] * state.get("v", np.zeros_like(w)) + (1 - p["beta2"]) * g * g
    first = state["m"] / (1 - p["beta1"] ** t)
    second = state["v"] / (1 - p["beta2"] ** t)
    return w - p["learning_rate"] * first / (np.sqrt(second) + p["epsilon"])


def add(w: Row, g: Row, state: State, p: dict[str, float]) -> Row:
    """w + g."""
    return w + g


RULES: dict[str, tuple[Callable[..., Row], dict[str, float]]] = {
    "SGD": (sgd, {"learning_rate": 0.1}),
    "Adagrad": (adagrad, {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}),
    "Adam": (adam, {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
    "Add": (add, {}),
}


def make(optimizer: str, parameters: dict[str, float], dim: int) -> tuple[Any, int]:
    """A store with one table of zeros."""
    store = _core.Store()
    return store, store.create_table("t", dim, "float32", optimizer, parameters, "Zeros", {}, 0, "Reject")


@pytest.mark.parametrize("dim", [1, 3, 8, 16, 17, 64, 200])
@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_follows_its_formula(name: str, dim: int) -> None:
    """300 random steps over rows touched at different times end where the formula ends, to float32's precision."""
    rule, parameters = RULES[name]
    random = np.random.default_rng(dim)
    store, table = make(name, parameters, dim)
    weights = {key: np.zeros(dim) for key in range(20)}
    states: dict[int, State] = {key: {} for key in range(20)}
    for _ in range(300):
        keys = random.choice(20, int(random.integers(1, 12)), replace=False).astype(np.uint64)
        gradients = random.standard_normal((len(keys), dim)).astype(np.float32)
        store.push(table, keys, gradients)
        for key, gradient in zip(keys.tolist(), gradients.astype(np.float64), strict=True):
            weights[key] = rule(weights[key], gradient, states[key], parameters)
    out = np.empty((20, dim), np.float32)
    store.pull(table, np.arange(20, dtype=np.uint64), out, False)
    expected = np.array([weights[key] for key in range(20)])
    np.testing.assert_allclose(out, expected, rtol=3e-4, atol=3e-5, err_msg=f"{name}, dim and seed {dim}")


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        # Worked by hand for gradients 1, 2, -1 on a weight of 0.
        ("SGD", {"learning_rate": 0.5}, [-0.5, -1.5, -1.0]),
        # G: 4, 8, 9 from 3: w -= 1 / 2; w -= 2 / sqrt(8); w += 1 / 3.
        (
            "Adagrad",
            {"learning_rate": 1.0, "initial_accumulator": 3.0, "epsilon": 0.0},
            [-0.5, -0.5 - 2 / math.sqrt(8), -0.5 - 2 / math.sqrt(8) + 1 / 3],
        ),
        # beta1 = beta2 = 1/2. m: .5, 1.25, .125; v: .5, 2.25, 1.625; corrections 1/2, 3/4, 7/8.
        (
            "Adam",
            {"learning_rate": 1.0, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.0},
            [
                -1.0,
                -1.0 - (1.25 / 0.75) / math.sqrt(2.25 / 0.75),
                -1.0 - (1.25 / 0.75) / math.sqrt(3.0) - (0.125 / 0.875) / math.sqrt(1.625 / 0.875),
            ],
        ),
        ("Add", {}, [1.0, 3.0, 2.0]),
    ],
)
def test_three_steps_by_hand(name: str, parameters: dict[str, float], expected: list[float]) -> None:
    """The first three steps are those worked out on paper."""
    store, table = make(name, parameters, 1)
    key = np.array([9], np.uint64)
    out = np.empty((1, 1), np.float32)
    for gradient, wanted in zip((1.0, 2.0, -1.0), expected, strict=True):
        store.push(table, key, np.array([[gradient]], np.float32))
        store.pull(table, key, out, False)
        assert out[0, 0] == pytest.approx(wanted, rel=1e-6)


def test_adams_clock_is_the_rows_own() -> None:
    """A row first touched late is corrected as a new one, and its state says how often it was touched."""
    store, table = make("Adam", RULES["Adam"][1], 2)
    old, new = np.array([1], np.uint64), np.array([2], np.uint64)
    gradient = np.ones((1, 2), np.float32)
    for _ in range(50):
        store.push(table, old, gradient)
    store.push(table, new, gradient)
    out = np.empty((1, 2), np.float32)
    store.pull(table, new, out, False)
    assert out[0, 0] == pytest.approx(-0.01, rel=1e-5)
    state = store.state(table, np.array([1, 2, 3], np.uint64))
    assert np.ascontiguousarray(state[:, -4:]).view(np.uint32)[:, 0].tolist() == [50, 1, 0]


def test_repeated_keys_are_summed_before_the_optimizer() -> None:
    """A push that names a key three times is one update with the sum, in order of occurrence."""
    parameters = RULES["Adagrad"][1]
    gradients = np.array([[1e8], [1.0], [-1e8], [3.0]], np.float32)
    store, table = make("Adagrad", parameters, 1)
    store.push(table, np.array([5, 5, 5, 6], np.uint64), gradients)
    once, other = make("Adagrad", parameters, 1)
    in_order = np.float32(np.float32(np.float32(1e8) + np.float32(1.0)) - np.float32(1e8))
    once.push(other, np.array([5, 6], np.uint64), np.array([[in_order], [3.0]], np.float32))
    rows, expected = np.empty((2, 1), np.float32), np.empty((2, 1), np.float32)
    store.pull(table, np.array([5, 6], np.uint64), rows, False)
    once.pull(other, np.array([5, 6], np.uint64), expected, False)
    assert np.array_equal(rows, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_no_number_follows_the_policy(bad: float) -> None:
    """Reject names table, key and position and changes nothing; Zero drops the element; Allow applies it."""
    keys = np.arange(3, dtype=np.uint64)
    gradients = np.ones((3, 4), np.float32)
    gradients[1, 2] = bad
    for policy in ("Reject", "Zero", "Allow"):
        store = _core.Store()
        table = store.create_table(
            "clicks", 4, "float32", "SGD", {"learning_rate": 1.0}, "Zeros", {}, 0, policy
        )
        if policy == "Reject":
            with pytest.raises(_core.StatusError) as caught:
                store.push(table, keys, gradients)
            kind, message = caught.value.args
            assert kind == "NonFinite"
            assert "clicks" in message
            assert "key 1 " in message
            assert store.table_info(table)["rows"] == 0
            continue
        store.push(table, keys, gradients)
        out = np.empty((3, 4), np.float32)
        store.pull(table, keys, out, False)
        if policy == "Zero":
            assert out[1].tolist() == [-1.0, -1.0, 0.0, -1.0]
            assert store.counters()["nonfinite_rows"] == 1
        else:
            assert not np.isfinite(out[1, 2])
        assert out[[0, 2]].tolist() == [[-1.0] * 4] * 2


def test_denormal_gradients_are_applied_as_they_are() -> None:
    """No flush to zero: the smallest float32 arrives."""
    store, table = make("Add", {}, 1)
    smallest = np.array([[1e-45]], np.float32)
    store.push(table, np.array([1], np.uint64), smallest)
    out = np.empty((1, 1), np.float32)
    store.pull(table, np.array([1], np.uint64), out, False)
    assert out[0, 0] == smallest[0, 0]
    assert out[0, 0] > 0


def test_the_learning_rate_changes_live() -> None:
    """A step after the change goes by the new rate; the rows before it stay."""
    store, table = make("SGD", {"learning_rate": 1.0}, 1)
    key, one = np.array([1], np.uint64), np.ones((1, 1), np.float32)
    store.push(table, key, one)
    store.set_learning_rate(table, 0.25)
    store.push(table, key, one)
    out = np.empty((1, 1), np.float32)
    store.pull(table, key, out, False)
    assert out[0, 0] == -1.25
    with pytest.raises(_core.StatusError, match="learning_rate is nan"):
        store.set_learning_rate(table, math.nan)
