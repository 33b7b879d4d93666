"""The table beside the same rows behind boost::unordered_flat_map: `make bench ONLY=index`."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import partial
from pathlib import Path

import measure
import numpy as np
import workload
from in_process import WEIGHTS, row_bytes
from measure import Figure
from workload import DIM, KEYS, Keys, Rows, Workload

ROWS = 10_000_000
ROUNDS = 5
HEADERS = "boost-headers==1.85.0.post1"


class Peer:
    """Rows behind boost's maps."""

    def __init__(self, folder: Path) -> None:
        self._library = library = ctypes.CDLL(str(folder / "libboost.so"))
        pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        library.boost_make.restype = pointer
        library.boost_make.argtypes = [u64, u32, u32]
        library.boost_insert.argtypes = [pointer, pointer, u64]
        library.boost_pull.argtypes = [pointer, pointer, u64, pointer]
        self._peer = library.boost_make(ROWS, row_bytes(DIM), WEIGHTS)

    def insert(self, keys: Keys) -> None:
        self._library.boost_insert(self._peer, keys.ctypes.data, len(keys))

    def pull(self, keys: Keys, out: Rows) -> None:
        self._library.boost_pull(self._peer, keys.ctypes.data, len(keys), out.ctypes.data)


def headers() -> Path:
    """Boost's headers, from the package index when they are first needed."""
    there = measure.ROOT / "build" / "boost"
    include = there / "boost_headers" / "include"
    if not include.exists():
        uv = str(Path(sys.executable).parent / "uv")
        command = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--target",
            str(there),
            HEADERS,
        ]
        subprocess.run(command, check=True)
    return include


def run(_: Path) -> dict[str, Figure]:
    """Figures `index.*`: how many times as fast the table is, and what the two take."""
    folder = measure.build_libraries(f"-DTABLEBAY_BOOST={headers()}")
    work = Workload.make(ROWS)
    store, table = workload.new_store()
    out = np.zeros((KEYS, DIM), np.float32)
    before = measure.rss_bytes()
    ours = [
        measure.seconds(partial(store.pull, table, keys, out[: len(keys)], True)) for keys in work.batches()
    ]
    between = measure.rss_bytes()
    peer = Peer(folder)
    theirs = [measure.seconds(partial(peer.insert, keys)) for keys in work.batches()]
    after = measure.rss_bytes()
    peer.pull(work.grouped[0], out)
    if not out.any(axis=1).all():
        raise SystemExit("boost's maps have not all keys")
    pulls = measure.interleave(
        [partial(store.pull, table, keys, out, True) for keys in work.grouped],
        [partial(peer.pull, keys, out) for keys in work.grouped],
        ROUNDS,
    )
    return {
        "index.pull.over_boost": pulls.ours_over_theirs(),
        "index.insert.over_boost": measure.figure([sum(theirs) / sum(ours)], "ratio"),
        "index.bytes_per_row": measure.figure([(between - before) / ROWS], "bytes"),
        "index.boost_bytes_per_row": measure.figure([(after - between) / ROWS], "bytes"),
    }
