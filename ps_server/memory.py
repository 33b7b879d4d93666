"""How much memory a server may use: what its control group allows, else what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.85

# Version 1 has no word for "no limit": it says a number near 2^63.
_NO_LIMIT = 1 << 60


def default_limit(root: Path = Path("/")) -> int:
    """Bytes: 0.85 of the least limit on this process, by its control groups or the machine's memory.

    The rest is for messages under way, the interpreter, and the kernel's own. root: where /proc and /sys are.
    """
    found = [_machine(root), *_limits(root)]
    return int(SHARE * min(found))


def _machine(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits(root: Path) -> list[int]:
    found: list[int] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            found += _upwards(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _upwards(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return found


def _upwards(mount: Path, path: str, name: str) -> list[int]:
    """The limits of a group and of every group above it, as far as they can be seen from here."""
    # In a container the path may be the host's, and the container's own group lies at the mount point.
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    found = []
    for depth in range(len(parts), -1, -1):
        text = _read(mount.joinpath(*parts[:depth]) / name).strip()
        if text.isdecimal() and 0 < int(text) < _NO_LIMIT:
            found.append(int(text))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
