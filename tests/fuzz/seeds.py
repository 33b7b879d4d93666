"""Makes the corpus with the product itself; what was found stays beside it.

PYTHONPATH=tests .venv/bin/python tests/fuzz/seeds.py
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
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


def main() -> None:
    """Write all of them."""
    asked = requests()
    made = {**asked, "answer": answers(asked), **files(), "header": headers(), "manifest": manifests()}
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
