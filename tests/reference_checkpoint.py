"""A second reader and writer of docs/checkpoint-format.md: slow, plain, and sharing no code with the product's.

ReferenceStore, with its cuts and loaders, stands in for the native core where a test is of what lies around it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tablebay.native import _core

PAYLOAD_MAX = 1 << 20
NO_RANK = 2**32 - 1
Six = tuple[int, int, int, int, int, int]


def crc(*parts: bytes) -> int:
    value = 0
    for part in parts:
        value = _core.crc32c(part, value)
    return value


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def layout_of(dim: int, slots: int = 1, *, step: bool = False, element: int = 4) -> Six:
    """(row_bytes, step, weights, weight_bytes, slots, slot_bytes) of a row with its weights and so many slots."""
    weights = 16 if step or element == 8 else 12
    after = weights + element * dim
    end = after + element * dim * slots
    return ((end + 7) // 8 * 8, 12 if step else 0, weights, element * dim, after, element * dim * slots)


def make_row(layout: Six, key: int, version: int, weights: bytes, slots: bytes = b"", step: int = 0) -> bytes:
    row = bytearray(layout[0])
    row[0:8] = u64(key)
    row[8:12] = u32(version)
    if layout[1]:
        row[layout[1] : layout[1] + 4] = u32(step)
    row[layout[2] : layout[2] + layout[3]] = weights.ljust(layout[3], b"\0")
    row[layout[4] : layout[4] + layout[5]] = slots[: layout[5]].ljust(layout[5], b"\0")
    assert len(row) == layout[0]
    return bytes(row)


@dataclass
class Client:
    """A client's windows. shards: shard -> (next, bits, folds)."""

    high: int
    low: int
    incarnation: int = 1
    rank: int | None = None
    next: int = 0
    bits: int = 0
    cursors: dict[int, bytes] = field(default_factory=dict)
    shards: dict[int, tuple[int, int, list[int]]] = field(default_factory=dict)

    def pack(self) -> bytes:
        rank = NO_RANK if self.rank is None else self.rank
        out = u64(self.high, self.low) + u32(self.incarnation, rank) + u64(self.next, self.bits)
        out += u32(len(self.cursors))
        for step, cursor in self.cursors.items():
            out += u64(step) + u32(len(cursor)) + cursor
        out += u32(len(self.shards))
        for shard, (following, bits, folds) in self.shards.items():
            out += u32(shard) + u64(following, bits) + struct.pack("<64H", *folds)
        return out

    @classmethod
    def unpack(cls, data: bytes) -> Client:
        high, low, incarnation, rank, following, bits, count = struct.unpack_from("<QQIIQQI", data)
        at = struct.calcsize("<QQIIQQI")
        client = cls(high, low, incarnation, None if rank == NO_RANK else rank, following, bits)
        for _ in range(count):
            step, size = struct.unpack_from("<QI", data, at)
            client.cursors[step] = data[at + 12 : at + 12 + size]
            at += 12 + size
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        for _ in range(count):
            shard, after, window = struct.unpack_from("<IQQ", data, at)
            client.shards[shard] = (after, window, list(struct.unpack_from("<64H", data, at + 20)))
            at += 20 + 128
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes after the client")
        return client


def header(
    *,
    kind: int,
    delta: bool,
    number: int,
    attempt: str,
    index: int,
    epoch: int,
    table: int = 0,
    layout: Six = (0,) * 6,
) -> bytes:
    content = b"TABLEBAY" + u32(1, 96, kind, int(delta)) + u64(number)
    content += bytes.fromhex(attempt.split("-")[1]) + u32(index, 0) + u64(epoch) + u32(table, *layout)
    return content + u32(crc(content))


def block(kind: int, count: int, payload: bytes) -> bytes:
    head = u32(kind, count, len(payload))
    return head + u32(crc(head, payload)) + payload


class Blocks:
    """The blocks of one file, its footer last."""

    def __init__(self, payloads: Sequence[tuple[int, int, bytes]]) -> None:
        blocks = [block(*one) for one in payloads]
        self.rows = sum(count for kind, count, _ in payloads if kind == 1)
        self.deleted = sum(count for kind, count, _ in payloads if kind == 2)
        over = crc(*(one[12:16] for one in blocks))
        footer = u64(self.rows, self.deleted, len(blocks)) + u32(over, 0)
        self.crc = crc(footer)
        self.parts = [*blocks, block(255, 0, footer)]

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


def row_blocks(layout: Six, rows: Sequence[bytes], deleted: Sequence[int], per_block: int) -> Blocks:
    payloads = [
        (2, len(deleted[at : at + per_block]), u64(*deleted[at : at + per_block]))
        for at in range(0, len(deleted), per_block)
    ]
    payloads += [
        (1, len(rows[at : at + per_block]), b"".join(rows[at : at + per_block]))
        for at in range(0, len(rows), per_block)
    ]
    return Blocks(payloads)


class Damaged(ValueError):
    """What a reader of the format refuses."""


def read_blocks(data: bytes, start: int = 96) -> Iterator[tuple[int, int, int, bytes]]:
    """(offset, kind, count, payload) of each block, after all of them were checked. data: without the header."""
    at, crcs, rows, deleted, blocks = 0, b"", 0, 0, 0
    found = []
    while True:
        if len(data) - at < 16:
            raise Damaged(f"at byte {start + at}: the end")
        kind, count, size, expected = struct.unpack_from("<4I", data, at)
        if size > PAYLOAD_MAX or len(data) - at - 16 < size:
            raise Damaged(f"at byte {start + at}: a payload of {size} bytes")
        payload = data[at + 16 : at + 16 + size]
        if crc(data[at : at + 12], payload) != expected:
            raise Damaged(f"at byte {start + at}: the crc does not fit")
        if kind == 255:
            if payload != u64(rows, deleted, blocks) + u32(crc(crcs), 0) or count:
                raise Damaged(f"at byte {start + at}: the footer does not fit")
            if at + 16 + size != len(data):
                raise Damaged(f"at byte {start + at + 16 + size}: more after the footer")
            yield from found
            return
        if kind not in (1, 2, 3):
            raise Damaged(f"at byte {start + at}: a block of kind {kind}")
        rows += count if kind == 1 else 0
        deleted += count if kind == 2 else 0
        blocks += 1
        crcs += data[at + 12 : at + 16]
        found.append((start + at, kind, count, payload))
        at += 16 + size


def invalid(text: str) -> _core.StatusError:
    return _core.StatusError("CheckpointInvalid", text)


@dataclass
class Table:
    """A table's rows, and what has changed since the last cut."""

    spec: tuple[Any, ...]
    layout: Six
    rows: dict[int, bytes] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)


class ReferenceStore:
    """Tables by id, clients by identity. per_block: rows in a block."""

    def __init__(self, per_block: int = 3) -> None:
        self.tables: dict[int, Table] = {}
        self.clients: dict[tuple[int, int], Client] = {}
        self.per_block = per_block
        self.must_be_full = True
        self.pushes = 0
        self.deletions = 0

    def create_table(self, name: str, dim: int, dtype: str, optimizer: str, *rest: Any) -> int:
        slots = {"SGD": 0, "Adagrad": 1, "Adam": 2, "Add": 0}[optimizer]
        element = 8 if dtype == "int64" else 4
        layout = layout_of(dim, slots, step=optimizer == "Adam", element=element)
        self.tables[_core.table_id(name)] = Table((name, dim, dtype, optimizer, *rest), layout)
        return _core.table_id(name)

    def put(self, table: int, key: int, weights: bytes, version: int = 1, slots: bytes = b"") -> None:
        one = self.tables[table]
        one.rows[key] = make_row(one.layout, key, version, weights, slots)
        one.changed.add(key)
        self.pushes += 1

    def delete(self, table: int, key: int) -> None:
        one = self.tables[table]
        del one.rows[key]
        one.changed.discard(key)
        one.deleted.add(key)
        self.deletions += 1

    def content(self) -> Any:
        """All of it, for comparing."""
        return {
            one.spec[0]: (one.layout, dict(sorted(one.rows.items()))) for one in self.tables.values()
        }, dict(sorted((who, client.pack()) for who, client in self.clients.items()))

    def hold(self, seconds: float) -> list[tuple[int, int, int]]:
        return []

    def release(self) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return {"pushes": self.pushes, "rows_deleted": self.deletions}

    def take(self, limits: Sequence[Any] = (), wait_s: float = 0.0, full: bool = True) -> ReferenceCut:
        assert full or not self.must_be_full
        return ReferenceCut(self, full)

    def load(self, owners: Sequence[int]) -> ReferenceLoader:
        return ReferenceLoader(self, owners)


class ReferenceCut:
    """As the native core's cut."""

    aligned = True
    pause_s = 0.001

    def __init__(self, store: ReferenceStore, full: bool) -> None:
        self.full = full
        self._store = store
        self.tables = [(id, table.layout) for id, table in store.tables.items()]
        self.clients = [
            (one.high, one.low, one.rank, one.next, one.cursors.get(one.next - 1, b""))
            for one in store.clients.values()
        ]
        self.abandoned = False
        self._files: dict[int | None, Blocks] = {}
        self._given: dict[int | None, int] = {}
        for id, table in store.tables.items():
            rows = [table.rows[key] for key in sorted(table.rows) if full or key in table.changed]
            deleted = [] if full else sorted(table.deleted)
            self._files[id] = row_blocks(table.layout, rows, deleted, store.per_block)
            table.changed, table.deleted = set(), set()
        self._files[None] = Blocks([(3, 1, client.pack()) for client in store.clients.values()])
        self._left = {file: list(blocks.parts) for file, blocks in self._files.items()}

    def read(self, file: int | None, buffer: bytearray) -> int:
        if self.abandoned:
            raise _core.StatusError("CheckpointFailed", "the cut was abandoned")
        assert len(buffer) >= 2 << 20
        at = 0
        while self._left[file] and at + len(self._left[file][0]) <= len(buffer):
            part = self._left[file].pop(0)
            buffer[at : at + len(part)] = part
            at += len(part)
        self._given[file] = self._given.get(file, 0) + at
        return at

    def figures(self, file: int | None) -> tuple[int, int, int, int]:
        blocks = self._files[file]
        return blocks.rows, blocks.deleted, blocks.crc, self._given[file]

    def commit(self) -> None:
        self._store.must_be_full = False

    def abandon(self) -> None:
        self.abandoned = True
        self._store.must_be_full = True


class ReferenceLoader:
    """As the native core's loader."""

    def __init__(self, store: ReferenceStore, owners: Sequence[int]) -> None:
        self._store = store
        self.owners = frozenset(owners)
        self.staged = ReferenceStore()

    @property
    def rows(self) -> int:
        return sum(len(table.rows) for table in self.staged.tables.values())

    def create_table(self, *arguments: Any) -> int:
        return self.staged.create_table(*arguments)

    def layout(self, table_id: int) -> Six:
        return self.staged.tables[table_id].layout

    def begin(
        self,
        table_id: int | None,
        layout: Six | None,
        delta: bool,
        weights_only: bool = False,
        start: int = 96,
        rows: int = 0,
    ) -> ReferencePart:
        return ReferencePart(self, table_id, layout, weights_only, start)

    def finish(self) -> None:
        self._store.tables.update(self.staged.tables)
        self._store.clients.update(self.staged.clients)
        self._store.must_be_full = False


class ReferencePart:
    """As the native core's. It wants whole blocks, and checks each as it comes."""

    def __init__(
        self, loader: ReferenceLoader, table: int | None, layout: Six | None, weights_only: bool, start: int
    ) -> None:
        self._loader = loader
        self._table = table
        self._layout = layout
        self._weights_only = weights_only
        self._at = start
        self._crcs = b""
        self._blocks = 0
        self.rows = self.deleted = self.crc = 0
        self.ended = False

    def feed(self, buffer: memoryview) -> int:
        data = bytes(buffer)
        taken = 0
        while not self.ended and len(data) - taken >= 16:
            kind, count, size, expected = struct.unpack_from("<4I", data, taken)
            if size > PAYLOAD_MAX:
                raise invalid(f"at byte {self._at}: found a payload of {size} bytes")
            if len(data) - taken - 16 < size:
                break
            payload = data[taken + 16 : taken + 16 + size]
            if crc(data[taken : taken + 12], payload) != expected:
                raise invalid(f"at byte {self._at}: found another crc")
            self._take(kind, count, payload, data[taken + 12 : taken + 16])
            taken += 16 + size
            self._at += 16 + size
        return taken

    def _take(self, kind: int, count: int, payload: bytes, own_crc: bytes) -> None:
        if kind == 255:
            footer = u64(self.rows, self.deleted, self._blocks) + u32(crc(self._crcs), 0)
            if payload != footer:
                raise invalid(f"at byte {self._at}: found another footer")
            self.ended, self.crc = True, crc(payload)
            return
        self._crcs += own_crc
        self._blocks += 1
        if kind == 3 and self._table is None and count == 1:
            client = Client.unpack(payload)
            self._loader.staged.clients[(client.high, client.low)] = client
        elif kind == 1 and self._layout is not None and len(payload) == count * self._layout[0]:
            self._take_rows(payload, self._layout)
            self.rows += count
        elif kind == 2 and self._table is not None and len(payload) == 8 * count:
            for key in struct.unpack(f"<{count}Q", payload):
                self._loader.staged.tables[self._table].rows.pop(key, None)
            self.deleted += count
        else:
            raise invalid(f"at byte {self._at}: found a block of kind {kind} that does not belong here")

    def _take_rows(self, payload: bytes, layout: Six) -> None:
        assert self._table is not None
        table = self._loader.staged.tables[self._table]
        for at in range(0, len(payload), layout[0]):
            row = payload[at : at + layout[0]]
            (key,) = struct.unpack_from("<Q", row)
            if shard_of(key) in self._loader.owners:
                if self._weights_only:
                    weights = row[layout[2] : layout[2] + layout[3]]
                    row = make_row(table.layout, key, 1, weights)
                table.rows[key] = row


def shard_of(key: int) -> int:
    import numpy as np

    return int(_core.shards_of(np.array([key], np.uint64))[0])


def read_checkpoint(root: Path, number: int) -> tuple[dict[str, dict[int, bytes]], list[Client]]:
    """A checkpoint's rows by table's name and key, and all servers' clients. Raises Damaged."""
    text = (root / "manifests" / f"{number:010}.json").read_text()
    manifest = json.loads(text)
    others = {name: value for name, value in manifest.items() if name != "crc"}
    if manifest["crc"] != crc(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()):
        raise Damaged("the manifest's crc")
    names = {table["id"]: table["spec"]["name"] for table in manifest["tables"]}
    sizes = {table["id"]: table["layout"]["row_bytes"] for table in manifest["tables"]}
    tables: dict[str, dict[int, bytes]] = {name: {} for name in names.values()}
    clients = []
    for server in manifest["servers"]:
        for link in server["chain"]:
            for file in link["files"]:
                data = (root / "attempts" / link["attempt"] / file["name"]).read_bytes()
                if (
                    len(data) != file["bytes"]
                    or data[:8] != b"TABLEBAY"
                    or crc(data[:92]) != struct.unpack("<I", data[92:96])[0]
                ):
                    raise Damaged(file["name"])
                for _, kind, count, payload in read_blocks(data[96:]):
                    if kind == 3:
                        clients.append(Client.unpack(payload))
                        continue
                    rows = tables[names[file["table"]]]
                    if kind == 2:
                        for key in struct.unpack(f"<{count}Q", payload):
                            rows.pop(key, None)
                        continue
                    size = sizes[file["table"]]
                    for at in range(0, len(payload), size):
                        row = payload[at : at + size]
                        rows[struct.unpack_from("<Q", row)[0]] = row
    return tables, clients
