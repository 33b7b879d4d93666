"""What a manifest says (docs/checkpoint-format.md), read without trust."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from tablebay.client.checkpoint.checksum import crc32c
from tablebay.client.errors import CheckpointInvalid, TablebayError
from tablebay.client.tables import TableSpec

FORMAT = 1
SHARDS = 1024
MANIFEST_BYTES_MAX = 16 * 1024 * 1024
STATE_BYTES_MAX = 1 << 30
_SERVERS_MAX = 1024
_CHAIN_MAX = 4096

Kind = Literal["Empty", "Full", "Delta", "Fence"]
FileKind = Literal["Rows", "Steps"]
# row_bytes, step, weights, weight_bytes, slots, slot_bytes
Layout = tuple[int, int, int, int, int, int]
_LAYOUT = ("row_bytes", "step", "weights", "weight_bytes", "slots", "slot_bytes")
_ATTEMPT = re.compile(r"\d{1,20}-[0-9a-f]{32}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_STATE = re.compile(r"attempts/\d{1,20}-[0-9a-f]{32}/[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

_Value = TypeVar("_Value")
_SPECS: TypeAdapter[TableSpec] = TypeAdapter(TableSpec)


@dataclass(frozen=True)
class File:
    """One file of a server's: of a table's rows, or of steps (table None). crc: of its footer's payload."""

    name: str
    kind: FileKind
    table: int | None
    bytes: int
    crc: int
    rows: int
    deleted: int

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> File:
        """Raises CheckpointInvalid."""
        with _Fields(value, "file") as fields:
            found = cls(
                name=fields.text("name", _FILE),
                kind=fields.choice("kind", get_args(FileKind)),
                table=fields.optional_number("table", 2**32 - 1),
                bytes=fields.number("bytes"),
                crc=fields.number("crc", 2**32 - 1),
                rows=fields.number("rows"),
                deleted=fields.number("deleted"),
            )
        if (found.kind == "Rows") != (found.table is not None):
            raise CheckpointInvalid(f"file {found.name}: kind {found.kind} with table {found.table}")
        return found


@dataclass(frozen=True)
class Link:
    """What a server wrote in one attempt. parent: the number of the link that it is relative to; None: it is full."""

    number: int
    attempt: str
    parent: int | None
    files: tuple[File, ...]

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {
            "number": self.number,
            "attempt": self.attempt,
            "parent": self.parent,
            "files": [file.to_json() for file in self.files],
        }

    @classmethod
    def from_json(cls, value: Any) -> Link:
        """Raises CheckpointInvalid."""
        with _Fields(value, "link") as fields:
            return cls(
                number=fields.number("number"),
                attempt=fields.text("attempt", _ATTEMPT),
                parent=fields.optional_number("parent", 2**63),
                files=fields.list("files", File.from_json, 2 * 65_536),
            )


@dataclass(frozen=True)
class ServerEntry:
    """A server: the shards it had, and its files, a full set first, then deltas."""

    index: int
    epoch: int
    owners: tuple[int, ...]
    chain: tuple[Link, ...]

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {
            "index": self.index,
            "epoch": self.epoch,
            "owners": _ranges(self.owners),
            "chain": [link.to_json() for link in self.chain],
        }

    @classmethod
    def from_json(cls, value: Any) -> ServerEntry:
        """Raises CheckpointInvalid."""
        with _Fields(value, "server") as fields:
            found = cls(
                index=fields.number("index", _SERVERS_MAX - 1),
                epoch=fields.number("epoch"),
                owners=_from_ranges(fields.text("owners", re.compile(r"[0-9,-]{0,65536}"))),
                chain=fields.list("chain", Link.from_json, _CHAIN_MAX),
            )
        before: int | None = None
        for number, link in enumerate(found.chain):
            if (link.parent is None) != (number == 0) or (number > 0 and link.parent != before):
                raise CheckpointInvalid(
                    f"server {found.index}: link {link.number} has the parent {link.parent}, wanted {before}"
                )
            before = link.number
        return found


@dataclass(frozen=True)
class TableEntry:
    """A table: its spec with the learning rate it had, and its rows' layout."""

    id: int
    spec: TableSpec
    layout: Layout

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {
            "id": self.id,
            "spec": _SPECS.dump_python(self.spec, mode="json", by_alias=True),
            "layout": dict(zip(_LAYOUT, self.layout, strict=True)),
        }

    @classmethod
    def from_json(cls, value: Any) -> TableEntry:
        """Raises CheckpointInvalid."""
        with _Fields(value, "table") as fields:
            id = fields.number("id", 2**32 - 1)
            given = fields.take("spec", dict)
            with _Fields(fields.take("layout", dict), "layout") as layout:
                sizes = tuple(layout.number(name, 1 << 20) for name in _LAYOUT)
        try:
            spec = _SPECS.validate_python(given)
        except (ValidationError, TablebayError) as error:
            raise CheckpointInvalid(f"table {id:08x}: its spec cannot be used: {error}") from None
        if crc32c(spec.name.encode()) != id:
            raise CheckpointInvalid(
                f"table '{spec.name}' has the id {id:08x}, wanted {crc32c(spec.name.encode()):08x}"
            )
        return cls(id, spec, sizes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StateEntry:
    """A file with bytes of a worker. path: below the destination. crc: of its content."""

    path: str
    bytes: int
    crc: int

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> StateEntry:
        """Raises CheckpointInvalid."""
        with _Fields(value, "state") as fields:
            return cls(
                path=fields.text(
                    "path", re.compile(r"attempts/\d{1,20}-[0-9a-f]{32}/[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
                ),
                bytes=fields.number("bytes", STATE_BYTES_MAX),
                crc=fields.number("crc", 2**32 - 1),
            )


@dataclass(frozen=True)
class WorkerEntry:
    """A rank: its next step, the cursor kept with the step before, and the state that it saved for state_step."""

    rank: int
    next_step: int
    cursor: bytes
    state: Mapping[str, StateEntry] = field(default_factory=dict)
    state_step: int = 0

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {
            "rank": self.rank,
            "next_step": self.next_step,
            "cursor": base64.b64encode(self.cursor).decode(),
            "state": {name: entry.to_json() for name, entry in self.state.items()},
            "state_step": self.state_step,
        }

    @classmethod
    def from_json(cls, value: Any) -> WorkerEntry:
        """Raises CheckpointInvalid."""
        with _Fields(value, "worker") as fields:
            try:
                cursor = base64.b64decode(fields.take("cursor", str), validate=True)
            except binascii.Error as error:
                raise CheckpointInvalid(f"worker: its cursor is not base64: {error}") from None
            return cls(
                rank=fields.number("rank", 2**32 - 2),
                next_step=fields.number("next_step"),
                cursor=cursor,
                state={
                    name: StateEntry.from_json(entry) for name, entry in fields.take("state", dict).items()
                },
                state_step=fields.number("state_step"),
            )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete checkpoint, or a fence."""

    number: int
    kind: Kind
    job: str
    generation: int
    created: str
    version: str
    aligned: bool = True
    servers: tuple[ServerEntry, ...] = ()
    tables: tuple[TableEntry, ...] = ()
    workers: tuple[WorkerEntry, ...] = ()

    def attempts(self) -> set[str]:
        """The directories that it needs."""
        found = {link.attempt for server in self.servers for link in server.chain}
        for worker in self.workers:
            found |= {entry.path.split("/")[1] for entry in worker.state.values()}
        return found

    def encode(self) -> bytes:
        """The file."""
        content = {
            "format": FORMAT,
            "number": self.number,
            "kind": self.kind,
            "job": self.job,
            "generation": self.generation,
            "created": self.created,
            "version": self.version,
            "aligned": self.aligned,
            "shards": SHARDS,
            "servers": [server.to_json() for server in self.servers],
            "tables": [table.to_json() for table in self.tables],
            "workers": [worker.to_json() for worker in self.workers],
        }
        return _canonical({**content, "crc": crc32c(_canonical(content))})

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Raises CheckpointInvalid naming the field, what was found and what was wanted."""
        value = parse_json(content)
        if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > FORMAT:
            raise CheckpointInvalid(f"format {value['format']}, and this version reads up to {FORMAT}")
        with _Fields(value, "manifest") as fields:
            crc = fields.number("crc", 2**32 - 1)
            fields.number("format", FORMAT)
            if (shards := fields.number("shards")) != SHARDS:
                raise CheckpointInvalid(f"{shards} shards, wanted {SHARDS}")
            wanted = crc32c(_canonical({name: one for name, one in value.items() if name != "crc"}))
            if wanted != crc:
                raise CheckpointInvalid(f"its CRC-32C is {wanted:08x}, and it says {crc:08x}")
            found = cls(
                number=fields.number("number"),
                kind=fields.choice("kind", get_args(Kind)),
                job=fields.take("job", str),
                generation=fields.number("generation"),
                created=fields.take("created", str),
                version=fields.take("version", str),
                aligned=fields.take("aligned", bool),
                servers=fields.list("servers", ServerEntry.from_json, _SERVERS_MAX),
                tables=fields.list("tables", TableEntry.from_json, 65_536),
                workers=fields.list("workers", WorkerEntry.from_json, 65_536),
            )
        if [server.index for server in found.servers] != list(range(len(found.servers))):
            raise CheckpointInvalid("its servers are not 0, 1, 2 and so on")
        if found.kind in ("Full", "Delta") and not all(server.chain for server in found.servers):
            raise CheckpointInvalid("a server of it has no files")
        return found


def parse_json(content: bytes) -> Any:
    """JSON with no name twice in an object, no NaN and no infinity. Raises CheckpointInvalid."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise CheckpointInvalid("a name is there twice in an object")
        return found

    def refuse(word: str) -> Any:
        raise CheckpointInvalid(f"found the number {word}")

    try:
        return json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"it is not JSON: {type(error).__name__}: {str(error)[:200]}") from None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _ranges(shards: tuple[int, ...]) -> str:
    parts: list[str] = []
    last = -2
    for shard in shards:
        if shard == last + 1:
            parts[-1] = f"{parts[-1].split('-')[0]}-{shard}"
        else:
            parts.append(str(shard))
        last = shard
    return ",".join(parts)


def _from_ranges(text: str) -> tuple[int, ...]:
    shards: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or len(part) > 9:
            raise CheckpointInvalid(f"owners: found '{part[:40]}', wanted shards such as 7 or 0-511")
        begin, end = int(first), int(last or first)
        if not (shards[-1] if shards else -1) < begin <= end < SHARDS:
            raise CheckpointInvalid(f"owners: found '{part}', wanted shards ascending, below {SHARDS}")
        shards += range(begin, end + 1)
    return tuple(shards)


class _Fields:
    """The fields of an object, each taken once; none may be left."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise CheckpointInvalid(f"{what}: found {type(value).__name__}, wanted an object")
        self._values = dict(value)
        self._what = what

    def __enter__(self) -> _Fields:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._values:
            raise CheckpointInvalid(f"{self._what}: unknown field '{str(next(iter(self._values)))[:80]}'")

    def take(self, name: str, kind: type[_Value]) -> _Value:
        if name not in self._values:
            raise CheckpointInvalid(f"{self._what}: no field '{name}'")
        value = self._values.pop(name)
        if type(value) is not kind:
            raise CheckpointInvalid(f"{self._what}.{name}: found {_shown(value)}, wanted {kind.__name__}")
        return value

    def number(self, name: str, most: int = 2**63) -> int:
        value = self.take(name, int)
        if not 0 <= value <= most:
            raise CheckpointInvalid(f"{self._what}.{name}: found {_shown(value)}, wanted 0 to {most}")
        return value

    def optional_number(self, name: str, most: int) -> int | None:
        if name in self._values and self._values[name] is None:
            del self._values[name]
            return None
        return self.number(name, most)

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.take(name, str)
        if not pattern.fullmatch(value):
            raise CheckpointInvalid(f"{self._what}.{name}: found {_shown(value)}, wanted {pattern.pattern}")
        return value

    def choice(self, name: str, choices: tuple[Any, ...]) -> Any:
        value = self.take(name, str)
        if value not in choices:
            raise CheckpointInvalid(
                f"{self._what}.{name}: found {_shown(value)}, wanted one of {', '.join(choices)}"
            )
        return value

    def list(self, name: str, read: Callable[[Any], _Value], most: int) -> tuple[_Value, ...]:
        values = self.take(name, list)
        if len(values) > most:
            raise CheckpointInvalid(f"{self._what}.{name}: {len(values)} entries, wanted at most {most}")
        return tuple(read(value) for value in values)


def _shown(value: Any) -> str:
    return repr(value)[:80]
