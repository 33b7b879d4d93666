"""Format 1 as files: written by the second writer, never changed again, read by the product.

To make them: TABLEBAY_GOLDEN=1 pytest tests/unit/test_checkpoint_golden.py. A change of these files is a new format.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from checkpoint_world import IDS, ITEM, JOB, USER, World, weights
from reference_checkpoint import (
    Blocks,
    Client,
    ReferenceStore,
    Six,
    crc,
    header,
    layout_of,
    make_row,
    read_blocks,
    read_checkpoint,
    row_blocks,
)

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.manifest import Manifest
from tablebay.client.checkpoint.restore import restore_newest
from tablebay.client.checkpoint.verify import verify
from tablebay.native import _core

GOLDEN = Path(__file__).parent / "golden" / "checkpoint_v1"
RUN = "0123456789abcdef" * 2
FULL, DELTA = "1-" + "11" * 16, "2-" + "22" * 16
CLIENT = Client(
    2**64 - 1,
    7,
    incarnation=3,
    rank=1,
    next=5,
    bits=0b11111,
    cursors={3: b"", 4: b"file-7:1000"},
    shards={9: (5, 0b10101, list(range(64)))},
)
SPECS = {
    "user": {
        "name": "user",
        "dim": 2,
        "dtype": "float32",
        "optimizer": {"learningRate": 0.05, "initialAccumulator": 0.1, "epsilon": 1e-8, "type": "Adagrad"},
        "initializer": {"type": "Zeros"},
        "seed": 0,
        "nonFinite": "Reject",
    },
    "item": {
        "name": "item",
        "dim": 3,
        "dtype": "float32",
        "optimizer": {"learningRate": 0.1, "type": "SGD"},
        "initializer": {"type": "Zeros"},
        "seed": 0,
        "nonFinite": "Reject",
    },
}
LAYOUTS: dict[str, Six] = {"user": layout_of(2, 1), "item": layout_of(3, 0)}
STATE = b"the model"


def user(key: int, version: int, *values: float) -> bytes:
    return make_row(LAYOUTS["user"], key, version, weights(*values), weights(0.5, 0.25))


def write_golden(root: Path) -> None:
    """A destination of one server: empty, full, a delta, a fence; two tables, a client, a state, a barrier.

    In the delta a key is deleted, and another one deleted and made anew.
    """
    files: dict[str, bytes] = {"tablebay.json": _text({"format": 1, "job": JOB})}
    files |= {"epochs/0/1": b"", "epochs/0/2": b""}
    barrier = {"format": 1, "name": "warm", "workers": 2, "run": RUN}
    files[f"barriers/{crc(b'warm'):08x}.json"] = _text(barrier)
    item = make_row(LAYOUTS["item"], 2**64 - 1, 1, weights(1, 2, 3))
    links = []
    for attempt, contents in (
        (
            FULL,
            {
                "user": ([user(key, 1, key, -key) for key in range(5)], []),
                "item": ([item], []),
            },
        ),
        (DELTA, {"user": ([user(3, 7, 30, 0.1), user(2, 8, 2, 2)], [1, 2]), "item": ([], [])}),
    ):
        number = int(attempt[0])
        entries = []
        blocks: dict[str, Blocks] = {
            name: row_blocks(LAYOUTS[name], rows, deleted, 2) for name, (rows, deleted) in contents.items()
        }
        blocks["steps"] = Blocks([(3, 1, CLIENT.pack())])
        for name, content in blocks.items():
            steps = name == "steps"
            table = None if steps else IDS[name]
            head = header(
                kind=2 if steps else 1,
                delta=number == 2 and not steps,
                number=number,
                attempt=attempt,
                index=0,
                epoch=1,
                table=table or 0,
                layout=(0,) * 6 if steps else LAYOUTS[name],
            )
            file = "0-steps" if steps else f"0-rows-{table:08x}"
            files[f"attempts/{attempt}/{file}"] = head + bytes(content)
            entries.append(_entry(file, table, content, head))
        links.append({"number": number, "attempt": attempt, "parent": number - 1 or None, "files": entries})
    state_path = f"attempts/{FULL}/state-1-0"
    files[state_path] = STATE
    worker = {
        "rank": 1,
        "next_step": 5,
        "cursor": "ZmlsZS03OjEwMDA=",
        "state": {"model": {"path": state_path, "bytes": len(STATE), "crc": crc(STATE)}},
        "state_step": 4,
    }
    without_steps = {**links[0], "files": [file for file in links[0]["files"] if file["kind"] == "Rows"]}
    for number, kind, chain, workers in (
        (0, "Empty", [], []),
        (1, "Full", [links[0]], [worker]),
        (2, "Delta", [without_steps, links[1]], [worker]),
        (3, "Fence", [], []),
    ):
        complete = bool(chain)
        manifest: dict[str, Any] = {
            "format": 1,
            "number": number,
            "kind": kind,
            "job": JOB,
            "generation": 1,
            "run": RUN,
            "created": f"2026-01-0{number + 1}T00:00:00.000+00:00",
            "version": "0.1.0",
            "aligned": True,
            "shards": 1024,
            "servers": [
                {
                    "index": 0,
                    "epoch": 1 + (number == 3),
                    "owners": "0-1023" if complete else "",
                    "chain": chain,
                }
            ],
            "tables": [
                {
                    "id": IDS[name],
                    "spec": SPECS[name],
                    "layout": dict(
                        zip(
                            ("row_bytes", "step", "weights", "weight_bytes", "slots", "slot_bytes"),
                            LAYOUTS[name],
                            strict=True,
                        )
                    ),
                }
                for name in SPECS
                if complete
            ],
            "workers": workers,
        }
        manifest["crc"] = crc(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
        files[f"manifests/{number:010}.json"] = _text(manifest)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def _entry(name: str, table: int | None, blocks: Blocks, head: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "Steps" if table is None else "Rows",
        "table": table,
        "bytes": len(head) + len(bytes(blocks)),
        "crc": blocks.crc,
        "rows": blocks.rows,
        "deleted": blocks.deleted,
    }


def _text(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


VERSIONS = {0: 1, 2: 8, 3: 7, 4: 1}
EXPECTED = {0: (0, 0), 2: (2, 2), 3: (30, 0.1), 4: (4, -4)}


def test_the_files_are_what_the_second_writer_writes(tmp_path: Path) -> None:
    """Byte by byte; so its later changes cannot go unnoticed."""
    if os.environ.get("TABLEBAY_GOLDEN") == "1":
        write_golden(GOLDEN)
    write_golden(tmp_path)
    assert _files(tmp_path) == _files(GOLDEN)


def test_t24_g5_the_product_reads_version_1() -> None:
    """Rows with slots and versions, deletions, windows, cursor, state, barrier."""
    destination = Destination.open_source(str(GOLDEN))
    store = ReferenceStore()
    restored = restore_newest(store, destination, index=0, servers=1, owners=range(1024), job=JOB)
    assert restored.manifest.number == 2
    assert restored.refused == ()
    assert restored.specs == (USER, ITEM)
    tables, clients = store.content()
    assert tables["user"][1] == {key: user(key, VERSIONS[key], *values) for key, values in EXPECTED.items()}
    assert list(tables["item"][1]) == [2**64 - 1]
    assert clients == {(CLIENT.high, CLIENT.low): CLIENT.pack()}
    assert [link.number for link in restored.chain] == [1, 2]
    (worker,) = restored.manifest.workers
    assert (worker.rank, worker.next_step, worker.cursor, worker.state_step) == (1, 5, b"file-7:1000", 4)
    assert destination.read_state(worker.state["model"], 0, 100) == STATE
    for number in (0, 1, 2):
        assert verify(destination, destination.manifest(number)).problems == ()
    assert read_checkpoint(GOLDEN, 2)[0]["user"] == tables["user"][1]


def test_the_product_writes_what_version_1_has(tmp_path: Path) -> None:
    """The same fields and names, and files of which the second reader understands every byte."""
    world = World(tmp_path / "d", servers=1)
    world.put("user", 1, 1, 2)
    assert world.save() == ""
    world.end()
    ours = json.loads((tmp_path / "d" / "manifests" / "0000000001.json").read_text())
    golden = json.loads((GOLDEN / "manifests" / "0000000001.json").read_text())
    assert list(ours) == list(golden)
    assert ours["tables"] == golden["tables"]
    (mine,), (other,) = ours["servers"], golden["servers"]
    assert list(mine) == list(other)
    assert [file["name"] for file in mine["chain"][0]["files"]] == [
        file["name"] for file in other["chain"][0]["files"]
    ]
    assert list(mine["chain"][0]["files"][0]) == list(other["chain"][0]["files"][0])
    for path in (tmp_path / "d" / "attempts").rglob("0-*"):
        list(read_blocks(path.read_bytes()[96:]))
    parsed = Manifest.parse((GOLDEN / "manifests" / "0000000002.json").read_bytes(), "f")
    assert parsed.to_json() == json.loads((GOLDEN / "manifests" / "0000000002.json").read_text())


@pytest.mark.skipif(not hasattr(_core.Store, "load"), reason="the native core cannot load yet")
def test_t24_g5_the_native_store_reads_version_1() -> None:
    """Where the core can: the same rows."""
    import numpy as np

    store: Any = _core.Store()
    destination = Destination.open_source(str(GOLDEN))
    restored = restore_newest(store, destination, index=0, servers=1, owners=range(1024), job=JOB)
    assert restored.rows == 5
    out = np.empty((len(EXPECTED), 2), np.float32)
    store.pull(IDS["user"], np.array(list(EXPECTED), np.uint64), out, False)
    assert out.tolist() == np.array(list(EXPECTED.values()), np.float32).tolist()
