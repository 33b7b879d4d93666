"""Each optimizer against its formula, written here from the paper, and against three steps worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from optimizer_references import REFERENCES, Parameters, State

from tablebay.client.optimizers import OPTIMIZERS
from tablebay.native import _core
from tests.unit.checkpoint_blocks import whole

STEPS = 1000
ALL_SHARDS = list(range(1024))
KEYS = 40


def make(optimizer: str, parameters: Parameters, dim: int) -> tuple[Any, int]:
    """A store with one table of zeros."""
    store = _core.Store()
    return store, store.create_table("t", dim, "float32", optimizer, parameters, "Zeros", {}, 0, "Reject")


@pytest.mark.parametrize("dim", [1, 3, 8, 16, 17, 64])
@pytest.mark.parametrize("name", REFERENCES)
def test_an_optimizer_follows_its_reference(name: str, dim: int) -> None:
    """1,000 random steps with repeated keys end within 1e-5 of the reference, of at least 1e-3 each."""
    seed = dim
    reference = REFERENCES[name]
    random = np.random.default_rng(seed)
    start = random.uniform(-5e-3, 5e-3, (KEYS, dim)).astype(np.float32)
    all_keys = np.arange(KEYS, dtype=np.uint64)
    store, table = make(name, reference.parameters, dim)
    store.assign(table, all_keys, start)
    weights = dict(enumerate(start.astype(np.float64)))
    states: dict[int, State] = {key: {} for key in range(KEYS)}
    scale = 1e-3 if name == "Add" else 1.0
    for _ in range(STEPS):
        keys = random.integers(0, KEYS, int(random.integers(1, 12))).astype(np.uint64)
        gradients = (scale * random.standard_normal((len(keys), dim))).astype(np.float32)
        store.push(table, keys, gradients)
        for key in dict.fromkeys(keys.tolist()):
            summed = gradients[keys == key].astype(np.float64).sum(axis=0)
            weights[key] = reference.rule(weights[key], summed, states[key], reference.parameters)
    out = np.empty((KEYS, dim), np.float32)
    store.pull(table, all_keys, out, False)
    expected = np.array([weights[key] for key in range(KEYS)])
    excess = np.abs(out - expected) / np.maximum(np.abs(expected), 1e-3)
    assert excess.max() <= 1e-5, f"{name}, dim and seed {dim}: {excess.max()}"
    assert np.abs(expected - start).max() > 1e-4, f"{name}, dim and seed {dim}: nothing was learnt"


@pytest.mark.parametrize("name", REFERENCES)
def test_three_steps_by_hand(name: str) -> None:
    """Gradients 1, 2, -1 on a weight of 0 give what was worked out on paper, in the core and in the reference."""
    reference = REFERENCES[name]
    store, table = make(name, reference.hand_parameters, 1)
    key = np.array([9], np.uint64)
    out = np.empty((1, 1), np.float32)
    row, state = np.zeros(1), State()
    for gradient, wanted in zip((1.0, 2.0, -1.0), reference.hand, strict=True):
        store.push(table, key, np.array([[gradient]], np.float32))
        store.pull(table, key, out, False)
        row = reference.rule(row, np.array([gradient]), state, reference.hand_parameters)
        assert out[0, 0] == pytest.approx(wanted, rel=3e-6)
        assert row[0] == pytest.approx(wanted, rel=3e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_state_of_a_row_has_the_names_and_widths_that_are_said(name: str) -> None:
    """As many 4-byte numbers as the widths say, a new row's for a key without one."""
    store, table = make(name, REFERENCES[name].parameters, 5)
    info = store.table_info(table)
    assert tuple(info["state_names"]) == REFERENCES[name].state
    assert 4 * sum(info["state_widths"]) == info["state_bytes"]
    keys = np.array([1, 2], np.uint64)
    before = store.state(table, keys)
    store.pull(table, keys, np.empty((2, 5), np.float32), True)
    assert np.array_equal(before, store.state(table, keys))


def test_the_core_and_the_sdk_know_the_same_optimizers() -> None:
    """By name, each with a reference, and the defaults of each make a table."""
    with pytest.raises(_core.StatusError) as caught:
        make("none of them", {}, 1)
    assert sorted(caught.value.args[1].split("wanted one of ")[1].split(", ")) == sorted(OPTIMIZERS)
    assert set(REFERENCES) == set(OPTIMIZERS)
    for name, optimizer in OPTIMIZERS.items():
        store, table = make(name, optimizer().parameters(), 3)
        info = store.table_info(table)
        one = [
            state
            for state, width in zip(info["state_names"], info["state_widths"], strict=True)
            if width == 1
        ]
        assert set(one) - {"step"} == set(optimizer.OF_A_ROW)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_loaded_table_goes_on_as_if_never_interrupted(name: str) -> None:
    """Pushes, a checkpoint, a load into another store, and pushes again: bit for bit what one store does alone."""
    seed, dim = 11, 5
    random = np.random.default_rng(seed)
    options = ("t", dim, "float32", name, REFERENCES[name].parameters, "Normal", {"mean": 0.0, "stddev": 0.1})
    batches = [
        (random.integers(0, 300, 40).astype(np.uint64), random.standard_normal((40, dim)).astype(np.float32))
        for _ in range(60)
    ]
    whole_run, first = _core.Store(), _core.Store()
    table = whole_run.create_table(*options, 3, "Reject")
    first.create_table(*options, 3, "Reject")
    for keys, gradients in batches:
        whole_run.push(table, keys, gradients)
    for keys, gradients in batches[:30]:
        first.push(table, keys, gradients)
    cut = first.take([], 0.0, True)
    content = whole(cut, table)
    second = _core.Store(epoch=2)
    loader = second.load(ALL_SHARDS)
    loader.create_table(*options, 3, "Reject")
    loader.begin(table, None, False).feed(content)
    loader.finish()
    for keys, gradients in batches[30:]:
        second.push(table, keys, gradients)
    keys = np.arange(300, dtype=np.uint64)
    rows = [np.empty((300, dim), np.float32) for _ in range(2)]
    for store, out in zip((whole_run, second), rows, strict=True):
        store.pull(table, keys, out, False)
    assert rows[0].tobytes() == rows[1].tobytes(), f"seed {seed}"
    assert whole_run.state(table, keys).tobytes() == second.state(table, keys).tobytes(), f"seed {seed}"


@pytest.mark.parametrize("name", ["FTRL", "GroupFTRL", "TensorNetFTRL", "TensorFlowFTRL"])
def test_ftrl_agrees_with_weights_that_it_did_not_make(name: str) -> None:
    """First rows, assigned rows and rows loaded without state keep their weights until a gradient moves them."""
    parameters = {"learning_rate": 0.1, "beta": 1.0, "l1": 0.25, "l2": 2.0, "initial_accumulator": 0.5}
    if name == "GroupFTRL":
        parameters["l21"] = 0.75
    elif name == "TensorNetFTRL":
        del parameters["initial_accumulator"]
    elif name == "TensorFlowFTRL":
        parameters["l2_shrinkage"] = 0.0
    store = _core.Store()
    table = store.create_table(
        "t", 4, "float32", name, parameters, "Normal", {"mean": 0.0, "stddev": 1.0}, 1, "Reject"
    )
    keys = np.arange(50, dtype=np.uint64)
    zeros = np.zeros((50, 4), np.float32)
    before, after = np.empty_like(zeros), np.empty_like(zeros)
    store.pull(table, keys, before, True)
    store.push(table, keys, zeros)
    store.pull(table, keys, after, False)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    store.push(table, keys, zeros + 3)
    store.assign(table, keys, before)
    store.push(table, keys, zeros)
    store.pull(table, keys, after, False)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    loaded = _core.Store(epoch=2)
    loader = loaded.load(ALL_SHARDS)
    loader.create_table("t", 4, "float32", name, parameters, "Zeros", {}, 1, "Reject")
    cut = store.take([], 0.0, True)
    loader.begin(table, dict(cut.tables)[table], False, weights_only=True).feed(whole(cut, table))
    loader.finish()
    loaded.push(table, keys, zeros)
    loaded.pull(table, keys, after, False)
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_group_ftrl_makes_whole_rows_zero() -> None:
    """A row of small gradients is 0 in all columns, one of large gradients in none; FTRL with l1 zeroes columns."""
    parameters = {
        "learning_rate": 0.1,
        "beta": 1.0,
        "l1": 0.0,
        "l2": 1.0,
        "l21": 1.0,
        "initial_accumulator": 0.0,
    }
    store, table = make("GroupFTRL", parameters, 4)
    keys = np.arange(2, dtype=np.uint64)
    gradients = np.array([[0.9, -0.9, 0.9, 0.1], [1.5, -1.5, 1.5, 0.1]], np.float32)
    store.push(table, keys, gradients)
    rows = np.empty((2, 4), np.float32)
    store.pull(table, keys, rows, False)
    assert rows[0].tobytes() == bytes(16)
    assert (np.sign(rows[1]) == -np.sign(gradients[1])).all()
    del parameters["l21"]
    store, table = make("FTRL", {**parameters, "l1": 0.5}, 4)
    store.push(table, keys, gradients)
    store.pull(table, keys, rows, False)
    assert [(row != 0).tolist() for row in rows] == [[True, True, True, False]] * 2
    assert not np.signbit(rows[:, 3]).any()


def test_ftrl_refuses_a_learning_rate_of_zero() -> None:
    """It divides by it: at the start and live."""
    parameters = {**REFERENCES["FTRL"].parameters, "learning_rate": 0.0}
    with pytest.raises(_core.StatusError, match="learning_rate, which is 0; wanted more than 0"):
        make("FTRL", parameters, 1)
    store, table = make("FTRL", REFERENCES["FTRL"].parameters, 1)
    with pytest.raises(_core.StatusError, match="learning_rate is 0, wanted more than 0"):
        store.set_learning_rate(table, 0.0)


def test_adams_clock_is_the_rows_own() -> None:
    """A row first touched late is corrected as a new one, and its state says how often it was touched."""
    store, table = make("Adam", REFERENCES["Adam"].parameters, 2)
    old, new = np.array([1], np.uint64), np.array([2], np.uint64)
    gradient = np.ones((1, 2), np.float32)
    for _ in range(50):
        store.push(table, old, gradient)
    store.push(table, new, gradient)
    out = np.empty((1, 2), np.float32)
    store.pull(table, new, out, False)
    assert out[0, 0] == pytest.approx(-2e-4, rel=1e-5)
    state = store.state(table, np.array([1, 2, 3], np.uint64))
    assert np.ascontiguousarray(state[:, -4:]).view(np.uint32)[:, 0].tolist() == [50, 1, 0]


def test_repeated_keys_are_summed_before_the_optimizer() -> None:
    """A push that names a key three times is one update with the sum, in order of occurrence."""
    parameters = REFERENCES["Adagrad"].parameters
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
