"""Tables of a checkpoint without servers: read-only, memory-mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client.arrays import Keys, Rows, as_keys, as_out
from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import HEADER_BYTES
from tablebay.client.checkpoint.manifest import File, Link, Manifest, ServerEntry, TableEntry
from tablebay.client.checkpoint.reading import dtype_of
from tablebay.client.checkpoint.restore import check_head, choose
from tablebay.client.checkpoint.storage import NotThere, Unreadable
from tablebay.client.errors import BadRequest, CheckpointInvalid, NotRegistered
from tablebay.client.int8 import to_int8
from tablebay.client.native import native
from tablebay.client.tables import TableSpec
from tablebay.native import _core

_ITEMS_BATCH = 100_000


class FrozenTable:
    """Rows of one table of a checkpoint. Keys as those of a table of servers. Safe in threads.

    The rows stay in the checkpoint's files, which the system reads as they are needed; an index of some 22 bytes a row
    is in memory. So the files must stay as they are while this is used: retention may remove them from a running job's
    destination, which is harmless, but whoever truncates one ends this process.
    """

    def __init__(self, entry: TableEntry, rows: _core.FrozenRows) -> None:
        self._entry = entry
        self._rows = rows
        self._dtype = np.dtype(dtype_of(entry))

    @property
    def spec(self) -> TableSpec:
        """The table as it was when the checkpoint was made."""
        return self._entry.spec

    @property
    def name(self) -> str:
        """Its name."""
        return self._entry.spec.name

    @property
    def dim(self) -> int:
        """Elements of a row."""
        return self._entry.spec.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of rows as they are read: float32 or int64."""
        return self._dtype

    def __len__(self) -> int:
        return len(self._rows)

    def pull(self, keys: Any, out: Any = None, create: bool = False) -> Any:
        """Rows of `keys`, as an array of shape keys.shape + (dim,); a key without one reads as zeros.

        out: an array of that shape and the table's dtype, writable, C-contiguous: it is filled and returned.
        create: there is nothing to make a row in, so True is refused with BadRequest.
        """
        if create:
            raise BadRequest(f"table '{self.name}': a checkpoint is read-only: create is True, wanted False")
        flat, shape = as_keys(keys, self.name)
        wanted = (*shape, self.dim)
        rows = np.empty(wanted, self._dtype) if out is None else as_out(out, self.name, self._dtype, wanted)
        native(self._rows.read, flat, rows.reshape(-1, self.dim))
        return rows if out is None else out

    def pull_int8(self, keys: Any) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Rows of `keys` in a quarter of the bytes: int8, keys.shape + (dim,), and scales, float32, keys.shape.

        A weight is its int8 times its row's scale, within half a scale (client/int8.py). Raises BadRequest for an
        int64 table.
        """
        if self._dtype.kind != "f":
            raise BadRequest(
                f"table '{self.name}': its rows are {self._dtype}, wanted float32 to make int8 of"
            )
        return to_int8(self.pull(keys))

    def contains(self, keys: Any) -> NDArray[np.bool_]:
        """Which of `keys` have a row: bool, keys.shape."""
        flat, shape = as_keys(keys, self.name)
        found: NDArray[np.bool_] = native(self._rows.contains, flat)
        return found.reshape(shape)

    def items(self, batch: int = _ITEMS_BATCH) -> Iterator[tuple[Keys, Rows]]:
        """All rows, in no order: pairs of keys, uint64 (n,), and rows, (n, dim), n at most `batch`."""
        if batch < 1:
            raise BadRequest(f"table '{self.name}': batch is {batch}, wanted at least 1")
        position = 0
        while True:
            keys, rows, position = native(self._rows.scan, position, batch)
            if len(keys):
                yield keys, np.frombuffer(rows, self._dtype).reshape(-1, self.dim)
            if position == 0:
                return


class Frozen(Mapping[str, FrozenTable]):
    """The tables of a checkpoint, by name; each is indexed when it is first asked for."""

    def __init__(self, source: Destination, manifest: Manifest) -> None:
        self._source = source
        self._manifest = manifest
        self._entries = {entry.spec.name: entry for entry in manifest.tables}
        self._tables: dict[str, FrozenTable] = {}

    @property
    def number(self) -> int:
        """The checkpoint's."""
        return self._manifest.number

    @property
    def job(self) -> str:
        """The job that made it."""
        return self._manifest.job

    def __getitem__(self, name: str) -> FrozenTable:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotRegistered(
                f"checkpoint {self.number} of {self._source.name} has no table '{name}'; it has {known}"
            )
        if name not in self._tables:
            self._tables[name] = self._index(self._entries[name])
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def _index(self, entry: TableEntry) -> FrozenTable:
        rows = _core.FrozenRows(entry.layout, entry.spec.dtype)
        for server in self._manifest.servers:
            for link in server.chain:
                for file in link.files:
                    if file.table == entry.id:
                        self._add(rows, entry, server, link, file)
        return FrozenTable(entry, rows)

    def _add(
        self, rows: _core.FrozenRows, entry: TableEntry, server: ServerEntry, link: Link, file: File
    ) -> None:
        path = f"{self._source.attempt_path(link.attempt)}/{file.name}"
        where = f"{self._source.name}/{path}"
        try:
            with self._source.storage.open(path) as reader:
                check_head(reader, where, server, link, file, entry.layout)
            # The storage has looked at the path; no link is followed here either.
            number = os.open(Path(self._source.name) / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (NotThere, Unreadable, OSError) as error:
            raise CheckpointInvalid(f"{where}: {error}") from None
        try:
            content = mmap.mmap(number, 0, prot=mmap.PROT_READ)
        finally:
            os.close(number)
        try:
            native(rows.add, content, HEADER_BYTES)
        except CheckpointInvalid as error:
            raise CheckpointInvalid(f"{where}: {error}") from None
        # From here on rows are read here and there.
        with suppress(AttributeError, OSError):
            content.madvise(mmap.MADV_RANDOM)


def open(path: str | os.PathLike[str], *, number: int | None = None) -> Frozen:
    """The tables of a checkpoint, to read without servers.

    path: a destination, for its newest complete checkpoint, or one of its manifests; every byte of a table's files is
    checked when the table is first asked for. number: of the checkpoint.
    Raises CheckpointInvalid naming file and byte, CheckpointFailed where there is none, CheckpointMismatch.
    """
    source = Destination.open_source(os.fspath(Path(path).absolute()))
    return Frozen(source, choose(source, number))
