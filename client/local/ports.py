"""Free ports of this machine's loopback interface."""

from __future__ import annotations

import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
FIRST_PORT = 10_240
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 200


def free_block(count: int, *, randomness: random.Random) -> int | None:
    """The first of `count` ports in a row that nobody uses now; None when none was found.

    Somebody may take one before it is used: whoever binds them must be ready to ask for another block. Ports
    that the kernel gives to outgoing connections are left out, or any connection of this machine could take
    one.
    """
    last = _first_ephemeral_port() - count
    if last < FIRST_PORT:
        return None
    for _ in range(_TRIES):
        first = randomness.randint(FIRST_PORT, last)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    return None


def _first_ephemeral_port() -> int:
    try:
        return max(int(_EPHEMERAL.read_text().split()[0]), FIRST_PORT + 4096)
    except (OSError, ValueError, IndexError):
        return 32_768


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True
