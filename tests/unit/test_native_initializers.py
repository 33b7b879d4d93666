"""First rows: the same on every machine, of the distribution they are named after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

import tablebay as tb
from tablebay.client.tables import INITIALIZERS
from tablebay.native import _core

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def rows(
    initializer: str, parameters: dict[str, float], keys: Any, dim: int, seed: int = 0, name: str = "t"
) -> NDArray[np.float32]:
    """What a new table gives the keys."""
    store = _core.Store()
    table = store.create_table(name, dim, "float32", "Add", {}, initializer, parameters, seed, "Reject")
    out = np.empty((len(keys), dim), np.float32)
    store.pull(table, np.asarray(keys, np.uint64), out, True)
    return out


def mix(h: int) -> int:
    """The finaliser of MurmurHash3."""
    h ^= h >> 33
    h = h * 0xFF51AFD7ED558CCD & MASK
    h ^= h >> 33
    h = h * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


def column_hash(name: str, seed: int, key: int, column: int) -> int:
    """What (seed, table, key, column) hash to, as docs/decisions says."""
    table = mix(seed + GOLDEN * (_core.table_id(name) + 1) & MASK)
    return mix(mix(key ^ table) + (column + 1) * GOLDEN & MASK)


def test_zeros_and_constant_are_what_they_say() -> None:
    """Every element is 0, or the value."""
    assert not rows("Zeros", {}, range(5), 3).any()
    assert (rows("Constant", {"value": 2.5}, range(5), 3) == 2.5).all()


def test_uniform_rows_are_the_top_bits_of_the_hash() -> None:
    """low + (high - low) * (hash >> 40) / 2^24, element by element, for edge keys too."""
    keys = [0, 1, 77, 2**63, MASK]
    found = rows("Uniform", {"low": -1.0, "high": 3.0}, keys, 4, seed=9, name="user")
    units = [[(column_hash("user", 9, key, column) >> 40) / 2**24 for column in range(4)] for key in keys]
    assert np.array_equal(found, np.float32(-1.0) + np.float32(4.0) * np.array(units, np.float32))


def test_normal_rows_are_the_inverse_error_function_of_the_hash() -> None:
    """mean + stddev sqrt(2) erfinv(x), against SciPy's erfinv, to 4e-6 of a standard deviation."""
    keys = list(range(2000))
    found = rows("Normal", {"mean": 0.5, "stddev": 2.0}, keys, 3, seed=1)
    x = np.array([[(2 * (column_hash("t", 1, k, c) >> 41) + 1) / 2**23 - 1 for c in range(3)] for k in keys])
    expected = 0.5 + 2.0 * np.sqrt(2) * special.erfinv(x)
    np.testing.assert_allclose(found, expected, atol=8e-6)


@pytest.mark.parametrize(
    ("initializer", "parameters", "distribution"),
    [
        ("Normal", {"mean": 0.0, "stddev": 1.0}, stats.norm()),
        ("Uniform", {"low": -2.0, "high": 2.0}, stats.uniform(-2, 4)),
    ],
)
def test_rows_have_the_distribution_of_their_name(
    initializer: str, parameters: dict[str, float], distribution: Any
) -> None:
    """200,000 elements pass a Kolmogorov-Smirnov test; columns and neighbouring keys are uncorrelated."""
    found = rows(initializer, parameters, range(20_000), 10).astype(np.float64)
    assert stats.kstest(found.ravel(), distribution.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 0.03


def test_truncated_normal_rows_follow_the_inverse_of_the_distribution() -> None:
    """mean + stddev sqrt(2) erfinv(x erf(sqrt(2))), against SciPy, and never beyond two standard deviations."""
    keys = list(range(20_000))
    found = rows("TruncatedNormal", {"mean": 0.5, "stddev": 2.0}, keys, 10, seed=1).astype(np.float64)
    x = np.array(
        [[(2 * (column_hash("t", 1, k, c) >> 41) + 1) / 2**23 - 1 for c in range(2)] for k in keys[:2000]]
    )
    expected = 0.5 + 2.0 * np.sqrt(2) * special.erfinv(x * special.erf(np.sqrt(2)))
    np.testing.assert_allclose(found[:2000, :2], expected, atol=8e-6)
    assert found.min() >= -3.5
    assert found.max() <= 4.5
    assert stats.kstest(found.ravel(), stats.truncnorm(-2, 2, loc=0.5, scale=2.0).cdf).pvalue > 1e-3


def test_xavier_rows_are_uniform_within_the_papers_limit() -> None:
    """Bit for bit the uniform ones of +-sqrt(6 / (fan_in + dim)); fan_in is dim unless given."""
    for dim, parameters in ((10, {}), (4, {"fan_in": 20.0})):
        limit = float(np.float32(np.sqrt(6.0 / (parameters.get("fan_in", dim) + dim))))
        found = rows("Xavier", parameters, range(500), dim, seed=2)
        assert np.array_equal(found, rows("Uniform", {"low": -limit, "high": limit}, range(500), dim, seed=2))


@pytest.mark.parametrize(
    ("initializer", "parameters", "message"),
    [
        ("TruncatedNormal", {"mean": 0.0, "stddev": -1.0}, "stddev is -1, wanted 0 to"),
        ("TruncatedNormal", {"stddev": 1.0}, "needs parameter 'mean'"),
        ("Xavier", {"fan_in": 0.0}, "fan_in is 0, wanted a whole number from 1"),
        ("Xavier", {"fan_in": 2.5}, "fan_in is 2.5, wanted a whole number from 1"),
        ("Xavier", {"gain": 1.0}, "Xavier has no parameter 'gain'"),
        (
            "Glorot",
            {},
            "'Glorot' does not exist; wanted one of Zeros, Constant, Uniform, Normal, TruncatedNormal",
        ),
    ],
)
def test_a_wrong_initializer_is_refused_by_name(
    initializer: str, parameters: dict[str, float], message: str
) -> None:
    """With the value found and the value wanted."""
    with pytest.raises(_core.StatusError, match=message):
        rows(initializer, parameters, [1], 2)


def test_the_core_and_the_sdk_know_the_same_initializers() -> None:
    """By name; what the SDK gives the core makes a table, and comes back from the wire."""
    with pytest.raises(_core.StatusError) as caught:
        rows("none of them", {}, [1], 1)
    assert caught.value.args[1].split("wanted one of ")[1].split(", ") == list(INITIALIZERS)
    for made in (tb.Constant(1.0), tb.TruncatedNormal(0.1, 1.0), tb.Xavier(), tb.Xavier(fan_in=7)):
        spec = tb.TableSpec("t", 3, initializer=made)
        assert tb.TableSpec.from_message(spec.message()) == spec
        rows(made.type, made.parameters(), [1], 3)
    with pytest.raises(tb.BadRequest, match="fan_in is 0: "):
        tb.Xavier(fan_in=0)


def test_seed_table_and_key_each_change_the_row() -> None:
    """The row depends on all three, and on nothing else: not on when or with what it was pulled."""
    base = rows("Normal", {"mean": 0.0, "stddev": 1.0}, [5], 8)
    assert not np.array_equal(base, rows("Normal", {"mean": 0.0, "stddev": 1.0}, [5], 8, seed=1))
    assert not np.array_equal(base, rows("Normal", {"mean": 0.0, "stddev": 1.0}, [5], 8, name="u"))
    assert not np.array_equal(base, rows("Normal", {"mean": 0.0, "stddev": 1.0}, [6], 8))
    assert np.array_equal(base[0], rows("Normal", {"mean": 0.0, "stddev": 1.0}, [9, 5, 7], 8)[1])


def test_first_rows_are_the_golden_ones() -> None:
    """Bit for bit what the first version gave: a checkpoint's lost rows are made anew from these."""
    found = rows("Normal", {"mean": 0.0, "stddev": 1.0}, [0, 42, MASK], 2, seed=3)
    assert [format(bits, "08x") for bits in found.view(np.uint32).ravel()] == GOLDEN_NORMAL


def test_first_truncated_rows_are_the_golden_ones() -> None:
    """Bit for bit what the first version gave, on every instruction set."""
    best = _core.instruction_set()
    for name in _core.instruction_sets():
        _core.use_instruction_set(name)
        found = rows("TruncatedNormal", {"mean": 0.0, "stddev": 1.0}, [0, 42, MASK], 2, seed=3)
        _core.use_instruction_set(best)
        assert [format(bits, "08x") for bits in found.view(np.uint32).ravel()] == GOLDEN_TRUNCATED, name


GOLDEN_TRUNCATED = ["3f4fa40b", "3fb4e7d0", "3f5bef4b", "bf2d1938", "bead0769", "3e04ab99"]
GOLDEN_NORMAL = ["3f5c4754", "3fc86b3a", "3f69be89", "bf36db80", "beb59f86", "3e0b085f"]
