"""Pooling bags of rows: torch's kernel, but where its backward pass is many times as slow as what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional


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
            lengths = torch.full((bags,), inverse.shape[1] if inverse.dim() == 2 else 0)
        else:
            ends = (
                offsets[1:]
                if ctx.include_last_offset
                else torch.cat((offsets[1:], offsets.new_tensor([flat.numel()])))
            )
            lengths = ends - offsets[:bags]
        bag_of = torch.repeat_interleave(torch.arange(bags), lengths)
        if ctx.mode == "mean":
            counted = lengths
            if ctx.padding is not None:
                counted = counted - torch.bincount(bag_of[flat == ctx.padding], minlength=bags)
            gradient = gradient / counted.clamp(min=1).unsqueeze(1).to(gradient.dtype)
        # A row's gradient is itself a bag: of those of the bags that the row is in.
        counts = torch.bincount(flat, minlength=ctx.rows)
        found = functional.embedding_bag(
            bag_of[_by_row(flat, ctx.rows)], gradient.contiguous(), counts.cumsum(0) - counts, mode="sum"
        )
        if ctx.padding is not None:
            found[ctx.padding] = 0
        return found, None, None, None, None, None


def _by_row(places: torch.Tensor, rows: int) -> torch.Tensor:
    """Positions in `places`, int64 (m,) below `rows`, by what is there, and of one row as they come."""
    # numpy sorts 16 bits by their digits, several times as fast as it or torch compares longer numbers.
    found = places.numpy()
    order = np.argsort(found.astype(np.uint16), kind="stable")
    if rows > 1 << 16:
        high = (found >> 16)[order]
        order = order[np.argsort(high.astype(np.uint16) if rows <= 1 << 32 else high, kind="stable")]
    return torch.from_numpy(order)
