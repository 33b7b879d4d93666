"""Redis with pipelined MGET and MSET; the client computes Adagrad in numpy."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import peer_workload as workload
import redis
from driver import Driver, free_port, serve

AT_ONCE = 10_000  # keys in a command
ROW_BYTES = workload.DIM * 4


class RedisPipelined(Driver):
    """A row's weights and its accumulators have a key each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        port = free_port()
        options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(folder)]
        self._server = subprocess.Popen(["redis-server", "--port", str(port), *options])
        self._redis = redis.Redis(port=port, socket_timeout=300)
        for _ in range(100):
            try:
                self._redis.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.1)

    def version(self) -> str:
        return f"redis {self._redis.info()['redis_version']}, client {redis.__version__}"

    def holder(self) -> int:
        return self._server.pid

    def _get(self, prefix: bytes, keys: list[bytes]) -> np.ndarray:
        pipe = self._redis.pipeline(transaction=False)
        for at in range(0, len(keys), AT_ONCE):
            pipe.mget([prefix + key for key in keys[at : at + AT_ONCE]])
        content = b"".join(b"".join(part) for part in pipe.execute())
        return np.frombuffer(content, np.float32).reshape(-1, workload.DIM)

    def _set(self, prefix: bytes, keys: list[bytes], rows: np.ndarray) -> None:
        content = rows.tobytes()
        pipe = self._redis.pipeline(transaction=False)
        for at in range(0, len(keys), AT_ONCE):
            part = enumerate(keys[at : at + AT_ONCE], at)
            pipe.mset({prefix + key: content[i * ROW_BYTES : (i + 1) * ROW_BYTES] for i, key in part})
        pipe.execute()

    def _keys(self, ids: np.ndarray) -> list[bytes]:
        content = ids.tobytes()
        return [content[at : at + 8] for at in range(0, len(content), 8)]

    def fill(self, first: int, last: int) -> None:
        rows = workload.gradients(workload.FILL)
        sums = np.full_like(rows, workload.ACCUMULATOR)
        for ids in workload.fill_keys(first, last):
            keys = self._keys(ids)
            self._set(b"w", keys, rows[: len(keys)])
            self._set(b"a", keys, sums[: len(keys)])

    def rows(self, number: int) -> np.ndarray:
        return self._get(b"w", self._keys(self.batches[number].unique))

    def pull_uniq(self, number: int) -> None:
        self._get(b"w", self._keys(self.batches[number].unique))

    def pull_raw(self, number: int) -> np.ndarray:
        unique, inverse = np.unique(self.batches[number].ids, return_inverse=True)
        return self._get(b"w", self._keys(unique))[inverse]

    def push_uniq(self, number: int) -> None:
        keys = self._keys(self.batches[number].unique)
        gradients = self.gradients[: len(keys)]
        rows, sums = self._get(b"w", keys), self._get(b"a", keys)
        self._set(b"w", keys, workload.adagrad(rows, sums, gradients))
        self._set(b"a", keys, sums + gradients**2)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def prepare_cold(self, number: int) -> None:
        self._cold = workload.cold_keys(number)
        self._new = workload.gradients(workload.COLD_BATCH)

    def cold(self, number: int) -> None:
        keys = self._keys(self._cold)
        self._set(b"w", keys, self._new)
        self._set(b"a", keys, np.full_like(self._new, workload.ACCUMULATOR))

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    serve(RedisPipelined)
