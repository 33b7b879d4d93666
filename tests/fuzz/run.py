"""Feeds changed inputs to all that takes bytes from the wire or from files, for so long, by a seed.

    make fuzz SECONDS=60

Whatever goes wrong ends the run with the input written below build/fuzz: an error that is not documented, a crash,
an input that takes longer than 10 s, or memory beyond a bound. Put that input into tests/fuzz/corpus/<target>, where
every later run, and `make test`, replays it.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import mmap
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.mutation import INPUT_BYTES_MAX
from fuzz.targets import TARGETS, Target

INPUT_S = 10.0
# Beyond what the process has when it begins. A corpus has inputs of 64 KiB at most.
MEMORY_BYTES = 2 << 30
FOUND = Path("build/fuzz")
# Of inputs that were made, this many are changed further.
_KEPT = 200


class Fuzzer:
    """One target's inputs. executions: how many it has taken."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.executions = 0
        self._chance = random.Random(f"{seed} {target.name}")
        self._corpus = target.corpus()
        self._made: list[bytes] = []
        FOUND.mkdir(parents=True, exist_ok=True)
        self._path = FOUND / f"{target.name}-{os.getpid()}"
        with self._path.open("wb+") as file:
            file.truncate(8 + INPUT_BYTES_MAX)
            # There already when the process dies.
            self._last = mmap.mmap(file.fileno(), 8 + INPUT_BYTES_MAX)

    def replay(self) -> None:
        """The corpus as it is."""
        for data in self._corpus:
            self._take(data)

    def some(self, count: int) -> None:
        """So many changed inputs."""
        for _ in range(count):
            source = self._corpus if not self._made or self._chance.random() < 0.7 else self._made
            data = self.target.change(self._chance, self._chance.choice(source), self._corpus)
            data = data[:INPUT_BYTES_MAX]
            if len(self._made) < _KEPT:
                self._made.append(data)
            else:
                self._made[self._chance.randrange(_KEPT)] = data
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._last[: 8 + len(data)] = len(data).to_bytes(8, "little") + data
        self.executions += 1
        faulthandler.dump_traceback_later(INPUT_S, exit=True, file=sys.__stderr__)
        try:
            self.target.attempt(data)
        except BaseException:
            print(
                f"{self.target.name}: input {self.executions}, as written to {self.keep()}", file=sys.stderr
            )
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()

    def keep(self) -> Path:
        """The input last taken, in a file."""
        size = int.from_bytes(self._last[:8], "little")
        path = self._path.with_name(f"{self.target.name}-found")
        path.write_bytes(self._last[8 : 8 + size])
        return path

    def close(self) -> None:
        """Nothing was found."""
        self._last.close()
        self._path.unlink(missing_ok=True)


def bound_memory() -> None:
    """Let an input that wants much memory fail. Not with a sanitizer, which maps more than there is."""
    if os.environ.get("ASAN_OPTIONS") or os.environ.get("TSAN_OPTIONS"):
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """1 where something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("TABLEBAY_SEED", "1")))
    parser.add_argument("--target", action="append", help="these only")
    options = parser.parse_args(arguments)
    chosen = [target for target in TARGETS if not options.target or target.name in options.target]
    found = 0
    for target in chosen:
        fuzzer = Fuzzer(target, options.seed)
        began = time.monotonic()
        try:
            fuzzer.replay()
            while time.monotonic() - began < options.seconds / len(chosen):
                fuzzer.some(20)
            said = "nothing found"
            fuzzer.close()
        except Exception:  # noqa: BLE001 - each is a finding
            traceback.print_exc()
            said, found = "FOUND", found + 1
        seconds = time.monotonic() - began
        print(f"{target.name:<12} {fuzzer.executions:8d} executions in {seconds:5.1f} s: {said}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    faulthandler.enable()
    logging.disable()
    bound_memory()
    sys.exit(main())
