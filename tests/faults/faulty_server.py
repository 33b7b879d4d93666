"""A server process whose storage fails as the test says while it runs: the program that `Servers(program=...)` starts.

FAULTS names a folder. `rules.json` in it is read at each system call of the storage; `strikes.txt` gets a line for each
call that a rule struck, so that a test can show that its fault happened.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tablebay.client.checkpoint import files, storage

_LOOK_EVERY_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What happens to calls of one kind on files whose path has `path` in it.

    first, times: to which of them in the life of a process, from 1. error: errno's name that they raise. hold: they
    wait before they do anything, until the rule is gone.
    """

    name: str
    call: str
    path: str = ""
    first: int = 1
    times: int = 1_000_000
    error: str = ""
    hold: bool = False


@dataclass(frozen=True)
class Strike:
    """A call that a rule struck, in the process `pid`."""

    rule: str
    pid: int
    call: str
    path: str


class Board:
    """A test's side of the folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.set()

    @property
    def environment(self) -> dict[str, str]:
        """Of a server that is to look here."""
        return {"FAULTS": str(self.folder)}

    def set(self, *rules: Rule) -> None:
        """From the next call on these rules, and no others."""
        new = self.folder / "rules.new"
        new.write_text(json.dumps([asdict(rule) for rule in rules]))
        new.replace(self.folder / "rules.json")

    def strikes(self, rule: str) -> list[Strike]:
        """Of one rule, in their order."""
        path = self.folder / "strikes.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [Strike(**json.loads(line)) for line in lines]
        return [strike for strike in found if strike.rule == rule]


class StruckSystem(storage.System):
    """LocalStorage's system calls, under the rules."""

    _lock = threading.Lock()
    _seen: ClassVar[Counter[str]] = Counter()

    def _strike(self, call: str, path: str) -> None:
        for rule in self._rules():
            if rule.call != call or rule.path not in path:
                continue
            with self._lock:
                self._seen[rule.name] += 1
                number = self._seen[rule.name]
            if not rule.first <= number < rule.first + rule.times:
                continue
            line = json.dumps({"rule": rule.name, "pid": os.getpid(), "call": call, "path": path})
            with self._lock, open(_folder() / "strikes.txt", "a") as file:
                file.write(f"{line}\n")
            while rule.hold and rule in self._rules():
                time.sleep(_LOOK_EVERY_S)
            if rule.error:
                code = getattr(errno, rule.error)
                raise OSError(code, os.strerror(code))

    @staticmethod
    def _rules() -> list[Rule]:
        return [Rule(**fields) for fields in json.loads((_folder() / "rules.json").read_text())]

    def open(self, name: str, flags: int, directory: int) -> int:
        """openat(2): `create` where it makes a file."""
        self._strike("create" if flags & os.O_CREAT else "open", f"{_path_of(directory)}/{name}")
        return super().open(name, flags, directory)

    def write(self, file: int, data: memoryview) -> int:
        """write(2)."""
        self._strike("write", _path_of(file))
        return super().write(file, data)

    def fsync(self, file: int) -> None:
        """fsync(2)."""
        self._strike("fsync", _path_of(file))
        super().fsync(file)

    def read_into(self, file: int, data: memoryview, offset: int) -> int:
        """preadv(2)."""
        self._strike("read", _path_of(file))
        return super().read_into(file, data, offset)

    def link(self, source: str, target: str, directory: int) -> None:
        """linkat(2)."""
        self._strike("link", f"{_path_of(directory)}/{target}")
        super().link(source, target, directory)

    def mkdir(self, name: str, directory: int) -> None:
        """mkdirat(2)."""
        self._strike("mkdir", f"{_path_of(directory)}/{name}")
        super().mkdir(name, directory)


def _folder() -> Path:
    return Path(os.environ["FAULTS"])


def _path_of(file: int) -> str:
    return os.readlink(f"/proc/self/fd/{file}")


def main() -> Any:
    """As tablebay-server."""
    storage.System = StruckSystem  # type: ignore[misc]
    # So that a small table is copied in many pieces.
    files.BUFFER_BYTES = 1024 * 1024 + 4096  # type: ignore[misc]
    from tablebay.ps_server import main as server

    return server.main()


if __name__ == "__main__":
    sys.exit(main())
