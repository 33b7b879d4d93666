"""What a checkpoint every 10 s costs training: CPU seconds of server and client for a million rows pushed.

The two sides, with checkpoints and without, are a server and a client's process each, and push in short turns, so that
what else befalls the machine befalls both. A pair is as many turns as make EVERY_S of pushing on each side; in it one
checkpoint is made, and all that it costs is counted, in whoever's turn it falls. ROWS rows, of which about 0.67 million
are pushed to between two checkpoints. Before, the side with checkpoints pushes alone, twice as much from checkpoint to
checkpoint, so that its client keeps more at once than in any pair: that memory is new to the process once, and is used
over and over from then on. `growth_cost` is that of the first pairs, before.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from clients import end, hear, tell
from measure import Figure, figure
from servers import JobServers, job_servers
from workload import DIM, KEYS, Keys, Workload

import tablebay as tb

ROWS = 5_000_000
PAIRS = 12
GROWTH_PAIRS = 3
EVERY_S = 10
TURN_S = 1.0
# What the client keeps between two checkpoints at full speed.
REPLAY_BYTES = 10 << 30
_KEYS_OF_A_PULL = 100_000


def run(folder: Path) -> dict[str, Figure]:
    """Figures `durability.checkpoint.*cost`."""
    # Both sides' turns pass on the clock.
    every = ("--checkpoint-every-seconds", str(2 * EVERY_S))
    with (
        job_servers(folder / "with", 1, *every) as with_checkpoints,
        job_servers(folder / "without", 1, checkpoints=False) as without,
        _side(with_checkpoints, replay_bytes=REPLAY_BYTES) as ours,
        _side(without) as plain,
    ):
        growth = [_pair(ours, plain) for _ in range(GROWTH_PAIRS)]
        for _ in range(2):
            ours.push(2 * EVERY_S)
        kept = ours.kept_bytes
        first = ours.checkpoint()
        costs = [_pair(ours, plain) for _ in range(PAIRS)]
        made = ours.checkpoint() - first
    if made < PAIRS:
        raise SystemExit(f"{made} checkpoints were made in {PAIRS} pairs")
    return {
        "durability.checkpoint.cost": figure(costs, "ratio"),
        "durability.checkpoint.growth_cost": figure(growth, "ratio"),
        # Of the client's memory, in the pairs of `cost`.
        "durability.checkpoint.grown_bytes": figure([ours.kept_bytes - kept], "bytes"),
    }


class _Side:
    """A server and a client's process."""

    def __init__(self, servers: JobServers, client: subprocess.Popen[str]) -> None:
        self._client = client
        self._pids = [client.pid, *(process.pid for process in servers.processes)]
        self.pushed = 0
        self.kept_bytes = 0
        hear(client)

    def push(self, seconds: float) -> None:
        """One push after the other."""
        answer = self._ask({"seconds": seconds})
        self.pushed += answer["pushed"]
        self.kept_bytes = answer["kept_bytes"]

    def checkpoint(self) -> int:
        """Make one; its number."""
        number: int = self._ask({"checkpoint": True})["checkpoint"]
        return number

    def cpu_s(self) -> float:
        """CPU seconds of both processes so far."""
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _ask(self, request: dict[str, Any]) -> Any:
        tell(self._client, request)
        return hear(self._client)


def _pair(ours: _Side, plain: _Side) -> float:
    """By how much a million rows cost more with checkpoints: 0.01 is one in a hundred."""
    sides = (ours, plain)
    before = [(side.cpu_s(), side.pushed) for side in sides]
    for turn in range(round(EVERY_S / TURN_S)):
        for side in sides if turn % 2 == 0 else reversed(sides):
            side.push(TURN_S)
    costs = [
        (side.cpu_s() - cpu_s) / (side.pushed - pushed)
        for side, (cpu_s, pushed) in zip(sides, before, strict=True)
    ]
    return costs[0] / costs[1] - 1.0


@contextmanager
def _side(servers: JobServers, **options: object) -> Iterator[_Side]:
    what = {"addresses": servers.addresses, **options}
    with ExitStack() as stack:
        client = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), json.dumps(what)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(end, client)
        yield _Side(servers, client)


# -- a client's process --


def _rows(workload: Workload) -> Iterator[Keys]:
    """All that the table has, a pull at a time."""
    others = np.arange(ROWS - len(workload.all_keys), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for keys in (workload.all_keys, others):
        for at in range(0, len(keys), _KEYS_OF_A_PULL):
            yield keys[at : at + _KEYS_OF_A_PULL]


def _main() -> None:
    what = json.loads(sys.argv[1])
    workload = Workload.make()
    calls = itertools.cycle(workload.calls)
    with tb.connect(what.pop("addresses"), job="bench", rank=0, timeout=600.0, **what) as client:
        table = client.table("bench", dim=DIM, optimizer=tb.Adagrad(0.05), initializer=tb.Normal(0.01))
        for keys in _rows(workload):
            table.pull(keys)
        print(json.dumps({}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            if "checkpoint" in request:
                print(json.dumps({"checkpoint": client.checkpoint().number}), flush=True)
                continue
            pushed = 0
            until = time.perf_counter() + request["seconds"]
            while time.perf_counter() < until:
                table.push(next(calls), workload.gradients)
                pushed += KEYS
            replay = table.session.replay
            kept = 0 if replay is None else replay.memory.bytes
            print(json.dumps({"pushed": pushed, "kept_bytes": kept}), flush=True)


if __name__ == "__main__":
    _main()
