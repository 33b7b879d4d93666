"""Writing a cut: a file of each table, and one of steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import BUFFER_BYTES, Header
from tablebay.client.checkpoint.manifest import ROWS, STEPS, File, Layout, TableEntry
from tablebay.client.errors import CheckpointFailed, error_named
from tablebay.client.tables import TableSpec
from tablebay.native import _core
from tablebay.ps_server.failpoints import failpoint


class Cut(Protocol):
    """What is written of a cut: _core.Cut."""

    @property
    def tables(self) -> list[tuple[int, tuple[int, int, int, int, int, int]]]:
        """Each table's id, and its Layout."""

    def read(self, file: int | None, buffer: bytearray, /) -> int:
        """Fill a buffer with whole blocks of a table's file, or of that of steps; 0 after the footer."""

    def figures(self, file: int | None, /) -> tuple[int, int, int, int]:
        """Rows, deleted keys, crc of the footer's payload, bytes given."""


@dataclass(frozen=True)
class CutFiles:
    """What was written: the files, that of steps last, and the tables that they are of."""

    files: list[File]
    tables: list[TableEntry]


def write_cut(
    cut: Any,
    destination: Destination,
    attempt: str,
    *,
    number: int,
    index: int,
    epoch: int,
    parent: int | None,
    specs: Iterable[tuple[TableSpec, int]],
) -> CutFiles:
    """Write a cut into an attempt's directory, durably.

    index, epoch: of this server. parent: number of the link that a delta goes on from, None for a full one.
    specs: with their ids, at least of the tables in the cut. Raises CheckpointFailed, also where the cut was
    abandoned meanwhile, and StorageError.
    """
    given: Cut = cut
    known = {id: spec for spec, id in specs}
    buffers = (bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES))
    files, tables = [], []
    for id, parts in given.tables:
        spec = known.get(id)
        if spec is None:
            raise CheckpointFailed(f"table {id:#010x} is in the cut, and the server knows no spec of it")
        tables.append(TableEntry(id, spec, Layout(*parts)))
    wanted: list[TableEntry | None] = [*tables, None]
    for table in wanted:
        header = Header(
            kind=STEPS if table is None else ROWS,
            # Steps are whole in every cut.
            delta=table is not None and parent is not None,
            number=number,
            attempt=attempt,
            index=index,
            epoch=epoch,
            table=None if table is None else table.id,
            layout=None if table is None else table.layout,
        )
        name = f"{index}-steps" if table is None else f"{index}-rows-{table.id:08x}"
        files.append(
            _write_file(given, destination, f"{destination.attempt_path(attempt)}/{name}", header, buffers)
        )
    return CutFiles(files, tables)


def _write_file(
    cut: Cut, destination: Destination, path: str, header: Header, buffers: tuple[bytearray, bytearray]
) -> File:
    head = header.pack()
    written = len(head)
    try:
        # One buffer is filled while the other is written.
        with destination.storage.create(path) as writer, ThreadPoolExecutor(1) as behind:
            writing = behind.submit(writer.write, head)
            for turn in itertools.count():
                buffer = buffers[turn % 2]
                count = cut.read(header.table, buffer)
                writing.result()
                if not count:
                    break
                writing = behind.submit(writer.write, memoryview(buffer)[:count])
                written += count
            rows, deleted, crc, given = cut.figures(header.table)
            if written != len(head) + given:
                raise CheckpointFailed(
                    f"{destination.name}/{path}: {written} bytes written, wanted {len(head) + given}"
                )
            failpoint("files.before_finish")
            writer.finish()
    except _core.StatusError as error:
        raise error_named(*error.args) from None
    name = path.rsplit("/", 1)[1]
    return File(name, header.kind, header.table, written, crc, rows, deleted)
