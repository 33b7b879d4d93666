"""Processes that are stopped, told to end, out of memory, or wrong about the time (T3, T5, T14, T15, T16)."""

from __future__ import annotations

import datetime
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from faults import faulty_server, workers
from faults.faulty_server import Board, Rule
from faults.servers import Servers, wait_for
from faults.tcp_proxy import CuttingProxy
from faults.workers import (
    JOB,
    Worker,
    expected,
    held,
    leave,
    repro,
    require_equal,
    table,
    take_steps,
)
from free_ports import free_data_ports

import tablebay as tb
from tablebay.client.control import Control
from tablebay.client.environment import control_port
from tablebay.client.local.ports import HOST

SEED = int(os.environ.get("TABLEBAY_SEED", "1"))
WHERE = repro(__file__, SEED)
PROGRAM = faulty_server.__file__
NEVER = ("--checkpoint-every-seconds", "0")
GRACE_S = 10


# -- T3: the retry lands after a restart --


@pytest.mark.parametrize("durable", [True, False], ids=["in a checkpoint", "in none"])
def test_t3_g1_a_retry_that_lands_after_a_restart_is_applied_once(tmp_path: Path, durable: bool) -> None:
    """The answer to a push is cut off, its server killed; the retry reaches the successor, which has it or has not."""
    with Servers(tmp_path, 1, *NEVER, restart=False) as servers:
        real = int(servers.addresses[0].rsplit(":", 1)[1])
        (port,) = free_data_ports(1)
        data = CuttingProxy(real, port)
        control = CuttingProxy(control_port(real), control_port(port))
        applied = [0]

        def counted() -> int:
            with Control(servers.addresses) as asked:
                return asked.stats(10.0)[0].counters["pushes_applied"]

        with tb.connect(f"{HOST}:{port}", rank=0, job=JOB, timeout=120) as client:
            take_steps(client, 0, 3)
            cut = threading.Event()

            def handled() -> int:
                # The server is killed before anything can be sent again.
                if cut.is_set():
                    return applied[0]
                now = counted()
                if applied[0] and now > applied[0]:
                    if durable:
                        with tb.connect(servers.addresses, job=JOB) as other:
                            other.checkpoint()
                    servers.kill(0)
                    cut.set()
                applied[0] = now
                return now

            data.cut_answers(1, handled)
            pushed = threading.Thread(target=take_steps, args=(client, 0, 4), daemon=True)
            pushed.start()
            wait_for(cut.is_set, f"an answer is cut off\n{WHERE}")
            assert pushed.is_alive(), WHERE
            servers.start(0)
            servers.wait_until_ready()
            pushed.join(60)
            assert not pushed.is_alive(), WHERE
            assert (client.next_step, len(data.cuts)) == (4, 1), WHERE
            with Control(servers.addresses) as asked:
                now = asked.stats(10.0)[0].counters
            assert (now["duplicates"] >= 1) == durable, f"{dict(now)}\n{WHERE}"
        require_equal(held(servers.addresses), expected(1, 4), WHERE)
        data.close()
        control.close()


# -- T5: a worker that was stopped and replaced --


def test_t5_g9_g1_a_worker_that_was_stopped_and_replaced_changes_nothing_more(tmp_path: Path) -> None:
    """SIGSTOP of a rank in its steps, a successor takes the rank, SIGCONT: the old one is told, and ends."""
    steps = 400
    with Servers(tmp_path, 1, *NEVER) as servers:
        command = [sys.executable, workers.__file__, ",".join(servers.addresses), "0", "1", "1000000"]
        with open(tmp_path / "old.txt", "wb") as out:
            old = subprocess.Popen(command, stdout=out, stderr=out)
        said = (tmp_path / "old.txt").read_text
        try:
            wait_for(lambda: said().count("step ") >= 20, f"the worker has begun\n{WHERE}")
            old.send_signal(signal.SIGSTOP)
            wait_for(lambda: state_of(old.pid) == "T", f"the worker is stopped\n{WHERE}")
            with tb.connect(servers.addresses, rank=0, job=JOB) as new:
                first = new.next_step
                assert 20 <= first < steps, WHERE
                take_steps(new, 0, (first + steps) // 2)
                old.send_signal(signal.SIGCONT)
                take_steps(new, 0, steps)
                assert old.wait(60) == 1, WHERE
        finally:
            old.kill()
            old.wait()
        assert "ended Fenced" in said(), f"{said()[-500:]}\n{WHERE}"
        # It was in a step when it was stopped at most: it has taken none since.
        assert said().count("step ") <= first, WHERE
        require_equal(held(servers.addresses), expected(1, steps), WHERE)


def state_of(pid: int) -> str:
    """R, S, T ... as the kernel says."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


# -- T14: the wall clock --


class Skew:
    """The wall clock of processes with its `environment`."""

    def __init__(self, folder: Path) -> None:
        library, path = folder / "skewed_clock.so", folder / "skew"
        source = Path(__file__).with_name("skewed_clock.cc")
        compiler = os.environ.get("CXX", "g++")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
        path.write_bytes(bytes(24))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 24)
        self.environment = {"LD_PRELOAD": str(library), "SKEW": str(path)}

    def set(self, offset_s: float, back_each_read_s: float = 0.0) -> None:
        """How far off it is from now on."""
        struct.pack_into("<qq", self._memory, 0, int(offset_s * 1e9), int(back_each_read_s * 1e9))

    @property
    def reads(self) -> int:
        """How often a process has asked."""
        return int(struct.unpack_from("<q", self._memory, 16)[0])


def complete(servers: Servers) -> list[int]:
    """The numbers of the checkpoints that are kept, ascending."""
    paths = sorted((servers.destination / "manifests").glob("*.json"))
    return [int(path.stem) for path in paths if b'"kind": "Fence"' not in path.read_bytes()]


@pytest.mark.parametrize(
    "jumps", [2, pytest.param(5, marks=pytest.mark.deep)], ids=["two jumps", "five jumps"]
)
def test_t14_g1_the_wall_clock_of_one_server_decides_nothing(tmp_path: Path, jumps: int) -> None:
    """Server 0's wall clock jumps by days and creeps back; checkpoints, recovery, retention and ends go on."""
    day = 86_400.0
    skew = Skew(tmp_path)
    wrong = [(-day, 0.0), (day, 0.001), (0.0, 0.001), (-30 * 365 * day, 0.0), (3 * day, 0.0)]
    with Servers(
        tmp_path / "servers",
        2,
        *NEVER,
        "--checkpoint-retain-last",
        "2",
        environment=skew.environment,
        odd=[0],
    ) as servers:
        assert skew.reads > 0, WHERE
        with tb.connect(servers.addresses, rank=0, job=JOB, timeout=60) as client:
            take_steps(client, 0, 5)
            for offset_s, back_s in wrong[:jumps]:
                reads = skew.reads
                skew.set(offset_s, back_s)
                take_steps(client, 0, client.next_step + 20)
                made = client.checkpoint()
                assert made.seconds >= 0 and made.pause_seconds >= 0, WHERE
                assert skew.reads > reads, WHERE
                stored = json.loads((servers.destination / f"manifests/{made.number:010}.json").read_text())
                off = datetime.datetime.fromisoformat(stored["created"]) - datetime.datetime.now(datetime.UTC)
                assert abs(off.total_seconds() - offset_s) < 3600, f"{stored['created']}\n{WHERE}"
                take_steps(client, 0, client.next_step + 5)
                # The next life begins at the time that the jump has left.
                servers.kill(0)
                servers.wait_until_ready()
                take_steps(client, 0, client.next_step + 5)
            client.checkpoint()
            newest = client.checkpoint(full=True).number
            last = client.next_step
        # The older ones are taken away after the newest has been announced.
        wait_for(lambda: len(complete(servers)) == 2, f"two are kept\n{WHERE}")
        assert complete(servers)[-1] == newest, f"{complete(servers)}\n{WHERE}"
        require_equal(held(servers.addresses), expected(1, last), WHERE)
        assert servers.end_all() == [0, 0], WHERE


# -- T15: out of memory --


def resident(pid: int) -> int:
    """Bytes, as the kernel counts them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_t15_g12_a_server_at_its_memory_limit_refuses_new_rows_and_lives(tmp_path: Path) -> None:
    """New keys for ever: ResourceExhausted, a bounded process; pulls, known keys and checkpoints go on."""
    limit, dim, count = 48 * 1024 * 1024, 64, 4000
    zeros = np.zeros((count, dim), np.int64)
    with Servers(tmp_path, 1, *NEVER, "--memory-limit-bytes", str(limit)) as servers:
        with tb.connect(servers.addresses, rank=0, job=JOB, timeout=60) as client:
            take_steps(client, 0, 30, dim=dim)
            pid, before = servers.pid(0), resident(servers.pid(0))
            sums = table(client, dim)
            refused, first = 0, 1_000_000
            highest = before
            while refused < 40:
                try:
                    sums.push(np.arange(first, first + count, dtype=np.uint64), zeros)
                except tb.ResourceExhausted:
                    refused += 1
                highest = max(highest, resident(pid))
                first += count
                assert first < 5_000_000, f"nothing was refused\n{WHERE}"
            assert highest - before < limit + 32 * 1024 * 1024, f"{highest - before} bytes\n{WHERE}"
            known = np.arange(100, dtype=np.uint64)
            rows = sums.pull(known)
            sums.push(known, np.zeros((100, dim), np.int64))
            assert bool((sums.pull(known) == rows).all()), WHERE
            client.checkpoint()
            sums.push(known, np.ones((100, dim), np.int64))
            assert servers.pid(0) == pid, WHERE
            servers.kill(0)
            servers.wait_until_ready()
            assert bool((sums.pull(known) == rows + 1).all()), WHERE
            with pytest.raises(tb.ResourceExhausted):
                for again in range(5):
                    keys = np.arange(first + again * count, first + (again + 1) * count, dtype=np.uint64)
                    sums.push(keys, zeros)
        found = {key: value for key, value in held(servers.addresses).items() if key < 1_000_000}
        wanted = expected(1, 30)
        assert wanted.keys() >= set(known.tolist()) & found.keys()
        plus = set(known.tolist())
        require_equal(
            found,
            {key: (wanted.get(key, 0) + (key in plus)) % 2**64 for key in wanted.keys() | plus},
            WHERE,
        )


# -- T16: SIGTERM --

SHORT = [("push", True), ("delta", False)]
ALL = [(moment, twice) for moment in ("idle", "push", "delta", "full") for twice in (False, True)]


@pytest.mark.parametrize(
    ("moment", "twice"),
    [
        pytest.param(*case, id=f"{case[0]}, {'twice' if case[1] else 'once'}", marks=marks)
        for case in ALL
        for marks in [() if case in SHORT else pytest.mark.deep]
    ],
)
def test_t16_g13_sigterm_loses_nothing_whenever_it_comes(tmp_path: Path, moment: str, twice: bool) -> None:
    """All servers are told to end, while idle, in pushes, in a checkpoint: exit code 0, and what comes back has all.

    No worker sends anything again: what was answered is there.
    """
    board = Board(tmp_path / "board")
    with Servers(
        tmp_path / "servers",
        2,
        *NEVER,
        "--grace-seconds",
        str(GRACE_S),
        program=PROGRAM,
        environment=board.environment,
    ) as servers:
        worker = Worker(servers.addresses, 0, 1, 1_000_000 if moment == "push" else 40, timeout=1.0)
        worker.start()
        if moment == "push":
            wait_for(lambda: worker.step >= 20, f"steps are taken\n{WHERE}")
        else:
            worker.check()
        if moment in ("delta", "full"):
            with tb.connect(servers.addresses, job=JOB) as client:
                client.checkpoint()
            # Something for a delta to write.
            client = tb.connect(servers.addresses, rank=0, job=JOB)
            take_steps(client, 0, 45)
            leave(client)
            board.set(Rule(name="held", call="write", path="-rows-", hold=True))
            with Control(servers.addresses) as control:
                control.checkpoint(begin=True, full=moment == "full", timeout=10.0)
            wait_for(lambda: len({one.pid for one in board.strikes("held")}) == 2, f"both write\n{WHERE}")
        servers.stop_keeping()
        for _ in range(2 if twice else 1):
            for index in range(2):
                servers.send(index, signal.SIGTERM)
        if moment in ("delta", "full"):
            wait_for(lambda: not any(map(servers.is_ready, range(2))), f"both drain\n{WHERE}")
            assert servers.is_alive(0) and servers.is_alive(1), WHERE
            board.set()
        assert [servers.wait(0), servers.wait(1)] == [0, 0], WHERE
        for index in range(2):
            assert "reason=SIGTERM" in servers.log(index), WHERE
        if moment == "push":
            worker.join()
            assert isinstance(worker.error, tb.Unavailable), f"{worker.error!r}\n{WHERE}"
        for index in range(2):
            servers.start(index)
        servers.wait_until_ready()
        with tb.connect(servers.addresses, rank=0, job=JOB) as client:
            # The step under way may be on one server and not on the other; the rank does it again.
            done = {"push": worker.step, "idle": 40}.get(moment, 45)
            assert client.next_step in ((done, done + 1) if moment == "push" else (done,)), WHERE
            take_steps(client, 0, done + 5)
        require_equal(held(servers.addresses), expected(1, done + 5), WHERE)


def test_t16_g13_sigkill_after_sigterm_is_as_a_crash(tmp_path: Path) -> None:
    """TERM, then KILL while the last checkpoint is written: the worker's steps are sent again to what comes back."""
    board = Board(tmp_path / "board")
    with Servers(tmp_path / "servers", 1, *NEVER, program=PROGRAM, environment=board.environment) as servers:
        with tb.connect(servers.addresses, rank=0, job=JOB, timeout=120) as client:
            take_steps(client, 0, 10)
            client.checkpoint()
            take_steps(client, 0, 20)
            board.set(Rule(name="held", call="write", path="-rows-", hold=True))
            servers.send(0, signal.SIGTERM)
            wait_for(lambda: board.strikes("held"), f"it writes\n{WHERE}")
            servers.kill(0)
            board.set()
            servers.wait_until_ready()
            assert "server.drained" not in servers.log(0), WHERE
            take_steps(client, 0, 30)
        require_equal(held(servers.addresses), expected(1, 30), WHERE)


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in the files under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_t16_g13_g5_sigterm_while_rows_are_read_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    """A server that is told to end before it serves ends with 0; nothing of the checkpoint has changed."""
    board = Board(tmp_path / "board")
    with Servers(tmp_path / "servers", 1, *NEVER, program=PROGRAM, environment=board.environment) as servers:
        with tb.connect(servers.addresses, rank=0, job=JOB) as client:
            take_steps(client, 0, 30)
            client.checkpoint()
        whole = files_of(servers.destination / "attempts")
        servers.stop_keeping()
        servers.kill(0)
        board.set(Rule(name="held", call="read", path="-rows-", hold=True))
        servers.start(0)
        wait_for(lambda: board.strikes("held"), f"it reads rows\n{WHERE}")
        assert not servers.is_ready(0), WHERE
        servers.send(0, signal.SIGTERM)
        board.set()
        assert servers.wait(0) == 0, f"{servers.log(0)[-500:]}\n{WHERE}"
        assert files_of(servers.destination / "attempts") == whole, WHERE
        servers.start(0)
        servers.wait_until_ready()
        require_equal(held(servers.addresses), expected(1, 30), WHERE)


@pytest.mark.parametrize("waits_for", ["server 0", "its rows"])
def test_t16_g13_sigterm_ends_a_server_that_is_not_ready_within_its_grace(
    tmp_path: Path, waits_for: str
) -> None:
    """Nothing has been pushed to it, so there is nothing to wait for: it ends with 0."""
    board = Board(tmp_path / "board")
    grace = ("--grace-seconds", "5")
    servers = Servers(tmp_path / "servers", 2, *NEVER, *grace, program=PROGRAM, environment=board.environment)
    index = 1
    if waits_for == "its rows":
        with servers:
            pass
        board.set(Rule(name="held", call="open", path="manifests", hold=True))
        index = 0
    servers.start(index)
    try:
        epoch = servers.destination / "epochs" / str(index)
        wait_for(lambda: board.strikes("held") if index == 0 else epoch.exists(), f"it waits\n{WHERE}")
        servers.send(index, signal.SIGTERM)
        # Its grace, and as much again for a slow machine.
        assert servers.wait(index, 10.0) == 0, WHERE
    finally:
        if servers.is_alive(index):
            servers.kill(index)


def test_t15_g12_rows_kept_for_a_checkpoint_count_towards_the_memory_limit(tmp_path: Path) -> None:
    """At the limit, with a checkpoint whose disk is stuck, every row is changed: memory stays near the limit."""
    limit, dim, count = 48 * 1024 * 1024, 64, 4000
    board = Board(tmp_path / "board")
    options = ("--memory-limit-bytes", str(limit))
    with (
        Servers(
            tmp_path / "servers", 1, *NEVER, *options, program=PROGRAM, environment=board.environment
        ) as servers,
        tb.connect(servers.addresses, rank=0, job=JOB, timeout=60) as client,
    ):
        sums = table(client, dim)
        batches = []
        with pytest.raises(tb.ResourceExhausted):
            while True:
                first = count * len(batches)
                keys = np.arange(first, first + count, dtype=np.uint64)
                sums.push(keys, np.zeros((count, dim), np.int64))
                batches.append(keys)
        board.set(Rule(name="held", call="write", path="-rows-", hold=True))
        with Control(servers.addresses) as control:
            control.checkpoint(begin=True, full=True, timeout=10.0)
            wait_for(lambda: board.strikes("held"), f"it writes\n{WHERE}")
            for keys in batches:
                sums.push(keys, np.ones((count, dim), np.int64))
            held_bytes = control.stats(10.0)[0].counters["bytes"]
        board.set()
        assert held_bytes < 1.2 * limit, f"{held_bytes} bytes\n{WHERE}"
