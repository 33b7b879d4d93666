"""What stands beside an optimizer's rule: clipping, weight decay, bounds, and schedules of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from optimizer_references import REFERENCES, SCHEDULES, Parameters, State, factor, update

import tablebay as tb
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.native import _core

KEYS = 40
STEPS = 1000
CLIPS = {"clip_value": 1.2, "clip_norm": 2.0, "weight_bound": 6e-3}
SCHEDULE = {"warmup_steps": 50.0, "schedule": 2.0, "schedule_steps": 700.0, "schedule_to": 0.1}
DECAYS = {"coupled": {"weight_decay": 0.3}, "decoupled": {"weight_decay": 0.3, "decoupled": 1.0}}


def make(optimizer: str, parameters: Parameters, dim: int) -> tuple[Any, int]:
    """A store with one table of zeros."""
    store = _core.Store()
    return store, store.create_table("t", dim, "float32", optimizer, parameters, "Zeros", {}, 0, "Reject")


def beside(name: str, decay: str) -> Parameters:
    """All that an optimizer takes beside its rule."""
    taken = set(OPTIMIZERS[name]().values())
    return {key: value for key, value in {**CLIPS, **SCHEDULE, **DECAYS[decay]}.items() if key in taken}


def test_long_rows_are_conditioned_too() -> None:
    """Rows longer than what is made ready at once, and many rows in one push: clipped by value and norm."""
    seed = 3
    random = np.random.default_rng(seed)
    for dim, count in ((9000, 5), (700, 100), (1, 300)):
        keys = np.arange(count, dtype=np.uint64)
        gradients = random.standard_normal((count, dim)).astype(np.float32)
        store, table = make("SGD", {"learning_rate": 1.0, "clip_value": 1.0, "clip_norm": 0.5}, dim)
        store.push(table, keys, gradients)
        out = np.empty((count, dim), np.float32)
        store.pull(table, keys, out, False)
        clipped = np.clip(gradients.astype(np.float64), -1, 1)
        norms = np.linalg.norm(clipped, axis=1, keepdims=True)
        expected = -clipped * np.minimum(1, 0.5 / norms)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-9, err_msg=f"seed {seed}, dim {dim}")


@pytest.mark.parametrize("dim", [1, 8, 19, 64])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "Add"])
def test_all_that_stands_beside_a_rule_follows_the_reference(name: str, decay: str, dim: int) -> None:
    """1,000 random steps with everything on, within 1e-5 of the reference, of at least 1e-3 each."""
    seed = dim
    rule = REFERENCES[name].rule
    parameters = {**REFERENCES[name].parameters, **beside(name, decay)}
    random = np.random.default_rng(seed)
    start = random.uniform(-5e-3, 5e-3, (KEYS, dim)).astype(np.float32)
    all_keys = np.arange(KEYS, dtype=np.uint64)
    store, table = make(name, parameters, dim)
    store.assign(table, all_keys, start)  # step 0
    weights = dict(enumerate(start.astype(np.float64)))
    states: dict[int, State] = {key: {} for key in range(KEYS)}
    for step in range(1, STEPS + 1):
        keys = random.integers(0, KEYS, int(random.integers(1, 12))).astype(np.uint64)
        gradients = random.standard_normal((len(keys), dim)).astype(np.float32)
        store.push(table, keys, gradients)
        for key in dict.fromkeys(keys.tolist()):
            summed = gradients[keys == key].astype(np.float64).sum(axis=0)
            weights[key] = update(rule, weights[key], summed, states[key], parameters, step)
    out = np.empty((KEYS, dim), np.float32)
    store.pull(table, all_keys, out, False)
    expected = np.array([weights[key] for key in range(KEYS)])
    excess = np.abs(out - expected) / np.maximum(np.abs(expected), 1e-3)
    assert excess.max() <= 1e-5, f"{name}, dim and seed {dim}: {excess.max()}"
    assert np.abs(out).max() <= np.float32(CLIPS["weight_bound"])


@pytest.mark.parametrize(
    ("parameters", "start", "gradient", "wanted"),
    [
        ({"clip_value": 2.0}, [0, 0], [3, -1], [-2, 1]),
        ({"clip_norm": 1.0}, [0, 0], [3, -4], [-0.6, 0.8]),
        ({"clip_norm": 6.0}, [0, 0], [3, -4], [-3, 4]),
        # By value first, to (2, -2), then to a length of 1.
        ({"clip_value": 2.0, "clip_norm": 1.0}, [0, 0], [2, -9], [-math.sqrt(0.5), math.sqrt(0.5)]),
        ({"weight_decay": 0.5}, [2, -4], [1, 1], [0, -3]),
        # The decay is not clipped with the gradient.
        ({"weight_decay": 0.5, "clip_value": 1.0}, [8, -8], [3, 3], [3, -5]),
        ({"weight_decay": 0.5, "decoupled": 1.0}, [2, -4], [1, 1], [0, -3]),
        ({"weight_bound": 1.5}, [0, 1], [-3, 0.5], [1.5, 0.5]),
    ],
)
def test_each_option_does_what_was_worked_out_by_hand(
    parameters: Parameters, start: list[float], gradient: list[float], wanted: list[float]
) -> None:
    """One step of SGD at a learning rate of 1."""
    store, table = make("SGD", {"learning_rate": 1.0, **parameters}, 2)
    key = np.array([3], np.uint64)
    store.assign(table, key, np.array([start], np.float32))
    store.push(table, key, np.array([gradient], np.float32))
    out = np.empty((1, 2), np.float32)
    store.pull(table, key, out, False)
    np.testing.assert_allclose(out[0], wanted, rtol=1e-6)


def test_coupled_and_decoupled_decay_differ_where_the_rule_scales_gradients() -> None:
    """Adagrad from G = 0: coupled decay becomes a whole step, decoupled decay is a share of the weight."""
    for decay, wanted in (({}, 0.9), ({"decoupled": 1.0}, 0.99)):
        parameters = {
            "learning_rate": 0.1,
            "initial_accumulator": 0.0,
            "epsilon": 1e-12,
            "weight_decay": 0.1,
            **decay,
        }
        store, table = make("Adagrad", parameters, 1)
        key = np.array([1], np.uint64)
        store.assign(table, key, np.ones((1, 1), np.float32))
        store.push(table, key, np.zeros((1, 1), np.float32))
        out = np.empty((1, 1), np.float32)
        store.pull(table, key, out, False)
        assert out[0, 0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("shape", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_a_schedule_goes_by_the_step(shape: str, warmup: int) -> None:
    """With a gradient of 1 a step of SGD is as long as the learning rate, in the warm-up and after the end too."""
    parameters: Parameters = {"learning_rate": 0.5, "warmup_steps": float(warmup)}
    if shape != "Constant":
        parameters |= {"schedule": float(SCHEDULES.index(shape)), "schedule_steps": 10.0, "schedule_to": 0.25}
    store, table = make("SGD", parameters, 1)
    out = np.empty((1, 1), np.float32)
    found = []
    for step in range(40):
        key = np.array([step], np.uint64)
        store.push(table, key, -np.ones((1, 1), np.float32))
        store.pull(table, key, out, False)
        found.append(float(out[0, 0]))
    np.testing.assert_allclose(found, [0.5 * factor(step, parameters) for step in range(40)], rtol=1e-7)


def test_a_schedule_by_hand() -> None:
    """Half way and at the end; the warm-up's first and last step."""
    steps = {"schedule_steps": 4.0, "schedule_to": 0.25, "warmup_steps": 2.0}
    wanted = {
        "Constant": [0.5, 1, 1, 1, 1, 1, 1, 1],
        "Linear": [0.5, 1, 1, 0.8125, 0.625, 0.4375, 0.25, 0.25],
        "Cosine": [0.5, 1, 1, 0.8901650, 0.625, 0.3598350, 0.25, 0.25],
        "Exponential": [0.5, 1, 1, 0.7071068, 0.5, 0.3535534, 0.25, 0.1767767],
        "Staircase": [0.5, 1, 1, 1, 1, 1, 0.25, 0.25],
    }
    for shape, factors in wanted.items():
        parameters: Parameters = {"learning_rate": 1.0, "warmup_steps": 2.0}
        if shape != "Constant":
            parameters |= {"schedule": float(SCHEDULES.index(shape)), **steps}
        store, table = make("SGD", parameters, 1)
        keys = np.arange(8, dtype=np.uint64)
        for step in range(8):
            store.push(table, keys[step : step + 1], -np.ones((1, 1), np.float32))
        out = np.empty((8, 1), np.float32)
        store.pull(table, keys, out, False)
        np.testing.assert_allclose(out[:, 0], factors, rtol=1e-6, err_msg=shape)


def test_a_servers_schedule_goes_by_the_clients_step() -> None:
    """Not by how many pushes came: steps out of order each have their own rate, and one sent again changes nothing."""
    parameters = {"learning_rate": 1.0, "schedule": 1.0, "schedule_steps": 10.0, "schedule_to": 0.0}
    store, table = make("SGD", parameters, 1)
    store.hello(1, 2, 1, 0)
    for step in (3, 0, 3, 7, 20):
        part = messages.Part(
            table_id=table, dim=1, keys=np.array([step], np.uint64).tobytes(), rows=np.float32(-1).tobytes()
        )
        sender = messages.Sender(client_high=1, client_low=2, incarnation=1)
        request = messages.PushRequest(sender=sender, step=step, oldest_step=0, part=part)
        store.handle_push(request.SerializeToString())
    out = np.empty((4, 1), np.float32)
    store.pull(table, np.array([0, 3, 7, 20], np.uint64), out, False)
    np.testing.assert_allclose(out[:, 0], [1.0, 0.7, 0.3, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("SGD", {"clip_value": -1.0}, "clip_value is -1, wanted 0 to 1e+30"),
        ("SGD", {"weight_bound": 2e30}, "weight_bound is 2e+30"),
        ("SGD", {"decoupled": 1.0}, "decoupled is set and weight_decay is 0"),
        ("SGD", {"decoupled": 0.5, "weight_decay": 1.0}, "decoupled is 0.5, wanted a whole number"),
        ("SGD", {"schedule": 5.0}, "schedule is 5, wanted 0 to 4"),
        ("SGD", {"schedule": 1.0}, "schedule_steps is 0, wanted at least 1"),
        ("SGD", {"schedule": 3.0, "schedule_steps": 5.0}, "schedule_to is 0, which no product reaches"),
        ("SGD", {"schedule_steps": 5.0}, "schedule is Constant; wanted another"),
        ("SGD", {"warmup_steps": 1.5}, "warmup_steps is 1.5, wanted a whole number"),
        ("FTRL", {"schedule": 1.0, "schedule_steps": 5.0}, "FTRL has no parameter 'schedule'"),
        ("FTRL", {"weight_decay": 0.1}, "FTRL has no parameter 'weight_decay'"),
        ("AdamW", {"decoupled": 1.0}, "AdamW has no parameter 'decoupled'"),
        ("Add", {"clip_value": 1.0}, "Add has no parameter 'clip_value'"),
    ],
)
def test_what_cannot_be_or_would_be_ignored_is_refused(
    name: str, parameters: Parameters, message: str
) -> None:
    """By the core, by name, with the value found."""
    with pytest.raises(_core.StatusError, match=message.replace("+", r"\+")):
        make(name, {**REFERENCES[name].parameters, **parameters}, 1)


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: tb.SGD(clip_norm=-1.0), "SGD: clip_norm is -1.0"),
        (lambda: tb.SGD(decoupled=True), "decoupled is set and weight_decay is 0"),
        (lambda: tb.Adam(schedule="Cosine"), "schedule is Cosine and schedule_steps is 0"),
        (lambda: tb.Adam(schedule="Cosin", schedule_steps=5), "schedule is 'Cosin': .*'Cosine'"),
        (
            lambda: tb.Adam(schedule="Staircase", schedule_steps=5),
            "schedule_to is 0, which no product reaches",
        ),
        (lambda: tb.Adam(schedule_to=0.5), "schedule is Constant; wanted another"),
        (lambda: tb.Adam(warmup_steps=1.5), "warmup_steps is 1.5"),
        (lambda: tb.FTRL(schedule="Cosine"), "schedule is 'Cosine'"),
        (lambda: tb.AdamW(decoupled=True), "decoupled is True"),
        (lambda: tb.Add(clip_value=1.0), "clip_value is 1.0"),
        (lambda: tb.SGD(0.1, 0.5), "argument 2 is 0.5"),
    ],
)
def test_the_sdk_refuses_the_same(make_one: Any, message: str) -> None:
    """BadRequest, by the field's Python name."""
    with pytest.raises(tb.BadRequest, match=message):
        make_one()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "Add"])
def test_the_sdk_the_wire_and_the_core_agree_on_every_field(name: str, decay: str) -> None:
    """A spec with everything on survives the wire, and the core takes its parameters; no default is said."""
    given = {**REFERENCES[name].parameters, **beside(name, decay)}
    spec = tb.TableSpec("t", 3, optimizer=OPTIMIZERS[name].from_parameters(given))
    assert spec.optimizer.parameters() == given
    assert tb.TableSpec.from_message(spec.message()) == spec
    make(name, spec.optimizer.parameters(), 3)
    assert not set(OPTIMIZERS[name]().parameters()) & {*CLIPS, *SCHEDULE, "decoupled"}
