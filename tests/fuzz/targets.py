"""What takes bytes from the wire or from files: how each is called, and what it may say of bytes that are wrong.

An input of a target is bytes, whole by itself: nothing is left from the input before it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from faults.http2_frames import PREFACE
from fuzz.mutation import change_bytes, change_json, change_message
from google.protobuf.message import DecodeError, Message

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import HEADER_BYTES, Header
from tablebay.client.checkpoint.manifest import Manifest, canonical_crc, parse_json
from tablebay.client.checkpoint.storage import LocalStorage, System
from tablebay.client.errors import CheckpointInvalid
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.native import _core

CORPUS = Path(__file__).with_name("corpus")
ALL_SHARDS = list(range(_core.SHARDS))
HIGH, LOW = 11, 22
KEYS = np.arange(8, dtype=np.uint64)
ADAGRAD = {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}
_SIX = struct.Struct("<6I")
_FOOTER, _FOOTER_BYTES, _PAYLOAD_MAX = 255, 32, 1 << 20


class Wrong(Exception):
    """A target did what it must not do."""


@dataclass(frozen=True)
class Target:
    """attempt: takes an input; raises nothing that is not documented. change: an input's changes."""

    name: str
    attempt: Callable[[bytes], None]
    change: Callable[[random.Random, bytes, Sequence[bytes]], bytes] = change_bytes

    def corpus(self) -> list[bytes]:
        """What is kept in the repository: messages and files made by the product, and what once was wrong."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


@contextlib.contextmanager
def saying(*kinds: str) -> Any:
    """Let pass the native errors that are documented for a call."""
    try:
        yield
    except _core.StatusError as error:
        if error.args[0] not in kinds:
            raise Wrong(f"{error.args[0]}: {error.args[1]}, wanted one of {', '.join(kinds)}") from None


def refuses(call: Callable[[], Any], *kinds: str) -> bool:
    """Whether a call was refused in a way that is documented."""
    done = False
    with saying(*kinds):
        call()
        done = True
    return not done


# -- requests --


def make_store() -> Any:
    """A server's store with two tables, and one client that said Hello."""
    store = _core.Store(epoch=3, memory_limit=64 << 20, keys_max=1000, message_bytes_max=1 << 20)
    store.create_table("sums", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    store.create_table(
        "rows", 2, "float32", "Adagrad", ADAGRAD, "Uniform", {"low": -1.0, "high": 1.0}, 7, "Zero"
    )
    store.hello(HIGH, LOW, 1, 0)
    return store


_REFUSALS = (
    *("BadRequest", "CorruptMessage", "Fenced", "NonFinite", "NotRegistered", "OutOfRange"),
    *("ResourceExhausted", "ServerLost", "WrongShard"),
)


def _handle(method: str, data: bytes) -> None:
    store = make_store()
    answer = b""

    def call() -> None:
        nonlocal answer
        answer = getattr(store, f"handle_{method.lower()}")(data)

    if refuses(call, *_REFUSALS):
        counters = store.counters()
        if counters["rows"] or counters["pushes_applied"]:
            raise Wrong("a request that was refused has changed rows")
    else:
        kinds = {"Pull": messages.PullResponse, "Push": messages.PushResponse, "Step": messages.StepResponse}
        kinds[method].FromString(answer)


def _change_request(kind: Any, chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes changed, or fields; then half of the messages get sizes and checksums that fit."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        return change_bytes(chance, data, others)
    if chance.random() < 0.3:
        return change_bytes(chance, data, others)
    change_message(chance, message)
    if chance.random() < 0.3:
        return bytes(message.SerializeToString())
    sender = message.sender
    if chance.random() < 0.8:
        sender.client_high, sender.client_low, sender.incarnation, sender.epoch = HIGH, LOW, 1, 3
        sender.shard_map_version = 0
    for part in _parts(message):
        if chance.random() < 0.8:
            part.table_id, part.dim = chance.choice(_TABLES)
            part.keys = part.keys[: len(part.keys) // 8 * 8]
        if chance.random() < 0.8 and part.rows:
            wanted = len(part.keys) // 8 * (8 if part.dim == 1 else 4 * part.dim % 64)
            part.rows = (part.rows + bytes(wanted))[:wanted]
        if part.HasField("crc32c"):
            part.crc32c = _core.crc32c(part.keys + part.rows)
    return bytes(message.SerializeToString())


_TABLES = ((_core.table_id("sums"), 1), (_core.table_id("rows"), 2))


def _parts(message: Message) -> list[Any]:
    names = {field.name for field in message.DESCRIPTOR.fields}
    single = [message.part] if "part" in names and message.HasField("part") else []  # type: ignore[attr-defined]
    return single + [part for name in ("pushes", "pulls") if name in names for part in getattr(message, name)]


def _readdress(data: bytes) -> None:
    with saying("BadRequest"):
        if len(_core.readdress(data, 2**64 - 2)) != len(data):
            raise Wrong("a message of another size")


# -- answers --


def make_call(kind: str) -> Any:
    """A call of one server whose answer is awaited."""
    plan = _core.Router(np.zeros(_core.SHARDS, np.uint16), 1).plan(KEYS)
    pulls = [(_core.table_id("rows"), 2, 8, 0, plan, np.zeros((len(KEYS), 2), np.float32))]
    pushes = [(_core.table_id("sums"), 1, 8, 0, plan, np.ones((len(KEYS), 1), np.int64))]
    return _core.Call(kind, pulls if kind != "Push" else [], pushes if kind != "Pull" else [], 1 << 20)


def _accept(data: bytes) -> None:
    for kind in ("Pull", "Step", "Push"):
        call = make_call(kind)
        if not refuses(partial(call.accept, 0, 0, data), "CorruptMessage"):
            call.finish()


def _change_answer(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes changed, or the fields of an answer to one of the methods."""
    kind: Any = chance.choice((messages.PullResponse, messages.PushResponse, messages.StepResponse))
    try:
        message = kind.FromString(data)
    except DecodeError:
        return change_bytes(chance, data, others)
    if chance.random() < 0.4:
        return change_bytes(chance, data, others)
    change_message(chance, message)
    return bytes(message.SerializeToString())


def _in_pieces(read: Callable[[bytes, int, int], Any], data: bytes) -> list[Any]:
    """Input: the size of pieces, what the other end sends. What comes of it in pieces, which change nothing; and as
    a whole. None where it is refused."""
    found = []
    for piece in (max(1, data[0]), 1 << 16):
        result = None
        with saying("Unavailable"):
            result = read(data[1:], piece, 1 << 16)
        found.append(result)
    if found[0] is not None and found[1] is not None and found[0] != found[1]:
        raise Wrong(f"in pieces it is {found[0]}, as a whole {found[1]}")
    return found


def _http2_answer(data: bytes) -> None:
    """What a server sends."""
    if not data:
        return
    for found in _in_pieces(_core.read_http2_answer, data):
        if found is not None and found[0] == 0 and len(found[3]) > 1 << 16:
            raise Wrong("a message above the limit")


def _http2_requests(data: bytes) -> None:
    """What a client sends behind its preface."""
    if not data:
        return

    def read(sent: bytes, piece: int, message_bytes_max: int) -> Any:
        return _core.read_http2_requests(PREFACE + sent, piece, message_bytes_max)

    for found in _in_pieces(read, data):
        if found is not None and any(len(content) > 1 << 16 for _, _, content in found[0]):
            raise Wrong("a message above the limit")


# -- files --


def make_loader(store: Any) -> Any:
    """What a file of the corpus is loaded into."""
    loader = store.load(ALL_SHARDS[:900])
    loader.create_table("rows", 2, "float32", "Adagrad", ADAGRAD, "Zeros", {}, 0, "Reject")
    return loader


def _load_rows(data: bytes) -> None:
    """Input: flags, the layout that the manifest says, blocks."""
    if len(data) < 1 + _SIX.size:
        return
    flags, layout, blocks = data[0], _SIX.unpack_from(data, 1), data[1 + _SIX.size :]
    store = _core.Store(memory_limit=64 << 20)
    loader = make_loader(store)
    table = _core.table_id("rows")
    begin = partial(
        loader.begin, table, layout, delta=bool(flags & 1), weights_only=bool(flags & 2), start=HEADER_BYTES
    )
    part: Any = None
    with saying("CheckpointInvalid", "CheckpointMismatch"):
        part = begin()
    if part is None:
        return
    whole = not refuses(partial(part.feed, blocks), "CheckpointInvalid", "ResourceExhausted") and part.ended
    if refuses(loader.finish, "CheckpointInvalid") == whole:
        raise Wrong(f"a file that is {'whole' if whole else 'not whole'} was taken the other way")
    if whole:
        out = np.empty((len(KEYS), 2), np.float32)
        store.pull(table, KEYS, out, True)
        store.scan(table, 0, 100)
        _read_cut(store, table)


def _load_steps(data: bytes) -> None:
    """Input: blocks, of two servers' files: what both say of a client is put together."""
    store = _core.Store(memory_limit=64 << 20)
    loader = make_loader(store)
    whole = True
    for _ in range(2):
        part = loader.begin(None, None, delta=False, start=HEADER_BYTES)
        whole = not refuses(partial(part.feed, data), "CheckpointInvalid", "ResourceExhausted") and part.ended
        if not whole:
            break
    if refuses(loader.finish, "CheckpointInvalid") == whole:
        raise Wrong(f"a file that is {'whole' if whole else 'not whole'} was taken the other way")
    if whole:
        with saying("Fenced"):
            store.hello(HIGH, LOW, 2**32 - 1, 0)
        store.highest_step()
        _read_cut(store, None)


def _read_cut(store: Any, file: int | None) -> None:
    """What was loaded is written again, and read again by another."""
    cut = store.take([], 0.0, True)
    buffer = bytearray(_PAYLOAD_MAX + 16)
    blocks = b""
    while count := cut.read(file, buffer):
        blocks += buffer[:count]
    loader = make_loader(_core.Store())
    layout = None if file is None else dict(cut.tables)[file]
    part = loader.begin(file, layout, delta=False, start=HEADER_BYTES)
    part.feed(blocks)
    if not part.ended:
        raise Wrong("what was loaded does not come back whole")
    loader.finish()


def _frozen_rows(data: bytes) -> None:
    """Input: the layout that the manifest says, a file's blocks."""
    if len(data) < _SIX.size:
        return
    layout = _SIX.unpack_from(data)
    rows: Any = None
    with saying("CheckpointInvalid"):
        rows = _core.FrozenRows(layout, "float32")
    if rows is None or refuses(partial(rows.add, data, _SIX.size), "CheckpointInvalid"):
        return
    # More than this is no row that a manifest can have.
    if layout[3] <= _PAYLOAD_MAX:
        rows.read(KEYS, np.zeros((len(KEYS), layout[3]), np.uint8))
    keys, weights, _ = rows.scan(0, 100)
    if len(weights) != len(keys) * layout[3] or not all(rows.contains(keys)):
        raise Wrong("a scan has other rows than there are")


def fit_blocks(data: bytes) -> bytes:
    """Checksums of all blocks that have their whole payload; the footer as the blocks before it want it."""
    fitted = bytearray(data)
    at = rows = deleted = blocks = sums = 0
    while at + 16 <= len(fitted):
        kind, count, size, _ = struct.unpack_from("<4I", fitted, at)
        payload = at + 16
        if payload + size > len(fitted):
            break
        if kind == _FOOTER and size == _FOOTER_BYTES:
            struct.pack_into("<3Q2I", fitted, payload, rows, deleted, blocks, sums, 0)
        crc = _core.crc32c(bytes(fitted[at : at + 12]) + bytes(fitted[payload : payload + size]))
        struct.pack_into("<I", fitted, at + 12, crc)
        rows += count if kind == 1 else 0
        deleted += count if kind == 2 else 0
        blocks += 1
        sums = _core.crc32c(struct.pack("<I", crc), sums)
        at = payload + size
    return bytes(fitted)


def _change_blocks(head: int, chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes changed, mostly behind what comes before the blocks; in most of them the checksums fit."""
    if chance.random() < 0.8:
        changed = data[:head] + change_bytes(chance, data[head:], [other[head:] for other in others])
    else:
        changed = change_bytes(chance, data, others)
    return changed[:head] + fit_blocks(changed[head:]) if chance.random() < 0.85 else changed


def _header(data: bytes) -> None:
    try:
        header = Header.parse(data, "file")
    except CheckpointInvalid:
        return
    if header.pack() != data[:HEADER_BYTES]:
        raise Wrong(f"{header} is written otherwise than it was read")


def _change_header(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = change_bytes(chance, data, others)
    if chance.random() < 0.2 or len(changed) < HEADER_BYTES:
        return changed
    body = changed[: HEADER_BYTES - 4]
    return body + struct.pack("<I", _core.crc32c(body)) + changed[HEADER_BYTES:]


# -- JSON --


def _parse(data: bytes) -> None:
    with contextlib.suppress(CheckpointInvalid):
        parse_json(data)


def _manifest(data: bytes) -> None:
    try:
        manifest = Manifest.parse(data, "manifest")
    except CheckpointInvalid:
        return
    if Manifest.parse(manifest.pack(), "again") != manifest:
        raise Wrong("a manifest that was read is written otherwise")


def _change_json(with_crc: bool, chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A value changed in most, with a checksum that fits; else bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(chance, data, others)
    if chance.random() < 0.2:
        return change_bytes(chance, data, others)
    value = change_json(chance, copy.deepcopy(value))
    if with_crc and isinstance(value, dict):
        with contextlib.suppress(Exception):
            value["crc"] = canonical_crc(value)
    text = json.dumps(value)
    return text.encode()


class _Hasty(System):
    """Nothing here outlives a power cut, and syncing takes most of the time."""

    def fsync(self, file: int) -> None:
        """Nothing."""


def _barrier(data: bytes) -> None:
    """Input: what lies in a barrier's place; another barrier is released, and both are read."""
    with tempfile.TemporaryDirectory() as folder:
        destination = Destination(LocalStorage(Path(folder), _Hasty()), job="toy")
        path = Path(folder, "barriers", f"{_core.crc32c(b'epoch-1'):08x}.json")
        path.parent.mkdir()
        path.write_bytes(data)
        destination.released_barriers()
        destination.release_barrier("epoch-1", 2)
        if destination.released_barriers().get("epoch-1") is None:
            raise Wrong("a barrier that was released is not")


TARGETS = (
    Target("pull", partial(_handle, "Pull"), partial(_change_request, messages.PullRequest)),
    Target("push", partial(_handle, "Push"), partial(_change_request, messages.PushRequest)),
    Target("step", partial(_handle, "Step"), partial(_change_request, messages.StepRequest)),
    Target("answer", _accept, _change_answer),
    Target("readdress", _readdress),
    Target("http2_answer", _http2_answer),
    Target("http2_requests", _http2_requests),
    Target("load_rows", _load_rows, partial(_change_blocks, 1 + _SIX.size)),
    Target("load_steps", _load_steps, partial(_change_blocks, 0)),
    Target("frozen_rows", _frozen_rows, partial(_change_blocks, _SIX.size)),
    Target("header", _header, _change_header),
    Target("json", _parse, partial(_change_json, False)),
    Target("manifest", _manifest, partial(_change_json, True)),
    Target("barrier", _barrier, partial(_change_json, False)),
)
