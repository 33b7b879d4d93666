"""T3 of guarantee G1 through real gRPC: answers lost on the way, by a proxy that cuts the connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from faults.tcp_proxy import CuttingProxy
from free_ports import free_data_ports

import tablebay as tb
from tablebay.client.environment import control_port
from tablebay.client.local.ports import HOST
from tablebay.client.proto import tablebay_pb2

pytestmark = pytest.mark.usefixtures("each_transport")


def behind_proxies(data_port: int) -> tuple[CuttingProxy, CuttingProxy]:
    """A proxy of the data port and one of the control port, on ports that belong together."""
    (port,) = free_data_ports(1)
    return CuttingProxy(data_port, port), CuttingProxy(control_port(data_port), control_port(port))


def test_T3_G1_five_answers_lost_in_a_row_are_one_push(start_server: Callable[..., Any]) -> None:
    """The connection dies five times after the push was applied; the client sends it again; it counts once."""
    server = start_server()
    data, control = behind_proxies(server.data_port)
    keys = np.arange(500, dtype=np.uint64)
    at_cuts: list[tuple[int, int]] = []

    def pushes() -> tuple[int, int]:
        """How many the server has applied, and how many more it has recognised; asked past the proxies."""
        counted = tablebay_pb2.StatsResponse.FromString(server.call("Stats", b"")).counters
        return counted["pushes_applied"], counted["duplicates"]

    def handled() -> int:
        at_cuts.append(pushes())
        return sum(at_cuts[-1])

    with tb.connect(f"{HOST}:{data.port}", rank=0, timeout=60.0) as client:
        table = client.table("oracle", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
        table.push(keys, np.ones((500, 1), np.int64))
        assert pushes() == (1, 0)
        data.cut_answers(5, handled)
        table.push(keys, np.full((500, 1), 10, np.int64))
        # When the first answer was cut the push had been applied; each later one said that it had been before.
        assert data.cuts == [2, 3, 4, 5, 6]
        assert list(dict.fromkeys(at_cuts)) == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]
        assert bool((table.pull(keys) == 11).all())
        assert pushes() == (2, 5)
        assert client.next_step == 2
    data.close()
    control.close()


def test_T3_G9_a_push_that_a_restart_overtook_is_refused(start_server: Callable[..., Any]) -> None:
    """kill -9 between the push and its answer: the retry reaches an empty server and is told so, not applied."""
    server = start_server()
    data, control = behind_proxies(server.data_port)
    keys = np.arange(500, dtype=np.uint64)
    rows = np.ones((500, 1), np.int64)
    with tb.connect(f"{HOST}:{data.port}", timeout=30.0) as client:
        table = client.table("oracle", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
        table.push(keys, rows)
        first = server.process.pid
        server.process.kill()
        server.process.wait()
        again = start_server(data_port=server.data_port)
        assert again.process.pid != first
        begin = time.monotonic()
        with pytest.raises(tb.ServerLost, match="epoch was"):
            table.push(keys, rows)
        assert time.monotonic() - begin < 30
    data.close()
    control.close()
