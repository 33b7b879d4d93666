"""Checkpoints of real servers: read by other numbers of servers, without servers, and after everything was killed."""

from __future__ import annotations

import math
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.servers import Servers
from faults.workers import leave

import tablebay as tb
from tablebay.client.cli import main
from tablebay.client.environment import http_port
from tablebay.client.errors import BadRequest, CheckpointFailed, CheckpointInvalid, NotRegistered

NEVER = ("--checkpoint-every-seconds", "3600")
DIM = 8
KEYS = np.arange(3000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def tables(client: Any) -> tuple[Any, Any]:
    """One whose rows have slots and step counts, and one of sums."""
    user = client.table("user", dim=DIM, optimizer=tb.Adam(0.01), initializer=tb.Normal(0.1), seed=3)
    sums = client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
    return user, sums


def train(client: Any, first: int, last: int) -> list[float]:
    """Steps of a small model, each a function of its number and of the rows alone; its losses."""
    user, sums = tables(client)
    losses = []
    for number in range(first, last):
        random = np.random.default_rng(number)
        keys = random.choice(KEYS, 200, replace=False)
        with client.step() as step:
            assert step.number == number
            rows, _ = step.pull({user: keys, sums: keys[:5]})
            wanted = random.normal(size=rows.shape).astype(np.float32)
            losses.append(float(np.mean((rows - wanted) ** 2)))
            step.push({user: (keys, 2 * (rows - wanted)), sums: (keys, np.full((200, 1), number, np.int64))})
    return losses


def content(client: Any) -> list[bytes]:
    """Weights, slots and counts of every key of both tables."""
    user, sums = tables(client)
    state = user.optimizer_state(KEYS)
    return [
        user.pull(KEYS, create=False).tobytes(),
        *(state[name].tobytes() for name in sorted(state)),
        sums.pull(KEYS, create=False).tobytes(),
        user.contains(KEYS).tobytes(),
    ]


@pytest.mark.parametrize("servers", [1, 3, 5])
def test_rows_of_two_servers_are_those_of_any_number(tmp_path: Path, servers: int) -> None:
    """G8: every row, slot and counter equal, from a full checkpoint and a delta; the rank goes on."""
    with Servers(tmp_path, 2, *NEVER, restart=False) as two:
        with tb.connect(two.addresses, rank=0, job="faults") as client:
            train(client, 0, 10)
            assert client.checkpoint().kind == "Full"
            train(client, 10, 15)
            tables(client)[0].delete(KEYS[:100])
            assert client.checkpoint().kind == "Delta"
            wanted = content(client)
            following = client.next_step
        two.end_all()
    with (
        Servers(tmp_path, servers, *NEVER, restart=False) as others,
        tb.connect(others.addresses, rank=0, job="faults") as client,
    ):
        assert client.next_step == following
        assert content(client) == wanted
        train(client, following, following + 3)
        assert client.checkpoint().kind == "Full"


def test_a_checkpoint_asked_for_again_is_the_one_that_is_there(tmp_path: Path) -> None:
    """Where nothing has changed since; for every client that asks."""
    with (
        Servers(tmp_path, 2, *NEVER, restart=False) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
        tb.connect(servers.addresses, job="faults") as other,
    ):
        train(client, 0, 3)
        first = client.checkpoint()
        assert client.checkpoint().number == other.checkpoint().number == first.number
        assert client.checkpoint(state={"a": b"b"}).number == first.number + 1
        train(client, 3, 4)
        assert other.checkpoint().number == first.number + 2


def test_a_run_that_was_killed_equals_one_that_was_not(tmp_path: Path) -> None:
    """With one worker: everything killed after step 40, begun again from the checkpoint of step 25; the same bits."""
    with (
        Servers(tmp_path / "whole", 2, *NEVER, restart=False) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
    ):
        losses = train(client, 0, 60)
        wanted = content(client)
    with Servers(tmp_path / "killed", 2, *NEVER, restart=False) as servers:
        client = tb.connect(servers.addresses, rank=0, job="faults")
        begun = train(client, 0, 25)
        client.checkpoint()
        lost = train(client, 25, 40)
        for index in range(2):
            servers.kill(index)
        leave(client)
        for index in range(2):
            servers.start(index)
        servers.wait_until_ready()
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            assert client.next_step == 25
            again = train(client, 25, 60)
            found = content(client)
    assert begun + again == losses
    assert again[:15] == lost
    assert found == wanted
    assert all(math.isfinite(loss) for loss in losses)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A destination with a full checkpoint and a delta of two servers, and the rows of both tables."""
    folder = tmp_path_factory.mktemp("made")
    with Servers(folder, 2, *NEVER, restart=False) as servers:
        client = tb.connect(servers.addresses, rank=0, job="faults")
        train(client, 0, 10)
        client.checkpoint()
        train(client, 10, 15)
        user, sums = tables(client)
        user.delete(KEYS[:100])
        assert client.checkpoint().kind == "Delta"
        rows = user.pull(KEYS, create=False), sums.pull(KEYS, create=False)
        train(client, client.next_step, client.next_step + 5)
        leave(client)
    return servers.destination, *rows


def test_a_checkpoint_is_read_without_servers(made: tuple[Path, Any, Any]) -> None:
    """tb.open: the rows as they were, of the newest checkpoint or of a certain one."""
    destination, user, sums = made
    frozen = tb.open(destination)
    assert sorted(frozen) == ["sums", "user"]
    assert frozen.job == "faults"
    table = frozen["user"]
    assert frozen["user"] is table
    assert (table.name, table.dim, table.dtype, table.spec.optimizer) == (
        "user",
        DIM,
        np.float32,
        tb.Adam(0.01),
    )
    assert table.pull(KEYS).tobytes() == user.tobytes()
    assert frozen["sums"].pull(KEYS.reshape(30, 100)).tobytes() == sums.tobytes()
    out = np.full((3, DIM), 7, np.float32)
    assert table.pull(np.array([1, 2, 3], np.uint64), out=out) is out
    assert not out.any()
    there = table.contains(KEYS)
    assert not there[:100].any()
    assert there.sum() == len(table) == sum(len(keys) for keys, _ in table.items(batch=100))
    for keys, rows in table.items():
        assert rows.tobytes() == table.pull(keys).tobytes()
    manifests = sorted((destination / "manifests").iterdir())
    assert len(tb.open(manifests[1])["user"]) > 0
    assert tb.open(destination, number=1).number == 1
    with pytest.raises(CheckpointFailed, match="99"):
        tb.open(destination, number=99)


def test_a_frozen_table_takes_nothing(made: tuple[Path, Any, Any]) -> None:
    """It has no push; create and unknown tables are refused by name."""
    frozen = tb.open(made[0])
    with pytest.raises(BadRequest, match="read-only"):
        frozen["user"].pull(KEYS, create=True)
    with pytest.raises(NotRegistered, match="'users'.*sums, user"):
        frozen["users"]
    assert not hasattr(frozen["user"], "push")


def test_a_damaged_file_is_named_when_its_table_is_opened(
    made: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    """With the byte; the other table can be read."""
    copy = tmp_path / "copy"
    shutil.copytree(made[0], copy)
    victim = max(copy.glob("attempts/1-*/*rows*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[5000] ^= 4
    victim.write_bytes(content)
    frozen = tb.open(copy)
    with pytest.raises(CheckpointInvalid, match=f"{victim.name}.*at byte"):
        frozen["user"]
    assert len(frozen["sums"]) > 0


def test_a_directory_without_checkpoints_is_said_to_be_one(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(tb.TablebayError, match=str(tmp_path)):
        tb.open(tmp_path)


def test_rows_of_another_job_come_by_name(made: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """client.restore: a table under another name, its optimizer anew; what was in it is replaced, all else stays."""
    destination, user, _ = made
    with (
        Servers(tmp_path, 3, *NEVER, restart=False) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
    ):
        own = client.table("own", dim=1, optimizer=tb.SGD(0.1), initializer=tb.Zeros())
        own.push([1], np.ones((1, 1), np.float32))
        warm = client.table("warm", dim=DIM, optimizer=tb.SGD(0.1), initializer=tb.Zeros())
        warm.push([2**63 + 1], np.ones((1, DIM), np.float32))
        found = client.restore(
            str(destination), tables=["user"], rename={"user": "warm"}, optimizer_state=False
        )
        assert found.tables == ("warm",)
        assert warm.pull(KEYS, create=False).tobytes() == user.tobytes()
        assert not warm.contains([2**63 + 1])[0]
        assert own.pull([1])[0, 0] == np.float32(-0.1)
        with pytest.raises(tb.TablebayError, match="users"):
            client.restore(str(destination), tables=["users"])
        with pytest.raises(tb.TablebayError, match="found no tablebay.json"):
            client.restore(str(tmp_path))
        # Rows that were restored are in the next checkpoint, and outlive the servers.
        client.checkpoint()
    assert tb.open(servers.destination)["warm"].pull(KEYS).tobytes() == user.tobytes()


def test_pushes_ask_for_a_checkpoint_before_they_fill_their_memory(tmp_path: Path) -> None:
    """replay_bytes: nothing else makes checkpoints here, and ten times as much is pushed; none waits for ever."""
    with (
        Servers(tmp_path, 2, *NEVER, restart=False) as servers,
        tb.connect(servers.addresses, rank=0, job="faults", replay_bytes=200_000) as client,
    ):
        train(client, 0, 200)
        assert client.next_step == 200
    assert tb.open(servers.destination).number >= 5


def test_metrics_say_how_checkpoints_stand(tmp_path: Path) -> None:
    """Server 0 tells of those that were made, and each server how long it took to restore."""
    with (
        Servers(tmp_path, 2, *NEVER, restart=False) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
    ):
        train(client, 0, 3)
        client.checkpoint()
        train(client, 3, 6)
        client.checkpoint()
        pages = [metrics(address) for address in servers.addresses]
    first, second = pages
    assert (first['tablebay_checkpoints_total{kind="Full"}'], first["tablebay_epoch"]) == (1, 1)
    assert first['tablebay_checkpoints_total{kind="Delta"}'] == 1
    assert first["tablebay_checkpoint_failures_total"] == 0
    assert abs(time.time() - first["tablebay_checkpoint_last_success_timestamp_seconds"]) < 60
    assert 0 < first["tablebay_checkpoint_pause_seconds"] < first["tablebay_checkpoint_duration_seconds"] < 60
    assert first["tablebay_checkpoint_bytes"] > 1000
    assert second["tablebay_checkpoint_last_success_timestamp_seconds"] == 0
    assert first["tablebay_restore_duration_seconds"] > 0
    assert second["tablebay_restore_duration_seconds"] > 0


def metrics(address: str) -> dict[str, float]:
    """The samples of a server's page."""
    host, port = address.split(":")
    with urllib.request.urlopen(f"http://{host}:{http_port(int(port))}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_two_bytes_are_kept_read_and_exported(tmp_path: Path, dtype: Any) -> None:
    """Servers that begin anew, tb.open, and exports have the rows of the pull; int8 has them within half a scale."""
    spec: dict[str, Any] = {
        "dim": DIM,
        "dtype": dtype,
        "optimizer": tb.Adagrad(0.1),
        "initializer": tb.Normal(0.1),
    }
    with Servers(tmp_path, 2, *NEVER, restart=False) as servers:
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            user = client.table("user", **spec)
            for _ in range(3):
                user.push(KEYS, np.random.default_rng(1).standard_normal((len(KEYS), DIM)).astype(np.float32))
            rows = user.pull(KEYS, create=False)
            client.checkpoint()
        servers.end_all()
    with (
        Servers(tmp_path, 3, *NEVER, restart=False) as others,
        tb.connect(others.addresses, rank=0, job="faults") as client,
    ):
        assert client.table("user", **spec).pull(KEYS, create=False).tobytes() == rows.tobytes()
        destination = others.destination
    frozen = tb.open(destination)["user"]
    assert frozen.pull(KEYS).tobytes() == rows.tobytes()
    assert {
        int(key): row.tobytes() for keys, part in frozen.items() for key, row in zip(keys, part, strict=True)
    } == {int(key): row.tobytes() for key, row in zip(KEYS, rows, strict=True)}
    numbers, scales = frozen.pull_int8(KEYS)
    assert (np.abs(numbers * scales[:, None] - rows) <= 0.501 * scales[:, None]).all()
    arguments = ["checkpoint", "export", str(destination), "--table", "user", "--to"]
    assert main([*arguments, str(tmp_path / "rows.npz")]) == 0
    assert main([*arguments, str(tmp_path / "int8.npz"), "--int8"]) == 0
    assert main([*arguments, str(tmp_path / "int8.tsv"), "--int8"]) == 1
    with np.load(tmp_path / "rows.npz") as plain, np.load(tmp_path / "int8.npz") as small:
        order = np.argsort(plain["keys"])
        wanted = rows[np.argsort(KEYS)]
        assert plain["weights"][order].tobytes() == wanted.tobytes()
        assert (small["keys"] == plain["keys"]).all()
        assert (small["weights"].dtype, small["scales"].dtype) == (np.int8, np.float32)
        back = small["weights"][order] * small["scales"][order][:, None]
        assert (np.abs(back - wanted) <= 0.501 * small["scales"][order][:, None]).all()
