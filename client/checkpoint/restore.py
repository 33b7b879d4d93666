"""Reading checkpoints into a store: the newest one that is whole, or tables of a certain one.

What is read goes into a loader beside the store, and into the store at once at the end. So a checkpoint that
turns out damaged in its last byte has changed nothing, and the one before it is tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import (
    BLOCK_HEADER_BYTES,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    Header,
)
from tablebay.client.checkpoint.manifest import (
    STEPS,
    File,
    Layout,
    Link,
    Manifest,
    ServerEntry,
    StateEntry,
    TableEntry,
)
from tablebay.client.checkpoint.storage import NotThere, Reader, Unreadable
from tablebay.client.errors import (
    BadRequest,
    CheckpointFailed,
    CheckpointInvalid,
    CheckpointMismatch,
    TableMismatch,
    error_named,
)
from tablebay.client.tables import TableSpec, differences
from tablebay.native import _core

_PART_BYTES = 1024 * 1024
# Blocks are taken while they are in the cache.
_BUFFER_BYTES = BLOCK_HEADER_BYTES + PAYLOAD_BYTES_MAX
# A file is read by several threads where each has so much of it.
_PART_BYTES_MIN = 16 * 1024 * 1024
_THREADS_MAX = 4

_Result = TypeVar("_Result")


class Part(Protocol):
    """A file being loaded: _core.Part."""

    @property
    def ended(self) -> bool:
        """Whether its footer has come, and was right."""

    @property
    def crc(self) -> int:
        """Of the footer's payload."""

    @property
    def rows(self) -> int:
        """In the file."""

    @property
    def deleted(self) -> int:
        """Deleted keys in the file."""

    def feed(self, data: memoryview, /) -> int:
        """Take whole blocks; how many bytes they were."""

    def rest(self, start: int, /) -> Part:
        """The blocks from byte `start` on, which another thread may feed meanwhile."""

    def join(self, rest: Part, /) -> None:
        """Put what the rest took behind what this took. Raises StatusError."""


class Loader(Protocol):
    """Tables that are in no store yet: _core.Loader."""

    @property
    def rows(self) -> int:
        """In all its tables."""

    def create_table(
        self,
        name: str,
        dim: int,
        dtype: str,
        optimizer: str,
        optimizer_parameters: Mapping[str, float],
        initializer: str,
        initializer_parameters: Mapping[str, float],
        seed: int,
        non_finite: str,
        push_missing: str,
        admit_at: int,
    ) -> int:
        """As Store.create_table."""

    def layout(self, table_id: int, /) -> tuple[int, int, int, int, int, int]:
        """That of a table's rows here."""

    def begin(
        self,
        table_id: int | None,
        layout: Sequence[int] | None,
        *,
        delta: bool,
        weights_only: bool,
        start: int,
        rows: int,
    ) -> Part:
        """A file's blocks come next. layout: of the rows in the file. start: where its first block is.

        rows: that it is said to have, for which room is made.
        """

    def finish(self) -> None:
        """Put all into the store."""


@dataclass(frozen=True)
class Restored:
    """What was read.

    specs: of the tables, by the names they have here. rows: on this server. chain: what this server's next delta
    may go on from; empty where the next one must be full. refused: why newer checkpoints were passed over.
    """

    manifest: Manifest
    specs: tuple[TableSpec, ...]
    rows: int
    chain: tuple[Link, ...]
    refused: tuple[str, ...]


def restore_newest(
    store: Any, destination: Destination, *, index: int, servers: int, owners: Sequence[int], job: str
) -> Restored:
    """Read this server's rows and steps of the newest checkpoint that is whole.

    owners: this server's shards; of how many servers the checkpoint is does not matter. Raises CheckpointFailed
    where there is none, CheckpointInvalid where all that may have rows are damaged, CheckpointMismatch for another
    job's, StorageError where reading fails in a way that may pass, and what the store refuses.
    """
    refused: dict[int, str] = {}
    while True:
        numbers = destination.numbers()
        run: str | None = None
        for number in reversed(numbers):
            if number in refused:
                continue
            try:
                manifest = destination.manifest(number)
                run = manifest.run if run is None else run
                if manifest.run != run:
                    # What an earlier run left is not what this one had.
                    break
                if manifest.job != job:
                    raise CheckpointMismatch(
                        f"{destination.name}/{destination.manifest_path(number)}: found the job '{manifest.job}', "
                        f"wanted '{job}'"
                    )
                if not manifest.complete:
                    continue
                if manifest.kind == "Empty" and refused:
                    # What had rows is damaged: to go on with none would be to lose it without a word.
                    break
                if index == 0:
                    for state in manifest.states():
                        check_state(destination, state)
                loaded = _load(store, destination, manifest, owners, _entries(manifest, owners))
            except (CheckpointInvalid, NotThere, Unreadable) as error:
                refused[number] = str(error)
                continue
            return Restored(
                manifest,
                loaded.specs,
                loaded.rows,
                _own_chain(manifest, loaded, index, servers, owners),
                tuple(refused.values()),
            )
        # A checkpoint may have been made, and an old one removed, while this read.
        if set(destination.numbers()) == set(numbers):
            break
        refused = {number: why for number, why in refused.items() if number in numbers}
    if not numbers:
        raise CheckpointFailed(f"{destination.name} holds no checkpoint")
    raise CheckpointInvalid(
        f"{destination.name}: none of {len(refused)} checkpoints is whole, bring the files back or begin anew in "
        f"another directory: {'; '.join(refused.values())}"
    )


def restore_from(
    store: Any,
    source: Destination,
    *,
    index: int,
    servers: int,
    owners: Sequence[int],
    number: int | None = None,
    tables: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    optimizer_state: bool = True,
    here: Mapping[str, TableSpec] | None = None,
) -> Restored:
    """Read rows, and no steps, of a certain checkpoint; of the newest where no number is given.

    A newest one that is damaged is an error, not passed over: every server must read the same. tables: by the
    source's names; none: all. rename: source's name to the one here. optimizer_state: else it begins anew.
    here: specs of the tables that there are; one of the same name keeps its spec and gets all rows of the source's
    in place of its own. Raises CheckpointFailed, CheckpointInvalid, BadRequest, StorageError, and TableMismatch
    where a table here has another width, type or, with its state, optimizer; nothing is changed then.
    """
    manifest = choose(source, number)
    names = [table.spec.name for table in manifest.tables]
    renamed = dict(rename or {})
    unknown = sorted({*tables, *renamed} - set(names))
    if unknown:
        raise BadRequest(
            f"{source.name}: checkpoint {manifest.number} has no table '{unknown[0]}', wanted some of "
            f"{', '.join(names) or 'none'}"
        )
    wanted = {table.id: table.spec for table in manifest.tables if not tables or table.spec.name in tables}
    specs = {
        id: _as_here(replace(spec, name=renamed.get(spec.name, spec.name)), here or {}, optimizer_state)
        for id, spec in wanted.items()
    }
    targets = [spec.name for spec in specs.values()]
    twice = sorted({name for name in targets if targets.count(name) > 1})
    if twice:
        raise BadRequest(f"rename: two tables would be '{twice[0]}', wanted a name for each")
    try:
        loaded = _load(
            store,
            source,
            manifest,
            owners,
            _entries(manifest, owners),
            specs=specs,
            steps=False,
            weights_only=not optimizer_state,
        )
    except (NotThere, Unreadable) as error:
        raise CheckpointInvalid(str(error)) from None
    return Restored(manifest, loaded.specs, loaded.rows, (), ())


def _as_here(spec: TableSpec, here: Mapping[str, TableSpec], optimizer_state: bool) -> TableSpec:
    """The spec that a table will have. Raises TableMismatch."""
    own = here.get(spec.name)
    if own is None:
        return spec
    unlike = differences(spec, own, ("dim", "dtype"))
    if optimizer_state and spec.optimizer.type != own.optimizer.type:
        unlike.append(
            f"optimizer: found {spec.optimizer.type}, wanted {own.optimizer.type}, or optimizer_state=False"
        )
    if unlike:
        raise TableMismatch(f"table '{spec.name}' of the checkpoint differs: {'; '.join(unlike)}")
    return own


def choose(source: Destination, number: int | None) -> Manifest:
    """The complete checkpoint of that number, or the one that the source's path named, or the newest.

    Raises CheckpointFailed where there is none, CheckpointInvalid, StorageError.
    """
    numbers = source.numbers()
    asked = source.pinned if number is None else number
    if asked is None:
        complete = [one for one in reversed(numbers) if source.manifest(one).complete]
        if not complete:
            raise CheckpointFailed(f"{source.name} holds no checkpoint")
        return source.manifest(complete[0])
    if asked not in numbers or not source.manifest(asked).complete:
        shown = ", ".join(str(one) for one in numbers[-10:])
        raise CheckpointFailed(f"{source.name} holds no checkpoint {asked}, wanted one of {shown or 'none'}")
    return source.manifest(asked)


def check_state(destination: Destination, state: StateEntry) -> None:
    """Read a worker's saved bytes to the end. Raises CheckpointInvalid, StorageError."""
    crc = offset = 0
    while offset < state.bytes:
        part = destination.read_state(state, offset, _PART_BYTES)
        if not part:
            break
        crc = _core.crc32c(part, crc)
        offset += len(part)
    if state.bytes == 0:
        destination.read_state(state, 0, 0)
    if offset != state.bytes or crc != state.crc:
        raise CheckpointInvalid(
            f"{destination.name}/{state.path}: at byte 0: found the crc {crc:#010x} over {offset} bytes, wanted "
            f"{state.crc:#010x} over {state.bytes}"
        )


@dataclass(frozen=True)
class _Loaded:
    specs: tuple[TableSpec, ...]
    rows: int
    same_layouts: bool


def _entries(manifest: Manifest, owners: Sequence[int]) -> list[ServerEntry]:
    """Servers that had some of these shards."""
    ours = frozenset(owners)
    return [server for server in manifest.servers if server.chain and not ours.isdisjoint(server.owners)]


def _own_chain(
    manifest: Manifest, loaded: _Loaded, index: int, servers: int, owners: Sequence[int]
) -> tuple[Link, ...]:
    if len(manifest.servers) != servers or not loaded.same_layouts:
        return ()
    entry = manifest.servers[index]
    return entry.chain if entry.owners == tuple(owners) else ()


def _load(
    store: Any,
    source: Destination,
    manifest: Manifest,
    owners: Sequence[int],
    entries: Sequence[ServerEntry],
    *,
    specs: Mapping[int, TableSpec] | None = None,
    steps: bool = True,
    weights_only: bool = False,
) -> _Loaded:
    """All links of some servers into the store, or nothing of them. specs: by the ids in the manifest."""
    wanted = {table.id: table.spec for table in manifest.tables} if specs is None else specs
    try:
        loader: Loader = store.load(list(owners))
        ids: dict[int, int] = {}
        same_layouts = True
        for id, spec in wanted.items():
            ids[id] = _create(loader, spec)
            same_layouts = same_layouts and tuple(loader.layout(ids[id])) == manifest.table(id).layout
        for server in entries:
            for link in server.chain:
                for file in link.files:
                    if file.kind == STEPS and steps:
                        _read_file(source, server, link, file, loader, None, None, weights_only)
                    elif file.table in ids:
                        table = manifest.table(file.table)
                        _read_file(source, server, link, file, loader, ids[file.table], table, weights_only)
        rows = loader.rows
        loader.finish()
    except _core.StatusError as error:
        raise error_named(*error.args) from None
    return _Loaded(tuple(wanted.values()), rows, same_layouts)


def _create(loader: Loader, spec: TableSpec) -> int:
    return loader.create_table(
        *spec.arguments(),
    )


def _read_file(
    source: Destination,
    server: ServerEntry,
    link: Link,
    file: File,
    loader: Loader,
    table_id: int | None,
    table: TableEntry | None,
    weights_only: bool,
) -> None:
    path = f"{source.attempt_path(link.attempt)}/{file.name}"
    where = f"{source.name}/{path}"
    with source.storage.open(path) as reader:
        check_head(reader, where, server, link, file, None if table is None else table.layout)
        part = loader.begin(
            table_id,
            None if table is None else tuple(table.layout),
            delta=is_delta(link, file),
            weights_only=weights_only and table is not None,
            start=HEADER_BYTES,
            # No more than there can be.
            rows=0
            if table is None or is_delta(link, file)
            else min(file.rows, file.bytes // table.layout.row_bytes),
        )
        # Of a delta the deletions come first, for what was deleted may have come back.
        whole = file.kind == STEPS or is_delta(link, file)
        begins = [HEADER_BYTES] if whole else _begins(reader, file.bytes)
        _feed_parts(reader, part, where, [*begins, file.bytes])
    found, wanted = (part.crc, part.rows, part.deleted), (file.crc, file.rows, file.deleted)
    if found != wanted:
        raise CheckpointInvalid(
            f"{where}: at byte {file.bytes - 1}: found a footer of (crc, rows, deleted) {found}, wanted {wanted}, as "
            "in the manifest"
        )


def is_delta(link: Link, file: File) -> bool:
    """Whether a file has only what has changed; steps are whole in every link."""
    return file.kind != STEPS and link.parent is not None


def check_head(
    reader: Reader, where: str, server: ServerEntry, link: Link, file: File, layout: Layout | None
) -> Header:
    """A file's size and header against its manifest. Raises CheckpointInvalid."""
    if reader.size != file.bytes:
        raise CheckpointInvalid(
            f"{where}: at byte {min(reader.size, file.bytes)}: found {reader.size} bytes, wanted {file.bytes}"
        )
    head = bytearray(min(HEADER_BYTES, reader.size))
    count = reader.read_into(head, 0)
    header = Header.parse(bytes(head[:count]), where)
    header.require(
        Header(
            kind=file.kind,
            delta=is_delta(link, file),
            number=link.number,
            attempt=link.attempt,
            index=server.index,
            epoch=header.epoch,
            table=file.table,
            layout=layout,
        ),
        where,
    )
    return header


def _begins(reader: Reader, size: int) -> list[int]:
    """Where the blocks begin that cut a file into parts of about the same size, one for each thread."""
    count = min(len(os.sched_getaffinity(0)), _THREADS_MAX, size // _PART_BYTES_MIN)
    begins, at = [HEADER_BYTES], HEADER_BYTES
    head = bytearray(BLOCK_HEADER_BYTES)
    while len(begins) < count:
        if reader.read_into(head, at) < len(head):
            break
        at += len(head) + int.from_bytes(head[8:12], "little")
        if at >= len(begins) * size // count:
            begins.append(at)
    # What a damaged head leads to is no part; who reads the blocks finds it.
    return [begin for begin in begins if begin < size or begin == HEADER_BYTES]


def _feed_parts(reader: Reader, part: Part, where: str, bounds: Sequence[int]) -> None:
    """Give all blocks to a part, those between two bounds by a thread of their own."""
    parts = [part, *(part.rest(begin) for begin in bounds[1:-1])]
    with ThreadPoolExecutor(len(parts)) as threads:
        coming = [
            threads.submit(_feed, reader, one, where, begin, end)
            for one, begin, end in zip(parts, bounds[:-1], bounds[1:], strict=True)
        ]
    failed = [error for future in coming if (error := future.exception()) is not None]
    if failed:
        # When one part has failed the loader takes no more of the others, which says less.
        raise next((error for error in failed if not isinstance(error, BadRequest)), failed[0])
    for rest in parts[1:]:
        _named(partial(part.join, rest), where)
    if not part.ended:
        raise CheckpointInvalid(f"{where}: at byte {bounds[-1]}: found the end, wanted a footer")


def _feed(reader: Reader, part: Part, where: str, begin: int, end: int) -> None:
    """Give the blocks from one byte to another to a part."""
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, end - begin)))
    offset, size = begin, len(buffer)
    while offset < end:
        count = reader.read_into(buffer[: min(size, end - offset)], offset)
        # Whole blocks alone are taken.
        taken = 0 if part.ended else _named(partial(part.feed, buffer[:count]), where)
        if taken == 0 and size < len(buffer) and not part.ended:
            size = len(buffer)
            continue
        if taken == 0:
            found, wanted = (
                ("more after the footer", "the end") if part.ended else ("the end", "a whole block")
            )
            raise CheckpointInvalid(f"{where}: at byte {offset}: found {found}, wanted {wanted}")
        offset += taken
        # The blocks that follow are mostly as long: so nothing is read twice.
        size = taken


def _named(call: Callable[[], _Result], where: str) -> _Result:
    """What a call of the native core answers. Raises its errors with the file's name."""
    try:
        return call()
    except _core.StatusError as error:
        kind, text = error.args
        if kind == "CheckpointInvalid":
            raise CheckpointInvalid(f"{where}: {text}") from None
        raise error_named(kind, f"{where}: {text}") from None
