"""A table through the C functions of tablebay.h, by ctypes: what another language's binding does.

`python -m tablebay.examples.from_c` trains on numbers that it makes, saves the table, loads it, and says what it
learnt.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tablebay.native import _core

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]


@cache
def library() -> ctypes.CDLL:
    """libtablebay.so, which lies beside the Python package's native module."""
    shared = ctypes.CDLL(str(Path(_core.__file__).with_name("libtablebay.so")))
    text, table, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
    shared.tb_last_error.restype = text
    shared.tb_create.restype = table
    shared.tb_create.argtypes = [text, ctypes.c_uint32, text, text, text, ctypes.c_uint64]
    shared.tb_pull.argtypes = [table, ctypes.c_void_p, size, ctypes.c_void_p, ctypes.c_int]
    shared.tb_push.argtypes = [table, ctypes.c_void_p, size, ctypes.c_void_p]
    shared.tb_rows.restype = ctypes.c_uint64
    shared.tb_rows.argtypes = [table]
    shared.tb_save.argtypes = [table, text]
    shared.tb_load.restype = table
    shared.tb_load.argtypes = [text]
    shared.tb_free.restype = None
    shared.tb_free.argtypes = [table]
    return shared


class CTable:
    """A table of float32 rows in calls. Every method raises RuntimeError with the library's words."""

    def __init__(self, handle: int | None, dim: int) -> None:
        if handle is None:
            raise RuntimeError(library().tb_last_error().decode())
        self._handle: int | None = handle
        self._dim = dim

    @classmethod
    def create(
        cls, name: str, dim: int, optimizer: str, initializer: str, *, dtype: str = "float32", seed: int = 0
    ) -> Self:
        """A table without rows. optimizer, initializer: as tablebay.h has them."""
        words = (dtype, optimizer, initializer)
        return cls(library().tb_create(name.encode(), dim, *(word.encode() for word in words), seed), dim)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dim: int) -> Self:
        """The table that `save` wrote."""
        return cls(library().tb_load(os.fsencode(path)), dim)

    def pull(self, keys: Keys, create: bool = True) -> Rows:
        """Rows of uint64 keys (n,): float32 (n, dim)."""
        keys = np.ascontiguousarray(keys, np.uint64)
        rows = np.empty((len(keys), self._dim), np.float32)
        self._check(library().tb_pull(self._handle, keys.ctypes.data, len(keys), rows.ctypes.data, create))
        return rows

    def push(self, keys: Keys, gradients: Rows) -> None:
        """One update of each key's row; gradients: float32 (n, dim)."""
        keys = np.ascontiguousarray(keys, np.uint64)
        gradients = np.ascontiguousarray(gradients, np.float32).reshape(len(keys), self._dim)
        self._check(library().tb_push(self._handle, keys.ctypes.data, len(keys), gradients.ctypes.data))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Rows and the optimizer's state as a file."""
        self._check(library().tb_save(self._handle, os.fsencode(path)))

    def __len__(self) -> int:
        return int(library().tb_rows(self._handle))

    def close(self) -> None:
        """The end of the table; nothing of it may be called afterwards."""
        library().tb_free(self._handle)
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(library().tb_last_error().decode())


def main() -> None:
    """Each key's row is drawn to a number of its own."""
    random = np.random.default_rng(0)
    wanted = random.standard_normal((1000, 8)).astype(np.float32)
    losses = []
    with (
        tempfile.TemporaryDirectory() as folder,
        CTable.create(
            "users",
            8,
            "Adagrad learning_rate=0.5 initial_accumulator=0.1 epsilon=1e-8",
            "Normal mean=0 stddev=0.01",
        ) as table,
    ):
        for _ in range(200):
            keys = random.integers(0, 1000, 256).astype(np.uint64)
            errors = table.pull(keys) - wanted[keys]
            losses.append(float(np.mean(errors**2)))
            table.push(keys, errors)
        table.save(Path(folder) / "users.table")
        with CTable.load(Path(folder) / "users.table", 8) as loaded:
            same = loaded.pull(keys).tobytes() == table.pull(keys).tobytes()
        print(
            f"{len(table)} rows, loss from {losses[0]:.4f} to {losses[-1]:.4f}, the same when loaded: {same}"
        )


if __name__ == "__main__":
    main()
