"""A table in this process."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tablebay.client.errors import BadRequest, BadType, NonFinite
from tablebay.client.local_table import Table
from tablebay.client.optimizers import FTRL, OPTIMIZERS, RowwiseAdagrad
from tablebay.client.tables import SGD, Adagrad, Adam, Add, Constant, Normal, Uniform, Zeros

EDGE_KEYS = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1], np.uint64)


def test_rows_keep_the_shape_of_the_keys() -> None:
    """keys.shape + (dim,), float32, whatever the shape; no keys, no rows."""
    table = Table(dim=8)
    for shape in ((), (3,), (2, 3), (2, 0), (1, 2, 3, 4)):
        keys = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        rows = table.pull(keys)
        assert rows.shape == (*shape, 8)
        assert rows.dtype == np.float32
    assert len(Table(dim=8)) == 0


def test_new_rows_depend_on_seed_name_key_and_column_alone() -> None:
    """The same in another table of the same spec, in any order; other under another seed or name."""
    keys = np.arange(1000, dtype=np.uint64)
    one = Table(dim=4, seed=7).pull(keys)
    backwards = Table(dim=4, seed=7)
    again = np.stack([backwards.pull(int(key)) for key in keys[::-1]])[::-1]
    assert (one == again).all()
    assert (one != Table(dim=4, seed=8).pull(keys)).mean() > 0.99
    assert (one != Table(dim=4, seed=7, name="other").pull(keys)).mean() > 0.99


@pytest.mark.parametrize("keys", [EDGE_KEYS, EDGE_KEYS.view(np.int64)])
def test_every_64_bit_value_is_a_key(keys: np.ndarray[Any, Any]) -> None:
    """0, 2^64 - 1 and the negative ones are keys like any other, signed or not."""
    table = Table(dim=1, optimizer=Add(), initializer=Zeros(), dtype="int64")
    table.push(keys, np.arange(1, 7).reshape(6, 1))
    assert table.pull(EDGE_KEYS.view(np.int64)).ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert table.pull(EDGE_KEYS).ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert len(table) == 6


def test_push_of_repeated_keys_equals_push_of_their_sum() -> None:
    """Repeats are summed in order of occurrence, and the optimizer runs once."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        keys = draw.integers(0, 20, 200).astype(np.uint64)
        gradients = draw.normal(size=(200, 3)).astype(np.float32)
        repeated, summed = Table(dim=3, optimizer=Adagrad(0.1)), Table(dim=3, optimizer=Adagrad(0.1))
        repeated.push(keys, gradients)
        sums: dict[int, Any] = {}
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            sums[key] = sums[key] + gradient if key in sums else gradient
        summed.push(list(sums), np.stack(list(sums.values())))
        assert (repeated.pull(list(sums)) == summed.pull(list(sums))).all(), f"seed {seed}"


def test_pull_without_create_makes_no_rows() -> None:
    """Missing keys read as zeros and stay missing; those that exist are read."""
    table = Table(dim=2, initializer=Constant(3.0))
    assert table.pull([1, 2], create=False).tolist() == [[0, 0], [0, 0]]
    assert len(table) == 0
    table.pull([1])
    assert table.pull([1, 2], create=False).tolist() == [[3, 3], [0, 0]]


def test_pull_fills_out_in_place() -> None:
    """The very array that was given comes back, filled."""
    table = Table(dim=2, initializer=Constant(3.0))
    out = np.zeros((1, 3, 2), np.float32)
    assert table.pull(np.array([[1, 2, 3]]), out=out) is out
    assert (out == 3.0).all()
    with pytest.raises(BadRequest, match=r"out: found shape \(3, 2\), wanted \(1, 3, 2\)"):
        table.pull(np.array([[1, 2, 3]]), out=np.zeros((3, 2), np.float32))


def test_assign_sets_weights_and_leaves_optimizer_state() -> None:
    """Of a key that repeats, the last row counts."""
    table = Table(dim=1, optimizer=Adagrad(0.1, 0.0), initializer=Zeros())
    table.push([1], np.full((1, 1), 2, np.float32))
    table.assign([1, 5, 1], np.array([[7], [8], [9]], np.float32))
    assert table.pull([1, 5]).tolist() == [[9], [8]]
    assert table.optimizer_state([1, 5])["accumulator"].tolist() == [[4], [0]]


def test_delete_removes_rows_with_their_state() -> None:
    """A deleted key begins anew; a key that is not there is passed over; nothing is returned."""
    table = Table(dim=1, optimizer=Adagrad(0.1, 0.5), initializer=Constant(1.0))
    table.push([1, 2], np.ones((2, 1), np.float32))
    assert table.delete([1, 1, 99]) is None
    assert table.contains(np.array([[1, 2]])).tolist() == [[False, True]]
    assert len(table) == 1
    assert table.pull([1]).tolist() == [[1.0]]
    assert table.optimizer_state([1])["accumulator"].tolist() == [[0.5]]


def test_items_gives_each_row_once() -> None:
    """In batches of at most the size asked for."""
    table = Table(dim=3)
    keys = np.arange(1000, dtype=np.uint64) * 977
    rows = table.pull(keys)
    for batch in (1, 7, 100_000):
        seen: dict[int, Any] = {}
        for found, values in table.items(batch=batch):
            assert 0 < found.size <= batch
            assert values.shape == (found.size, 3)
            seen.update(zip(found.tolist(), values, strict=True))
        assert set(seen) == set(keys.tolist())
        assert all((seen[int(key)] == row).all() for key, row in zip(keys, rows, strict=True))
    assert list(Table(dim=3).items()) == []


def test_optimizer_state_has_the_optimizers_names() -> None:
    """Adagrad: accumulator. Adam: m, v and a step count for each row. SGD and Add: nothing."""
    gradients = np.ones((2, 3), np.float32)
    adam = Table(dim=3, optimizer=Adam(0.1, 0.9, 0.999))
    adam.push([1, 2], gradients)
    adam.push([2], gradients[:1])
    state = adam.optimizer_state(np.array([[1, 2, 3]]))
    assert list(state) == ["m", "v", "step"]
    assert state["m"].shape == state["v"].shape == (1, 3, 3)
    assert state["step"].tolist() == [[1, 2, 0]]
    assert np.allclose(state["m"][0, :, 0], [0.1, 0.19, 0.0])
    assert Table(dim=3, optimizer=SGD()).optimizer_state([1]) == {}
    assert list(Table(dim=3).optimizer_state([1])) == ["accumulator"]


def test_state_that_a_row_has_one_of_has_no_column() -> None:
    """The row-wise accumulator has the shape of the keys, for dim 1 too; a column for each weight has one more."""
    for dim in (1, 3):
        table = Table(dim=dim, optimizer=RowwiseAdagrad(0.1, 0.5), initializer=Zeros())
        table.push(np.array([[1, 2]]), np.full((1, 2, dim), 2.0, np.float32))
        assert table.optimizer_state(np.array([[1, 2, 3]]))["accumulator"].tolist() == [[4.5, 4.5, 0.5]]
        assert Table(dim=dim).optimizer_state(np.array([[1, 2]]))["accumulator"].shape == (1, 2, dim)


def test_set_changes_the_learning_rate_of_later_pushes() -> None:
    """And not the spec, which says what was declared."""
    table = Table(dim=1, optimizer=SGD(1.0), initializer=Zeros())
    table.push([1], np.ones((1, 1), np.float32))
    table.set(learning_rate=0.25)
    table.push([1], np.ones((1, 1), np.float32))
    assert table.pull([1]).tolist() == [[-1.25]]
    assert table.spec.optimizer == SGD(1.0)
    with pytest.raises(BadRequest, match=r"learning_rate is -1\.0, wanted 0 to 1e\+30"):
        table.set(learning_rate=-1.0)
    with pytest.raises(BadType, match="learning_rate: found str"):
        table.set(learning_rate="0.1")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="optimizer Add has no learning_rate"):
        Table(dim=1, optimizer=Add()).set(learning_rate=0.1)


def test_set_changes_the_weight_decay_of_later_pushes() -> None:
    """From the formulas: w -= rate * (g + decay * w), and decoupled w -= rate * decay * w, then w -= rate * g."""
    one = np.ones((1, 1), np.float32)
    table = Table(dim=1, optimizer=SGD(1.0), initializer=Zeros())
    table.push([1], one)
    table.set(weight_decay=0.5)
    table.push([1], one)
    assert table.pull([1]).tolist() == [[-1.0 - (1.0 + 0.5 * -1.0)]]
    table.set(learning_rate=0.5, weight_decay=0.0)
    table.push([1], one)
    assert table.pull([1]).tolist() == [[-2.0]]
    assert table.spec.optimizer == SGD(1.0)
    apart = Table(dim=1, optimizer=SGD(1.0, weight_decay=0.25, decoupled=True), initializer=Zeros())
    apart.push([1], one)
    apart.set(weight_decay=0.5)
    apart.push([1], one)
    assert apart.pull([1]).tolist() == [[-1.0 + 0.5 - 1.0]]
    for values, words in (
        ({"weight_decay": 0.0}, "weight_decay is 0, wanted more than 0 to 1e30"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({}, "found nothing to set; wanted learning_rate or weight_decay"),
    ):
        with pytest.raises(BadRequest, match=words):
            apart.set(**values)
    with pytest.raises(BadRequest, match="optimizer FTRL has no weight_decay"):
        Table(dim=1, optimizer=FTRL()).set(weight_decay=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if "weight_decay" in OPTIMIZERS[name]().values()]
)
def test_a_decay_that_is_set_is_one_that_was_given(name: str, dtype: str) -> None:
    """To a value and to none, before the first push: the rows, bit for bit, of a table that was made with it."""
    seed = 6
    keys = np.arange(40)
    for given, then in ((0.0, 0.1), (0.1, 0.0)):
        made, live = (
            Table(dim=5, dtype=dtype, optimizer=OPTIMIZERS[name](weight_decay=decay), initializer=Normal(0.5))
            for decay in (then, given)
        )
        live.set(weight_decay=then)
        random = np.random.default_rng(seed)
        for _ in range(4):
            gradients = random.standard_normal((len(keys), 5)).astype(np.float32)
            for table in (made, live):
                table.push(keys, gradients)
        where = f"{name} {dtype} {given} to {then}, seed {seed}"
        assert live.pull(keys).tobytes() == made.pull(keys).tobytes(), where
        changed = Table(
            dim=5, dtype=dtype, optimizer=OPTIMIZERS[name](weight_decay=given), initializer=Normal(0.5)
        )
        random = np.random.default_rng(seed)
        for _ in range(4):
            changed.push(keys, random.standard_normal((len(keys), 5)).astype(np.float32))
        assert changed.pull(keys).tobytes() != made.pull(keys).tobytes(), (
            f"{where}: the decay shows in no row"
        )


def test_gradients_that_are_not_finite_are_refused_by_key_and_position() -> None:
    """Nothing of the push is applied; Zero and Allow do what they say."""
    gradients = np.ones((3, 2), np.float32)
    gradients[1, 1] = np.nan
    table = Table(dim=2, optimizer=SGD(1.0), initializer=Zeros())
    with pytest.raises(NonFinite, match="table 'table': gradients of key 8 at position 1 hold NaN"):
        table.push([7, 8, 9], gradients)
    assert len(table) == 0
    zero = Table(dim=2, optimizer=SGD(1.0), initializer=Zeros(), non_finite="Zero")
    zero.push([7, 8, 9], gradients)
    assert zero.pull([7, 8, 9]).tolist() == [[-1, -1], [-1, 0], [-1, -1]]
    allow = Table(dim=2, optimizer=SGD(1.0), initializer=Zeros(), non_finite="Allow")
    allow.push([7, 8, 9], gradients)
    assert np.isnan(allow.pull([8])[0, 1])


def test_wrong_arguments_name_the_table() -> None:
    """Types, shapes and specs, each with what was found and what is wanted."""
    table = Table(dim=4, name="user")
    with pytest.raises(BadType, match="table 'user': keys: found float64"):
        table.pull(np.zeros(3))
    with pytest.raises(BadType, match="table 'user': gradients: found float64, wanted float32"):
        table.push([1], np.ones((1, 4)))
    with pytest.raises(BadRequest, match=r"table 'user': gradients: found shape \(1, 3\), wanted \(1, 4\)"):
        table.push([1], np.ones((1, 3), np.float32))
    with pytest.raises(BadRequest, match=r"table 'user': rows: found shape \(2, 4\), wanted \(1, 4\)"):
        table.assign([1], np.ones((2, 4), np.float32))
    with pytest.raises(BadRequest, match="batch is 0"):
        table.items(batch=0)
    with pytest.raises(BadRequest, match="dim is 0"):
        Table(dim=0)
    with pytest.raises(BadRequest, match="name is 'User'"):
        Table(dim=1, name="User")


def test_threads_lose_no_push() -> None:
    """Eight threads add to the same int64 rows; the sums are exact."""
    table = Table(dim=2, dtype="int64")

    def add(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(50):
            keys = draw.integers(0, 40, 100).astype(np.uint64)
            table.push(keys, np.ones((100, 2), np.int64))

    threads = [threading.Thread(target=add, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = np.zeros(40, np.int64)
    for seed in range(8):
        draw = np.random.default_rng(seed)
        for _ in range(50):
            np.add.at(wanted, draw.integers(0, 40, 100), 1)
    assert (table.pull(np.arange(40)) == wanted[:, None]).all()


@pytest.mark.parametrize(
    "initializer", [Zeros(), Constant(2.5), Uniform(-1.0, 1.0), Normal(2.0, 10.0)], ids=repr
)
def test_initializers_draw_what_they_say(initializer: Any) -> None:
    """Mean, spread and range of 40,000 elements."""
    values = Table(dim=4, initializer=initializer).pull(np.arange(10_000, dtype=np.int64)).astype(np.float64)
    mean, spread = {
        "Zeros": (0.0, 0.0),
        "Constant": (2.5, 0.0),
        "Uniform": (0.0, 1.0 / np.sqrt(3.0)),
        "Normal": (10.0, 2.0),
    }[initializer.type]
    assert abs(values.mean() - mean) < 0.05
    assert abs(values.std() - spread) < 0.05
    if initializer.type == "Uniform":
        assert values.min() >= -1.0
        assert values.max() < 1.0
