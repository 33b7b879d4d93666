"""Manifests: what a complete checkpoint consists of, as JSON that a damaged or hostile file cannot abuse.

The format is docs/checkpoint-format.md. Every error is CheckpointInvalid, and has the file's name, the field,
what was found and what was wanted.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tablebay.client.errors import BadRequest, CheckpointInvalid
from tablebay.client.routing import SHARDS
from tablebay.client.tables import WEIGHT_BYTES, TableSpec, dump_tables, load_tables
from tablebay.native import _core

FORMAT = 1
MANIFEST_BYTES_MAX = 16 * 1024 * 1024
NUMBER_MAX = 9_999_999_999
KINDS = ("Empty", "Full", "Delta", "Fence")
ROWS, STEPS = "Rows", "Steps"
# Of a manifest made without saying which run it is of.
NO_RUN = "0" * 32
ATTEMPT_PATTERN = re.compile(r"(0|[1-9][0-9]{0,9})-[0-9a-f]{32}")

_RUN_PATTERN = re.compile(r"[0-9a-f]{32}")
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_STATE_PATTERN = re.compile(r"attempts/([^/]+)/([^/]+)")
_RANGE_PATTERN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_U32, _U64 = 2**32 - 1, 2**64 - 1
_BYTES_MAX = 2**63 - 1
_SERVERS_MAX = SHARDS
_TABLES_MAX = 65_536
_LINKS_MAX = 100_000
_CURSOR_BYTES_MAX = 64 * 1024
_STATE_NAME_MAX = 128
_TEXT_MAX = 1024
_SHOWN_MAX = 100


class Layout(NamedTuple):
    """How a row lies in a file, in bytes; `step` is 0 where rows have no step count."""

    row_bytes: int
    step: int
    weights: int
    weight_bytes: int
    slots: int
    slot_bytes: int


@dataclass(frozen=True)
class File:
    """A file of a link. kind: ROWS or STEPS. table: its id, None for STEPS. crc: of its footer's payload."""

    name: str
    kind: str
    table: int | None
    bytes: int
    crc: int
    rows: int
    deleted: int

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {name: getattr(self, name) for name in _FILE_FIELDS}

    @classmethod
    def from_json(cls, value: Any, where: str = "file") -> File:
        """Raises CheckpointInvalid."""
        fields = _Fields(value, where, _FILE_FIELDS)
        kind = fields.one_of("kind", (ROWS, STEPS))
        if kind == STEPS and fields["table"] is not None:
            raise _invalid(f"{where}.table", fields["table"], "null in a file of steps")
        name = fields.text("name")
        _check_name(name, f"{where}.name")
        return cls(
            name=name,
            kind=kind,
            table=fields.whole("table", _U32) if kind == ROWS else None,
            bytes=fields.whole("bytes", _BYTES_MAX),
            crc=fields.whole("crc", _U32),
            rows=fields.whole("rows", _U64),
            deleted=fields.whole("deleted", _U64),
        )


@dataclass(frozen=True)
class Link:
    """One attempt's files of one server. parent: the number of the link before it; None for a full one."""

    number: int
    attempt: str
    parent: int | None
    files: tuple[File, ...]

    def without_steps(self) -> Link:
        """As it is named once another link has come after it."""
        return replace(self, files=tuple(file for file in self.files if file.kind != STEPS))

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {
            "number": self.number,
            "attempt": self.attempt,
            "parent": self.parent,
            "files": [file.to_json() for file in self.files],
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "link") -> Link:
        """Raises CheckpointInvalid."""
        fields = _Fields(value, where, ("number", "attempt", "parent", "files"))
        number = fields.whole("number", NUMBER_MAX)
        attempt = fields.text("attempt")
        if not ATTEMPT_PATTERN.fullmatch(attempt) or int(attempt.split("-")[0]) != number:
            raise _invalid(f"{where}.attempt", attempt, f"{number}-<32 hex digits>")
        files = tuple(
            File.from_json(one, f"{where}.files[{i}]")
            for i, one in enumerate(fields.items("files", _TABLES_MAX + 1))
        )
        _check_once((file.name for file in files), f"{where}.files", "name")
        _check_once((file.table for file in files), f"{where}.files", "table")
        parent = None if fields["parent"] is None else fields.whole("parent", NUMBER_MAX)
        return cls(number, attempt, parent, files)


@dataclass(frozen=True)
class ServerEntry:
    """One server's part. owners: its shards, ascending. chain: its links, the full one first."""

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
    def from_json(cls, value: Any, where: str = "server") -> ServerEntry:
        """Raises CheckpointInvalid."""
        fields = _Fields(value, where, ("index", "epoch", "owners", "chain"))
        chain = tuple(
            Link.from_json(one, f"{where}.chain[{i}]")
            for i, one in enumerate(fields.items("chain", _LINKS_MAX))
        )
        before: Link | None = None
        for i, link in enumerate(chain):
            wanted = None if before is None else before.number
            if link.parent != wanted:
                raise _invalid(f"{where}.chain[{i}].parent", link.parent, f"{wanted}, the link before it")
            if before is not None and link.number <= before.number:
                raise _invalid(f"{where}.chain[{i}].number", link.number, f"more than {before.number}")
            steps = sum(file.kind == STEPS for file in link.files)
            if steps != (i == len(chain) - 1):
                raise _invalid(
                    f"{where}.chain[{i}].files",
                    f"{steps} of kind {STEPS}",
                    "one in the last link, none before",
                )
            before = link
        return cls(
            index=fields.whole("index", _SERVERS_MAX - 1),
            epoch=fields.whole("epoch", _U64),
            owners=_from_ranges(fields.text("owners", 8 * SHARDS), f"{where}.owners"),
            chain=chain,
        )


@dataclass(frozen=True)
class TableEntry:
    """A table's spec, and how its rows lie in the files. id: CRC-32C of its name."""

    id: int
    spec: TableSpec
    layout: Layout

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {
            "id": self.id,
            "spec": json.loads(dump_tables([self.spec]))[0],
            "layout": self.layout._asdict(),
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "table") -> TableEntry:
        """Raises CheckpointInvalid."""
        fields = _Fields(value, where, ("id", "spec", "layout"))
        if not isinstance(fields["spec"], dict):
            raise _invalid(f"{where}.spec", fields["spec"], "an object")
        try:
            (spec,) = load_tables(json.dumps([fields["spec"]], allow_nan=False))
        except (BadRequest, ValueError) as error:
            raise CheckpointInvalid(f"{where}.spec: {error}") from None
        id = fields.whole("id", _U32)
        if id != _core.table_id(spec.name):
            raise _invalid(f"{where}.id", id, f"{_core.table_id(spec.name)}, for '{spec.name}'")
        parts = _Fields(fields["layout"], f"{where}.layout", Layout._fields)
        layout = Layout(*(parts.whole(name, 2**30) for name in Layout._fields))
        _check_layout(layout, spec, f"{where}.layout")
        return cls(id, spec, layout)


@dataclass(frozen=True)
class StateEntry:
    """A worker's saved bytes: a file below the destination, its size, CRC-32C of all of it."""

    path: str
    bytes: int
    crc: int

    @property
    def attempt(self) -> str:
        """The directory of the attempt in which the file lies."""
        return self.path.split("/")[1]

    def to_json(self) -> dict[str, Any]:
        """As in a manifest."""
        return {"path": self.path, "bytes": self.bytes, "crc": self.crc}

    @classmethod
    def from_json(cls, value: Any, where: str = "state") -> StateEntry:
        """Raises CheckpointInvalid."""
        fields = _Fields(value, where, ("path", "bytes", "crc"))
        path = fields.text("path")
        match = _STATE_PATTERN.fullmatch(path)
        if match is None or not ATTEMPT_PATTERN.fullmatch(match[1]):
            raise _invalid(f"{where}.path", path, "attempts/<attempt>/<name>")
        _check_name(match[2], f"{where}.path")
        return cls(path, fields.whole("bytes", _BYTES_MAX), fields.whole("crc", _U32))


@dataclass(frozen=True)
class WorkerEntry:
    """A rank: the step that it does next, the cursor kept with the one before, its state and that one's step."""

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
    def from_json(cls, value: Any, where: str = "worker") -> WorkerEntry:
        """Raises CheckpointInvalid."""
        fields = _Fields(value, where, ("rank", "next_step", "cursor", "state", "state_step"))
        state = fields["state"]
        if not isinstance(state, dict):
            raise _invalid(f"{where}.state", state, "an object")
        for name in state:
            if not 1 <= len(name) <= _STATE_NAME_MAX or not name.isprintable():
                raise _invalid(
                    f"{where}.state", name, f"names of 1 to {_STATE_NAME_MAX} printable characters"
                )
        text = fields.text("cursor", 2 * _CURSOR_BYTES_MAX)
        try:
            cursor = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise _invalid(f"{where}.cursor", text, "base64") from None
        return cls(
            rank=fields.whole("rank", _U32 - 1),
            next_step=fields.whole("next_step", _U64),
            cursor=cursor,
            state={
                name: StateEntry.from_json(one, f"{where}.state[{name!r}]") for name, one in state.items()
            },
            state_step=fields.whole("state_step", _U64),
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete checkpoint, or a fence.

    created: RFC 3339, UTC. version: of the Tablebay that wrote it. aligned: whether every ranked client's steps
    are in it on all servers or on none. run: 32 hex digits, another one since a job has begun anew in a
    directory that has checkpoints; those of an earlier run are not gone back to.
    """

    number: int
    kind: str
    job: str
    generation: int
    created: str
    version: str
    aligned: bool
    servers: tuple[ServerEntry, ...] = ()
    tables: tuple[TableEntry, ...] = ()
    workers: tuple[WorkerEntry, ...] = ()
    run: str = NO_RUN

    @property
    def complete(self) -> bool:
        """Whether it is a checkpoint, not a fence."""
        return self.kind != "Fence"

    def attempts(self) -> set[str]:
        """The directories in which the links' files lie."""
        return {link.attempt for server in self.servers for link in server.chain}

    def states(self) -> Iterator[StateEntry]:
        """Of all workers."""
        for worker in self.workers:
            yield from worker.state.values()

    def table(self, id: int) -> TableEntry:
        """The table of that id; there is one for every file."""
        return next(table for table in self.tables if table.id == id)

    def to_json(self) -> dict[str, Any]:
        """All fields, the crc last."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "number": self.number,
            "kind": self.kind,
            "job": self.job,
            "generation": self.generation,
            "run": self.run,
            "created": self.created,
            "version": self.version,
            "aligned": self.aligned,
            "shards": SHARDS,
            "servers": [server.to_json() for server in self.servers],
            "tables": [table.to_json() for table in self.tables],
            "workers": [worker.to_json() for worker in self.workers],
        }
        content["crc"] = canonical_crc(content)
        return content

    def pack(self) -> bytes:
        """The file's content."""
        return json.dumps(self.to_json(), allow_nan=False, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes, file: str) -> Manifest:
        """The manifest that a file holds. file: its name, for errors. Raises CheckpointInvalid."""
        if len(content) > MANIFEST_BYTES_MAX:
            raise _invalid(file, f"{len(content)} bytes", f"at most {MANIFEST_BYTES_MAX}")
        try:
            return cls.from_json(parse_json(content))
        except CheckpointInvalid as error:
            raise CheckpointInvalid(f"{file}: {error}") from None

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Raises CheckpointInvalid."""
        check_format(value)
        fields = _Fields(value, "", _MANIFEST_FIELDS)
        crc, wanted = fields.whole("crc", _U32), canonical_crc(value)
        if crc != wanted:
            raise _invalid("crc", crc, f"{wanted}, which its other fields have")
        if fields.whole("shards", _U32) != SHARDS:
            raise _invalid("shards", fields["shards"], str(SHARDS))
        run = fields.text("run")
        if not _RUN_PATTERN.fullmatch(run):
            raise _invalid("run", run, "32 hex digits")
        manifest = cls(
            number=fields.whole("number", NUMBER_MAX),
            kind=fields.one_of("kind", KINDS),
            job=fields.text("job"),
            generation=fields.whole("generation", _U64),
            created=_time(fields.text("created")),
            version=fields.text("version"),
            aligned=fields.truth("aligned"),
            servers=tuple(
                ServerEntry.from_json(one, f"servers[{i}]")
                for i, one in enumerate(fields.items("servers", _SERVERS_MAX))
            ),
            tables=tuple(
                TableEntry.from_json(one, f"tables[{i}]")
                for i, one in enumerate(fields.items("tables", _TABLES_MAX))
            ),
            workers=tuple(
                WorkerEntry.from_json(one, f"workers[{i}]")
                for i, one in enumerate(fields.items("workers", _U32))
            ),
            run=run,
        )
        manifest._check()
        return manifest

    def _check(self) -> None:
        """What holds among fields."""
        _check_once((table.id for table in self.tables), "tables", "id")
        _check_once((worker.rank for worker in self.workers), "workers", "rank")
        known = {table.id for table in self.tables}
        owned: list[int] = []
        for i, server in enumerate(self.servers):
            where = f"servers[{i}]"
            if server.index != i:
                raise _invalid(f"{where}.index", server.index, str(i))
            owned += server.owners
            if self.kind in ("Full", "Delta"):
                if not server.chain:
                    raise _invalid(
                        f"{where}.chain", "no link", f"at least one in a checkpoint of kind {self.kind}"
                    )
                if server.chain[-1].number > self.number:
                    raise _invalid(
                        f"{where}.chain", f"link {server.chain[-1].number}", f"none above {self.number}"
                    )
            elif server.chain:
                raise _invalid(f"{where}.chain", "a link", f"none in one of kind {self.kind}")
            unknown = {file.table for link in server.chain for file in link.files} - known - {None}
            if unknown:
                raise _invalid(
                    f"{where}.chain", f"files of tables {sorted(unknown, key=str)}", "tables named"
                )
        if self.kind in ("Full", "Delta") and sorted(owned) != list(range(SHARDS)):
            missing, twice = SHARDS - len(set(owned)), len(owned) - len(set(owned))
            raise _invalid(
                "servers",
                f"{missing} shards of no server and {twice} of two",
                "each shard to be one server's",
            )


_FILE_FIELDS = ("name", "kind", "table", "bytes", "crc", "rows", "deleted")
_MANIFEST_FIELDS = (
    *("format", "number", "kind", "job", "generation", "run", "created", "version", "aligned", "shards"),
    *("servers", "tables", "workers", "crc"),
)


def new_run() -> str:
    """A run's name, which no other has."""
    return uuid.uuid4().hex


def canonical_crc(content: Mapping[str, Any]) -> int:
    """CRC-32C of the text of all fields but `crc`: sorted, without spaces, ASCII."""
    others = {name: value for name, value in content.items() if name != "crc"}
    try:
        text = json.dumps(others, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(
            f"found what JSON cannot say ({error}), wanted text and finite numbers"
        ) from None
    return _core.crc32c(text.encode("ascii"))


def parse_json(content: bytes) -> Any:
    """JSON with no name twice in an object, and neither NaN nor infinity. Raises CheckpointInvalid."""
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_refuse, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise CheckpointInvalid(f"at byte {error.start}: found what is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise CheckpointInvalid(f"at character {error.pos}: found no JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"found what cannot be read: {type(error).__name__}: {error}"[:300]) from None


def check_format(value: Any) -> None:
    """Refuse a newer format, before anything in it is looked at. Raises CheckpointInvalid."""
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"found {_shown(value)}, wanted an object")
    found = value.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise _invalid("format", found, f"a number from 1 to {FORMAT}")
    if found > FORMAT:
        raise CheckpointInvalid(
            f"format: found {_shown(found)}, wanted at most {FORMAT}; a newer Tablebay wrote it"
        )


class _Fields:
    """The fields of an object, which are exactly those named. where: for errors."""

    def __init__(self, value: Any, where: str, names: Sequence[str]) -> None:
        if not isinstance(value, dict):
            raise _invalid(where, value, "an object")
        self._prefix = f"{where}." if where else ""
        for name in value:
            if name not in names:
                raise _invalid(f"{self._prefix}{name:.80}", "an unknown field", ", ".join(names))
        for name in names:
            if name not in value:
                raise _invalid(f"{self._prefix}{name}", "no such field", "one")
        self._value = value

    def __getitem__(self, name: str) -> Any:
        return self._value[name]

    def whole(self, name: str, highest: int) -> int:
        """A whole number from 0."""
        value = self._value[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
            raise _invalid(self._prefix + name, value, f"a whole number from 0 to {highest}")
        return value

    def text(self, name: str, longest: int = _TEXT_MAX) -> str:
        """A string."""
        value = self._value[name]
        if not isinstance(value, str) or len(value) > longest:
            raise _invalid(self._prefix + name, value, f"text of at most {longest} characters")
        return value

    def one_of(self, name: str, choices: Sequence[str]) -> str:
        """One of some strings."""
        value = self._value[name]
        if not isinstance(value, str) or value not in choices:
            raise _invalid(self._prefix + name, value, f"one of {', '.join(choices)}")
        return value

    def truth(self, name: str) -> bool:
        """True or false."""
        value = self._value[name]
        if not isinstance(value, bool):
            raise _invalid(self._prefix + name, value, "true or false")
        return value

    def items(self, name: str, most: int) -> list[Any]:
        """A list."""
        value = self._value[name]
        if not isinstance(value, list) or len(value) > most:
            raise _invalid(self._prefix + name, value, f"a list of at most {most}")
        return value


def _ranges(shards: Sequence[int]) -> str:
    """Ascending numbers as "0-511,700"."""
    parts: list[list[int]] = []
    for shard in shards:
        if parts and parts[-1][1] + 1 == shard:
            parts[-1][1] = shard
        else:
            parts.append([shard, shard])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _from_ranges(text: str, where: str) -> tuple[int, ...]:
    shards: list[int] = []
    for part in text.split(",") if text else ():
        match = _RANGE_PATTERN.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not (shards[-1] if shards else -1) < first <= last < SHARDS:
            raise _invalid(where, part, f"shards below {SHARDS}, ascending, as in 0-511,700")
        shards += range(first, last + 1)
    return tuple(shards)


def _check_layout(layout: Layout, spec: TableSpec, where: str) -> None:
    """A row's parts lie in it, in order, and the weights are the table's."""
    wanted = spec.dim * WEIGHT_BYTES[spec.dtype]
    if layout.weight_bytes != wanted:
        raise _invalid(
            f"{where}.weight_bytes", layout.weight_bytes, f"{wanted}, by the table's dim and dtype"
        )
    if layout.step and not 12 <= layout.step <= layout.row_bytes - 4:
        raise _invalid(f"{where}.step", layout.step, "0, or a place after the version in the row")
    if not max(12, layout.step + 4) <= layout.weights <= layout.row_bytes - layout.weight_bytes:
        raise _invalid(f"{where}.weights", layout.weights, "a place after the version in the row")
    if layout.slot_bytes and not (
        layout.weights + layout.weight_bytes <= layout.slots <= layout.row_bytes - layout.slot_bytes
    ):
        raise _invalid(f"{where}.slots", layout.slots, "a place after the weights in the row")


def _check_name(name: str, where: str) -> None:
    if not _NAME_PATTERN.fullmatch(name) or ".." in name:
        raise _invalid(where, name, "letters, digits, '.', '_' and '-', without '..'")


def _check_once(values: Iterable[object], where: str, what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise _invalid(where, f"{what} {_shown(value)} twice", f"each {what} once")
        seen.add(value)


def _time(text: str) -> str:
    try:
        if datetime.datetime.fromisoformat(text).tzinfo is not None:
            return text
    except ValueError:
        pass
    raise _invalid("created", text, "a time as RFC 3339 has it, with its zone")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise CheckpointInvalid(f"{name:.80}: found twice in an object, wanted once")
    return content


def _refuse(word: str) -> None:
    raise CheckpointInvalid(f"found {word}, wanted a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise CheckpointInvalid(f"found {text:.40}, wanted a finite number")
    return value


def _invalid(where: str, found: object, wanted: str) -> CheckpointInvalid:
    return CheckpointInvalid(f"{where}: found {_shown(found)}, wanted {wanted}")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = str(value) if isinstance(value, str) and " " in value else repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."
