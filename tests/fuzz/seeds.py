"""Makes the corpus with the product itself; what was found stays beside it.

PYTHONPATH=tests .venv/bin/python tests/fuzz/seeds.py
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from faults import http2_frames as http2
from fuzz.targets import CORPUS, HIGH, KEYS, LOW, make_call, make_store

from tablebay.client.checkpoint.files import Header
from tablebay.client.checkpoint.manifest import (
    File,
    Layout,
    Link,
    Manifest,
    ServerEntry,
    StateEntry,
    TableEntry,
    WorkerEntry,
)
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.client.tables import Adagrad, TableSpec, Zeros
from tablebay.native import _core

FIRST, SECOND = "1-" + "a" * 32, "2-" + "b" * 32
ROWS = _core.table_id("rows")


def requests() -> dict[str, list[bytes]]:
    """As the client writes them, and as others may."""
    found: dict[str, list[bytes]] = {"pull": [], "push": [], "step": []}
    for kind, name in (("Pull", "pull"), ("Push", "push"), ("Step", "step")):
        found[name].append(make_call(kind).request(0, 0, HIGH, LOW, 1, 0, 3, 5, 2, b"here"))
    sender = messages.Sender(client_high=HIGH, client_low=LOW, incarnation=1)
    keys = KEYS.tobytes()
    for flags in (_core.READ_ONLY, _core.STATE, _core.CONTAINS):
        part = messages.Part(table_id=ROWS, dim=2, flags=flags, keys=keys)
        found["pull"].append(messages.PullRequest(part=part).SerializeToString())
    for flags in (_core.UNIQUE, _core.ASSIGN, _core.DELETE):
        rows = b"" if flags == _core.DELETE else np.ones((len(KEYS), 2), np.float32).tobytes()
        part = messages.Part(table_id=ROWS, dim=2, flags=flags, keys=keys, rows=rows)
        push = messages.PushRequest(sender=sender, step=1, oldest_step=1, part=part, pieces=2, piece=1)
        found["push"].append(push.SerializeToString())
        found["step"].append(
            messages.StepRequest(sender=sender, step=1, oldest_step=1, pushes=[part]).SerializeToString()
        )
    return found


def answers(asked: dict[str, list[bytes]]) -> list[bytes]:
    """A server's, to the client's own requests."""
    store = make_store()
    return [getattr(store, f"handle_{name}")(asked[name][0]) for name in ("pull", "push", "step")]


def files() -> dict[str, list[bytes]]:
    """A full cut and a delta, of rows and of steps."""
    store = make_store()
    client = messages.Sender(client_high=HIGH, client_low=LOW, incarnation=1)
    found: dict[str, list[bytes]] = {"load_rows": [], "load_steps": [], "frozen_rows": []}
    for number in range(2):
        keys = KEYS[number:]
        part = messages.Part(
            table_id=ROWS, dim=2, keys=keys.tobytes(), rows=np.ones((len(keys), 2), np.float32).tobytes()
        )
        store.handle_push(
            messages.PushRequest(
                sender=client, step=number, oldest_step=number, part=part, cursor=b"at %d" % number
            ).SerializeToString()
        )
        if number:
            store.delete(ROWS, KEYS[:2])
        cut = store.take([], 0.0, number == 0)
        layout = struct.pack("<6I", *dict(cut.tables)[ROWS])
        blocks = whole(cut, ROWS)
        for flags in (0, 2) if number == 0 else (1, 3):
            found["load_rows"].append(bytes([flags]) + layout + blocks)
        found["frozen_rows"].append(layout + blocks)
        found["load_steps"].append(whole(cut, None))
        cut.commit()
    return found


def whole(cut: Any, file: int | None) -> bytes:
    """All blocks of a file."""
    buffer = bytearray(1 << 21)
    content = b""
    while count := cut.read(file, buffer):
        content += buffer[:count]
    return content


def manifests() -> list[bytes]:
    """An empty one, a fence, and one with all that there is."""
    rows, steps = File("0-rows", "Rows", ROWS, 100, 5, 1, 0), File("0-steps", "Steps", None, 100, 6, 0, 0)
    about: dict[str, Any] = {
        "job": "toy",
        "generation": 1,
        "created": "2026-11-23T11:00:00.000+00:00",
        "version": "0.3.0",
        "aligned": True,
    }
    spec = TableSpec(name="rows", dim=2, optimizer=Adagrad(0.05), initializer=Zeros())
    chain = (Link(1, FIRST, None, (rows,)), Link(2, SECOND, 1, (rows, steps)))
    state = {"model": StateEntry(f"attempts/{FIRST}/state-0-0", 5, 7)}
    layout = Layout(*dict(make_store().take([], 0.0, True).tables)[ROWS])
    empty = (ServerEntry(0, 3, (), ()),)
    return [
        Manifest(number=0, kind="Empty", servers=empty, **about).pack(),
        Manifest(number=3, kind="Fence", servers=empty, **about).pack(),
        Manifest(
            number=2,
            kind="Delta",
            servers=(ServerEntry(0, 3, tuple(range(1024)), chain),),
            tables=(TableEntry(ROWS, spec, layout),),
            workers=(WorkerEntry(rank=0, next_step=7, cursor=b"at", state=state, state_step=3),),
            **about,
        ).pack(),
    ]


def headers() -> list[bytes]:
    """Of both kinds."""
    common: dict[str, Any] = {"number": 2, "attempt": SECOND, "index": 1, "epoch": 3}
    return [
        Header(kind="Rows", delta=True, table=ROWS, layout=Layout(32, 0, 12, 8, 20, 8), **common).pack(),
        Header(kind="Steps", delta=False, **common).pack(),
    ]


def http2_answers() -> list[bytes]:
    """An answer, an error, one in odd frames, a table that is used, a stream's and a connection's end."""
    end = http2.END_HEADERS | http2.END_STREAM
    begin = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.HEAD)
    huffman = bytes.fromhex("8cf1e3c2e5f23a6ba0ab90f4ff")
    keep = b"\x88\x40\x0bgrpc-status\x015\x40\x0cgrpc-message\x04gone"
    words = [
        http2.answer(b"rows" * 100),
        http2.frame(
            http2.HEADERS, end, 1, b"\x88" + http2.trailers(3, b"no%20", tablebay_error=b"NonFinite")
        ),
        begin
        + http2.frame(http2.PING, 0, 0, b"12345678")
        + http2.frame(http2.DATA, http2.PADDED, 1, b"\x03" + http2.message(b"rows") + bytes(3))
        + http2.frame(http2.HEADERS, http2.END_STREAM, 1, http2.trailers(0)[:5])
        + http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, http2.trailers(0)[5:]),
        http2.frame(http2.HEADERS, http2.END_HEADERS, 1, keep)
        + http2.frame(http2.HEADERS, end, 1, b"\xbe\xbf"),
        http2.frame(http2.HEADERS, end, 1, b"\x20\x88\x00\x0cgrpc-message" + huffman),
        begin + http2.frame(http2.RESET, 0, 1, bytes(4)),
        begin
        + http2.frame(http2.WINDOW_UPDATE, 0, 1, b"\x00\x00\x10\x00")
        + http2.frame(http2.GOAWAY, 0, 0, bytes(8)),
    ]
    return [
        bytes([piece]) + http2.settings(initial_window=70_000, max_frame=20_000) + one
        for piece, one in zip((1, 2, 5, 9, 16, 100, 255), words, strict=True)
    ]


def http2_requests() -> list[bytes]:
    """Calls in one frame and in many, one that is given up, others that are refused, a table that is used."""
    keep = b"\x83\x86\x44\x02/a\x5f\x10application/grpc\x40\x0cgrpc-timeout\x025S"
    words = [
        http2.request(b"keys" * 100),
        http2.request(b"", 1) + http2.request(b"keys", 3, grpc_timeout=b"5S"),
        http2.request_head(1)
        + http2.frame(http2.PING, 0, 0, b"12345678")
        + http2.frame(http2.DATA, http2.PADDED, 1, b"\x03" + http2.message(b"keys") + bytes(3))
        + http2.frame(http2.HEADERS, http2.END_STREAM, 1, http2.trailers(0)[:5])
        + http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, http2.trailers(0)[5:]),
        http2.frame(http2.HEADERS, http2.END_HEADERS, 1, keep)
        + http2.frame(http2.DATA, http2.END_STREAM, 1, http2.message(b"a"))
        + http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x83\x86\xbf\xbe")
        + http2.frame(http2.DATA, http2.END_STREAM, 3, http2.message(b"b")),
        http2.request_head(1) + http2.frame(http2.RESET, 0, 1, bytes(4)) + http2.request(b"keys", 3),
        http2.request(b"keys", 1, grpc_encoding=b"gzip") + http2.request(b"keys" * 3000, 3),
        http2.request_head(1)
        + http2.frame(http2.WINDOW_UPDATE, 0, 1, b"\x00\x00\x10\x00")
        + http2.frame(http2.GOAWAY, 0, 0, bytes(8)),
    ]
    return [
        bytes([piece]) + http2.settings(initial_window=70_000, max_frame=20_000) + one
        for piece, one in zip((1, 2, 5, 9, 16, 100, 255), words, strict=True)
    ]


def main() -> None:
    """Write all of them."""
    asked = requests()
    made = {**asked, "answer": answers(asked), **files(), "header": headers(), "manifest": manifests()}
    made["http2_answer"] = http2_answers()
    made["http2_requests"] = http2_requests()
    made["readdress"] = [asked[name][0] for name in asked]
    made["json"] = [*made["manifest"][-1:], b'{"a": [1, 2.5, "\\u00e9", null, true]}']
    run = b'{"format": 1, "name": "epoch-1", "workers": 2, "run": "' + b"0" * 32 + b'"}\n'
    made["barrier"] = [run, run.replace(b"epoch-1", b"other")]
    for target, contents in made.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(contents):
            (folder / f"made-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
