"""Tablebay: one server process over loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import peer_workload as workload
from driver import Driver, free_port, serve

import tablebay as tb


class TablebayGrpc(Driver):
    """options: more of the server's."""

    options: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port = free_port()
        command = [sys.executable, "-m", "tablebay.ps_server.main", "--exit-with-parent", "--job", "peers"]
        command += ["--host", "127.0.0.1", "--data-port", str(self._port)]
        command += self.options
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = tb.connect(f"127.0.0.1:{self._port}", job="peers", timeout=120.0)
        self._table = self.client.table(
            "peers",
            dim=workload.DIM,
            optimizer=tb.Adagrad(workload.LEARNING_RATE, workload.ACCUMULATOR, workload.EPSILON),
            initializer=tb.Normal(0.01),
        )
        self._unique = np.empty((self.most, workload.DIM), np.float32)
        self._raw = np.empty((workload.IDS, workload.DIM), np.float32)
        self._new = np.empty((workload.COLD_BATCH, workload.DIM), np.float32)

    def version(self) -> str:
        return f"tablebay {tb.__version__}"

    def holder(self) -> int:
        return self._server.pid

    def fill(self, first: int, last: int) -> None:
        for keys in workload.fill_keys(first, last):
            self._table.pull(keys)

    def rows(self, number: int) -> np.ndarray:
        return self._table.pull(self.batches[number].unique)

    def pull_uniq(self, number: int) -> None:
        unique = self.batches[number].unique
        self._table.pull(unique, out=self._unique[: len(unique)])

    def pull_raw(self, number: int) -> None:
        self._table.pull(self.batches[number].ids, out=self._raw)

    def push_uniq(self, number: int) -> None:
        unique = self.batches[number].unique
        self._table.push(unique, self.gradients[: len(unique)])

    def push_raw(self, number: int) -> None:
        self._table.push(self.batches[number].ids, self.gradients)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)

    def prepare_cold(self, number: int) -> None:
        self._cold = workload.cold_keys(number)

    def cold(self, number: int) -> None:
        self._table.pull(self._cold, out=self._new)

    def close(self) -> None:
        self.client.close()
        self._server.terminate()
        self._server.wait()


if __name__ == "__main__":
    serve(TablebayGrpc)
