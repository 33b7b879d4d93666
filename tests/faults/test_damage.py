"""Damaged checkpoints before the real store and a real server: refused by file and byte, never half read (T8)."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.servers import Servers
from faults.workers import JOB, expected, repro, require_equal, take_steps
from faults.workers import held as sums_of

import tablebay as tb
from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.restore import restore_newest
from tablebay.client.routing import ShardMap
from tablebay.native import _core

SEED = int(os.environ.get("TABLEBAY_SEED", "1"))
WHERE = repro(__file__, SEED)
DIM = 16
# Steps that each checkpoint has: of the older one, and of the newer one, whose chain is a full set and a delta.
OLDER, MIDDLE, NEWER = 15, 20, 25


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The destination of a job of two servers, which have ended: checkpoints 1 (full), 2 (full), 3 (delta of 2)."""
    folder = tmp_path_factory.mktemp("made")
    with Servers(folder, 2, "--checkpoint-every-seconds", "0", restart=False) as servers:
        with tb.connect(servers.addresses, rank=0, job=JOB) as client:
            for steps, full in ((OLDER, True), (MIDDLE, True), (NEWER, False)):
                take_steps(client, 0, steps, dim=DIM)
                client.checkpoint(full=full)
        for index in range(2):
            servers.kill(index)
        return servers.destination


def restored(destination: Path) -> tuple[list[int], list[dict[int, int]], str]:
    """What each of two servers would begin with: the checkpoint's number, its rows; why newer ones were passed over.

    Each goes back as far as it must: a rank begins at the lowest step that some server lacks.
    """
    source = Destination.open_source(str(destination))
    numbers, sums, refused = [], [], []
    for index in range(2):
        store: Any = _core.Store()
        owners = ShardMap.even(2).shards_of(index)
        found = restore_newest(store, source, index=index, servers=2, owners=owners, job=JOB)
        numbers.append(found.manifest.number)
        refused += found.refused
        held: dict[int, int] = {}
        position, more = 0, True
        while more:
            keys, rows, position = store.scan(_core.table_id("sums"), position, 100_000)
            values = np.frombuffer(rows, np.uint64).reshape(-1, DIM)
            assert bool((values == values[:, :1]).all())
            held |= dict(zip(np.frombuffer(keys, np.uint64).tolist(), values[:, 0].tolist(), strict=True))
            more = position != 0
        sums.append(held)
    return numbers, sums, " ".join(refused)


def of_server(index: int, sums: dict[int, int]) -> dict[int, int]:
    """Those of its shards."""
    keys = np.array(list(sums), np.uint64)
    mine = ShardMap.even(2).owners[np.asarray(_core.shards_of(keys))] == index
    return {int(key): sums[int(key)] for key in keys[mine]}


def damage(chance: random.Random, how: str, path: Path, other: Path) -> str:
    """Do one thing to a file; what was done, or "" where the file is as it was."""
    whole = path.read_bytes()
    at = chance.randrange(len(whole))
    if how == "delete":
        path.unlink()
        return "gone"
    if how == "truncate":
        path.write_bytes(whole[:at])
    elif how == "zero":
        path.write_bytes(whole[:at] + bytes(len(whole[at : at + 4096])) + whole[at + 4096 :])
    elif how == "flip":
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    else:
        path.write_bytes(other.read_bytes())
        if how == "swap":
            other.write_bytes(whole)
    return f"at byte {at}, other {other.name}" if path.read_bytes() != whole else ""


KINDS = ("truncate", "zero", "flip", "delete", "swap", "older")
MANIFEST = "manifests/0000000003.json"


@pytest.mark.parametrize(
    "each", [2, pytest.param(200, marks=pytest.mark.deep)], ids=["few places", "many places"]
)
@pytest.mark.parametrize("how", KINDS)
def test_t8_g5_g14_a_damaged_file_is_named_and_nothing_of_it_is_used(
    made: Path, tmp_path: Path, how: str, each: int
) -> None:
    """Each file of the newest checkpoint, and its manifest, damaged at seeded places: named, and an older one is used.

    It is used whole: each server begins with the rows of one of the checkpoints, to the last bit.
    """
    chance = random.Random(f"{SEED} {how}")
    wanted = {1: expected(1, OLDER), 2: expected(1, MIDDLE), 3: expected(1, NEWER)}
    rows = {(number, index): of_server(index, wanted[number]) for number in wanted for index in range(2)}
    numbers, sums, refused = restored(made)
    assert (numbers, refused) == ([3, 3], ""), WHERE
    for index in range(2):
        require_equal(sums[index], rows[3, index], f"server {index}\n{WHERE}")
    manifest = json.loads((made / MANIFEST).read_text())
    # Files by path: of which server, of which link.
    files = {
        f"attempts/{link['attempt']}/{file['name']}": (index, link["number"])
        for index, server in enumerate(manifest["servers"])
        for link in server["chain"]
        for file in link["files"]
    }
    older = [str(path.relative_to(made)) for path in (made / "attempts").rglob("*") if path.is_file()]
    root = tmp_path / "damaged"
    struck: Counter[str] = Counter()
    for target in [*files, MANIFEST]:
        name = Path(target).name
        if target == MANIFEST:
            others = ["manifests/0000000002.json"]
        elif how == "swap":
            others = [other for other in files if other != target]
        else:
            others = [other for other in older if Path(other).name == name and other != target]
        for _ in range(
            1 if how == "delete" else min(each, len(others)) if how in ("swap", "older") else each
        ):
            shutil.copytree(made, root)
            other = chance.choice(others)
            done = damage(chance, how, root / target, root / other)
            where = f"{how} {target}: {done}\n{WHERE}"
            if done:
                struck[target] += 1
                numbers, sums, refused = restored(root)
                for index in range(2):
                    assert sums[index] == rows[numbers[index], index], f"server {index}: {numbers}, {where}"
                if target == MANIFEST:
                    # Swapped, both have the wrong number in them.
                    assert numbers == ([1, 1] if how == "swap" else [2, 2]), f"{numbers}, {where}"
                    assert name in refused or how == "delete", f"{refused!r}, {where}"
                else:
                    index, link = files[target]
                    # What is in the chain of number 3 alone leads back to number 2.
                    assert numbers[index] in ((1, 2) if link == 2 or how == "swap" else (2,)), (
                        f"{numbers}, {where}"
                    )
                    # Of two that were swapped the first to be read is named.
                    named = name in refused or (how == "swap" and Path(other).name in refused)
                    assert named, f"{refused!r}, {where}"
                    if how in ("truncate", "zero", "flip"):
                        assert re.search(rf"{name}: at byte \d+", refused), f"{refused!r}, {where}"
            shutil.rmtree(root)
    assert len(struck) >= len(files), f"{struck}\n{WHERE}"


def test_t8_g5_g14_a_server_begins_with_the_checkpoint_before_a_damaged_one(
    made: Path, tmp_path: Path
) -> None:
    """A bit of each server's delta is flipped: they say so, and their worker does again what that one had."""
    folder = tmp_path / "servers"
    shutil.copytree(made, folder / "checkpoints")
    files = sorted((folder / "checkpoints" / "attempts").glob("3-*/*-rows-*"))
    chance = random.Random(SEED)
    for path in files:
        assert damage(chance, "flip", path, path)
    assert len(files) == 2
    with Servers(folder, 2, "--checkpoint-every-seconds", "0") as servers:
        for index in range(2):
            assert f"{files[index].name}: at byte " in servers.log(index), WHERE
            assert "server.restored number=2" in servers.log(index), WHERE
        with tb.connect(servers.addresses, rank=0, job=JOB) as client:
            assert client.next_step == MIDDLE, WHERE
            take_steps(client, 0, NEWER, dim=DIM)
        require_equal(sums_of(servers.addresses), expected(1, NEWER), WHERE)


def test_g3_a_server_that_comes_back_with_less_than_it_announced_is_lost(tmp_path: Path) -> None:
    """Its newest checkpoint, of which the client keeps nothing more, is damaged: no later step covers the hole."""
    with Servers(tmp_path, 1, "--checkpoint-every-seconds", "0", restart=False) as servers:
        with tb.connect(servers.addresses, rank=0, job=JOB, timeout=60) as client:
            for steps in (OLDER, MIDDLE):
                take_steps(client, 0, steps, dim=DIM)
                client.checkpoint(full=True)
            # Its answer says what is durable.
            take_steps(client, 0, NEWER, dim=DIM)
            replay = client._session.replay
            assert replay is not None
            assert [kept.step for kept in replay.since(0, 0)] == list(range(MIDDLE, NEWER)), WHERE
            servers.kill(0)
            (path,) = (servers.destination / "attempts").glob("2-*/*-rows-*")
            assert damage(random.Random(SEED), "flip", path, path)
            servers.start(0)
            servers.wait_until_ready()
            assert "server.restored number=1 " in servers.log(0), WHERE
            with pytest.raises(tb.ServerLost, match="the steps between are lost"):
                take_steps(client, 0, NEWER + 1, dim=DIM)
        require_equal(sums_of(servers.addresses), expected(1, OLDER), WHERE)
        with tb.connect(servers.addresses, rank=0, job=JOB) as client:
            assert client.next_step == OLDER, WHERE
            take_steps(client, 0, NEWER, dim=DIM)
        require_equal(sums_of(servers.addresses), expected(1, NEWER), WHERE)
