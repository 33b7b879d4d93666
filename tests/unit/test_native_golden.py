"""What training makes of rows, pinned to the bit.

These values may change only together with a new version of the checkpoint format, and with a word in the
changelog: a job that goes on under another build would go on with other numbers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.native import _core

SEED = 20130101
PUSHES = 60
KEYS = 400
ROWS_PUSHED = 250


@dataclass(frozen=True)
class Golden:
    """An optimizer's parameters, the dtypes of its tables, and the SHA-256 of what training ends with."""

    parameters: dict[str, float]
    dtypes: tuple[str, ...]
    sha256: str


GOLDEN = {
    "SGD": Golden(
        {"learning_rate": 0.1},
        ("float32",),
        "4c6b137e076763cca22aadd1d25b0678a59f0398594abe0841bff9b3f210334d",
    ),
    "Adagrad": Golden(
        {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8},
        ("float32",),
        "748d57da749b67d2afcccc4bd2ccc601c2f184f942898f13be86d18ff36a1610",
    ),
    "Adam": Golden(
        {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        ("float32",),
        "1649e6a9cf971cf9f5c35c9be128de9f41d5c5122ff4303f19319265e2bec9ce",
    ),
    "Momentum": Golden(
        {"learning_rate": 0.05, "momentum": 0.9},
        ("float32",),
        "23bc9d728102ec2068e32debe5f37d309c246ccc17e2303e01ffaad5cdb9ac5f",
    ),
    "Nesterov": Golden(
        {"learning_rate": 0.05, "momentum": 0.9},
        ("float32",),
        "99f7ef96ab2726892dc20604fe167f888eea2b10222ff46136b5fe60a69dad08",
    ),
    "RowwiseAdagrad": Golden(
        {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8},
        ("float32",),
        "f7cca1d4d556a5d8c5631e7ca4902088947378f08638a715612acaaf55cd2a48",
    ),
    "DecayedAdagrad": Golden(
        {"learning_rate": 0.05, "rho": 0.99, "initial_accumulator": 0.1, "epsilon": 1e-8},
        ("float32",),
        "215ac41e7d0276f690f7b56677fbd6b2875534b9d95a0e1e767eadadda917e5a",
    ),
    "AdamW": Golden(
        {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01},
        ("float32",),
        "353eaa401d8866d143ebc1fae9af3f72275e4278f1b20376cd7543d76700e70f",
    ),
    "AMSGrad": Golden(
        {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        ("float32",),
        "af6a8e9bde77994e5ee9a40320a01eb6cc113d8614fb929b06a9437388bdb398",
    ),
    "PartialRowwiseAdam": Golden(
        {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        ("float32",),
        "9d2a9afb7b6135db577853afa221409e948793458e7c2ebafe02eccf322df340",
    ),
    "LAMB": Golden(
        {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01},
        ("float32",),
        "77afd4c2f0a46cede0baa64525c818ce7af9131d8d4bf342661e7ecb541c28e8",
    ),
    "RMSProp": Golden(
        {
            "learning_rate": 0.01,
            "rho": 0.99,
            "epsilon": 1e-8,
            "clip_value": 1.5,
            "clip_norm": 2.0,
            "weight_decay": 0.01,
        },
        ("float32",),
        "e37a71fd34e4cdda653092e11a79d542419e48c24e193243149ec19406c141e7",
    ),
    "AdaDelta": Golden(
        {
            "learning_rate": 1.0,
            "rho": 0.9,
            "epsilon": 1e-6,
            "schedule": 2.0,
            "schedule_steps": 40.0,
            "warmup_steps": 9.0,
        },
        ("float32",),
        "84e810068b373955134e4e5119cf7b96f8529a1445bc861aadc2d6b356d893e6",
    ),
    "FTRL": Golden(
        {
            "learning_rate": 0.1,
            "beta": 1.0,
            "l1": 0.1,
            "l2": 1.0,
            "initial_accumulator": 0.1,
            "weight_bound": 0.3,
        },
        ("float32",),
        "af7ff044da6cb2f1495f2bb22da75d685844209aaef3df02aa901cc6ceec26fd",
    ),
    "GroupFTRL": Golden(
        {"learning_rate": 0.1, "beta": 1.0, "l1": 0.1, "l2": 1.0, "l21": 0.1, "initial_accumulator": 0.1},
        ("float32",),
        "141b67352ef432366849b19307d8f05a3ca720a746f7239f3435fa465efd8c45",
    ),
    "TensorNetAdagrad": Golden(
        {"learning_rate": 0.05, "initial_accumulator": 0.0, "epsilon": 1e-8},
        ("float32",),
        "15538d1fc16d4e9621fab02b5f4a724142395df6b43d4a045e9b33b87270c560",
    ),
    "TensorNetAdam": Golden(
        {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        ("float32",),
        "34b94b934c4c7842ce850c0a7d5396753a99de45b0ee774f5edd33228b1eea04",
    ),
    "TensorNetFTRL": Golden(
        {"learning_rate": 10.0, "beta": 1.0, "l1": 0.1, "l2": 1.0},
        ("float32",),
        "e5a257bb9602d382080a1473a3aa42b8a27569fe2aaf9045da22302864e22a66",
    ),
    "PaddleAdagrad": Golden(
        {"learning_rate": 0.05, "initial_accumulator": 3.0},
        ("float32",),
        "9b3190f1e0b132bf73ce92e12ca76792d662f68c4eb64dd077ca6cc449072c04",
    ),
    "TensorFlowFTRL": Golden(
        {
            "learning_rate": 0.1,
            "initial_accumulator": 0.1,
            "l1": 0.1,
            "l2": 0.5,
            "l2_shrinkage": 0.01,
            "beta": 1.0,
        },
        ("float32",),
        "2eaa2ef66b890c86826c5bff23615809c7884f7a1d125be63d272f277aaec9f1",
    ),
    "Add": Golden(
        {},
        ("float32", "int64"),
        "ae407b57a858c6a42e089b88bf8bb6bf7b2ae43feed9ffe12ec77c179f2046d6",
    ),
}
# One element; a part of a vector; whole vectors; vectors and a rest.
DIMS = (1, 7, 16, 33)


@pytest.fixture(autouse=True)
def _back_to_the_best() -> Iterator[None]:
    """The set in use is the process's: put it back."""
    best = _core.instruction_set()
    yield
    _core.use_instruction_set(best)


def gradients(random: np.random.PCG64, dim: int, dtype: str) -> NDArray[Any]:
    """Pseudo-random gradients, made of the generator's integers alone: numpy's floats may change with its version."""
    raw = random.random_raw(ROWS_PUSHED * dim).reshape(ROWS_PUSHED, dim)
    if dtype == "int64":
        return raw.astype(np.int64)
    # Whole numbers of 24 bits times powers of two of many sizes: exact in float32, while their sums are rounded.
    mantissas = (raw >> np.uint64(40)).astype(np.int64) - 2**23
    powers = (raw & np.uint64(15)).astype(np.int32) - 30
    return np.ldexp(mantissas.astype(np.float32), powers)


def digest(optimizer: str) -> str:
    """SHA-256 of keys, rows and slots after a fixed sequence of pushes, over tables of several dims."""
    golden = GOLDEN[optimizer]
    random = np.random.PCG64(SEED)
    result = hashlib.sha256()
    for dtype, dim in itertools.product(golden.dtypes, DIMS):
        store = _core.Store()
        initializer = ("Normal", {"mean": 0.0, "stddev": 0.5}) if dtype == "float32" else ("Zeros", {})
        table = store.create_table(
            "golden", dim, dtype, optimizer, golden.parameters, *initializer, SEED, "Reject"
        )
        keys = random.random_raw(KEYS)
        for push in range(PUSHES):
            chosen = (random.random_raw(ROWS_PUSHED) % np.uint64(KEYS)).astype(np.int64)
            assert np.bincount(chosen).max() >= 3, f"seed {SEED}, push {push}: too few duplicates"
            store.push(table, keys[chosen], gradients(random, dim, dtype))
        rows = np.empty((KEYS, dim), dtype)
        store.pull(table, keys, rows, True)
        for part in (keys, rows, store.state(table, keys)):
            result.update(part.tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("instruction_set", _core.instruction_sets())
@pytest.mark.parametrize("optimizer", GOLDEN)
def test_training_gives_the_rows_that_were_written_down(optimizer: str, instruction_set: str) -> None:
    """Keys, rows and slots after 60 pushes with duplicates, on each instruction set: one literal for each optimizer."""
    _core.use_instruction_set(instruction_set)
    found = digest(optimizer)
    assert found == GOLDEN[optimizer].sha256, f"{optimizer} on {instruction_set}, seed {SEED}"
