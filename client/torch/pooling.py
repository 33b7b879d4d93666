"""Pooling bags of rows: torch's kernel, but for a backward pass that is many times as slow as what it computes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from tablebay.client.native import native
from tablebay.native import _core


def pool(
    leaf: torch.Tensor,
    inverse: torch.Tensor,
    offsets: torch.Tensor | None,
    mode: str,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding: int | None = None,
) -> torch.Tensor:
    """(B, dim): bags of rows, as functional.embedding_bag of the same arguments, of which `padding` is padding_idx.

    leaf: (n, dim). inverse: int64, (B, N), or (m,) with `offsets`, int64.
    """
    if not leaf.shape[0]:
        # The kernel wants a row to read, also where every bag is empty.
        leaf = leaf.new_zeros((1, leaf.shape[1]))
    own = leaf.device.type == "cpu" and mode in ("sum", "mean") and per_sample_weights is None
    if own and (offsets is not None or inverse.dim() == 2):
        begins = _begins(inverse, offsets, include_last_offset)
        pooled: torch.Tensor = _Pool.apply(leaf, inverse.reshape(-1), begins, mode, padding)
        return pooled
    return functional.embedding_bag(
        inverse,
        leaf,
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding,
    )


def _begins(inverse: torch.Tensor, offsets: torch.Tensor | None, include_last_offset: bool) -> torch.Tensor:
    """(B + 1,): where each bag begins, and the end."""
    if offsets is None:
        return _begins_of_width(*inverse.shape)
    if include_last_offset:
        return offsets
    return torch.cat((offsets, offsets.new_tensor([inverse.numel()])))


# A model has few layers, and its batches one size, but for the last.
@lru_cache(maxsize=16)
def _begins_of_width(bags: int, width: int) -> torch.Tensor:
    return torch.arange(bags + 1) * width


class _Pool(torch.autograd.Function):
    """Sums and means, whose gradients are sums in the order of the bags."""

    @staticmethod
    def forward(
        ctx: Any,
        leaf: torch.Tensor,
        inverse: torch.Tensor,
        begins: torch.Tensor,
        mode: str,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse, begins)
        ctx.rows, ctx.mode, ctx.padding = leaf.shape[0], mode, padding
        return functional.embedding_bag(
            inverse, leaf, begins, mode=mode, include_last_offset=True, padding_idx=padding
        )

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inverse, begins = ctx.saved_tensors
        found = gradient.new_empty((ctx.rows, gradient.shape[1]))
        native(
            _core.sum_bag_gradients,
            inverse.numpy(),
            begins.numpy(),
            gradient.contiguous().numpy(),
            found.numpy(),
            ctx.mode == "mean",
            -1 if ctx.padding is None else ctx.padding,
        )
        return found, None, None, None, None
