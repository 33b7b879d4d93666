"""`tb.torch`: PyTorch layers whose rows are in Tablebay's tables. Needs the extra `tablebay[torch]`."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"tb.torch needs PyTorch: pip install 'tablebay[torch]' ({error})") from error

from tablebay.client.torch.jagged import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedTensor,
)
from tablebay.client.torch.layers import Embedding, EmbeddingBag
from tablebay.client.torch.optimizer import Optimizer
from tablebay.client.torch.prefetching import prefetch
from tablebay.client.torch.rows import Rows, rows_of
from tablebay.client.torch.state import group_state, load_state, state

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "JaggedTensor",
    "KeyedTensor",
    "Optimizer",
    "Rows",
    "group_state",
    "load_state",
    "prefetch",
    "rows_of",
    "state",
]
