"""`EmbeddingBag` and `Embedding`: torch.nn's layers over a table's rows."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tablebay.client import errors
from tablebay.client.torch.pooling import pool
from tablebay.client.torch.rows import Pulled, Rows, Wanted, rows_of

MODES = ("sum", "mean", "max")


class TableLayer(nn.Module):
    """What both layers have in common: one table, and a state_dict that names it.

    training mode with gradients enabled: keys without a row get one, and what backward finds waits for
    `tb.torch.Optimizer.step`. Otherwise (model.eval(), torch.no_grad(), a checkpoint's table) nothing is made, counted
    or pushed, and a key without a row reads as zeros.
    """

    rows: Rows

    def __init__(self, table: Pulled, padding_idx: int | None) -> None:
        super().__init__()
        if padding_idx is not None and (isinstance(padding_idx, bool) or not isinstance(padding_idx, int)):
            raise errors.BadType(f"padding_idx: found {type(padding_idx).__name__}, wanted an int or None")
        if padding_idx is not None and not -(2**63) <= padding_idx < 2**64:
            raise errors.BadRequest(f"padding_idx is {padding_idx}, wanted -2^63 to 2^64 - 1")
        self.rows = rows_of(table)
        self.padding_idx = padding_idx

    @property
    def table(self) -> Any:
        """Where the rows are."""
        return self.rows.table

    @property
    def embedding_dim(self) -> int:
        """Elements of a row."""
        return int(self.rows.table.dim)

    def wanted(self, keys: torch.Tensor) -> list[Wanted]:
        """What a forward pass over `keys` asks of the table."""
        return [self.rows.wanted(keys, self.training, self.padding_idx)]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "rows"] = handle_of(self.rows)

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
        check_handle(self.rows, state_dict, prefix + "rows", strict, missing_keys, error_msgs)

    def extra_repr(self) -> str:
        """For print(model)."""
        table = self.rows.table
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"'{table.name}', {table.dim}{padding}"


class EmbeddingBag(TableLayer):
    """nn.EmbeddingBag over a table: sums, means or maxima of bags of rows.

    table: of client.table(), tb.Table or tb.open(). mode: "sum", "mean" or "max". include_last_offset, padding_idx:
    as nn's; the key padding_idx has no row and adds nothing. Any 64-bit number is a key, so there is no num_embeddings.
    """

    def __init__(
        self,
        table: Pulled,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(table, padding_idx)
        if mode not in MODES:
            raise errors.BadRequest(f"mode is {mode!r}, wanted one of {', '.join(MODES)}")
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, dim): one row a bag; an empty bag is zeros.

        input: int64 or int32; (B, N) are B bags of N, or (n,) are cut at `offsets`, int64 (B,), which begin with 0.
        per_sample_weights: of input's shape and the rows' dtype, with mode "sum" only; they get gradients.
        """
        found = self.rows.lookup(input, self.training, self.padding_idx)
        device = self.rows.device
        return pool(
            found.leaf,
            found.inverse,
            None if offsets is None else offsets.to(device=device, dtype=torch.int64),
            self.mode,
            per_sample_weights,
            self.include_last_offset,
            found.padding,
        )

    def extra_repr(self) -> str:
        """For print(model)."""
        last = ", include_last_offset=True" if self.include_last_offset else ""
        return f"{super().extra_repr()}, mode={self.mode!r}{last}"


class Embedding(TableLayer):
    """nn.Embedding over a table: a row for each key.

    padding_idx: this key has no row, reads as zeros and gets no gradient.
    """

    def __init__(self, table: Pulled, *, padding_idx: int | None = None) -> None:
        super().__init__(table, padding_idx)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input.shape + (dim,). input: int64 or int32 of any shape."""
        found = self.rows.lookup(input, self.training, self.padding_idx)
        return functional.embedding(found.inverse, found.leaf, padding_idx=found.padding)


def handle_of(rows: Rows) -> torch.Tensor:
    """What a state_dict holds of a table: its name and dim, as the bytes of a JSON text."""
    text = json.dumps({"table": rows.table.name, "dim": rows.table.dim})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def check_handle(
    rows: Rows, state_dict: Any, name: str, strict: bool, missing: list[str], problems: list[str]
) -> None:
    """Whether a state_dict is of a model with this table here. Its rows are the servers' business."""
    if name not in state_dict:
        if strict:
            missing.append(name)
        return
    try:
        found = json.loads(bytes(state_dict[name].tolist()))
    except (ValueError, TypeError, AttributeError):
        found = None
    wanted = {"table": rows.table.name, "dim": rows.table.dim}
    if found != wanted:
        problems.append(f"{name}: found the table {found}, wanted {wanted}")
