"""Timing two things in turn, so that a drift of the machine's speed falls on both, and what was measured as JSON."""

from __future__ import annotations

import json
import mmap
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figure:
    """value: the median; low, high: the quartiles. unit: "ratio" for `over` figures."""

    value: float
    low: float
    high: float
    unit: str
    when: str


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def figure(values: Sequence[float], unit: str) -> Figure:
    """The median and the quartiles of some values."""
    if len(values) == 1:
        return Figure(values[0], values[0], values[0], unit, now())
    low, middle, high = statistics.quantiles(values, n=4)
    return Figure(middle, low, high, unit, now())


def quantile_figures(head: str, seconds: Sequence[float]) -> dict[str, Figure]:
    """`head.p50_ms` and `head.p99_ms` of how long calls took."""
    ordered = sorted(seconds)
    return {
        f"{head}.p{percent}_ms": figure(
            [1e3 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]], "ms"
        )
        for percent in (50, 99)
    }


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Pairs:
    """Seconds of two things, called in turn."""

    ours: list[float]
    theirs: list[float]

    def ours_over_theirs(self) -> Figure:
        """How many times as fast ours is: the ratio of each pair, then the median."""
        return figure([b / a for a, b in zip(self.ours, self.theirs, strict=True)], "ratio")


def interleave(
    ours: Sequence[Callable[[], object]],
    theirs: Sequence[Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    before: tuple[Sequence[Callable[[], object]], Sequence[Callable[[], object]]] | None = None,
) -> Pairs:
    """Call ours[i], then theirs[i], for each i, `rounds` times; the order within a pair changes each round.

    before: of ours and theirs, what is called before each and not timed.
    """
    pairs = Pairs([], [])
    nothing = [lambda: None] * len(ours)
    before_ours, before_theirs = before or (nothing, nothing)

    def timed(first: Callable[[], object], call: Callable[[], object]) -> float:
        first()
        return seconds(call)

    for turn in range(warm_up + rounds):
        for first_a, a, first_b, b in zip(before_ours, ours, before_theirs, theirs, strict=True):
            if turn % 2 == 0:
                x, y = timed(first_a, a), timed(first_b, b)
            else:
                y, x = timed(first_b, b), timed(first_a, a)
            if turn >= warm_up:
                pairs.ours.append(x)
                pairs.theirs.append(y)
    return pairs


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def touch(count: int) -> float:
    """Have the machine give so many bytes of memory, and take them back: the seconds that it took to give them.

    Memory that is new to a virtual machine comes from its host, ten times as slowly as memory that it has had in use
    just now: what is measured next is not to wait for that."""
    with mmap.mmap(-1, count) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        return seconds(partial(_write_pages, memory))


def _write_pages(memory: mmap.mmap) -> None:
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def reset_peak_rss() -> None:
    """From here on peak_rss_bytes counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """The most resident memory that this process had since reset_peak_rss."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def build_libraries(*options: str) -> Path:
    """Compiles limits.cc and tcp.cc, or what cmake's options add, with the core; returns the folder they are in."""
    folder = ROOT / "build" / "bench"
    programs = Path(sys.executable).parent  # of the virtual environment, which brings cmake and ninja
    cmake, ninja = str(programs / "cmake"), programs / "ninja"
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.run([*configure, "-DTABLEBAY_BUILD_BENCH=ON", *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder


def free_ports(count: int) -> list[int]:
    """Of as many servers, each the first of three neighbours that nobody has."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            with ExitStack() as tried:
                first = tried.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
                try:
                    for neighbour in (first + 1, first + 2):
                        tried.enter_context(socket.create_server(("127.0.0.1", neighbour)))
                except (OSError, OverflowError):
                    continue
                held.enter_context(tried.pop_all())
                found.append(first)
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "transparent_huge_pages": huge_pages.read_text().strip() if huge_pages.exists() else "none",
    }


def write(path: Path, commit: str, figures: dict[str, Figure]) -> None:
    """Merges figures into a bench.json; those measured before stay, with their own `when`."""
    kept: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    kept |= {name: asdict(value) for name, value in figures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "commit": commit, "figures": dict(sorted(kept.items()))}
    path.write_text(json.dumps(result, indent=2) + "\n")
