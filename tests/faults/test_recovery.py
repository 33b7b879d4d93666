"""Servers killed in the middle of training: what was pushed is in the rows exactly once (G1, G3, G4)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.servers import Servers

import tablebay as tb
from tablebay.examples.flights.oracle import additions

DEEP = bool(os.environ.get("TABLEBAY_DEEP"))
KEYS = 4_000
BATCH = 600


def batch(rank: int, step: int) -> Any:
    """The different keys of a step, uint64."""
    return np.unique(np.random.default_rng((rank, step)).integers(0, KEYS, BATCH).astype(np.uint64))


class Worker(threading.Thread):
    """A ranked client that adds its steps up, one after the other, and remembers why it stopped."""

    def __init__(self, servers: Servers, rank: int, workers: int, steps: int, **options: Any) -> None:
        super().__init__(name=f"rank-{rank}")
        self.rank = rank
        self.step = 0
        self.error: BaseException | None = None
        self._servers = servers
        self._workers = workers
        self._steps = steps
        self._options = options

    def run(self) -> None:
        """All steps, from where the rank stopped."""
        try:
            with tb.connect(
                self._servers.addresses, rank=self.rank, workers=self._workers, job="faults", **self._options
            ) as client:
                sums = client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
                for step in range(client.next_step, self._steps):
                    keys = batch(self.rank, step)
                    with client.step() as block:
                        assert block.number == step
                        block.pull({sums: keys[:50]})
                        block.push({sums: (keys, additions(self.rank, step, keys).reshape(-1, 1))})
                    self.step = step + 1
                client.barrier("done")
        except BaseException as error:  # noqa: BLE001 - raised by `check`
            self.error = error

    def check(self) -> None:
        """Raises what ended it."""
        self.join()
        if self.error is not None:
            raise self.error


def expected(workers: int, steps: int) -> dict[int, int]:
    """The sum of each key."""
    sums: dict[int, int] = {}
    for rank in range(workers):
        for step in range(steps):
            keys = batch(rank, step)
            for key, value in zip(keys.tolist(), additions(rank, step, keys).tolist(), strict=True):
                sums[key] = (sums.get(key, 0) + value) % 2**64
    return sums


def held(servers: Servers) -> dict[int, int]:
    """What the servers hold."""
    with tb.connect(servers.addresses, job="faults") as client:
        return {
            int(key): int(row) % 2**64
            for keys, rows in client.table("sums").items()
            for key, row in zip(keys, rows[:, 0], strict=True)
        }


def require_equal(found: dict[int, int], wanted: dict[int, int], seed: object) -> None:
    """Fails with the seed, and how many rows differ."""
    if found != wanted:
        wrong = [key for key in wanted.keys() | found.keys() if found.get(key) != wanted.get(key)]
        raise AssertionError(
            f"{len(wrong)} of {len(wanted)} rows differ, key {wrong[0]} first: found {found.get(wrong[0])}, wanted "
            f"{wanted.get(wrong[0])}\nREPRO: TABLEBAY_SEED={seed} pytest {__file__}"
        )


@pytest.mark.parametrize("every_s", [0.3, 3600.0], ids=["checkpoints", "replay alone"])
def test_t1_g1_g3_servers_killed_at_random_lose_and_double_nothing(tmp_path: Path, every_s: float) -> None:
    """2 servers, 3 workers, a random server killed again and again; no worker is restarted, every row is exact."""
    seed = int(os.environ.get("TABLEBAY_SEED", "1"))
    kills = (60 if DEEP else 6) if every_s < 10 else 2
    chance = random.Random(seed)
    workers, steps = 3, 150 * max(1, kills // 6) + 100
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", str(every_s)) as servers:
        running = [Worker(servers, rank, workers, steps) for rank in range(workers)]
        for worker in running:
            worker.start()
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 0.8))
            index = chance.randrange(2)
            servers.wait_until_ready(index)
            before = servers.pid(index)
            assert any(worker.is_alive() for worker in running), f"seed {seed}: all was done before the kill"
            servers.kill(index)
            servers.wait_until_ready(index)
            assert servers.pid(index) != before
        for worker in running:
            worker.check()
        assert sum(servers.killed.values()) == kills
        require_equal(held(servers), expected(workers, steps), seed)


def test_g13_servers_that_are_told_to_end_keep_all(tmp_path: Path) -> None:
    """SIGTERM to all servers after the last step: exit code 0, and what comes back holds every push."""
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", "3600") as servers:
        worker = Worker(servers, 0, 1, 60)
        worker.start()
        worker.check()
        assert servers.end_all() == [0, 0]
        for index in range(2):
            servers.start(index)
        servers.wait_until_ready()
        require_equal(held(servers), expected(1, 60), "none")


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
            client._session.replay = None
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
        require_equal(held(servers), expected(1, 60), "none")


def test_t6_g9_a_server_that_was_stopped_and_replaced_changes_nothing_more(tmp_path: Path) -> None:
    """SIGSTOP of server 0, its successor on other ports, SIGCONT: the old one can publish nothing, and ends."""
    with Servers(tmp_path, 1, "--checkpoint-every-seconds", "0.5", restart=False) as old:
        worker = Worker(old, 0, 1, 30)
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
                with tb.connect(old.addresses, job="faults") as stale:
                    stale.table("sums").push(np.array([1], np.uint64), np.array([[1]], np.int64))
                deadline = time.monotonic() + 20
                while old._processes[0].poll() is None:
                    assert time.monotonic() < deadline, "the old server 0 still runs"
                    time.sleep(0.05)
                assert "checkpoint.fenced" in old.log(0)
            require_equal(held(successor), expected(1, 60), "none")
