"""A limit: Tablebay's table behind length-framed TCP, C++ at both ends, with keys in the order that suits it best."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import peer_workload as workload
from driver import Driver, serve

sys.path.append(str(Path(__file__).resolve().parents[2]))
from tcp_table import TcpTable, tcp_server

from tablebay.native import _core


class LimitTcpTable(Driver):
    """Of unique ids alone: raw ids are deduplicated before the wire or not at all."""

    bare = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        libraries = folder.parent / "bench"
        self._server = tcp_server(libraries, workload.DIM)
        port, self._holder = self._server.__enter__()
        self._peer = TcpTable(libraries, port, workload.DIM, bare=self.bare)
        self._unique = [_in_shard_order(batch.unique) for batch in self.batches]
        self._out = np.empty((max(self.most, workload.COLD_BATCH), workload.DIM), np.float32)

    def version(self) -> str:
        return "limit: the same table behind framed TCP"

    def holder(self) -> int:
        return self._holder

    def _pull(self, keys: np.ndarray) -> np.ndarray:
        out = self._out[: len(keys)]
        self._peer.pull(keys, out)
        return out

    def fill(self, first: int, last: int) -> None:
        for keys in workload.fill_keys(first, last):
            self._pull(keys)

    def rows(self, number: int) -> np.ndarray:
        return self._pull(self._unique[number])

    def pull_uniq(self, number: int) -> None:
        self._pull(self._unique[number])

    def push_uniq(self, number: int) -> None:
        keys = self._unique[number]
        self._peer.push(keys, self.gradients[: len(keys)])

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def prepare_cold(self, number: int) -> None:
        self._cold = _in_shard_order(workload.cold_keys(number))

    def cold(self, number: int) -> None:
        self._pull(self._cold)

    def close(self) -> None:
        self._server.__exit__(None, None, None)


def _in_shard_order(keys: np.ndarray) -> np.ndarray:
    return keys[np.argsort(_core.shards_of(keys.view(np.uint64)), kind="stable")]


if __name__ == "__main__":
    serve(LimitTcpTable)
