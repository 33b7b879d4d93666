"""EmbeddingBagCollection and EmbeddingCollection over whatever has the shape of a KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tablebay as tb

BATCH = 6
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


class Jagged:
    """The methods of TorchRec's KeyedJaggedTensor that are used."""

    def __init__(self, features: dict[str, list[list[int]]], weighted: bool = False) -> None:
        self._keys = list(features)
        self._values = torch.tensor([key for bags in features.values() for bag in bags for key in bag])
        self._lengths = torch.tensor([len(bag) for bags in features.values() for bag in bags])
        generator = torch.Generator().manual_seed(1)
        self._weights = torch.rand(len(self._values), generator=generator) if weighted else None

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> torch.Tensor:
        return self._values

    def lengths(self) -> torch.Tensor:
        return self._lengths

    def weights_or_none(self) -> torch.Tensor | None:
        return self._weights


@pytest.fixture
def client() -> Iterator[Any]:
    with tb.local(servers=2) as client:
        client.table("user", dim=4, optimizer=tb.SGD(0.5), initializer=tb.Normal(0.5))
        client.table("item", dim=8, optimizer=tb.SGD(0.5), initializer=tb.Normal(0.5))
        yield client


def features(seed: int = 0, weighted: bool = False) -> Jagged:
    generator = np.random.default_rng(seed)
    return Jagged(
        {
            name: [generator.integers(0, 20, generator.integers(0, 5)).tolist() for _ in range(BATCH)]
            for name in ("unused", "seen", "bought", "visitor")
        },
        weighted,
    )


def configs(pooling: Any = "sum") -> list[Any]:
    return [
        tb.torch.EmbeddingBagConfig("user", 4, 20, ["visitor"], pooling),
        tb.torch.EmbeddingBagConfig(
            name="item", embedding_dim=8, num_embeddings=20, feature_names=["bought", "seen"], pooling=pooling
        ),
    ]


def bag_of(jagged: Jagged, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A feature's keys, offsets with the end, and weights, cut by hand."""
    index = jagged.keys().index(name)
    lengths = jagged.lengths()[index * BATCH : (index + 1) * BATCH]
    begin = int(jagged.lengths()[: index * BATCH].sum())
    end = begin + int(lengths.sum())
    weights = jagged.weights_or_none()
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return jagged.values()[begin:end], offsets, None if weights is None else weights[begin:end]


class PoolingType(Enum):
    """TorchRec's."""

    SUM = "SUM"
    MEAN = "MEAN"


@pytest.mark.parametrize("pooling", ["sum", "mean", PoolingType.SUM, PoolingType.MEAN, "weighted"])
def test_a_bag_collection_learns_what_torchs_bags_learn(client: Any, pooling: Any) -> None:
    """Over 20 steps each feature's columns, and the rows, are those of an nn.EmbeddingBag for each table."""
    weighted = pooling == "weighted"
    mode = "sum" if weighted else getattr(pooling, "value", pooling).lower()
    layer = tb.torch.EmbeddingBagCollection(
        configs("sum" if weighted else pooling), client, is_weighted=weighted
    )
    keys = np.arange(20)
    references = {
        name: nn.EmbeddingBag(
            20,
            client.table(name).dim,
            mode=mode,
            include_last_offset=True,
            _weight=torch.from_numpy(client.table(name).pull(keys)),
        )
        for name in ("user", "item")
    }
    opt = tb.torch.Optimizer(None, layer)
    reference_opt = torch.optim.SGD([one.weight for one in references.values()], 0.5)
    for seed in range(20):
        jagged = features(seed, weighted)
        found = layer(jagged)
        assert found.keys() == ["visitor", "bought", "seen"]
        assert found.length_per_key() == [4, 8, 8]
        assert found.offset_per_key() == [0, 4, 12, 20]
        wanted = {}
        for name in ("visitor", "bought", "seen"):
            ids, offsets, weights = bag_of(jagged, name)
            wanted[name] = references["user" if name == "visitor" else "item"](ids, offsets, weights)
            torch.testing.assert_close(found[name], wanted[name], **CLOSE)
        assert torch.equal(found.values(), torch.cat(list(found.to_dict().values()), dim=1))
        opt.zero_grad()
        reference_opt.zero_grad()
        (found.values() ** 2).mean().backward()
        (torch.cat(list(wanted.values()), dim=1) ** 2).mean().backward()
        opt.step()
        reference_opt.step()
    for name, reference in references.items():
        rows = torch.from_numpy(client.table(name).pull(keys))
        torch.testing.assert_close(rows, reference.weight.detach(), **CLOSE)


def test_all_tables_are_pulled_in_one_call_and_pushed_in_one_step(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass is one call of the client with a part for each table; a step is one step of it."""
    layer = tb.torch.EmbeddingBagCollection(configs(), client)
    opt = tb.torch.Optimizer(None, layer)
    session = client.table("user").session
    calls = []
    original = session.pull
    monkeypatch.setattr(
        session, "pull", lambda parts, deadline: (calls.append(len(parts)), original(parts, deadline))
    )
    first = client.next_step
    layer(features()).values().sum().backward()
    opt.step()
    assert calls == [2]
    assert client.next_step == first + 1
    opt.step()
    assert client.next_step == first + 2, "a step without gradients is one all the same"


def test_a_collection_gives_a_row_for_each_id(client: Any) -> None:
    """EmbeddingCollection: by feature the rows of its ids in order, with its lengths; gradients reach the table."""
    tables = [tb.torch.EmbeddingConfig("item", 8, 20, ["bought", "seen"])]
    layer = tb.torch.EmbeddingCollection(tables, client)
    jagged = features()
    found = layer(jagged)
    assert list(found) == ["bought", "seen"]
    for name, one in found.items():
        ids, offsets, _ = bag_of(jagged, name)
        rows = client.table("item").pull(ids.numpy())
        assert np.array_equal(one.values().detach().numpy(), rows)
        assert torch.equal(one.offsets(), offsets)
        assert torch.equal(one.lengths(), offsets.diff())
        assert one.weights_or_none() is None
    keys = np.unique(np.concatenate([bag_of(jagged, name)[0].numpy() for name in found]))
    before = client.table("item").pull(keys)
    sum(one.values().sum() for one in found.values()).backward()
    tb.torch.Optimizer(None, layer).step()
    every = torch.cat([bag_of(jagged, name)[0] for name in found]).numpy()
    counts = np.array([(every == key).sum() for key in keys], np.float32)
    np.testing.assert_allclose(client.table("item").pull(keys), before - 0.5 * counts[:, None], **CLOSE)


def test_a_feature_of_two_tables_is_named_after_both(client: Any) -> None:
    """As TorchRec has it: feature@table."""
    layer = tb.torch.EmbeddingBagCollection(
        [
            tb.torch.EmbeddingBagConfig("user", 4, 20, ["seen"]),
            tb.torch.EmbeddingBagConfig("item", 8, 20, ["seen", "bought"]),
        ],
        client,
    )
    assert layer(features()).keys() == ["seen@user", "seen@item", "bought"]


def test_collections_of_one_table_share_its_rows_and_state_names_it(client: Any) -> None:
    """A bag collection and a collection over `item` have one parameter of it; state_dict has handles alone."""
    model = nn.ModuleList(
        [
            tb.torch.EmbeddingBagCollection(configs(), client),
            tb.torch.EmbeddingCollection([tb.torch.EmbeddingConfig("item", 8, 20, ["seen"])], client),
        ]
    )
    assert len(list(model.parameters())) == 2
    state = model.state_dict()
    assert list(state) == ["0.table_user", "0.table_item", "1.table_item"]
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"


def test_a_collection_in_eval_makes_no_rows(client: Any) -> None:
    """Ids without a row count as zeros, and stay without."""
    layer = tb.torch.EmbeddingBagCollection(configs(), client).eval()
    assert not layer(features()).values().any()
    assert len(client.table("item")) == 0


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda client: [], tb.BadRequest, "tables: found none"),
        (lambda client: [configs()[0]] * 2, tb.BadRequest, "user configured more than once"),
        (
            lambda client: [tb.torch.EmbeddingBagConfig("user", 4)],
            tb.BadRequest,
            "'user': feature_names is empty",
        ),
        (lambda client: [tb.torch.EmbeddingBagConfig("user", 5, 0, ["a"])], tb.TableMismatch, "dim"),
        (lambda client: configs("max"), tb.BadRequest, "pooling is 'max', wanted sum or mean"),
        (
            lambda client: [tb.torch.EmbeddingBagConfig("user", 4, 0, ["a"])],
            tb.BadRequest,
            "feature a is not among",
        ),
    ],
)
def test_a_wrong_configuration_is_named(client: Any, use: Any, error: type[Exception], says: str) -> None:
    """Each error has the table, what was found and what is wanted."""
    with pytest.raises(error, match=says):
        tb.torch.EmbeddingBagCollection(use(client), client)(features())


def test_what_is_no_keyed_jagged_tensor_is_refused(client: Any) -> None:
    """Wrong types, lengths that do not add up, weights that are missing, a source that is none."""
    layer = tb.torch.EmbeddingBagCollection(configs(), client)
    with pytest.raises(tb.BadType, match=r"found Tensor, wanted a KeyedJaggedTensor: no keys\(\)"):
        layer(torch.arange(3))
    jagged = features()
    jagged._values = jagged._values[1:]
    with pytest.raises(tb.BadRequest, match="lengths that add up to"):
        layer(jagged)
    for name, value in (("variable_stride_per_key", True), ("inverse_indices_or_none", (["seen"], None))):
        odd: Any = features()
        setattr(odd, name, lambda value=value: value)
        with pytest.raises(tb.BadRequest, match=f"wanted a batch of the same examples.*{name}"):
            layer(odd)
        setattr(odd, name, lambda value=value: type(value)())
        layer(odd)
    with pytest.raises(tb.BadRequest, match="found no weights"):
        tb.torch.EmbeddingBagCollection(configs(), client, is_weighted=True)(features())
    with pytest.raises(tb.BadType, match="source: found int"):
        tb.torch.EmbeddingBagCollection(configs(), 3)
    with pytest.raises(tb.BadRequest, match="pooling is mean, wanted sum"):
        tb.torch.EmbeddingBagCollection(configs("mean"), client, is_weighted=True)
