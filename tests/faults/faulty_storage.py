"""Storage whose system calls fail as disks and file systems do, and a power cut that takes what was not synced."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tablebay.client.checkpoint.storage import System

# The calls that change what is stored; a save makes each of them, and each may fail.
WRITING = ("open", "write", "fsync", "link", "mkdir")


@dataclass
class Faults:
    """What is to go wrong. strikes: how often something did.

    fail: a call's number, from 1 over all calls named in `calls`, to its errno. short_writes: each write takes but
    half. flips: (part of a file's name, byte, bit) turned over when read. from_then_on: all calls after the first
    that fails do, too.
    """

    fail: dict[int, int] = field(default_factory=dict)
    calls: tuple[str, ...] = WRITING
    from_then_on: bool = False
    short_writes: bool = False
    flips: list[tuple[str, int, int]] = field(default_factory=list)
    strikes: int = 0
    seen: int = 0
    failing: int = 0


class FaultySystem(System):
    """LocalStorage's system calls with faults in them."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = Faults() if faults is None else faults
        # Of each file: its length when it was last synced. Of each name: whether its directory was synced since.
        self._synced: dict[tuple[int, int], int] = {}
        self._loose: dict[tuple[int, int], set[str]] = {}

    # -- faults --

    def _count(self, call: str) -> None:
        faults = self.faults
        if call not in faults.calls:
            return
        faults.seen += 1
        code = faults.fail.get(faults.seen, faults.failing)
        if code:
            faults.strikes += 1
            if faults.from_then_on:
                faults.failing = code
            raise OSError(code, os.strerror(code))

    def open(self, name: str, flags: int, directory: int) -> int:
        """openat(2); only one that makes a file counts."""
        if flags & os.O_CREAT:
            self._count("open")
        file = super().open(name, flags, directory)
        if flags & os.O_CREAT:
            self._synced[_identity(file)] = 0
            self._loose.setdefault(_identity(directory), set()).add(name)
        return file

    def write(self, file: int, data: memoryview) -> int:
        """write(2)."""
        self._count("write")
        if self.faults.short_writes and len(data) > 1:
            self.faults.strikes += 1
            data = data[: len(data) // 2]
        return super().write(file, data)

    def fsync(self, file: int) -> None:
        """fsync(2)."""
        self._count("fsync")
        super().fsync(file)
        if _identity(file) in self._synced:
            self._synced[_identity(file)] = os.fstat(file).st_size
        self._loose.pop(_identity(file), None)

    def link(self, source: str, target: str, directory: int) -> None:
        """linkat(2)."""
        self._count("link")
        super().link(source, target, directory)
        self._loose.setdefault(_identity(directory), set()).add(target)

    def mkdir(self, name: str, directory: int) -> None:
        """mkdirat(2)."""
        self._count("mkdir")
        super().mkdir(name, directory)
        self._loose.setdefault(_identity(directory), set()).add(name)

    def read_into(self, file: int, data: memoryview, offset: int) -> int:
        """preadv(2)."""
        self._count("read")
        count = super().read_into(file, data, offset)
        path = os.readlink(f"/proc/self/fd/{file}")
        for name, byte, bit in self.faults.flips:
            if name in path and offset <= byte < offset + count:
                data[byte - offset] ^= 1 << bit
                self.faults.strikes += 1
        return count

    # -- a power cut --

    def power_cut(self, root: Path) -> None:
        """Take what was not synced: files lose their tails, and directories the names that they had not kept."""
        for directory, _, files in os.walk(root, topdown=False):
            place = Path(directory)
            loose = self._loose.get(_identity_of(place), set())
            for name in [*loose]:
                lost = place / name
                if lost.is_dir():
                    shutil.rmtree(lost)
                else:
                    lost.unlink(missing_ok=True)
                self.faults.strikes += 1
            for name in files:
                path = place / name
                if path.exists():
                    synced = self._synced.get(_identity_of(path))
                    if synced is not None and synced < path.stat().st_size:
                        os.truncate(path, synced)
                        self.faults.strikes += 1
        self._synced.clear()
        self._loose.clear()


def each_failure(attempt: Callable[[Faults], None], code: int, *, from_then_on: bool = False) -> int:
    """Run `attempt` with its first call failing, then with its second, until all go well; how often one failed.

    Every run asserts for itself; that a fault struck is asserted here.
    """
    number = 0
    while True:
        number += 1
        faults = Faults(fail={number: code}, from_then_on=from_then_on)
        attempt(faults)
        if faults.strikes == 0:
            assert faults.seen < number
            return number - 1


ERRNOS = (errno.ENOSPC, errno.EIO)


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _identity_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
