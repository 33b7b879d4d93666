"""Whatever instructions a CPU has, the same rows come out, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from optimizer_references import REFERENCES

from tablebay.native import _core


@pytest.fixture(autouse=True)
def _back_to_the_best() -> Iterator[None]:
    """The set in use is the process's: put it back."""
    best = _core.instruction_set()
    yield
    _core.use_instruction_set(best)


# Every kernel that stands beside a rule.
BESIDE = {
    "coupled": {"clip_value": 1.5, "clip_norm": 2.0, "weight_decay": 0.3, "weight_bound": 0.4},
    "decoupled": {"weight_decay": 0.3, "decoupled": 1.0},
}


def train(
    instruction_set: str, optimizer: str, initializer: str, dim: int, beside: dict[str, float] | None = None
) -> bytes:
    """Rows and state after a few hundred updates."""
    _core.use_instruction_set(instruction_set)
    random = np.random.default_rng(dim)
    store = _core.Store()
    parameters = {"mean": 0.1, "stddev": 0.5} if initializer == "Normal" else {"low": -0.3, "high": 0.7}
    rule = {**REFERENCES[optimizer].parameters, **(beside or {})}
    options = ("t", dim, "float32", optimizer, rule, initializer, parameters, 5, "Zero")
    table = store.create_table(*options)
    space = random.integers(0, 2**64, 500, dtype=np.uint64)
    for step in range(40):
        keys = random.choice(space, 300)
        gradients = random.standard_normal((300, dim)).astype(np.float32)
        gradients[step, 0] = np.nan if step % 3 == 0 else 1e-42
        store.push(table, keys, gradients)
    out = np.empty((len(space), dim), np.float32)
    store.pull(table, space, out, True)
    return out.tobytes() + store.state(table, space).tobytes()


@pytest.mark.parametrize("dim", [1, 7, 8, 16, 31, 64, 130])
@pytest.mark.parametrize("initializer", ["Normal", "Uniform"])
@pytest.mark.parametrize("optimizer", REFERENCES)
def test_every_instruction_set_gives_the_same_bits(optimizer: str, initializer: str, dim: int) -> None:
    """Training on each set that this CPU can run ends with identical rows and optimizer state."""
    sets = _core.instruction_sets()
    results = {name: train(name, optimizer, initializer, dim) for name in sets}
    assert sets[0] == "baseline"
    assert all(result == results["baseline"] for result in results.values()), f"{sets}, seed {dim}"


@pytest.mark.parametrize("dim", [1, 8, 31, 64, 130])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_stands_beside_a_rule_is_the_same_bits_too(beside: str, dim: int) -> None:
    """Clipping, both kinds of decay and bounds, on each set that this CPU can run."""
    results = {
        name: train(name, "Adagrad", "Normal", dim, BESIDE[beside]) for name in _core.instruction_sets()
    }
    assert len(set(results.values())) == 1, f"{list(results)}, seed {dim}"


def test_the_best_instruction_set_is_in_use() -> None:
    """Unless told otherwise, the last of the usable sets."""
    _core.use_instruction_set(_core.instruction_sets()[-1])
    assert _core.instruction_set() == _core.instruction_sets()[-1]


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    """The error names those that are."""
    with pytest.raises(_core.StatusError, match="wanted one of baseline"):
        _core.use_instruction_set("avx9000")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 4096, 12_287, 12_288, 12_289, 40_000])
def test_both_ways_of_a_checksum_agree(size: int) -> None:
    """The CPU's instruction, in three streams, and the portable tables give the same CRC-32C, in pieces too."""
    data = np.random.default_rng(size).bytes(size)
    cut = size // 3
    assert _core.crc32c(data) == _core.crc32c_portable(data), f"seed {size}"
    assert _core.crc32c(data[cut:], _core.crc32c(data[:cut])) == _core.crc32c(data), f"seed {size}"


def test_the_checksum_is_crc32c() -> None:
    """The published check value, and RFC 3720's vector of 32 zeros."""
    assert _core.crc32c(b"123456789") == 0xE3069283
    assert _core.crc32c(bytes(32)) == 0x8A9136AA
