"""Pull and push through a real server, against the same table behind length-framed TCP: `make bench ONLY=grpc`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import measure
import numpy as np
import over_plain
import workload
from clients import Group, clients
from measure import Figure
from servers import tablebay_servers
from tcp_table import TcpTable, tcp_server
from workload import DIM, KEYS

import tablebay as tb

ROUNDS = 6
CALLS_OF_ONE = 2000
FOUR = 4
SLICES, SLICE_S = 6, 1.0


def run(folder: Path) -> dict[str, Figure]:
    """Figures `grpc.*`."""
    with tcp_server(folder, DIM) as (port, _), tablebay_servers(1) as (addresses, (server,)):
        tcp = TcpTable(folder, port, DIM)
        with tb.connect(addresses) as client:
            figures = _figures(client, tcp, server)
    with (
        tcp_server(folder, DIM) as (port, _),
        tablebay_servers(1) as (addresses, _),
        clients(FOUR, addresses=addresses, dim=DIM, tables=1) as ours,
        clients(1, addresses=addresses, dim=DIM, tables=1) as one,
        clients(FOUR, tcp_port=port, folder=str(folder), dim=DIM) as theirs,
    ):
        figures |= _four(ours, one, theirs)
    return figures | over_plain.run()


def _four(ours: Group, one: Group, theirs: Group) -> dict[str, Figure]:
    ours.fill()
    theirs.fill()
    figures = {}
    for operation, prefix in (("pull", "grpc.four_clients."), ("push", "grpc.four_clients.push_")):
        rates = []
        for turn in range(SLICES + 1):
            groups = [ours, one, theirs]
            order = groups if turn % 2 == 0 else groups[::-1]
            rate = {id(group): group.run(operation, SLICE_S).rows_per_s for group in order}
            if turn:
                rates.append([rate[id(group)] for group in groups])
        figures |= {
            f"{prefix}over_tcp": measure.figure([a / c for a, _, c in rates], "ratio"),
            f"{prefix}over_one": measure.figure([a / b for a, b, _ in rates], "ratio"),
            f"{prefix}rows_per_s": measure.figure([a for a, _, _ in rates], "rows/s"),
        }
    return figures


def _figures(client: tb.Client, tcp: TcpTable, server: int) -> dict[str, Figure]:
    work = workload.Workload.make()
    table = client.table("bench", dim=DIM, optimizer=tb.Adagrad(0.05), initializer=tb.Normal(0.01))
    out = np.empty((KEYS, DIM), np.float32)
    theirs = np.empty((KEYS, DIM), np.float32)
    before = measure.rss_bytes(server)
    for keys in work.batches():
        table.pull(keys, out=out[: len(keys)])
        tcp.pull(keys, theirs[: len(keys)])
        if not np.array_equal(out, theirs):
            raise SystemExit("gRPC and TCP answer different rows")
    grown = measure.rss_bytes(server) - before
    # The limit gets its keys in the order that suits the table best; ours sorts them itself.
    pulls = measure.interleave(
        [partial(table.pull, keys, out=out) for keys in work.calls],
        [partial(tcp.pull, keys, theirs) for keys in work.grouped],
        ROUNDS,
    )
    pushes = measure.interleave(
        [partial(table.push, keys, work.gradients) for keys in work.calls],
        [partial(tcp.push, keys, work.gradients) for keys in work.grouped],
        ROUNDS,
    )
    figures = {
        "grpc.pull.over_tcp": pulls.ours_over_theirs(),
        "grpc.push.over_tcp": pushes.ours_over_theirs(),
        "grpc.server_bytes_per_row": measure.figure([grown / workload.ROWS], "bytes"),
    }
    for name, times in (
        ("grpc.pull_rows_per_s", pulls.ours),
        ("grpc.push_rows_per_s", pushes.ours),
        ("limit.tcp_pull_rows_per_s", pulls.theirs),
        ("limit.tcp_push_rows_per_s", pushes.theirs),
    ):
        figures[name] = measure.figure([KEYS / s for s in times], "rows/s")
    one_key = work.all_keys[:1].copy()
    one_row = np.empty((1, DIM), np.float32)
    one = [measure.seconds(partial(table.pull, one_key, out=one_row)) * 1e9 for _ in range(CALLS_OF_ONE)]
    figures["grpc.call_ns"] = measure.figure(one, "ns")
    return figures
