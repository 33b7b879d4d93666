"""Pull and push through a real server, against the same table behind length-framed TCP: `make bench ONLY=grpc`."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import measure
import numpy as np
import workload
from measure import Figure
from workload import DIM, KEYS, Keys, Rows

import tablebay as tb

ROUNDS = 6
ROW_BYTES = DIM * 4
CALLS_OF_ONE = 2000


class TcpTable:
    """A connection to the TCP peer."""

    def __init__(self, folder: Path, port: int) -> None:
        library = ctypes.CDLL(str(folder / "libtcp.so"))
        pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        library.tcp_connect.argtypes = [ctypes.c_uint16]
        library.tcp_pull.argtypes = [ctypes.c_int, pointer, u32, pointer, u64]
        library.tcp_push.argtypes = [ctypes.c_int, pointer, u32, pointer, u64]
        self._library = library
        self._fd = library.tcp_connect(port)
        if self._fd < 0:
            raise SystemExit(f"no connection to the TCP peer on port {port}")

    def pull(self, keys: Keys, out: Rows) -> None:
        if not self._library.tcp_pull(self._fd, keys.ctypes.data, len(keys), out.ctypes.data, ROW_BYTES):
            raise SystemExit("the TCP peer is gone")

    def push(self, keys: Keys, gradients: Rows) -> None:
        if not self._library.tcp_push(
            self._fd, keys.ctypes.data, len(keys), gradients.ctypes.data, ROW_BYTES
        ):
            raise SystemExit("the TCP peer is gone")


def serve_tcp(folder: str) -> None:
    """The TCP peer's process: prints its port, and serves until its input ends."""
    library = ctypes.CDLL(str(Path(folder) / "libtcp.so"))
    library.tcp_serve.restype = ctypes.c_uint16
    print(library.tcp_serve(DIM), flush=True)
    sys.stdin.read()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(folder: Path) -> dict[str, Figure]:
    """Figures `grpc.*`."""
    peer = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    port = _free_port()
    log = (measure.ROOT / "build" / "bench-server.log").open("w")
    command = [
        sys.executable,
        "-m",
        "tablebay.ps_server.main",
        "--host",
        "127.0.0.1",
        "--data-port",
        str(port),
    ]
    server = subprocess.Popen([*command, "--exit-with-parent"], stderr=log)
    try:
        assert peer.stdout is not None
        tcp = TcpTable(folder, int(peer.stdout.readline()))
        with tb.connect(f"127.0.0.1:{port}") as client:
            return _figures(client, tcp, f"127.0.0.1:{port}", server.pid)
    finally:
        server.terminate()
        server.wait()
        peer.kill()
        peer.wait()
        log.close()


def _figures(client: tb.Client, tcp: TcpTable, address: str, server: int) -> dict[str, Figure]:
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


if __name__ == "__main__":
    serve_tcp(sys.argv[1])
