"""Rows and steps of a checkpoint into a store: checked whole, beside what is there, then put in place at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import HEADER_BYTES, Header
from tablebay.client.checkpoint.manifest import File, Link, Manifest, ServerEntry, TableEntry
from tablebay.client.checkpoint.storage import Reader, StorageError
from tablebay.client.errors import CheckpointInvalid, CheckpointMismatch
from tablebay.client.native import native
from tablebay.client.tables import TableSpec
from tablebay.native import _core

_READ_BYTES = 4 << 20
# The largest block with its head.
_BLOCK_MAX = (1 << 20) + 16


@dataclass(frozen=True)
class Restored:
    """What a store has now. chain: what its next delta is relative to; () where that must be full.

    refused: checkpoints that were passed over, newest first, each with its file and byte.
    """

    manifest: Manifest
    specs: tuple[TableSpec, ...]
    rows: int
    chain: tuple[Link, ...]
    refused: tuple[CheckpointInvalid, ...] = ()


def restore_newest(
    store: _core.Store,
    destination: Destination,
    *,
    index: int,
    servers: int,
    owners: Sequence[int],
    job: str,
    generation: int | None = None,
) -> Restored:
    """The newest complete checkpoint that can be read whole, with its steps.

    owners: the shards of this server, number `index` of `servers`. generation: only what that one made.
    Raises CheckpointInvalid where there is none, naming what is wrong with each; CheckpointMismatch for another
    job's.
    """
    refused: list[CheckpointInvalid] = []
    for found in destination.manifests_newest_first():
        if isinstance(found, CheckpointInvalid):
            refused.append(found)
            continue
        if generation not in (None, found.generation):
            continue
        if found.job != job:
            raise CheckpointMismatch(
                f"{destination.name}: number {found.number} is of job '{found.job}', not '{job}'"
            )
        try:
            restored = _read(store, destination, found, owners, steps=True)
        except CheckpointInvalid as error:
            refused.append(error)
            continue
        same = len(found.servers) == servers and found.servers[index].owners == tuple(owners)
        return replace(restored, chain=found.servers[index].chain if same else (), refused=tuple(refused))
    reasons = "; ".join(str(error) for error in refused) or "there is no manifest"
    raise CheckpointInvalid(f"{destination.name} holds no checkpoint that can be used: {reasons}")


def restore_from(
    store: _core.Store,
    source: Destination,
    *,
    index: int,
    servers: int,
    owners: Sequence[int],
    number: int | None = None,
    tables: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    optimizer_state: bool = True,
) -> Restored:
    """Rows of any job's checkpoint, without its steps.

    number: None for the newest complete one. tables: their names there; () for all. rename: names here by names
    there. optimizer_state: without it slots and step counts begin as new rows'. Raises CheckpointInvalid,
    CheckpointMismatch.
    """
    manifest = source.manifest(number) if number is not None else _newest(source)
    names = {entry.spec.name for entry in manifest.tables}
    missing = sorted((set(tables) | set(rename or {})) - names)
    if missing:
        raise CheckpointMismatch(
            f"{source.name}: number {manifest.number} has no table '{missing[0]}'; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    wanted = set(tables) or names
    new_names = [(rename or {}).get(name, name) for name in sorted(wanted)]
    if len(set(new_names)) != len(new_names):
        raise CheckpointMismatch(f"two tables would have one name: {', '.join(new_names)}")
    return _read(
        store,
        source,
        manifest,
        owners,
        steps=False,
        tables=wanted,
        rename=rename or {},
        optimizer_state=optimizer_state,
    )


def read_rows(
    loader: _core.Loader,
    source: Destination,
    manifest: Manifest,
    entry: TableEntry,
    table_id: int,
    owners: Sequence[int],
    *,
    weights_only: bool = False,
) -> None:
    """A table's rows of all servers that had any of the shards. Raises CheckpointInvalid with file and byte."""
    wanted = set(owners)
    for server in manifest.servers:
        if wanted.isdisjoint(server.owners):
            continue
        for link in server.chain:
            for file in link.files:
                if file.table != entry.id:
                    continue
                _read_file(
                    source,
                    server,
                    link,
                    file,
                    lambda delta: loader.begin(
                        table_id, entry.layout, delta, weights_only=weights_only, start=HEADER_BYTES
                    ),
                    entry,
                )


def _newest(source: Destination) -> Manifest:
    for found in source.manifests_newest_first():
        if isinstance(found, CheckpointInvalid):
            raise found
        return found
    raise CheckpointInvalid(f"{source.name} holds no complete checkpoint")


def _read(
    store: _core.Store,
    source: Destination,
    manifest: Manifest,
    owners: Sequence[int],
    *,
    steps: bool,
    tables: set[str] | None = None,
    rename: Mapping[str, str] | None = None,
    optimizer_state: bool = True,
) -> Restored:
    loader = store.load(list(owners))
    specs: list[TableSpec] = []
    for entry in manifest.tables:
        if tables is not None and entry.spec.name not in tables:
            continue
        spec = replace(entry.spec, name=(rename or {}).get(entry.spec.name, entry.spec.name))
        specs.append(spec)
        table_id = native(
            loader.create_table,
            spec.name,
            spec.dim,
            spec.dtype,
            spec.optimizer.type,
            spec.optimizer.parameters(),
            spec.initializer.type,
            spec.initializer.parameters(),
            spec.seed,
            spec.non_finite,
        )
        read_rows(loader, source, manifest, entry, table_id, owners, weights_only=not optimizer_state)
    if steps:
        _read_steps(loader, source, manifest, owners)
    native(loader.finish)
    return Restored(manifest, tuple(specs), loader.rows, ())


def _read_steps(loader: _core.Loader, source: Destination, manifest: Manifest, owners: Sequence[int]) -> None:
    wanted = set(owners)
    for server in manifest.servers:
        if wanted.isdisjoint(server.owners) or not server.chain:
            continue
        link = server.chain[-1]
        files = [file for file in link.files if file.kind == "Steps"]
        if len(files) != 1:
            raise CheckpointInvalid(
                f"{source.name}: number {manifest.number}: server {server.index} has {len(files)} files of steps, "
                "wanted 1"
            )
        _read_file(
            source, server, link, files[0], lambda delta: loader.begin(None, None, delta, start=HEADER_BYTES)
        )


def _read_file(
    source: Destination,
    server: ServerEntry,
    link: Link,
    file: File,
    begin: Callable[[bool], Any],
    entry: TableEntry | None = None,
) -> None:
    path = f"attempts/{link.attempt}/{file.name}"
    try:
        reader = source.storage.reader(path)
    except FileNotFoundError:
        raise CheckpointInvalid(f"{source.name}/{path} is not there") from None
    except StorageError as error:
        raise CheckpointInvalid(f"{source.name}/{path}: {error}") from None
    try:
        _read_blocks(reader, server, link, file, begin, entry)
    except (CheckpointInvalid, StorageError) as error:
        raise CheckpointInvalid(f"{source.name}/{path}: {error}") from None
    finally:
        reader.close()


def _read_blocks(
    reader: Reader,
    server: ServerEntry,
    link: Link,
    file: File,
    begin: Callable[[bool], Any],
    entry: TableEntry | None,
) -> None:
    if reader.size != file.bytes:
        raise CheckpointInvalid(f"it has {reader.size} bytes, and the manifest says {file.bytes}")
    first = bytearray(HEADER_BYTES)
    count = reader.read_into(0, memoryview(first))
    header = Header.decode(bytes(first[:count]))
    delta = link.parent is not None and file.kind == "Rows"
    wanted = replace(
        header,
        attempt=link.attempt,
        number=link.number,
        index=server.index,
        delta=delta,
        table=file.table,
        layout=header.layout if entry is None else entry.layout,
    )
    if header != wanted:
        raise CheckpointInvalid(f"at byte 8: found {header}, and the manifest says {wanted}")
    part = native(begin, delta)
    # Two buffers, the next read while the blocks of the one before are taken. What a block lacks of its end is put
    # before the next buffer's content.
    buffers = [memoryview(bytearray(_BLOCK_MAX + _READ_BYTES)) for _ in range(2)]
    with ThreadPoolExecutor(1) as ahead:

        def read(turn: int, offset: int) -> int:
            return reader.read_into(offset, buffers[turn % 2][_BLOCK_MAX:])

        offset, turn, rest = HEADER_BYTES, 0, b""
        coming = ahead.submit(read, turn, offset)
        while count := coming.result():
            buffer = buffers[turn % 2]
            offset, turn = offset + count, turn + 1
            coming = ahead.submit(read, turn, offset)
            begin_at = _BLOCK_MAX - len(rest)
            buffer[begin_at:_BLOCK_MAX] = rest
            content = buffer[begin_at : _BLOCK_MAX + count]
            rest = bytes(content[native(part.feed, content) :])
    if not part.ended:
        raise CheckpointInvalid(f"at byte {file.bytes}: it ends before its footer")
    if (part.crc, part.rows, part.deleted) != (file.crc, file.rows, file.deleted):
        raise CheckpointInvalid(
            f"{part.rows} rows, {part.deleted} deletions, CRC-32C {part.crc:08x}; the manifest says {file.rows}, "
            f"{file.deleted}, {file.crc:08x}"
        )
