"""CRC-32C of small things."""

from __future__ import annotations

from tablebay.native import _core


def crc32c(content: bytes | memoryview, initial: int = 0) -> int:
    """Of bytes; `initial` is that of what came before them."""
    return _core.crc32c(content, initial)
