"""Large files are read in parts, each by a thread of its own: the rows, and the errors, are those of one reader."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import checkpoint_world
import numpy as np
import pytest
from checkpoint_world import IDS, JOB, World

from tablebay.client.checkpoint import restore
from tablebay.client.checkpoint.destination import Destination
from tablebay.client.errors import CheckpointInvalid
from tablebay.native import _core

ROWS = 200_000
KEYS = np.arange(ROWS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
THREADS = 3


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A checkpoint of one server, whose reading is to be cut in THREADS parts; its file of rows; the rows."""
    monkeypatch.setattr(checkpoint_world, "ReferenceStore", _core.Store)
    monkeypatch.setattr(restore, "_PART_BYTES_MIN", 1 << 20)
    monkeypatch.setattr(restore.os, "sched_getaffinity", lambda _: range(THREADS))
    world = World(tmp_path / "d", servers=1)
    rows = np.random.default_rng(7).standard_normal((ROWS, 2)).astype(np.float32)
    world.stores[0].assign(IDS["user"], KEYS, rows)
    assert world.save(full=True) == ""
    world.end()
    return max((tmp_path / "d" / "attempts").rglob("0-rows-*"), key=lambda path: path.stat().st_size), rows


def read(path: Path) -> Any:
    """A store with what the checkpoint has."""
    store = _core.Store()
    destination = Destination.open_source(str(path.parents[2]))
    restore.restore_newest(store, destination, index=0, servers=1, owners=range(1024), job=JOB)
    return store


def blocks(content: bytes) -> list[int]:
    """Where each block begins."""
    found, at = [], 96
    while at < len(content):
        found.append(at)
        at += 16 + struct.unpack_from("<I", content, at + 8)[0]
    return found


def test_every_row_is_there_once(saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file was read by as many threads as that."""
    path, rows = saved
    begins: list[list[int]] = []
    found = restore._begins
    monkeypatch.setattr(restore, "_begins", lambda *given: begins.append(found(*given)) or begins[-1])
    store = read(path)
    assert max(map(len, begins)) == THREADS
    assert store.table_info(IDS["user"])["rows"] == ROWS
    out = np.empty((ROWS, 2), np.float32)
    store.pull(IDS["user"], KEYS, out, False)
    assert np.array_equal(out, rows)


@pytest.mark.parametrize("seed", range(8))
def test_damage_in_any_part_is_named(saved: tuple[Path, Any], seed: int) -> None:
    """By the byte where its block begins; in a head, a row, a checksum or the footer."""
    path, _ = saved
    content = bytearray(path.read_bytes())
    begins = blocks(bytes(content))
    assert len(begins) > 2 * THREADS
    chance = np.random.default_rng(seed)
    at = int(begins[-1] + chance.integers(0, 48) if seed == 0 else chance.integers(96, len(content)))
    content[at] ^= 1 << int(chance.integers(0, 8))
    path.write_bytes(content)
    begin = max(one for one in begins if one <= at)
    with pytest.raises(CheckpointInvalid, match=rf"{path.name}: at byte {begin}: ") as error:
        read(path)
    assert "has failed" not in str(error.value), f"seed {seed}"


def test_blocks_that_are_left_out_or_change_places_are_found(saved: tuple[Path, Any]) -> None:
    """Each of them is whole, and so are the parts."""
    path, _ = saved
    content = path.read_bytes()
    begins = blocks(content)
    one, other, end = begins[0], begins[1], begins[2]
    assert other - one == end - other, "blocks of the same size"
    swapped = content[:one] + content[other:end] + content[one:other] + content[end:]
    path.write_bytes(swapped)
    with pytest.raises(CheckpointInvalid, match=rf"at byte {begins[-1]}: the footer says"):
        read(path)


def test_parts_are_joined_in_their_order_alone() -> None:
    """What lies between two parts has been read by neither."""
    store = _core.Store()
    table = store.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    keys = np.arange(100, dtype=np.uint64)
    store.push(table, keys, np.ones((100, 1), np.int64))
    cut = store.take([], 0.0, True)
    buffer = bytearray(4 << 20)
    content = bytes(buffer[: cut.read(table, buffer)])
    loader = _core.Store().load(list(range(1024)))
    number = loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    first = loader.begin(number, None, delta=False)
    second = first.rest(len(content) + 5)
    first.feed(content[: blocks(b"\0" * 96 + content)[-1] - 96])
    with pytest.raises(_core.StatusError, match="the next begin at byte"):
        first.join(second)
