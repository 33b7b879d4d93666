"""Servers killed in the middle of training: what was pushed is in the rows exactly once (G1, G3, G4)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faults.servers import Servers, wait_for
from faults.workers import Worker, batch, check_all, expected, held, leave, repro, require_equal

import tablebay as tb
from tablebay.examples.flights.oracle import additions

# Never reached.
STEPS_MAX = 1_000_000
SEED = int(os.environ.get("TABLEBAY_SEED", "1"))
WHERE = repro(__file__, SEED)


@pytest.mark.parametrize(
    ("every_s", "kills"),
    [
        pytest.param(0.3, 6, id="checkpoints"),
        pytest.param(3600.0, 2, id="replay alone"),
        pytest.param(0.3, 60, id="checkpoints, long", marks=pytest.mark.deep),
    ],
)
def test_t1_g1_g3_servers_killed_at_random_lose_and_double_nothing(
    tmp_path: Path, every_s: float, kills: int
) -> None:
    """2 servers, 3 workers, a random server killed again and again; no worker is restarted, every row is exact.

    Once more when the workers have ended: what they pushed last is theirs to see to, before they end.
    """
    chance = random.Random(SEED)
    ended = threading.Event()
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", str(every_s)) as servers:
        running = [
            Worker(servers.addresses, rank, 3, STEPS_MAX, until=ended.is_set, timeout=120.0)
            for rank in range(3)
        ]
        for worker in running:
            worker.start()
        for _ in range(kills):
            # Each worker has come through the kill before, however slow the machine is.
            before = [worker.step for worker in running]
            wait_for(
                lambda before=before: all(
                    w.step > b or w.error for w, b in zip(running, before, strict=True)
                ),
                f"a step of each worker\n{WHERE}",
            )
            time.sleep(chance.uniform(0.1, 0.8))
            kill(servers, chance.randrange(2))
            assert all(worker.error is None for worker in running), f"{running[0].error}\n{WHERE}"
        ended.set()
        check_all(running)
        for index in range(2):
            kill(servers, index)
        assert sum(servers.killed.values()) == kills + 2
        steps = [worker.step for worker in running]
        assert min(steps) >= kills, f"{steps}\n{WHERE}"
        require_equal(held(servers.addresses), expected(3, steps), WHERE)


def kill(servers: Servers, index: int) -> None:
    """Kill a server that is ready, and return when its next life is."""
    servers.wait_until_ready(index)
    before = servers.pid(index)
    servers.kill(index)
    servers.wait_until_ready(index)
    assert servers.pid(index) != before


def test_t16_g13_servers_that_are_told_to_end_keep_all(tmp_path: Path) -> None:
    """SIGTERM to all servers after the last step: exit code 0, and what comes back holds every push."""
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", "3600") as servers:
        worker = Worker(servers.addresses, 0, 1, 60)
        worker.start()
        worker.check()
        assert servers.end_all() == [0, 0]
        for index in range(2):
            servers.start(index)
        servers.wait_until_ready()
        require_equal(held(servers.addresses), expected(1, 60), WHERE)


def test_all_killed_and_started_again_a_rank_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    """Servers and worker killed; the next process of the rank begins at the step that the checkpoint has."""
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", "3600", restart=False) as servers:
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            sums = client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
            for step in range(40):
                keys = batch(0, step)
                with client.step() as block:
                    values = additions(0, step, keys).reshape(-1, 1)
                    block.push({sums: (keys, values)}, cursor=f"after {step}".encode())
                if step == 24:
                    made = client.checkpoint(state={"model": b"weights" * 1000, "empty": b""})
                    assert made.number == 1
            for index in range(2):
                servers.kill(index)
            leave(client)
        for index in range(2):
            servers.start(index)
        servers.wait_until_ready()
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            assert client.next_step == 25
            assert client.cursor == b"after 24"
            assert client.state() == {"model": b"weights" * 1000, "empty": b""}
            sums = client.table("sums")
            for step, _ in client.resume(range(60)):
                keys = batch(0, step)
                sums.push(keys, additions(0, step, keys).reshape(-1, 1))
        require_equal(held(servers.addresses), expected(1, 60), WHERE)


def test_t6_g9_a_server_that_was_stopped_and_replaced_changes_nothing_more(tmp_path: Path) -> None:
    """SIGSTOP of server 0, its successor on other ports, SIGCONT: the old one can publish nothing, and ends."""
    with Servers(tmp_path, 1, "--checkpoint-every-seconds", "0.5", restart=False) as old:
        worker = Worker(old.addresses, 0, 1, 30)
        worker.start()
        worker.check()
        with tb.connect(old.addresses, job="faults") as client:
            client.checkpoint()
        old.send(0, signal.SIGSTOP)
        successor = Servers(tmp_path, 1, "--checkpoint-every-seconds", "0.5", restart=False)
        with successor:
            with tb.connect(successor.addresses, rank=0, job="faults") as client:
                sums = client.table("sums")
                for step, _ in client.resume(range(60)):
                    keys = batch(0, step)
                    sums.push(keys, additions(0, step, keys).reshape(-1, 1))
                client.checkpoint()
                old.send(0, signal.SIGCONT)
                # Its client is told in the end that nobody keeps what it pushed.
                with (
                    pytest.raises(tb.Unavailable, match="in no checkpoint"),
                    tb.connect(old.addresses, job="faults", timeout=5.0) as stale,
                ):
                    stale.table("sums").push(np.array([1], np.uint64), np.array([[1]], np.int64))
                deadline = time.monotonic() + 20
                while old._processes[0].poll() is None:
                    assert time.monotonic() < deadline, "the old server 0 still runs"
                    time.sleep(0.05)
                assert "checkpoint.fenced" in old.log(0)
            require_equal(held(successor.addresses), expected(1, 60), WHERE)
