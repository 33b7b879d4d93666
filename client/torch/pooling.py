"""Pooling bags of rows: torch's kernel, but for a backward pass that is many times as slow as what it computes."""

from __future__ import annotations

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
    if leaf.device.type == "cpu" and mode in ("sum", "mean") and per_sample_weights is None:
        pooled: torch.Tensor = _Pool.apply(leaf, inverse, offsets, mode, include_last_offset, padding)
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


class _Pool(torch.autograd.Function):
    """Sums and means, whose gradients are sums in the order of the bags."""

    @staticmethod
    def forward(
        ctx: Any,
        leaf: torch.Tensor,
        inverse: torch.Tensor,
        offsets: torch.Tensor | None,
        mode: str,
        include_last_offset: bool,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse, offsets)
        ctx.rows, ctx.mode, ctx.include_last_offset, ctx.padding = (
            leaf.shape[0],
            mode,
            include_last_offset,
            padding,
        )
        return functional.embedding_bag(
            inverse,
            leaf,
            offsets,
            mode=mode,
            include_last_offset=include_last_offset,
            padding_idx=padding,
        )

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inverse, offsets = ctx.saved_tensors
        bags = gradient.shape[0]
        flat = inverse.reshape(-1)
        if offsets is None:
            begins = torch.arange(bags + 1) * (inverse.shape[1] if inverse.dim() == 2 else 0)
        elif ctx.include_last_offset:
            begins = offsets
        else:
            begins = torch.cat((offsets, offsets.new_tensor([flat.numel()])))
        found = gradient.new_zeros((ctx.rows, gradient.shape[1]))
        native(
            _core.add_bag_gradients,
            flat.numpy(),
            begins.numpy(),
            gradient.contiguous().numpy(),
            found.numpy(),
            ctx.mode == "mean",
            -1 if ctx.padding is None else ctx.padding,
        )
        return found, None, None, None, None, None
