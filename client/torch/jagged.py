"""Collections of embedding tables, which take a KeyedJaggedTensor by its shape: TorchRec is not needed.

What they are given needs `keys()`, names of features; `values()`, their ids one feature after the other; `lengths()`,
F * B of them; `weights_or_none()` where weights are used. TorchRec's KeyedJaggedTensor has these. One with another
number of examples for each feature (variable stride) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tablebay.client import errors
from tablebay.client.torch.layers import check_handle, handle_of
from tablebay.client.torch.pooling import pool
from tablebay.client.torch.rows import Lookup, Rows, Wanted, pull, rows_of

POOLINGS = ("sum", "mean")
# A table may be called as a method of nn.Module is.
PREFIX = "table_"


@dataclass(frozen=True)
class EmbeddingConfig:
    """One table of an EmbeddingCollection.

    num_embeddings: may be left out; a table takes every 64-bit id, so nothing is refused for being above it.
    """

    name: str
    embedding_dim: int
    num_embeddings: int = 0
    feature_names: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class EmbeddingBagConfig(EmbeddingConfig):
    """One table of an EmbeddingBagCollection. pooling: "sum" or "mean", or TorchRec's PoolingType."""

    pooling: Any = "sum"


class JaggedTensor:
    """A feature's values, one row for each of its ids: values (n, ...), lengths (B,)."""

    def __init__(
        self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None
    ) -> None:
        self._values, self._lengths, self._weights = values, lengths, weights

    def values(self) -> torch.Tensor:
        """(n, ...)."""
        return self._values

    def lengths(self) -> torch.Tensor:
        """(B,)."""
        return self._lengths

    def offsets(self) -> torch.Tensor:
        """(B + 1,): where each example begins, and the end."""
        return functional.pad(self._lengths.cumsum(0), (1, 0))

    def weights_or_none(self) -> torch.Tensor | None:
        """(n,)."""
        return self._weights


class KeyedTensor:
    """Columns by feature: values (B, sum of the features' dims)."""

    def __init__(self, keys: Sequence[str], lengths: Sequence[int], values: torch.Tensor) -> None:
        self._keys, self._lengths, self._values = list(keys), list(lengths), values

    def keys(self) -> list[str]:
        """Features, in the order of the configurations; `feature@table` where several tables have one."""
        return self._keys

    def length_per_key(self) -> list[int]:
        """Columns of each."""
        return self._lengths

    def offset_per_key(self) -> list[int]:
        """The column where each begins, and the end."""
        return [0, *accumulate(self._lengths)]

    def values(self) -> torch.Tensor:
        """(B, sum of dims)."""
        return self._values

    def to_dict(self) -> dict[str, torch.Tensor]:
        """(B, dim) by feature."""
        return dict(zip(self._keys, self._values.split(self._lengths, dim=1), strict=True))

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.to_dict()[key]


@dataclass(frozen=True)
class _Features:
    """What a forward pass was given: by feature its ids, lengths (B,) and weights."""

    ids: dict[str, torch.Tensor]
    lengths: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    batch: int

    @classmethod
    def of(cls, features: Any, weighted: bool) -> _Features:
        for name in ("keys", "values", "lengths"):
            if not callable(getattr(features, name, None)):
                raise errors.BadType(
                    f"features: found {type(features).__name__}, wanted a KeyedJaggedTensor: no {name}()"
                )
        for name in ("variable_stride_per_key", "inverse_indices_or_none"):
            if getattr(features, name, lambda: None)():
                raise errors.BadRequest(
                    f"features: found other examples for each feature, wanted a batch of the same examples for all: "
                    f"{name}() is not {'False' if name.startswith('variable') else 'None'}"
                )
        names = list(features.keys())
        lengths = features.lengths()
        if not names or lengths.numel() % len(names):
            raise errors.BadRequest(
                f"features: found {lengths.numel()} lengths for {len(names)} features, wanted as many for each"
            )
        values = features.values()
        table = lengths.reshape(len(names), -1)
        ends = table.sum(1).tolist()
        if sum(ends) != values.numel():
            raise errors.BadRequest(
                f"features: found {values.numel()} values, and lengths that add up to {sum(ends)}"
            )
        weights = None
        if weighted:
            weights = features.weights_or_none()
            if weights is None:
                raise errors.BadRequest(
                    "features: found no weights, wanted one for each value (is_weighted is True)"
                )
        return cls(
            dict(zip(names, values.split(ends), strict=True)),
            dict(zip(names, table.unbind(0), strict=True)),
            {} if weights is None else dict(zip(names, weights.split(ends), strict=True)),
            int(table.shape[1]),
        )


class _Collection(nn.Module):
    """Tables by name, each a layer's `Rows`, pulled in one call a server."""

    def __init__(self, tables: Sequence[EmbeddingConfig], source: Any) -> None:
        super().__init__()
        if not tables:
            raise errors.BadRequest("tables: found none, wanted at least one configuration")
        names = [config.name for config in tables]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise errors.BadRequest(
                f"tables: {', '.join(repeated)} configured more than once, wanted each once"
            )
        self._configs = list(tables)
        for config in tables:
            if not config.feature_names:
                raise errors.BadRequest(f"table '{config.name}': feature_names is empty, wanted at least one")
            self.register_parameter(PREFIX + config.name, _open(source, config))

    def _tables(self) -> list[tuple[EmbeddingConfig, Rows]]:
        return [(config, self._parameters[PREFIX + config.name]) for config in self._configs]

    def _names(self) -> list[list[str]]:
        """What each configuration's features are called in the result."""
        every = [feature for config in self._configs for feature in config.feature_names]
        return [
            [one if every.count(one) == 1 else f"{one}@{config.name}" for one in config.feature_names]
            for config in self._configs
        ]

    def wanted(self, features: Any) -> list[Wanted]:
        """What a forward pass over `features` asks of each table."""
        return self._wanted(_Features.of(features, weighted=False))

    def _wanted(self, found: _Features) -> list[Wanted]:
        result = []
        for config, rows in self._tables():
            missing = [one for one in config.feature_names if one not in found.ids]
            if missing:
                raise errors.BadRequest(
                    f"table '{config.name}': feature {missing[0]} is not among the features given: "
                    f"{', '.join(found.ids)}"
                )
            ids = torch.cat([found.ids[one] for one in config.feature_names])
            result.append(rows.wanted(ids, self.training))
        return result

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for config, rows in self._tables():
            destination[prefix + PREFIX + config.name] = handle_of(rows)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for config, rows in self._tables():
            check_handle(rows, state_dict, prefix + PREFIX + config.name, strict, missing_keys, error_msgs)


class EmbeddingBagCollection(_Collection):
    """Pooled embeddings of several tables, as torchrec.EmbeddingBagCollection.

    tables: configurations, whose features are pooled. source: a client, which opens each by name and dim, or makes it;
    or a mapping of tables by name, such as tb.open() gives. is_weighted: ids have weights, for pooling "sum" only.
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], source: Any, is_weighted: bool = False) -> None:
        super().__init__(tables, source)
        self._is_weighted = is_weighted
        self._modes = [_pooling(config) for config in tables]
        if is_weighted and "mean" in self._modes:
            raise errors.BadRequest(
                f"table '{tables[self._modes.index('mean')].name}': pooling is mean, wanted sum (is_weighted is True)"
            )

    def embedding_bag_configs(self) -> list[EmbeddingConfig]:
        """As given."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether ids have weights."""
        return self._is_weighted

    def forward(self, features: Any) -> KeyedTensor:
        """A KeyedTensor of B rows, and for each feature its table's dim of columns."""
        found = _Features.of(features, self._is_weighted)
        lookups = pull(self._wanted(found))
        columns, lengths = [], []
        for (config, _), lookup, mode in zip(self._tables(), lookups, self._modes, strict=True):
            bags = _bags(found, config, lookup, mode)
            columns += list(bags.split(found.batch))
            lengths += [config.embedding_dim] * len(config.feature_names)
        return KeyedTensor(
            [name for names in self._names() for name in names], lengths, torch.cat(columns, dim=1)
        )


class EmbeddingCollection(_Collection):
    """A row for each id of several tables, as torchrec.EmbeddingCollection.

    tables, source: as of EmbeddingBagCollection.
    """

    def __init__(self, tables: Sequence[EmbeddingConfig], source: Any) -> None:
        super().__init__(tables, source)

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """As given."""
        return self._configs

    def forward(self, features: Any) -> dict[str, JaggedTensor]:
        """By feature a JaggedTensor with values (n, dim)."""
        found = _Features.of(features, weighted=False)
        lookups = pull(self._wanted(found))
        result = {}
        for (config, _), lookup, names in zip(self._tables(), lookups, self._names(), strict=True):
            rows = functional.embedding(lookup.inverse, lookup.leaf)
            parts = rows.split([found.ids[one].numel() for one in config.feature_names])
            for name, feature, values in zip(names, config.feature_names, parts, strict=True):
                result[name] = JaggedTensor(values, found.lengths[feature])
        return result


def _open(source: Any, config: EmbeddingConfig) -> Rows:
    if isinstance(source, Mapping):
        if config.name not in source:
            raise errors.NotRegistered(
                f"table '{config.name}' is not among those given: {', '.join(source) or 'none'}"
            )
        rows = rows_of(source[config.name])
    elif callable(getattr(source, "table", None)):
        rows = rows_of(source.table(config.name, config.embedding_dim))
    else:
        raise errors.BadType(
            f"source: found {type(source).__name__}, wanted a client, or a mapping of tables by name"
        )
    if rows.table.dim != config.embedding_dim:
        raise errors.TableMismatch(
            f"table '{config.name}': its dim is {rows.table.dim}, and embedding_dim is {config.embedding_dim}"
        )
    return rows


def _pooling(config: EmbeddingBagConfig) -> str:
    """TorchRec's PoolingType has the name as its value, in capitals."""
    mode = str(getattr(config.pooling, "value", config.pooling)).lower()
    if mode not in POOLINGS:
        raise errors.BadRequest(
            f"table '{config.name}': pooling is {config.pooling!r}, wanted {' or '.join(POOLINGS)}"
        )
    return mode


def _bags(found: _Features, config: EmbeddingConfig, lookup: Lookup, mode: str) -> torch.Tensor:
    """(F * B, dim) for the features of one table, by one call of torch's kernel."""
    device = lookup.leaf.device
    lengths = torch.cat([found.lengths[one] for one in config.feature_names]).to(device, torch.int64)
    weights = (
        torch.cat([found.weights[one] for one in config.feature_names]).to(device) if found.weights else None
    )
    return pool(
        lookup.leaf,
        lookup.inverse,
        functional.pad(lengths.cumsum(0), (1, 0)),
        mode,
        weights,
        include_last_offset=True,
    )
