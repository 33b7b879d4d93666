"""Client processes that pull or push all at once for a while, and how many rows they had in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tcp_table import TcpTable
from workload import KEYS, ROWS, in_shard_order

import tablebay as tb

# From the word to begin until all have begun.
_BEGIN_S = 0.05
# Distinct ones of each client.
CALLS = 4


@dataclass(frozen=True)
class Slice:
    """rows_per_s: of all clients, from the calls that ended in the time. seconds: of each such call."""

    rows_per_s: float
    seconds: list[float]


class Group:
    """Some clients of the same servers, each a process. Made by `clients`."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def fill(self) -> None:
        """Have all rows, by the first client."""
        tell(self._processes[0], {"operation": "fill"})
        hear(self._processes[0])

    def run(self, operation: str, seconds: float) -> Slice:
        """operation: pull, push, or step, which is one call to all tables each way."""
        begin = time.monotonic() + _BEGIN_S
        for process in self._processes:
            tell(process, {"operation": operation, "begin": begin, "seconds": seconds})
        answers = [hear(process) for process in self._processes]
        taken = [value for answer in answers for value in answer["taken"]]
        if not taken:
            raise SystemExit(f"no {operation} ended within {seconds} s")
        return Slice(len(taken) * KEYS / seconds, taken)


@contextmanager
def clients(count: int, **what: Any) -> Iterator[Group]:
    """what: `addresses`, `dim` and `tables` for Tablebay; `tcp_port`, `folder` and `dim` for the TCP peer."""
    command = [sys.executable, str(Path(__file__).resolve())]
    with ExitStack() as stack:
        processes = []
        for number in range(count):
            child = subprocess.Popen(
                [*command, json.dumps({**what, "seed": number})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(end, child)
            processes.append(child)
        for process in processes:
            hear(process)
        yield Group(processes)


def tell(process: subprocess.Popen[str], request: dict[str, Any]) -> None:
    """Have a client's process do something."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> Any:
    """What it answers; ends the benchmark where it is no more."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a client of the benchmark ended with {process.wait()}")
    return json.loads(line)


def end(process: subprocess.Popen[str]) -> None:
    """At once."""
    process.kill()
    process.wait()


# -- a client's process --


def _all_keys() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The same rows for every client, mixed so that they lie anywhere."""
    numbers = np.arange(1, ROWS + 1, dtype=np.uint64)
    keys: np.ndarray[Any, np.dtype[np.uint64]] = numbers * np.uint64(0x9E3779B97F4A7C15)
    return keys


def _operations(what: dict[str, Any]) -> dict[str, Callable[[int], object]]:
    """By name; each is given a call's number."""
    random = np.random.default_rng(what["seed"])
    every = _all_keys()
    calls = [every[random.choice(ROWS, KEYS, replace=False)] for _ in range(CALLS)]
    out = np.empty((KEYS, what["dim"]), np.float32)
    gradients = (random.standard_normal(out.shape) * 0.01).astype(np.float32)

    if "tcp_port" in what:
        peer = TcpTable(Path(what["folder"]), what["tcp_port"], what["dim"])
        # In the order that suits the table best: the others sort keys themselves.
        grouped = [in_shard_order(keys) for keys in calls]
        batches = [every[at : at + KEYS] for at in range(0, ROWS, KEYS)]
        return {
            "fill": lambda n: [peer.pull(keys, out[: len(keys)]) for keys in batches],
            "pull": lambda n: peer.pull(grouped[n % CALLS], out),
            "push": lambda n: peer.push(grouped[n % CALLS], gradients),
        }

    client = tb.connect(what["addresses"], timeout=60.0)
    tables = [
        client.table(
            f"dim_{what['dim']}_of_{what['tables']}_{number}",
            dim=what["dim"],
            optimizer=tb.Adagrad(0.05),
            initializer=tb.Normal(0.01),
        )
        for number in range(what["tables"])
    ]
    # Each table has its share of the rows, and of a call's keys and gradients.
    rows = np.array_split(every, len(tables))
    parts = np.array_split(gradients, len(tables))
    spread = [
        [random.choice(mine, len(part), replace=False) for mine, part in zip(rows, parts, strict=True)]
        for _ in range(CALLS)
    ]

    def fill(_: int) -> None:
        for table, mine in zip(tables, rows, strict=True):
            for at in range(0, len(mine), KEYS):
                table.pull(mine[at : at + KEYS])

    def step(number: int) -> None:
        keys = dict(zip(tables, spread[number % CALLS], strict=True))
        with client.step() as one:
            one.pull(keys)
            one.push({table: (mine, part) for (table, mine), part in zip(keys.items(), parts, strict=True)})

    return {
        "fill": fill,
        "pull": lambda n: tables[0].pull(calls[n % CALLS], out=out),
        "push": lambda n: tables[0].push(calls[n % CALLS], gradients),
        "step": step,
    }


def _timed(call: Callable[[int], object], begin: float, seconds: float) -> list[float]:
    time.sleep(max(0.0, begin - time.monotonic()))
    taken: list[float] = []
    while True:
        started = time.monotonic()
        call(len(taken))
        ended = time.monotonic()
        if ended > begin + seconds:
            return taken
        taken.append(ended - started)


def _main() -> None:
    operations = _operations(json.loads(sys.argv[1]))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        call = operations[request["operation"]]
        if request["operation"] == "fill":
            call(0)
            print(json.dumps("filled"), flush=True)
        else:
            print(json.dumps({"taken": _timed(call, request["begin"], request["seconds"])}), flush=True)


if __name__ == "__main__":
    _main()
