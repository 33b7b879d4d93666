"""A checkpoint file's header (docs/checkpoint-format.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tablebay.client.checkpoint.checksum import crc32c
from tablebay.client.checkpoint.manifest import FORMAT, Layout
from tablebay.client.errors import CheckpointInvalid

MAGIC = b"TABLEBAY"
HEADER_BYTES = 96
ROWS, STEPS = 1, 2
_DELTA = 1
_HEADER = struct.Struct("<8sIIIIQ16sIIQI6I")
_NO_LAYOUT: Layout = (0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Header:
    """table: its id; None for a file of steps. attempt: the directory's name, which has the number in it."""

    number: int
    attempt: str
    index: int
    epoch: int
    delta: bool
    table: int | None
    layout: Layout = _NO_LAYOUT

    def encode(self) -> bytes:
        """HEADER_BYTES bytes."""
        kind = STEPS if self.table is None else ROWS
        content = _HEADER.pack(
            MAGIC,
            FORMAT,
            HEADER_BYTES,
            kind,
            _DELTA if self.delta else 0,
            self.number,
            bytes.fromhex(self.attempt.partition("-")[2]),
            self.index,
            0,
            self.epoch,
            self.table or 0,
            *self.layout,
        )
        return content + struct.pack("<I", crc32c(content))

    @classmethod
    def decode(cls, content: bytes) -> Header:
        """Raises CheckpointInvalid."""
        if content[:8] != MAGIC[: len(content)]:
            raise CheckpointInvalid(f"at byte 0: found {content[:8]!r}, wanted {MAGIC!r}")
        if len(content) < HEADER_BYTES:
            raise CheckpointInvalid(f"it has {len(content)} bytes, and a header has {HEADER_BYTES}")
        _, version, size, kind, flags, number, attempt, index, reserved, epoch, table, *layout = (
            _HEADER.unpack_from(content)
        )
        if version > FORMAT:
            raise CheckpointInvalid(f"at byte 8: format {version}, and this version reads up to {FORMAT}")
        (crc,) = struct.unpack_from("<I", content, _HEADER.size)
        wanted = crc32c(content[: _HEADER.size])
        if crc != wanted:
            raise CheckpointInvalid(
                f"at byte {_HEADER.size}: the header's CRC-32C is {wanted:08x}, and it says {crc:08x}"
            )
        if version < 1 or size != HEADER_BYTES or kind not in (ROWS, STEPS) or flags & ~_DELTA or reserved:
            raise CheckpointInvalid(
                f"at byte 8: format {version}, {size} bytes of header, kind {kind}, flags {flags}, reserved {reserved}"
            )
        return cls(
            number,
            f"{number}-{attempt.hex()}",
            index,
            epoch,
            bool(flags & _DELTA),
            None if kind == STEPS else table,
            tuple(layout),
        )


assert _HEADER.size + 4 == HEADER_BYTES
