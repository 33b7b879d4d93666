"""Ports for servers of tests that run beside other tests."""

from __future__ import annotations

import os
import random

from tablebay.client.environment import PORTS_PER_SERVER
from tablebay.client.local.ports import free_block

# Ports go to pytest's processes in turn, so many at a time.
_TOGETHER = 64
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_ports(count: int) -> int:
    """The first of so many free ports in a row, which no other process of this pytest is given meanwhile.

    A server needs half a second from when its port was found free to when it has it.
    """
    while True:
        first = free_block(count, randomness=random.Random())
        assert first is not None, f"there are no {count} free ports in a row"
        if all(port // _TOGETHER % _PROCESSES == _PROCESS for port in (first, first + count - 1)):
            return first


def free_data_ports(servers: int) -> list[int]:
    """The data port of each of so many servers; the others that it needs are free too."""
    first = free_ports(PORTS_PER_SERVER * servers)
    return [first + PORTS_PER_SERVER * index for index in range(servers)]
