"""A limit: the rows' memory read, and read and written by Adagrad, in C++ without an index."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import peer_workload as workload
from driver import Driver, serve

# Of a row of Tablebay's with 16 weights and 16 sums: key and version, then both, padded.
STRIDE, WEIGHTS = 144, 12


class LimitMemory(Driver):
    """Ids are rows of one array, in random order. Rows of raw ids are read as often as they are named."""

    dense = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        library = ctypes.CDLL(str(folder.parent / "bench" / "liblimits.so"))
        pointer, u32, u64, real = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float
        library.limit_map.restype = pointer
        library.limit_map.argtypes = [u64]
        library.limit_gather.argtypes = [pointer, pointer, u64, u32, u32, u32, pointer]
        library.limit_adagrad.argtypes = [pointer, pointer, u64, u32, u32, u32, pointer, real, real]
        self._library = library
        random = np.random.default_rng(1)
        self._unique = [random.permutation(batch.unique).astype(np.uint32) for batch in self.batches]
        self._ids = [batch.ids.astype(np.uint32) for batch in self.batches]
        self._out = np.empty((workload.IDS, workload.DIM), np.float32)

    def version(self) -> str:
        return "limit: memory, without an index"

    def fill(self, first: int, last: int) -> None:
        if first != 0:
            return
        self._memory = self._library.limit_map(workload.NIDS * STRIDE)
        floats = (ctypes.c_float * (workload.NIDS * STRIDE // 4)).from_address(self._memory)
        rows = np.frombuffer(floats, np.float32).reshape(workload.NIDS, STRIDE // 4)
        sums = WEIGHTS // 4 + workload.DIM
        rows[:, sums : sums + workload.DIM] = workload.ACCUMULATOR

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        out = self._out[: len(positions)]
        where = (self._memory, positions.ctypes.data, len(positions), STRIDE, WEIGHTS, workload.DIM)
        self._library.limit_gather(*where, out.ctypes.data)
        return out

    def rows(self, number: int) -> np.ndarray:
        return self._gather(self._unique[number])

    def pull_uniq(self, number: int) -> None:
        self._gather(self._unique[number])

    def pull_raw(self, number: int) -> None:
        self._gather(self._ids[number])

    def push_uniq(self, number: int) -> None:
        positions = self._unique[number]
        where = (self._memory, positions.ctypes.data, len(positions), STRIDE, WEIGHTS, workload.DIM)
        gradients = self.gradients.ctypes.data
        self._library.limit_adagrad(*where, gradients, workload.LEARNING_RATE, workload.EPSILON)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)


if __name__ == "__main__":
    serve(LimitMemory)
