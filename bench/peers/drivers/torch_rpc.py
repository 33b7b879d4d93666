"""torch.distributed.rpc: a dense table with sparse Adagrad in another process, over TensorPipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from driver import Driver, free_port, serve
from torch.distributed import rpc
from torch_table import TorchTable

_table: list[TorchTable] = []


def make() -> None:
    _table[:] = [TorchTable()]


def pull(ids: torch.Tensor) -> torch.Tensor:
    return _table[0].pull(ids)


def push(ids: torch.Tensor, gradients: torch.Tensor, unique: bool) -> None:
    _table[0].push(ids, gradients, unique)


def join(name: str, rank: int, port: int) -> None:
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{port}", rpc_timeout=300)
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


class TorchRpc(Driver):
    """Ids are rows of the weight; each operation is one call."""

    dense = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        port = free_port()
        self._server = subprocess.Popen([sys.executable, __file__, "serve", str(port)])
        join("worker", 1, port)
        self._ids = [torch.from_numpy(batch.ids) for batch in self.batches]
        self._unique = [torch.from_numpy(batch.unique) for batch in self.batches]
        self._gradients = torch.from_numpy(self.gradients)

    def version(self) -> str:
        return f"torch.distributed.rpc {torch.__version__}"

    def holder(self) -> int:
        return self._server.pid

    def fill(self, first: int, last: int) -> None:
        if first == 0:
            rpc.rpc_sync("ps", make)

    def rows(self, number: int) -> np.ndarray:
        return rpc.rpc_sync("ps", pull, args=(self._unique[number],)).numpy()

    def pull_uniq(self, number: int) -> None:
        rpc.rpc_sync("ps", pull, args=(self._unique[number],))

    def pull_raw(self, number: int) -> None:
        rpc.rpc_sync("ps", pull, args=(self._ids[number],))

    def push_uniq(self, number: int) -> None:
        unique = self._unique[number]
        # A view is sent with all that it is a view of.
        rpc.rpc_sync("ps", push, args=(unique, self._sent[number], True))

    def push_raw(self, number: int) -> None:
        rpc.rpc_sync("ps", push, args=(self._ids[number], self._gradients, False))

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)

    @property
    def _sent(self) -> list[torch.Tensor]:
        if not hasattr(self, "_own"):
            self._own = [self._gradients[: len(unique)].clone() for unique in self._unique]
        return self._own

    def close(self) -> None:
        rpc.shutdown(graceful=False)
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        join("ps", 0, int(sys.argv[2]))
        rpc.shutdown()
    else:
        serve(TorchRpc)
