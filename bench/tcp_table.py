"""The limit of everything that goes over the network: the same table behind length-framed TCP, C++ at both ends."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class TcpTable:
    """A connection to the TCP peer.

    folder: of bench's libraries. bare: the peer moves the same bytes and does nothing to a table.
    """

    def __init__(self, folder: Path, port: int, dim: int, *, bare: bool = False) -> None:
        library = ctypes.CDLL(str(folder / "libtcp.so"))
        pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        library.tcp_connect.argtypes = [ctypes.c_uint16]
        for call in (library.tcp_pull, library.tcp_push):
            call.argtypes = [ctypes.c_int, pointer, u32, pointer, u64, ctypes.c_int]
        self._library = library
        self._row_bytes = dim * 4
        self._bare = bare
        self._fd = library.tcp_connect(port)
        if self._fd < 0:
            raise SystemExit(f"no connection to the TCP peer on port {port}")

    def pull(self, keys: NDArray[np.uint64], out: Rows) -> None:
        """keys: that differ, any order."""
        self._call(self._library.tcp_pull, keys, out)

    def push(self, keys: NDArray[np.uint64], gradients: Rows) -> None:
        """keys: that differ, any order."""
        self._call(self._library.tcp_push, keys, gradients)

    def _call(self, call: ctypes._NamedFuncPointer, keys: NDArray[np.uint64], rows: Rows) -> None:
        if not call(self._fd, keys.ctypes.data, len(keys), rows.ctypes.data, self._row_bytes, self._bare):
            raise SystemExit("the TCP peer is gone")


@contextmanager
def tcp_server(folder: Path, dim: int) -> Iterator[tuple[int, int]]:
    """The peer's port and its process, for the time of a block."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), str(dim)]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert peer.stdout is not None
        yield int(peer.stdout.readline()), peer.pid
    finally:
        peer.kill()
        peer.wait()


def _serve(folder: str, dim: str) -> None:
    """The peer's process: prints its port, and serves until its input ends."""
    library = ctypes.CDLL(str(Path(folder) / "libtcp.so"))
    library.tcp_serve.restype = ctypes.c_uint16
    print(library.tcp_serve(int(dim)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
