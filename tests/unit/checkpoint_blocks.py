"""A second reader of a checkpoint's blocks, written from docs/checkpoint-format.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from tablebay.native import _core

ROWS, DELETED, CLIENT, FOOTER = 1, 2, 3, 255
Layout = tuple[int, int, int, int, int, int]
BUFFER_BYTES = 1 << 21


@dataclass
class Blocks:
    """What a file's blocks say, in their order."""

    rows: list[bytes] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    clients: list[bytes] = field(default_factory=list)
    order: list[int] = field(default_factory=list)


def whole(cut: Any, table: int | None) -> bytes:
    """All blocks of a file of the cut."""
    buffer = bytearray(BUFFER_BYTES)
    found = b""
    while count := cut.read(table, buffer):
        found += buffer[:count]
    return found


def parse(content: bytes, row_bytes: int = 0) -> Blocks:
    """The blocks, their checksums checked, up to the footer, which must be the last."""
    blocks = Blocks()
    crcs = b""
    at = 0
    while True:
        kind, count, size, crc = struct.unpack_from("<4I", content, at)
        payload = content[at + 16 : at + 16 + size]
        assert len(payload) == size <= 1 << 20
        assert _core.crc32c_portable(content[at : at + 12] + payload) == crc
        at += 16 + size
        if kind == FOOTER:
            rows, deleted, number, sums, zero = struct.unpack("<3Q2I", payload)
            assert (rows, deleted) == (len(blocks.rows), len(blocks.deleted))
            assert (number, zero, count) == (len(blocks.order), 0, 0)
            assert sums == _core.crc32c_portable(crcs)
            assert at == len(content)
            return blocks
        crcs += struct.pack("<I", crc)
        blocks.order.append(kind)
        if kind == ROWS:
            assert size == count * row_bytes
            blocks.rows += [payload[i : i + row_bytes] for i in range(0, size, row_bytes)]
        elif kind == DELETED:
            blocks.deleted += struct.unpack(f"<{count}Q", payload)
        else:
            assert (kind, count) == (CLIENT, 1)
            blocks.clients.append(payload)


def int64_rows(blocks: Blocks, layout: Layout) -> dict[int, int]:
    """Values by key, of a table of int64 and dim 1."""
    weights = layout[2]
    found = {}
    for row in blocks.rows:
        key = int.from_bytes(row[:8], "little")
        assert key not in found, f"key {key} is there twice"
        found[key] = int.from_bytes(row[weights : weights + 8], "little", signed=True)
    return found
