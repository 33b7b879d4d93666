"""The files of a cut."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import HEADER_BYTES, Header
from tablebay.client.checkpoint.manifest import File, Layout, TableEntry
from tablebay.client.native import native
from tablebay.client.tables import TableSpec

_WRITE_BYTES = 4 << 20
_NO_LAYOUT: Layout = (0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class CutFiles:
    """What a server wrote: its files, and the tables that they are of."""

    files: tuple[File, ...]
    tables: tuple[TableEntry, ...]


def write_cut(
    cut: Any,
    destination: Destination,
    attempt: str,
    *,
    number: int,
    index: int,
    epoch: int,
    parent: int | None,
    specs: Sequence[tuple[TableSpec, int]],
) -> CutFiles:
    """Write all files of a cut into the attempt's directory; they are on the disk on return.

    parent: the link that it is relative to; None for a full one. specs: tables, with their ids.
    Raises CheckpointFailed where the cut was given up, StorageError.
    """
    by_id = {table_id: spec for spec, table_id in specs}
    files: list[File] = []
    tables: list[TableEntry] = []
    for table_id, layout in cut.tables:
        spec = by_id[table_id]
        tables.append(TableEntry(table_id, spec, tuple(layout)))
        name = f"{index}-{table_id:08x}.rows"
        header = Header(number, attempt, index, epoch, parent is not None, table_id, tuple(layout))
        files.append(_write_file(cut, destination, attempt, name, header))
    header = Header(number, attempt, index, epoch, False, None, _NO_LAYOUT)
    files.append(_write_file(cut, destination, attempt, f"{index}.steps", header))
    return CutFiles(tuple(files), tuple(tables))


def _write_file(cut: Any, destination: Destination, attempt: str, name: str, header: Header) -> File:
    writer = destination.storage.writer(f"attempts/{attempt}/{name}")
    buffers = [bytearray(_WRITE_BYTES) for _ in range(2)]
    try:
        writer.write(header.encode())
        # One buffer is filled while the one before is written.
        with ThreadPoolExecutor(1) as behind:
            writing: Future[None] | None = None
            turn = 0
            while count := native(cut.read, header.table, buffers[turn % 2]):
                if writing is not None:
                    writing.result()
                writing = behind.submit(writer.write, memoryview(buffers[turn % 2])[:count])
                turn += 1
            if writing is not None:
                writing.result()
    finally:
        writer.close()
    rows, deleted, crc, size = cut.figures(header.table)
    return File(
        name=name,
        kind="Steps" if header.table is None else "Rows",
        table=header.table,
        bytes=HEADER_BYTES + size,
        crc=crc,
        rows=rows,
        deleted=deleted,
    )
