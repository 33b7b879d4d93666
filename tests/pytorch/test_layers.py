"""tb.torch.EmbeddingBag and Embedding against torch.nn's, with the same rows and the same optimizer."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tablebay as tb

KEYS, DIM, BAGS = 40, 8, 16
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
OPTIMIZERS = {
    "sgd": (tb.SGD(0.1), lambda parameters: torch.optim.SGD(parameters, 0.1)),
    "adagrad": (
        tb.Adagrad(0.1, initial_accumulator=0.1, epsilon=1e-8),
        lambda parameters: torch.optim.Adagrad(parameters, 0.1, initial_accumulator_value=0.1, eps=1e-8),
    ),
}


@pytest.fixture(params=["remote", "local"])
def place(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A maker of tables: on two servers, or in this process."""
    if request.param == "local":
        yield lambda **spec: tb.Table(dim=DIM, **spec)
        return
    with tb.local(servers=2) as client:
        yield lambda name="table", **spec: client.table(name, dim=DIM, **spec)


def same_rows(table: Any, count: int = KEYS) -> torch.Tensor:
    """The rows of keys 0 to count - 1, made where there were none, as torch's weight."""
    return torch.from_numpy(table.pull(np.arange(count, dtype=np.int64)).copy())


def batches(form: str, seed: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, bool]]:
    """Inputs, offsets and whether the last offset is the end; keys repeat within bags and over them."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        if form == "2-D":
            yield torch.from_numpy(generator.integers(0, KEYS, (BAGS, 5))), None, False
            continue
        lengths = generator.integers(0, 6, BAGS)
        lengths[3] = 0
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        keys = torch.from_numpy(generator.integers(0, KEYS, int(offsets[-1])))
        last = form == "last offset"
        yield keys, torch.from_numpy(offsets if last else offsets[:-1]), last


@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["2-D", "offsets", "last offset"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag_learns_what_torchs_learns(
    place: Any, mode: str, form: str, optimizer: str, steps: int
) -> None:
    """After 1 and 100 steps outputs and rows are those of nn.EmbeddingBag, with keys that repeat."""
    ours, theirs = OPTIMIZERS[optimizer]
    table = place(optimizer=ours, initializer=tb.Normal(0.5))
    last = form == "last offset"
    # torch's SGD takes a sparse gradient one repeat after the other, which rounds otherwise than their sum.
    sparse = mode != "max" and optimizer != "sgd"
    reference = nn.EmbeddingBag(
        KEYS, DIM, mode=mode, include_last_offset=last, _weight=same_rows(table), sparse=sparse
    )
    layer = tb.torch.EmbeddingBag(table, mode=mode, include_last_offset=last)
    step, reference_step = tb.torch.Optimizer(None, layer), theirs(reference.parameters())
    target = torch.randn(BAGS, DIM, generator=torch.Generator().manual_seed(5))
    for keys, offsets, _ in batches(form, 7, steps):
        found, wanted = layer(keys, offsets), reference(keys, offsets)
        torch.testing.assert_close(found, wanted, **CLOSE)
        step.zero_grad()
        reference_step.zero_grad()
        ((found - target) ** 2).mean().backward()
        ((wanted - target) ** 2).mean().backward()
        step.step()
        reference_step.step()
    torch.testing.assert_close(same_rows(table), reference.weight.detach(), **CLOSE)


def test_weights_of_samples_are_used_and_learn(place: Any) -> None:
    """per_sample_weights scale rows, and get the gradient that nn.EmbeddingBag gives them."""
    table = place(optimizer=tb.SGD(0.1), initializer=tb.Normal(0.5))
    reference = nn.EmbeddingBag(KEYS, DIM, mode="sum", _weight=same_rows(table))
    layer = tb.torch.EmbeddingBag(table, mode="sum")
    keys = torch.randint(0, KEYS, (BAGS, 5), generator=torch.Generator().manual_seed(1))
    weights = torch.randn(BAGS, 5, generator=torch.Generator().manual_seed(2))
    ours, theirs = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    found, wanted = layer(keys, per_sample_weights=ours), reference(keys, per_sample_weights=theirs)
    torch.testing.assert_close(found, wanted, **CLOSE)
    (found**2).sum().backward()
    (wanted**2).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)
    unique = np.unique(keys.numpy())
    torch.testing.assert_close(gradient_of(layer, unique), reference.weight.grad[unique], **CLOSE)


def gradient_of(layer: Any, keys: np.ndarray[Any, Any]) -> torch.Tensor:
    """The waiting gradients of sorted unique keys."""
    found, sent = layer.rows.update()
    gradients = sent.wait().numpy()
    order = np.argsort(found)
    assert np.array_equal(found[order], keys.astype(np.uint64))
    return torch.from_numpy(gradients[order])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_padding_index_adds_nothing_and_has_no_row(place: Any, mode: str) -> None:
    """Bags with a padding index are nn.EmbeddingBag's; the padding key is neither pulled nor pushed."""
    table = place(optimizer=tb.SGD(0.1), initializer=tb.Normal(0.5))
    weight = same_rows(table)
    table.delete(np.array([3]))
    reference = nn.EmbeddingBag(KEYS, DIM, mode=mode, padding_idx=3, _weight=weight)
    layer = tb.torch.EmbeddingBag(table, mode=mode, padding_idx=3)
    keys = torch.tensor([[1, 3, 3], [3, 3, 3], [2, 5, 1], [5, 5, 5]])
    found, wanted = layer(keys), reference(keys)
    torch.testing.assert_close(found, wanted, **CLOSE)
    (found**2).sum().backward()
    (wanted**2).sum().backward()
    unique = np.array([1, 2, 5])
    torch.testing.assert_close(gradient_of(layer, unique), reference.weight.grad[unique], **CLOSE)
    tb.torch.Optimizer(None, layer).step()
    assert not table.contains(np.array([3]))[0]


@pytest.mark.parametrize("padding", [None, 2])
def test_an_embedding_learns_what_torchs_learns(place: Any, padding: int | None) -> None:
    """nn.Embedding's outputs and rows over 100 steps; the padding key reads as zeros."""
    ours, theirs = OPTIMIZERS["adagrad"]
    table = place(optimizer=ours, initializer=tb.Normal(0.5))
    weight = same_rows(table)
    if padding is not None:
        weight[padding] = 0
    reference = nn.Embedding(KEYS, DIM, padding_idx=padding, _weight=weight)
    layer = tb.torch.Embedding(table, padding_idx=padding)
    step, reference_step = tb.torch.Optimizer(None, layer), theirs(reference.parameters())
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        keys = torch.randint(0, KEYS, (4, 3, 2), generator=generator)
        target = torch.randn(4, 3, 2, DIM, generator=generator)
        found, wanted = layer(keys), reference(keys)
        assert found.shape == (4, 3, 2, DIM)
        torch.testing.assert_close(found, wanted, **CLOSE)
        step.zero_grad()
        reference_step.zero_grad()
        ((found - target) ** 2).sum().backward()
        ((wanted - target) ** 2).sum().backward()
        step.step()
        reference_step.step()
    rows = same_rows(table)
    if padding is not None:
        rows[padding] = 0
    torch.testing.assert_close(rows, reference.weight.detach(), **CLOSE)


def test_empty_bags_and_empty_input_are_zeros(place: Any) -> None:
    """No key at all is no call, and zeros of the right shape."""
    layer = tb.torch.EmbeddingBag(place(), mode="sum")
    none = torch.empty(0, dtype=torch.int64)
    found = layer(none, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(found, torch.zeros(3, DIM))
    assert tb.torch.Embedding(layer.table)(none.reshape(0, 4)).shape == (0, 4, DIM)
    assert len(layer.table) == 0


def test_keys_are_any_64_bits_and_int32(place: Any) -> None:
    """Negative keys are the upper half; int32 keys are the same numbers."""
    table = place(initializer=tb.Normal(0.5))
    layer = tb.torch.Embedding(table)
    found = layer(torch.tensor([-1, 2**62, 7]))
    wanted = table.pull(np.array([2**64 - 1, 2**62, 7], np.uint64))
    assert np.array_equal(found.detach().numpy(), wanted)
    assert torch.equal(layer(torch.tensor([7], dtype=torch.int32))[0], found[2])


def test_two_layers_of_a_table_share_rows_and_gradients(place: Any) -> None:
    """Layers that name one table have one parameter; their gradients of a key are summed before the push."""
    table = place(optimizer=tb.SGD(1.0), initializer=tb.Normal(0.5))
    model = nn.ModuleList([tb.torch.EmbeddingBag(table, mode="sum"), tb.torch.Embedding(table)])
    assert len(list(model.parameters())) == 1
    before = same_rows(table, 4)
    step = tb.torch.Optimizer(None, model)
    (model[0](torch.tensor([[1, 1, 2]])).sum() + 3 * model[1](torch.tensor([2, 3])).sum()).backward()
    step.step()
    wanted = before - torch.tensor([0.0, 2.0, 4.0, 3.0])[:, None]
    torch.testing.assert_close(same_rows(table, 4), wanted, **CLOSE)


@pytest.mark.parametrize("how", ["eval", "no_grad", "frozen"])
def test_reading_makes_counts_and_pushes_nothing(place: Any, how: str) -> None:
    """In eval(), under no_grad(), or with requires_grad_(False) keys without a row are zeros, and stay without."""
    table = place(initializer=tb.Normal(0.5))
    known = same_rows(table, 4)
    layer = tb.torch.Embedding(table)
    step = tb.torch.Optimizer(None, layer)
    keys = torch.tensor([2, 100])
    if how == "no_grad":
        with torch.no_grad():
            found = layer(keys)
    else:
        layer.eval() if how == "eval" else layer.requires_grad_(False)
        found = layer(keys)
        assert not found.requires_grad
    assert torch.equal(found, torch.stack([known[2], torch.zeros(DIM)]))
    step.step()
    assert len(table) == 4
    assert torch.equal(same_rows(table, 4), known)
    layer.train().requires_grad_(True)
    assert layer(keys).requires_grad
    assert len(table) == 5


class Doubles:
    """A table of float64 rows, which only a test has: Tablebay's have float32."""

    name, dim, dtype = "doubles", 3, np.dtype(np.float64)

    def __init__(self) -> None:
        self.rows = np.random.default_rng(1).normal(size=(6, 3))

    def pull(self, keys: Any, out: Any = None, create: bool = True) -> Any:
        out[:] = self.rows[keys]
        return out

    def push(self, keys: Any, gradients: Any) -> None:
        self.rows[keys] -= gradients


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_gradients_are_those_of_finite_differences(mode: str) -> None:
    """gradcheck in float64, with keys that repeat: of what would be pushed, and of the samples' weights."""
    keys, offsets = torch.tensor([0, 1, 1, 5, 2, 0]), torch.tensor([0, 3, 3, 5])
    table: Any = Doubles()
    layer = tb.torch.EmbeddingBag(table, mode=mode)

    class Applied(torch.autograd.Function):
        """The layer as a function of its table's rows, with the gradients that it would push."""

        @staticmethod
        def forward(context: Any, rows: torch.Tensor) -> torch.Tensor:
            table.rows = rows.detach().numpy().copy()
            with torch.enable_grad():
                context.result = layer(keys, offsets)
            return context.result.detach()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            layer.rows.clear()
            context.result.backward(gradient, retain_graph=True)
            unique, sent = layer.rows.update()
            found = sent.wait().numpy()
            result = torch.zeros(6, 3, dtype=torch.float64)
            result[torch.from_numpy(unique.astype(np.int64))] = torch.from_numpy(found.copy())
            return result

    assert torch.autograd.gradcheck(Applied.apply, torch.from_numpy(table.rows.copy()).requires_grad_())
    if mode == "sum":
        weights = torch.rand(6, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda w: layer(keys, offsets, w), weights)


def test_double_backward_is_refused_by_name() -> None:
    """create_graph=True says that rows have no second derivative, and of which table."""
    layer = tb.torch.Embedding(tb.Table(dim=DIM, name="user"))
    loss = (layer(torch.tensor([1, 2])) ** 2).sum()
    with pytest.raises(tb.BadRequest, match="table 'user': double backward"):
        loss.backward(create_graph=True)


def test_a_state_dict_names_the_table_and_holds_no_row() -> None:
    """It is a few bytes; a model of the same tables loads it, one of another is told which differs."""
    model = nn.Sequential(tb.torch.Embedding(tb.Table(dim=DIM, name="user")), nn.Linear(DIM, 1))
    model[0](torch.arange(1000)).sum().backward()
    state = model.state_dict()
    assert bytes(state["0.rows"].tolist()) == b'{"table": "user", "dim": 8}'
    same = nn.Sequential(tb.torch.Embedding(tb.Table(dim=DIM, name="user")), nn.Linear(DIM, 1))
    assert str(same.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(same[1].weight, model[1].weight)
    other = nn.Sequential(tb.torch.Embedding(tb.Table(dim=DIM, name="item")), nn.Linear(DIM, 1))
    with pytest.raises(RuntimeError, match="0.rows: found the table .*user.*wanted .*item"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.rows"'):
        other.load_state_dict({"1.weight": state["1.weight"], "1.bias": state["1.bias"]})


def test_a_layer_is_copied_as_a_handle_and_not_pickled() -> None:
    """copy.deepcopy shares the table; torch.save of the layer itself says what to save instead."""
    layer = tb.torch.Embedding(tb.Table(dim=DIM, name="user"))
    assert copy.deepcopy(layer).table is layer.table
    with pytest.raises(tb.BadRequest, match="table 'user': a layer cannot be saved as an object"):
        torch.save(layer, io.BytesIO())


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda table: tb.torch.EmbeddingBag(table, mode="min"),
            tb.BadRequest,
            "mode is 'min', wanted one of sum",
        ),
        (lambda table: tb.torch.EmbeddingBag(table, max_norm=1.0), TypeError, "max_norm"),
        (lambda table: tb.torch.Embedding(object()), tb.BadType, "found object as a table"),
        (lambda table: tb.torch.Embedding(table, padding_idx="a"), tb.BadType, "padding_idx: found str"),
        (
            lambda table: tb.torch.Embedding(table)(torch.rand(3)),
            tb.BadType,
            "'table': keys: found torch.float32",
        ),
        (lambda table: tb.torch.Embedding(table)([1]), tb.BadType, "'table': keys: found list"),
        (
            lambda table: tb.torch.Embedding(table).half()(torch.arange(3)),
            tb.BadType,
            "converted to torch.float16",
        ),
        (
            lambda table: tb.torch.Embedding(tb.Table(1, dtype="int64")),
            tb.BadType,
            "rows are int64, wanted float32",
        ),
        (lambda table: tb.torch.Optimizer(None, nn.Linear(1, 1)), tb.BadRequest, "no layer of tb.torch"),
        (lambda table: tb.torch.Optimizer(3, tb.torch.Embedding(table)), tb.BadType, "dense: found int"),
    ],
)
def test_bad_arguments_are_named_with_what_is_wanted(make: Any, error: type[Exception], says: str) -> None:
    """Each error has the thing, what was found and what is wanted."""
    with pytest.raises(error, match=says):
        make(tb.Table(dim=DIM))
