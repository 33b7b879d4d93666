"""Tables that keep weights in two bytes: float32 in calls, rounded by chance from (key, step) where they are kept."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optimizer_references import REFERENCES

import tablebay as tb
from tablebay.client.int8 import to_int8
from tablebay.client.tables import dump_tables, load_tables
from tablebay.native import _core
from tests.unit.checkpoint_blocks import parse, whole

DTYPES = ["bfloat16", "float16"]
ALL_SHARDS = list(range(1024))
Floats = NDArray[np.float32]


def make(
    dtype: str, optimizer: str, dim: int, store: Any = None, non_finite: str = "Reject"
) -> tuple[Any, int]:
    """A store, or loader, with one table that begins with small numbers."""
    store = store or _core.Store()
    parameters = REFERENCES[optimizer].parameters
    initial = ("Normal", {"mean": 0.0, "stddev": 0.1})
    return store, store.create_table("t", dim, dtype, optimizer, parameters, *initial, 3, non_finite)


def pulled(store: Any, table: int, keys: Any, dim: int) -> Floats:
    """Weights, with no row made."""
    out = np.empty((len(keys), dim), np.float32)
    store.pull(table, keys, out, False)
    return out


def nearest(values: Floats, dtype: str) -> Floats:
    """Rounded to two bytes and back, ties to even, as the format's definition has it."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def neighbours(values: Floats, dtype: str) -> tuple[Floats, Floats]:
    """The numbers of two bytes just below and above, equal where a value is one itself; by size."""
    if dtype == "bfloat16":
        low = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        up = (low.view(np.uint32) + np.uint32(0x10000)).view(np.float32)
    else:
        half = values.astype(np.float16)
        over = np.abs(half.astype(np.float32)) > np.abs(values)
        half = np.where(over, np.nextafter(half, np.float16(0)), half)
        low = half.astype(np.float32)
        away = np.copysign(np.float16(np.inf), values).astype(np.float16)
        up = np.nextafter(half, away).astype(np.float32)
    return low, np.where(low == values, low, up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_and_assigned_rows_are_rounded_to_the_nearest(dtype: str) -> None:
    """Ties to even, of numbers of all sizes; first rows are float32's own, rounded; a pull gives what is kept."""
    random = np.random.default_rng(1)
    values = (random.standard_normal((2000, 7)) * 10.0 ** random.integers(-9, 4, (2000, 1))).astype(
        np.float32
    )
    ties = np.array(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, -0.0], np.float32
    )
    values[0] = ties
    store, table = make(dtype, "SGD", 7)
    keys = np.arange(2000, dtype=np.uint64)
    first = np.empty((2000, 7), np.float32)
    store.pull(table, keys, first, True)
    plain, other = make("float32", "SGD", 7)
    plain.pull(other, keys, before := np.empty((2000, 7), np.float32), True)
    assert first.tobytes() == nearest(before, dtype).tobytes()
    store.assign(table, keys, values)
    assert pulled(store, table, keys, 7).tobytes() == nearest(values, dtype).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_finite_weight_stays_finite(dtype: str) -> None:
    """The largest number is the end; infinities and NaN, where a table allows them, stay what they are."""
    store, table = make(dtype, "Add", 4, non_finite="Allow")
    largest = 65504.0 if dtype == "float16" else float(np.uint32(0x7F7F0000).view(np.float32))
    key = np.array([1], np.uint64)
    store.assign(table, key, np.array([[3.4e38, -3.4e38, np.inf, np.nan]], np.float32))
    row = pulled(store, table, key, 4)[0]
    assert row[:3].tolist() == [largest, -largest, np.inf]
    assert np.isnan(row[3])
    store.push(table, key, np.array([[1e30, -1e30, 1, 1]], np.float32))
    row = pulled(store, table, key, 4)[0]
    assert row[:3].tolist() == [largest, -largest, np.inf]
    assert np.isnan(row[3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REFERENCES)
def test_an_update_is_float32s_rounded_up_or_down(name: str, dtype: str) -> None:
    """From the same weights: slots as a float32 table has them, bit for bit, each weight one of its two neighbours."""
    keys, dim = np.arange(300, dtype=np.uint64), 9
    (store, table), (plain, other) = make(dtype, name, dim), make("float32", name, dim)
    store.pull(table, keys, start := np.empty((300, dim), np.float32), True)
    plain.assign(other, keys, start)
    gradients = np.random.default_rng(5).standard_normal((300, dim)).astype(np.float32)
    store.push(table, keys, gradients)
    plain.push(other, keys, gradients)
    slots = plain.table_info(other)["state_bytes"] - 4 * ("step" in plain.table_info(other)["state_names"])
    assert store.state(table, keys)[:, :slots].tobytes() == plain.state(other, keys)[:, :slots].tobytes()
    wanted, found = pulled(plain, other, keys, dim), pulled(store, table, keys, dim)
    low, up = neighbours(wanted, dtype)
    assert ((found == low) | (found == up)).all()
    rounded = low != wanted
    if rounded.sum() > 1000:
        assert 0.3 < (found == up)[rounded].mean() < 0.7
    steps = np.ascontiguousarray(store.state(table, keys)[:, -4:]).view(np.uint32)
    assert (steps == 1).all()


@pytest.mark.parametrize("start", [1.0, -1.0, 1e-3, 3e-6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_has_no_bias(dtype: str, start: float) -> None:
    """20,000 rows after 40 updates of a sixteenth of what two bytes can tell: their mean is float32's within 5 sigma.

    Rounding to the nearest would leave every one of them where it began. 3e-6 is no normal number of float16.
    """
    count, pushes = 20_000, 40
    begin = nearest(np.array([start], np.float32), dtype)
    low, up = neighbours(np.nextafter(begin, np.float32(np.copysign(np.inf, start))), dtype)
    unit = float(up[0]) - float(low[0])
    store, table = make(dtype, "Add", 1)
    keys = np.arange(count, dtype=np.uint64)
    store.assign(table, keys, np.full((count, 1), begin[0]))
    for _ in range(pushes):
        store.push(table, keys, np.full((count, 1), unit / 16, np.float32))
    found = pulled(store, table, keys, 1).astype(np.float64)[:, 0]
    wanted = float(begin[0]) + pushes / 16 * unit
    sigma = abs(unit) * np.sqrt(pushes / 16 * 15 / 16 / count)
    assert abs(found.mean() - wanted) < 5 * sigma, (found.mean(), wanted, sigma)
    assert len(np.unique(found)) > 3
    store.push(table, keys, np.zeros((count, 1), np.float32))
    assert pulled(store, table, keys, 1).astype(np.float64)[:, 0].tolist() == found.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_loaded_table_goes_on_as_if_never_interrupted(name: str, dtype: str) -> None:
    """The step that rounds is the row's: bit for bit what one store does alone."""
    seed, dim = 11, 5
    random = np.random.default_rng(seed)
    batches = [
        (random.integers(0, 300, 40).astype(np.uint64), random.standard_normal((40, dim)).astype(np.float32))
        for _ in range(60)
    ]
    (whole_run, table), (first, _) = make(dtype, name, dim), make(dtype, name, dim)
    for keys, gradients in batches:
        whole_run.push(table, keys, gradients)
    for keys, gradients in batches[:30]:
        first.push(table, keys, gradients)
    cut = first.take([], 0.0, True)
    content = whole(cut, table)
    frozen = _core.FrozenRows(dict(cut.tables)[table], dtype)
    frozen.add(content, 0)
    everyone = np.arange(300, dtype=np.uint64)
    frozen.read(everyone, out := np.empty((300, dim), np.float32))
    assert out.tobytes() == pulled(first, table, everyone, dim).tobytes()
    second = _core.Store(epoch=2)
    loader, _ = make(dtype, name, dim, second.load(ALL_SHARDS))
    loader.begin(table, None, False).feed(content)
    loader.finish()
    for keys, gradients in batches[30:]:
        second.push(table, keys, gradients)
    rows = [pulled(store, table, everyone, dim).tobytes() for store in (whole_run, second)]
    assert rows[0] == rows[1], f"seed {seed}"
    assert whole_run.state(table, everyone).tobytes() == second.state(table, everyone).tobytes()


# SHA-256 of rows and state after what `digest` does.
GOLDEN = {
    "bfloat16": "630af26858488e41763a6003066992396a37929e1eaf777391db22edef602467",
    "float16": "62567032c16f876f984f53d43b54accb9d5d3b4c4b72088363d6efaa037ae786",
}


def digest(dtype: str) -> str:
    """Of several dims, with what stands beside a rule."""
    result = hashlib.sha256()
    for dim in (1, 7, 16, 33):
        random = np.random.PCG64(dim)
        store = _core.Store()
        parameters = {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8, "clip_norm": 3.0}
        initial = ("Normal", {"mean": 0.0, "stddev": 0.5})
        table = store.create_table("golden", dim, dtype, "Adagrad", parameters, *initial, 7, "Reject")
        keys = random.random_raw(200)
        for _ in range(30):
            chosen = keys[(random.random_raw(120) % np.uint64(200)).astype(np.int64)]
            raw = (random.random_raw(120 * dim) >> np.uint64(40)).astype(np.int64) - 2**23
            store.push(table, chosen, (raw.astype(np.float32) * np.float32(2.0**-23)).reshape(120, dim))
        store.pull(table, keys, rows := np.empty((200, dim), np.float32), True)
        result.update(rows.tobytes() + store.state(table, keys).tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_gives_the_rows_that_were_written_down(dtype: str) -> None:
    """On every set of instructions; these may change only with the checkpoint format."""
    best = _core.instruction_set()
    try:
        for name in _core.instruction_sets():
            _core.use_instruction_set(name)
            assert digest(dtype) == GOLDEN[dtype], name
    finally:
        _core.use_instruction_set(best)


def test_a_row_lies_in_a_file_as_the_format_says() -> None:
    """key, version, step, three weights of two bytes, nothing, an accumulator of float32 for each."""
    for dtype, weights in (("bfloat16", (0x3F80, 0xC000, 0x3E00)), ("float16", (0x3C00, 0xC000, 0x3000))):
        store = _core.Store()
        parameters = {"learning_rate": 0.5, "initial_accumulator": 0.25, "epsilon": 1e-8}
        table = store.create_table("t", 3, dtype, "Adagrad", parameters, "Zeros", {}, 0, "Reject")
        store.assign(table, np.array([7], np.uint64), np.array([[1, -2, 0.125]], np.float32))
        cut = store.take([], 0.0, True)
        assert dict(cut.tables)[table] == (40, 12, 16, 6, 24, 12)
        rows = parse(whole(cut, table), 40).rows
        assert rows == [struct.pack("<QIIHHHH3fI", 7, 1, 0, *weights, 0, 0.25, 0.25, 0.25, 0)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_servers_has_the_same_rows(dtype: Any) -> None:
    """Calls are float32 on the wire; repeats, deletions, scans and admission as ever; a table in this process too."""
    spec: dict[str, Any] = {"dim": 3, "dtype": dtype, "optimizer": tb.FTRL(0.3, l1=0.01), "admit_at": 2}
    alone = tb.Table(name="users", **spec)
    keys = np.arange(100, dtype=np.uint64)
    random = np.random.default_rng(2)
    with tb.local(servers=1) as one, tb.local(servers=3) as three:
        tables = [alone, one.table("users", **spec), three.table("users", **spec)]
        for _ in range(20):
            some = random.integers(0, 100, 50).astype(np.uint64)
            gradients = random.standard_normal((50, 3)).astype(np.float32)
            for table in tables:
                assert table.dtype == np.float32
                table.push(some, gradients)
        for table in tables:
            table.delete(keys[:5])
        rows = [table.pull(keys).tobytes() for table in tables]
        assert rows[0] == rows[1] == rows[2]
        assert (nearest(alone.pull(keys), dtype) == alone.pull(keys)).all()
        scans = [
            {int(k): row.tobytes() for ks, rs in table.items() for k, row in zip(ks, rs, strict=True)}
            for table in tables
        ]
        assert scans[0] == scans[1] == scans[2]
        assert set(alone.optimizer_state(keys)) == {"z", "n", "step"}


def test_two_bytes_are_saved_and_said() -> None:
    """A row of 16 weights without slots takes 48 bytes rather than 80; specs say it; what cannot be is refused."""
    layouts = {}
    for dtype in ("float32", "bfloat16"):
        store = _core.Store()
        table = store.create_table("t", 16, dtype, "SGD", {"learning_rate": 0.1}, "Zeros", {}, 0, "Reject")
        layouts[dtype] = dict(store.take([], 0.0, True).tables)[table][0]
        assert store.table_info(table)["row_bytes"] == 64
    assert layouts == {"float32": 80, "bfloat16": 48}
    spec = tb.TableSpec("t", 4, "bfloat16", tb.Adam())
    assert tb.TableSpec.from_message(spec.message()) == spec
    assert load_tables(dump_tables([spec])) == [spec]
    with pytest.raises(tb.BadRequest, match="dtype is 'int8'"):
        tb.TableSpec("t", 4, "int8")  # type: ignore[arg-type]
    with pytest.raises(
        _core.StatusError, match="dtype is 'int8', wanted .*: rows are exported as int8, and not"
    ):
        make("int8", "SGD", 2)


def test_int8_is_within_half_a_scale() -> None:
    """Each weight is its int8 times its row's scale; zeros and rows that hold no number included."""
    random = np.random.default_rng(4)
    rows = (random.standard_normal((500, 16)) * 10.0 ** random.integers(-30, 30, (500, 1))).astype(np.float32)
    rows[0] = 0
    numbers, scales = to_int8(rows)
    assert (numbers.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (500,))
    assert np.abs(numbers).max() == 127
    back = numbers.astype(np.float64) * scales[:, None]
    assert (np.abs(back - rows) <= 0.5001 * scales[:, None].astype(np.float64)).all()
    assert not numbers[0].any()
    assert scales[0] == 0
    numbers, scales = to_int8(np.array([[1, np.nan], [np.inf, 1]], np.float32))
    assert np.isnan(scales).all()
    assert not numbers.any()
