"""The header of a checkpoint's file, and what its blocks begin with. docs/checkpoint-format.md has every byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tablebay.client.checkpoint.manifest import FORMAT, ROWS, STEPS, Layout
from tablebay.client.errors import CheckpointInvalid
from tablebay.native import _core

MAGIC = b"TABLEBAY"
HEADER_BYTES = 96
BLOCK_HEADER_BYTES = 16
PAYLOAD_BYTES_MAX = 1024 * 1024
# The least that `Cut.read` takes, and room for any block when reading.
BUFFER_BYTES = 4 * 1024 * 1024

_HEADER = struct.Struct("<8sIIIIQ16sIIQI6I")
_CRC = struct.Struct("<I")
_KINDS = {1: ROWS, 2: STEPS}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_DELTA = 1


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself. kind: ROWS or STEPS. attempt: the directory's name. epoch: the writer's life.

    table: its id, None in a file of steps; layout: of the table's rows, None likewise.
    """

    kind: str
    delta: bool
    number: int
    attempt: str
    index: int
    epoch: int
    table: int | None = None
    layout: Layout | None = None

    def pack(self) -> bytes:
        """The file's first 96 bytes."""
        content = _HEADER.pack(
            MAGIC,
            FORMAT,
            HEADER_BYTES,
            _NUMBERS[self.kind],
            _DELTA if self.delta else 0,
            self.number,
            bytes.fromhex(self.attempt.split("-")[1]),
            self.index,
            0,
            self.epoch,
            self.table or 0,
            *(self.layout or (0,) * 6),
        )
        return content + _CRC.pack(_core.crc32c(content))

    @classmethod
    def parse(cls, data: bytes, file: str) -> Header:
        """Of a file's first 96 bytes. file: its name. Raises CheckpointInvalid."""
        if len(data) < HEADER_BYTES:
            raise CheckpointInvalid(
                f"{file}: at byte {len(data)}: found the end in the header, wanted {HEADER_BYTES} bytes"
            )
        magic, format, size, kind, flags, number, attempt, index, reserved, epoch, table, *layout = (
            _HEADER.unpack_from(data)
        )
        if magic != MAGIC:
            raise _invalid(file, 0, magic, MAGIC)
        if format > FORMAT:
            raise CheckpointInvalid(
                f"{file}: at byte 8: found format {format}, wanted at most {FORMAT}; a newer Tablebay wrote it"
            )
        (crc,) = _CRC.unpack_from(data, _HEADER.size)
        wanted = _core.crc32c(data[: _HEADER.size])
        if crc != wanted:
            raise _invalid(
                file, _HEADER.size, f"the crc {crc:#010x}", f"{wanted:#010x}, by the header's bytes"
            )
        if format != FORMAT:
            raise _invalid(file, 8, f"format {format}", FORMAT)
        if size != HEADER_BYTES:
            raise _invalid(file, 12, f"a header of {size} bytes", HEADER_BYTES)
        if kind not in _KINDS:
            raise _invalid(file, 16, f"kind {kind}", "1 or 2")
        if flags not in (0, _DELTA):
            raise _invalid(file, 20, f"flags {flags}", f"0 or {_DELTA}")
        if reserved != 0:
            raise _invalid(file, 52, f"{reserved} in what is reserved", 0)
        steps = _KINDS[kind] == STEPS
        if steps and (table or any(layout)):
            raise _invalid(file, 64, "a table in a file of steps", 0)
        return cls(
            kind=_KINDS[kind],
            delta=flags == _DELTA,
            number=number,
            attempt=f"{number}-{attempt.hex()}",
            index=index,
            epoch=epoch,
            table=None if steps else table,
            layout=None if steps else Layout(*layout),
        )

    def require(self, wanted: Header, file: str) -> None:
        """Refuse a file that is another one than its manifest names; whose life wrote it is not looked at.

        Raises CheckpointInvalid.
        """
        for name, offset in _PLACES.items():
            found, other = getattr(self, name), getattr(wanted, name)
            if found != other:
                raise _invalid(file, offset, f"the {name} {found}", f"{other}, as in the manifest")


_PLACES = {"kind": 16, "delta": 20, "number": 24, "attempt": 32, "index": 48, "table": 64, "layout": 68}


def _invalid(file: str, offset: int, found: object, wanted: object) -> CheckpointInvalid:
    return CheckpointInvalid(f"{file}: at byte {offset}: found {found!s}, wanted {wanted!s}")
