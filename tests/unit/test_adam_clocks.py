"""What Adam's t is: a row's own updates, the time of the push, or that with moments that decay meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optimizer_references import REFERENCES, Parameters, State

import tablebay as tb
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.tables import dump_tables, load_tables
from tablebay.native import _core
from tests.unit.checkpoint_blocks import whole

CLOCKS = {"Row": 0.0, "Global": 1.0, "LazyDecay": 2.0}
FAMILY = ["Adam", "AdamW", "AMSGrad", "PartialRowwiseAdam", "LAMB"]
ALL_SHARDS = list(range(1024))


def make(optimizer: str, parameters: Parameters, dim: int, store: Any = None) -> tuple[Any, int]:
    """A store, or loader, with one table of zeros."""
    store = store or _core.Store()
    return store, store.create_table("t", dim, "float32", optimizer, parameters, "Zeros", {}, 0, "Reject")


# Adam's example of the references, with its third gradient at time 4 rather than 3.
# Row: as there. Global: the third's corrections are 1 - 1/16: .125 / .9375 = .1333333,
# sqrt(1.625 / .9375) = 1.3165612: .1012739.
# LazyDecay: m = 1.25 / 2 first, then .625 / 2 - .5 = -.1875; v = 2.25 / 2 first, then 1.125 / 2 + .5 = 1.0625:
# -.2 / sqrt(1.1333333) = -.1878673.
BY_HAND = {
    "Row": (-1.0, -1.9622504, -2.0670789),
    "Global": (-1.0, -1.9622504, -2.0635243),
    "LazyDecay": (-1.0, -1.9622504, -1.7743831),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_three_steps_by_hand(clock: str) -> None:
    """Gradients 1, 2, -1 at times 1, 2, 4, and another row's at 3, give what was worked out on paper."""
    reference = REFERENCES["Adam"]
    parameters = {**reference.hand_parameters, "clock": CLOCKS[clock]}
    store, table = make("Adam", parameters, 1)
    key, out = np.array([9], np.uint64), np.empty((1, 1), np.float32)
    row, state = np.zeros(1), State()
    for now, gradient, wanted in zip((1, 2, 4), (1.0, 2.0, -1.0), BY_HAND[clock], strict=True):
        if now == 4:
            store.push(table, key + np.uint64(1), np.ones((1, 1), np.float32))
        store.push(table, key, np.array([[gradient]], np.float32))
        store.pull(table, key, out, False)
        row = reference.rule(row, np.array([gradient]), state, {**parameters, "now": now})
        assert out[0, 0] == pytest.approx(wanted, rel=3e-6)
        assert row[0] == pytest.approx(wanted, rel=3e-6)


@pytest.mark.parametrize("name", [*FAMILY, "TensorNetAdam"])
def test_what_is_left_of_one_is_rounded_once(name: str) -> None:
    """1 - beta2 is float32's 0.001, not 1 less float32's 0.999, which is 1.3e-5 away and would be so in each step."""
    parameters = {**REFERENCES[name].parameters, "beta1": 0.9, "beta2": 0.999}
    store, table = make(name, parameters, 1)
    key = np.array([1], np.uint64)
    store.push(table, key, np.ones((1, 1), np.float32))
    m, v = np.ascontiguousarray(store.state(table, key)[0, :8]).view(np.float32).tolist()
    assert (m, v) == (np.float32(0.1), np.float32(0.001))


@pytest.mark.parametrize("dim", [1, 8, 17])
@pytest.mark.parametrize("clock", ["Global", "LazyDecay"])
@pytest.mark.parametrize("name", FAMILY)
def test_an_optimizer_follows_its_reference_by_each_clock(name: str, clock: str, dim: int) -> None:
    """1,000 random steps end within 1e-5 of the reference, of at least 1e-3 each; and a row's step is its time."""
    seed, count = dim, 60
    reference = REFERENCES[name]
    parameters = {**reference.parameters, "clock": CLOCKS[clock]}
    random = np.random.default_rng(seed)
    start = random.uniform(-5e-3, 5e-3, (count, dim)).astype(np.float32)
    all_keys = np.arange(count, dtype=np.uint64)
    store, table = make(name, parameters, dim)
    store.assign(table, all_keys, start)  # the first step
    weights = dict(enumerate(start.astype(np.float64)))
    states: dict[int, State] = {key: {} for key in range(count)}
    for step in range(1, 1001):
        keys = random.integers(0, count, int(random.integers(1, 12))).astype(np.uint64)
        gradients = random.standard_normal((len(keys), dim)).astype(np.float32)
        store.push(table, keys, gradients)
        for key in dict.fromkeys(keys.tolist()):
            summed = gradients[keys == key].astype(np.float64).sum(axis=0)
            now = {**parameters, "now": step + 1}
            weights[key] = reference.rule(weights[key], summed, states[key], now)
    out = np.empty((count, dim), np.float32)
    store.pull(table, all_keys, out, False)
    expected = np.array([weights[key] for key in range(count)])
    excess = np.abs(out - expected) / np.maximum(np.abs(expected), 1e-3)
    assert excess.max() <= 1e-5, f"dim and seed {dim}: {excess.max()}"
    state = np.ascontiguousarray(store.state(table, all_keys)[:, -4:])
    assert state.view(np.uint32)[:, 0].tolist() == [states[key].get("t", 0) for key in range(count)]


def test_lazily_decayed_moments_are_those_of_dense_adam() -> None:
    """Whenever a row is updated, its m and v are what an Adam has that takes 0 for the gradient of all others."""
    seed, count, dim = 5, 20, 4
    parameters = {**REFERENCES["Adam"].parameters, "clock": 2.0}
    beta1, beta2 = parameters["beta1"], parameters["beta2"]
    random = np.random.default_rng(seed)
    store, table = make("Adam", parameters, dim)
    m, v = np.zeros((count, dim)), np.zeros((count, dim))
    for _ in range(300):
        keys = np.unique(random.integers(0, count, 3)).astype(np.uint64)
        dense = np.zeros((count, dim))
        dense[keys] = random.standard_normal((len(keys), dim)).astype(np.float32)
        store.push(table, keys, dense[keys].astype(np.float32))
        m, v = beta1 * m + (1 - beta1) * dense, beta2 * v + (1 - beta2) * dense * dense
        found = np.ascontiguousarray(store.state(table, keys)[:, : 8 * dim]).view(np.float32)
        np.testing.assert_allclose(found[:, :dim], m[keys], rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}")
        np.testing.assert_allclose(found[:, dim:], v[keys], rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}")


@pytest.mark.parametrize("clock", ["Global", "LazyDecay"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_loaded_table_goes_on_as_if_never_interrupted(name: str, clock: str) -> None:
    """The time goes on where the rows left it: bit for bit what one store does alone."""
    seed, dim = 11, 5
    random = np.random.default_rng(seed)
    parameters = {**REFERENCES[name].parameters, "clock": CLOCKS[clock]}
    batches = [
        (random.integers(0, 300, 40).astype(np.uint64), random.standard_normal((40, dim)).astype(np.float32))
        for _ in range(60)
    ]
    (whole_run, table), (first, _) = make(name, parameters, dim), make(name, parameters, dim)
    for keys, gradients in batches:
        whole_run.push(table, keys, gradients)
    for keys, gradients in batches[:30]:
        first.push(table, keys, gradients)
    content = whole(first.take([], 0.0, True), table)
    second = _core.Store(epoch=2)
    loader, _ = make(name, parameters, dim, second.load(ALL_SHARDS))
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


@pytest.mark.parametrize("clock", ["Global", "LazyDecay"])
def test_every_instruction_set_gives_the_same_bits(clock: str) -> None:
    """Rows and state after a few hundred updates, for each optimizer of the family."""
    best = _core.instruction_set()
    results = []
    try:
        for instruction_set in _core.instruction_sets():
            _core.use_instruction_set(instruction_set)
            found = b""
            for name in FAMILY:
                random = np.random.default_rng(3)
                store, table = make(name, {**REFERENCES[name].parameters, "clock": CLOCKS[clock]}, 19)
                for _ in range(100):
                    keys = random.integers(0, 200, 30).astype(np.uint64)
                    store.push(table, keys, random.standard_normal((30, 19)).astype(np.float32))
                everyone, out = np.arange(200, dtype=np.uint64), np.empty((200, 19), np.float32)
                store.pull(table, everyone, out, False)
                found += out.tobytes() + store.state(table, everyone).tobytes()
            results.append(found)
    finally:
        _core.use_instruction_set(best)
    assert len(set(results)) == 1


@pytest.mark.parametrize("clock", ["Global", "LazyDecay"])
def test_any_number_of_servers_has_the_same_rows(clock: Any) -> None:
    """The time is the client's, not a count of what reached a server."""
    spec: dict[str, Any] = {"dim": 3, "optimizer": tb.Adam(0.01, clock=clock)}
    alone = tb.Table(name="users", **spec)
    with tb.local(servers=1) as one, tb.local(servers=3) as three:
        tables = [alone, one.table("users", **spec), three.table("users", **spec)]
        for step in range(1, 30):
            keys = np.arange(0, 40, step, dtype=np.uint64)
            for table in tables:
                table.push(keys, np.full((len(keys), 3), 1.0 / step, np.float32))
        rows = [table.pull(np.arange(40, dtype=np.uint64)).tobytes() for table in tables]
    assert rows[0] == rows[1] == rows[2]


def test_the_clock_has_the_same_name_everywhere() -> None:
    """On the wire, in JSON, and in Python; Row is not said; other optimizers and words are refused."""
    plain = tb.TableSpec("t", 2, optimizer=tb.Adam())
    lazy = replace(plain, optimizer=tb.Adam(clock="LazyDecay"))
    assert tb.TableSpec.from_message(lazy.message()) == lazy
    assert load_tables(dump_tables([lazy])) == [lazy]
    assert '"clock":"LazyDecay"' in dump_tables([lazy])
    assert "clock" not in dump_tables([plain])
    assert "clock" not in plain.optimizer.parameters()
    for name, optimizer in OPTIMIZERS.items():
        assert hasattr(optimizer, "clock") == (name in FAMILY)
        if name not in FAMILY:
            with pytest.raises(_core.StatusError, match="has no parameter 'clock'"):
                make(name, {**REFERENCES[name].parameters, "clock": 1.0}, 2)
    with pytest.raises(tb.BadRequest, match="clock is 'Dense'"):
        tb.Adam(clock="Dense")  # type: ignore[arg-type]
    with pytest.raises(_core.StatusError, match="clock is 3, wanted 0 to 2"):
        make("Adam", {**REFERENCES["Adam"].parameters, "clock": 3.0}, 2)
