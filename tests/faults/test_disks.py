"""Disks that are slow, full or broken while real servers make checkpoints (T7, T10, T11, T12)."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from faults import faulty_server
from faults.faulty_server import Board, Rule
from faults.servers import Servers, wait_for
from faults.workers import JOB, Worker, check_all, expected, held, repro, require_equal, table, take_steps

import tablebay as tb
from tablebay.client.control import Control

SEED = int(os.environ.get("TABLEBAY_SEED", "1"))
WHERE = repro(__file__, SEED)
PROGRAM = faulty_server.__file__
NEVER = ("--checkpoint-every-seconds", "0")


def faulty(folder: Path, count: int, board: Board, *options: str) -> Servers:
    """Servers whose storage obeys the board, and which make checkpoints when asked."""
    return Servers(folder, count, *NEVER, *options, program=PROGRAM, environment=board.environment)


def manifests(servers: Servers) -> list[int]:
    """The numbers that are taken at the destination."""
    return sorted(int(path.stem) for path in (servers.destination / "manifests").glob("*.json"))


def pushes_applied(servers: Servers) -> int:
    """Over all servers, by their own word."""
    with Control(servers.addresses) as control:
        return sum(answer.counters["pushes_applied"] for answer in control.stats(10.0))


@pytest.mark.parametrize(
    "cuts", [1, pytest.param(10, marks=pytest.mark.deep)], ids=["one delta", "ten deltas"]
)
def test_t7_g6_g1_rows_pushed_while_a_delta_is_written_are_not_in_it(tmp_path: Path, cuts: int) -> None:
    """A delta's writing is held while every rank pushes on; both servers are killed once its manifest is there.

    What was pushed after the cut is sent again: had the delta a part of it, it would be in the rows twice.
    """
    board = Board(tmp_path / "board")
    ranks, dim = 2, 256
    ended = threading.Event()
    with faulty(tmp_path / "servers", ranks, board) as servers:
        running = [
            # Without a limit that a slow machine reaches: at half of it a worker asks for a checkpoint of its own.
            Worker(
                servers.addresses, rank, ranks, 1_000_000, dim=dim, until=ended.is_set, replay_bytes=1 << 40
            )
            for rank in range(ranks)
        ]
        for worker in running:
            worker.start()

        def all_take(more: int) -> None:
            goals = [worker.step + more for worker in running]
            wait_for(
                lambda: all(
                    worker.step >= goal or worker.error for worker, goal in zip(running, goals, strict=True)
                ),
                f"each rank takes {more} steps\n{WHERE}",
            )

        all_take(3)
        with tb.connect(servers.addresses, job=JOB) as client:
            client.checkpoint(full=True)
        for cut in range(cuts):
            all_take(12)
            servers.wait_until_ready()
            before = manifests(servers)[-1]
            # Held from its header on: of a file's four pieces the first may be copied, and no more.
            held_up = Rule(name=f"slow {cut}", call="write", path="-rows-", hold=True)
            board.set(held_up)
            with Control(servers.addresses) as control:
                control.checkpoint(begin=True, timeout=10.0)
            wait_for(
                lambda held_up=held_up: (
                    {strike.pid for strike in board.strikes(held_up.name)} == {servers.pid(0), servers.pid(1)}
                ),
                f"both servers write\n{WHERE}",
            )
            all_take(8)
            assert manifests(servers)[-1] == before, f"the delta was complete while it was held\n{WHERE}"
            board.set()
            made = servers.destination / "manifests" / f"{before + 1:010}.json"
            deadline = time.monotonic() + 60
            while not made.exists():
                assert time.monotonic() < deadline, f"no manifest {before + 1}\n{WHERE}"
            for index in range(ranks):
                servers.kill(index)
            assert b'"kind": "Delta"' in made.read_bytes(), f"{made.name} is no delta\n{WHERE}"
            files = list((servers.destination / "attempts").glob(f"{before + 1}-*/*-rows-*"))
            assert all(path.stat().st_size > 3 * 1024 * 1024 for path in files), f"{files}\n{WHERE}"
            servers.wait_until_ready()
            all_take(3)
        ended.set()
        check_all(running)
        steps = [worker.step for worker in running]
        assert all(servers.log(index).count("kind=Delta") >= cuts for index in range(ranks)), WHERE
        require_equal(held(servers.addresses), expected(ranks, steps), WHERE)


# -- T10: a full disk --


class Disk(Protocol):
    """Where checkpoints go, and how to fill it."""

    def servers(self, count: int) -> Servers: ...

    def fill(self) -> None: ...

    def free(self) -> None: ...

    def attempts(self) -> set[str]:
        """The directories of attempts that are there."""


class FaultyDisk:
    """A disk that is full as the board says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._board = Board(folder / "board")
        self._times = 0

    def servers(self, count: int) -> Servers:
        return faulty(self._folder / "servers", count, self._board)

    def fill(self) -> None:
        self._times += 1
        self._board.set(Rule(name=f"full {self._times}", call="write", error="ENOSPC"))

    def free(self) -> None:
        assert self._board.strikes(f"full {self._times}"), f"no write failed\n{WHERE}"
        self._board.set()

    def attempts(self) -> set[str]:
        return {path.name for path in (self._folder / "servers/checkpoints/attempts").iterdir()}


class SmallDisk:
    """A file system of 8 MiB in memory, which only the servers see: they live in a mount namespace of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        place = folder / "servers" / "checkpoints"
        place.mkdir(parents=True)
        script = f"mount -t tmpfs -o size=8m none '{place}' && echo mounted && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"
        self._seen = Path(f"/proc/{self._holder.pid}/root{place}")

    def servers(self, count: int) -> Servers:
        within = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        return Servers(self._folder / "servers", count, *NEVER, within=within)

    def fill(self) -> None:
        with (
            open(self._seen / ".filler", "wb", buffering=0) as file,
            pytest.raises(OSError, match="No space"),
        ):
            while True:
                file.write(b"x" * 4096)
        assert os.statvfs(self._seen).f_bavail == 0

    def free(self) -> None:
        (self._seen / ".filler").unlink()

    def attempts(self) -> set[str]:
        return {path.name for path in (self._seen / "attempts").iterdir()}

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


def may_mount() -> bool:
    """Whether this process can make a mount namespace and mount in it."""
    try:
        return subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode == 0
    except OSError:
        return False


REAL = os.geteuid() == 0 and may_mount()


@pytest.fixture(
    params=[
        # Where this process may mount one a real file system, which is shown to be full; else a storage that says so.
        *([pytest.param("8 MiB", id="8 MiB")] if REAL else []),
        pytest.param("storage", id="storage that says so", marks=[pytest.mark.deep] if REAL else []),
    ]
)
def disk(request: Any, tmp_path: Path) -> Iterator[Disk]:
    """One that can be filled."""
    if request.param != "8 MiB":
        yield FaultyDisk(tmp_path)
        return
    small = SmallDisk(tmp_path)
    yield small
    small.close()


def test_t10_g5_g12_a_full_disk_ends_no_server_and_takes_nothing(disk: Disk) -> None:
    """Checkpoints fail and leave nothing; pushes and pulls go on; with room again all goes on, with no restart.

    A server that dies meanwhile comes back once there is room.
    """
    with disk.servers(2) as servers, tb.connect(servers.addresses, rank=0, job=JOB, timeout=120) as client:
        take_steps(client, 0, 10, dim=16)
        client.checkpoint()
        kept = disk.attempts()
        pids = [servers.pid(index) for index in range(2)]
        disk.fill()
        for again in range(3):
            take_steps(client, 0, client.next_step + 5, dim=16)
            with pytest.raises(tb.CheckpointFailed, match="No space left"):
                client.checkpoint()
            assert disk.attempts() == kept, f"after failure {again + 1}\n{WHERE}"
            assert len(table(client, 16).pull(np.arange(100, dtype=np.uint64))) == 100
        disk.free()
        take_steps(client, 0, 30, dim=16)
        assert client.checkpoint(full=True).kind == "Full"
        assert [servers.pid(index) for index in range(2)] == pids, WHERE
        take_steps(client, 0, 40, dim=16)
        disk.fill()
        lost = servers.log(0).count("No space left")
        servers.kill(0)
        wait_for(lambda: servers.log(0).count("No space left") > lost, f"server 0 finds no room\n{WHERE}")
        disk.free()
        servers.wait_until_ready()
        take_steps(client, 0, 50, dim=16)
        require_equal(held(servers.addresses), expected(1, 50), WHERE)


# -- T11: fsync fails --


def test_t11_g5_after_a_failed_fsync_nothing_is_called_durable(tmp_path: Path) -> None:
    """EIO from each fsync of a checkpoint in turn: it fails, its file is not synced again, the next one is full."""
    board = Board(tmp_path / "board")
    seen = Rule(name="fsync", call="fsync")
    failed = files = 0
    with faulty(tmp_path / "servers", 1, board) as servers:
        with tb.connect(servers.addresses, rank=0, job=JOB) as client:
            take_steps(client, 0, 5)
            client.checkpoint()
            replay = client._session.replay
            assert replay is not None
            while True:
                take_steps(client, 0, client.next_step + 1)
                durable = replay.durable_next(0)
                assert 0 < durable < client.next_step
                rule = Rule(name=f"EIO {failed}", call="fsync", first=failed + 1, times=1, error="EIO")
                board.set(seen, rule)
                try:
                    made = client.checkpoint()
                except tb.CheckpointFailed as error:
                    assert "Input/output error" in str(error), WHERE  # noqa: PT017 - the last one goes well
                else:
                    assert not board.strikes(rule.name), f"fsync {failed + 1} failed unheard\n{WHERE}"
                    break
                (struck,) = board.strikes(rule.name)
                failed += 1
                # The next answers say what is durable: nothing more.
                take_steps(client, 0, client.next_step + 1)
                assert replay.durable_next(0) == durable, f"fsync {failed}, of {struck.path}\n{WHERE}"
                again = [one.path for one in board.strikes(seen.name)].count(struck.path) - 1
                # A directory is synced for other reasons too, as when a name is taken away.
                of_a_file = any(part in struck.path for part in ("-rows-", "-steps", "/.new-"))
                files += of_a_file
                assert not (of_a_file and again), f"{struck.path} was synced again\n{WHERE}"
            assert failed >= 6 and files == 3, f"{failed} calls of fsync failed, {files} of files\n{WHERE}"
            assert made.kind == "Full"
            last = client.next_step
            servers.kill(0)
            servers.wait_until_ready()
            take_steps(client, 0, last + 5)
        require_equal(held(servers.addresses), expected(1, last + 5), WHERE)


# -- T12: a disk that does not answer --


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(True, id="its server is killed"),
        pytest.param(False, id="it answers at last", marks=pytest.mark.deep),
    ],
)
def test_t12_g12_pushes_wait_at_the_replay_limit_and_pulls_go_on(tmp_path: Path, killed: bool) -> None:
    """A disk that takes no byte: the worker's buffer fills, its push waits, nothing is dropped, others pull."""
    board = Board(tmp_path / "board")
    limit, dim = 1_000_000, 16
    stuck = Rule(name="stuck", call="write", path="-rows-", hold=True)
    with faulty(tmp_path / "servers", 1, board) as servers:
        worker = Worker(servers.addresses, 0, 1, 30, dim=dim, replay_bytes=limit, timeout=240)
        board.set(stuck)
        worker.start()
        wait_for(lambda: worker.client is not None, f"the worker is there\n{WHERE}")
        assert worker.client is not None
        replay = worker.client._session.replay
        assert replay is not None
        wait_for(lambda: replay.full and board.strikes("stuck"), f"the buffer is full\n{WHERE}")
        # The step by which it became full may still be under way.
        wait_for(lambda: len(replay.since(0, 0)) == worker.step, f"all that was applied is kept\n{WHERE}")
        before, step = pushes_applied(servers), worker.step
        with tb.connect(servers.addresses, job=JOB) as other:
            sums = other.table("sums")
            for _ in range(200):
                sums.pull(np.arange(1000, dtype=np.uint64), create=False)
        assert worker.is_alive(), WHERE
        assert (pushes_applied(servers), worker.step) == (before, step), WHERE
        assert step < 30, WHERE
        one_step = 600 * (8 + 8 * dim) + 1000
        assert limit <= replay.bytes < limit + one_step, WHERE
        assert len(replay.since(0, 0)) == step, f"some of {step} steps are not kept\n{WHERE}"
        if killed:
            servers.kill(0, signal.SIGKILL)
        board.set()
        worker.check()
        require_equal(held(servers.addresses), expected(1, 30), WHERE)
