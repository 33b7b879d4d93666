"""What a pull of one key costs by each way in that has no network; `grpc.call_ns` is the one that has."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import measure
import numpy as np
from measure import Figure

import tablebay as tb
from tablebay.examples.from_c import CTable, library
from tablebay.native import _core

CALLS = 2000
ROUNDS = 15
DIM = 16
ADAGRAD = {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}


def run(folder: Path) -> dict[str, Figure]:
    """Figures `table.call_ns.*`, in ns a call."""
    key, row = np.array([7], np.uint64), np.empty((1, DIM), np.float32)
    store = _core.Store()
    number = store.create_table("t", DIM, "float32", "Adagrad", ADAGRAD, "Zeros", {}, 0, "Reject")
    optimizer = " ".join(["Adagrad", *(f"{name}={value!r}" for name, value in ADAGRAD.items())])
    limits = ctypes.CDLL(str(folder / "liblimits.so"))
    limits.limit_calls.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_uint64]
    pull = library().tb_pull
    address = ctypes.cast(pull, ctypes.c_void_p)
    table = tb.Table(DIM)
    with CTable.create("t", DIM, optimizer, "Zeros") as other, tb.local(servers=1) as client:
        served = client.table("t", dim=DIM)
        handle, keys, rows = other._handle, key.ctypes.data, row.ctypes.data
        ways = {
            "c": lambda: limits.limit_calls(address, handle, keys, rows, CALLS),
            "ctypes": lambda: [pull(handle, keys, 1, rows, 1) for _ in range(CALLS)],
            "core": lambda: [store.pull(number, key, row, True) for _ in range(CALLS)],
            "table": lambda: [table.pull(key, out=row) for _ in range(CALLS)],
            "local_server": lambda: [served.pull(key, out=row) for _ in range(CALLS)],
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name].append(measure.seconds(partial(way)) / CALLS * 1e9)
    return {f"table.call_ns.{name}": measure.figure(values, "ns") for name, values in times.items()}
