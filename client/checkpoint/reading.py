"""Reading a checkpoint's rows without a store: for verifying, inspecting and exporting."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import (
    BLOCK_HEADER_BYTES,
    BUFFER_BYTES,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
)
from tablebay.client.checkpoint.manifest import (
    STEPS,
    File,
    Link,
    Manifest,
    ServerEntry,
    TableEntry,
)
from tablebay.client.checkpoint.restore import check_head
from tablebay.client.checkpoint.storage import NotThere, Reader, Unreadable
from tablebay.client.errors import CheckpointInvalid
from tablebay.native import _core

ROWS_BLOCK, DELETED_BLOCK, CLIENT_BLOCK, FOOTER_BLOCK = 1, 2, 3, 255

_BLOCK = struct.Struct("<IIII")
_FOOTER = struct.Struct("<QQQII")

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Block:
    """One block, whose crc was right. offset: in the file. payload: valid until the next one is asked for."""

    offset: int
    kind: int
    count: int
    payload: memoryview


def blocks(
    source: Destination, manifest: Manifest, server: ServerEntry, link: Link, file: File
) -> Iterator[Block]:
    """All blocks of a file but its footer, which is checked when the iterator ends.

    Raises CheckpointInvalid with the file's name and the byte, StorageError.
    """
    path = f"{source.attempt_path(link.attempt)}/{file.name}"
    where = f"{source.name}/{path}"
    layout = None if file.table is None else manifest.table(file.table).layout
    with _damage(), source.storage.open(path) as reader:
        check_head(reader, where, server, link, file, layout)
        rows = deleted = crc = 0
        for count, (block, own_crc) in enumerate(_framed(reader, where)):
            if block.kind == FOOTER_BLOCK:
                wanted = _FOOTER.pack(rows, deleted, count, crc, 0)
                if block.count or bytes(block.payload) != wanted:
                    raise _invalid(where, block.offset, "a footer that does not fit its blocks")
                found = (_core.crc32c(wanted), rows, deleted)
                if found != (file.crc, file.rows, file.deleted):
                    raise _invalid(where, block.offset, "another footer than the manifest names")
                end = block.offset + BLOCK_HEADER_BYTES + _FOOTER.size
                if end != reader.size:
                    raise _invalid(where, end, "more after the footer")
                return
            width = 8 if layout is None or block.kind == DELETED_BLOCK else layout.row_bytes
            allowed = (CLIENT_BLOCK,) if file.kind == STEPS else (ROWS_BLOCK, DELETED_BLOCK)
            if block.kind not in allowed:
                raise _invalid(
                    where, block.offset, f"a block of kind {block.kind} in a file of kind {file.kind}"
                )
            if block.kind == CLIENT_BLOCK:
                if block.count != 1:
                    raise _invalid(where, block.offset, f"{block.count} clients in a block")
            elif block.count * width != len(block.payload):
                raise _invalid(
                    where, block.offset, f"{len(block.payload)} bytes for {block.count} of {width}"
                )
            rows += block.count if block.kind == ROWS_BLOCK else 0
            deleted += block.count if block.kind == DELETED_BLOCK else 0
            crc = _core.crc32c(struct.pack("<I", own_crc), crc)
            yield block


def _framed(reader: Reader, where: str) -> Iterator[tuple[Block, int]]:
    """Blocks with their crcs, the footer last."""
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    start, held, at = HEADER_BYTES, 0, 0
    while True:
        if at + BLOCK_HEADER_BYTES + PAYLOAD_BYTES_MAX > held:
            view[: held - at] = view[at:held]
            start, held, at = start + at, held - at, 0
            held += reader.read_into(view[held:], start + held)
        offset = start + at
        if held - at < BLOCK_HEADER_BYTES:
            raise _invalid(where, start + held, "the end")
        kind, count, size, crc = _BLOCK.unpack_from(view, at)
        if size > PAYLOAD_BYTES_MAX:
            raise _invalid(where, offset, f"a payload of {size} bytes, above {PAYLOAD_BYTES_MAX}")
        payload = view[at + BLOCK_HEADER_BYTES : at + BLOCK_HEADER_BYTES + size]
        if held - at < BLOCK_HEADER_BYTES + size:
            raise _invalid(where, start + held, "the end in a block")
        found = _core.crc32c(payload, _core.crc32c(view[at : at + 12]))
        if found != crc:
            raise _invalid(where, offset, f"a block whose crc is {found:#010x}, not the {crc:#010x} it names")
        yield Block(offset, kind, count, payload), crc
        if kind == FOOTER_BLOCK:
            return
        at += BLOCK_HEADER_BYTES + size


@dataclass(frozen=True)
class Rows:
    """Rows of a table, each key's newest. keys: uint64 (n,). weights: (n, dim), as calls have them."""

    keys: Keys
    weights: NDArray[np.generic]


def table_rows(source: Destination, manifest: Manifest, table: TableEntry) -> Iterator[Rows]:
    """All rows of a table, in parts of at most 1 MiB, in no order; each key once.

    Links are read newest first, and what a newer one has or has deleted is left out of the older ones: so only
    keys are kept in memory, and those of the oldest link not even once. Raises CheckpointInvalid, StorageError.
    """
    for server in manifest.servers:
        newer: list[Keys] = []
        for link in reversed(server.chain):
            oldest = link is server.chain[0]
            seen = np.unique(np.concatenate(newer)) if newer else np.empty(0, np.uint64)
            newer = [seen] if len(seen) else []
            for file in link.files:
                if file.table == table.id:
                    for block in blocks(source, manifest, server, link, file):
                        if block.kind == DELETED_BLOCK:
                            if not oldest:
                                newer.append(np.frombuffer(block.payload, "<u8").astype(np.uint64))
                            continue
                        rows = _rows(block, table)
                        if not oldest:
                            newer.append(rows.keys)
                        fresh = ~_among(rows.keys, seen)
                        if fresh.all():
                            yield rows
                        elif fresh.any():
                            yield Rows(rows.keys[fresh], rows.weights[fresh])


def dtype_of(table: TableEntry) -> np.dtype[np.generic]:
    """Of a table's weights as they are read: float32 or int64."""
    return np.dtype("<i8" if table.spec.dtype == "int64" else "<f4")


_STORED = {"float32": "<f4", "bfloat16": "<u2", "float16": "<f2", "int64": "<i8"}


def _widened(stored: NDArray[Any], dtype: str) -> NDArray[np.generic]:
    """A copy of weights as the files have them, as they are read."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (stored.astype("<u4") << np.uint32(16)).view("<f4")
    return stored.astype("<f4") if dtype == "float16" else stored.copy()


def _rows(block: Block, table: TableEntry) -> Rows:
    layout = table.layout
    row = np.dtype(
        {
            "names": ["key", "weights"],
            "formats": ["<u8", (_STORED[table.spec.dtype], (table.spec.dim,))],
            "offsets": [0, layout.weights],
            "itemsize": layout.row_bytes,
        }
    )
    found = np.frombuffer(block.payload, row)
    # Copies: the buffer under them is filled again.
    return Rows(found["key"].astype(np.uint64), _widened(found["weights"], table.spec.dtype))


def _among(keys: Keys, sorted_keys: Keys) -> NDArray[np.bool_]:
    if not len(sorted_keys):
        return np.zeros(len(keys), np.bool_)
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[places] == keys)


@contextmanager
def _damage() -> Iterator[None]:
    """A file that is missing, or that the medium does not give back, is a damaged checkpoint."""
    try:
        yield
    except (NotThere, Unreadable) as error:
        raise CheckpointInvalid(str(error)) from None


def _invalid(where: str, offset: int, found: str) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"{where}: at byte {offset}: found {found}, wanted a whole file as it was written"
    )
