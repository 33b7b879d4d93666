"""What callers may give as keys, gradients and rows, and what they are told otherwise."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.arrays import as_keys, as_out, as_rows, first_nonfinite
from tablebay.client.errors import BadRequest, BadType

FLOAT32 = np.dtype(np.float32)
INT64 = np.dtype(np.int64)


class DLPackProducer:
    """An array of another library: no numpy array, no buffer, only DLPack."""

    def __init__(self, values: np.ndarray[Any, Any], device: tuple[int, int] = (1, 0)) -> None:
        self._values = values
        self._device = device

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._values.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def named(value: Any) -> str:
    """A test's name for a value, the same in every process: never its address."""
    return value if isinstance(value, str) else f"{type(value).__name__} {np.shape(value)}"


def as_tensor(values: np.ndarray[Any, Any], **state: Any) -> Any:
    """A stand-in for a torch tensor: torch's class name, and the methods by which memory is shared."""

    def numpy(self: Any) -> np.ndarray[Any, Any]:
        if state.get("requires_grad"):
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
            )
        return values

    device = type(
        "Device", (), {"type": state.get("device", "cpu"), "__str__": lambda _: state.get("device", "cpu")}
    )
    members = {
        "__module__": "torch",
        "numpy": numpy,
        "device": device(),
        "dtype": f"torch.{values.dtype}",
        "is_contiguous": lambda _: values.flags.c_contiguous,
    }
    return type("Tensor", (), members)()


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3), (1, 1, 1, 4)])
@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_keys_of_any_shape_keep_it_and_share_memory(shape: tuple[int, ...], dtype: type[Any]) -> None:
    """numpy keys come as a flat uint64 view of the same memory, with their shape beside them."""
    keys = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    flat, found = as_keys(keys, "user")
    assert found == shape
    assert flat.dtype == np.uint64
    assert flat.shape == (keys.size,)
    assert keys.size == 0 or np.shares_memory(flat, keys)


def test_signed_and_unsigned_keys_map_one_to_one() -> None:
    """-1 is 2^64 - 1, and every 64-bit value is legal."""
    signed = np.array([0, -1, -(2**63), 2**63 - 1], np.int64)
    flat, _ = as_keys(signed, "user")
    assert flat.tolist() == [0, 2**64 - 1, 2**63, 2**63 - 1]
    assert as_keys([0, -1, -(2**63), 2**63 - 1], "user")[0].tolist() == flat.tolist()
    assert as_keys([2**64 - 1], "user")[0].tolist() == [2**64 - 1]


def test_keys_by_dlpack_share_memory() -> None:
    """An array of another library on the CPU is taken as it is."""
    keys = np.arange(6, dtype=np.int64).reshape(2, 3)
    flat, shape = as_keys(DLPackProducer(keys), "user")
    assert shape == (2, 3)
    assert np.shares_memory(flat, keys)


def test_keys_of_a_torch_tensor_share_memory() -> None:
    """A CPU tensor of int64 is taken as it is, without importing torch."""
    keys = np.arange(6, dtype=np.int64).reshape(2, 3)
    flat, shape = as_keys(as_tensor(keys), "user")
    assert shape == (2, 3)
    assert np.shares_memory(flat, keys)


@pytest.mark.parametrize("code", ["q", "Q", "l", "L"])
def test_keys_in_a_buffer_share_memory(code: str) -> None:
    """Buffers of signed and unsigned 64-bit integers are taken as they are, with the shape of a cast view."""
    keys = array.array(code, [1, 2, 3, 4, 5, 6])
    flat, shape = as_keys(keys, "user")
    assert shape == (6,)
    assert flat.tolist() == [1, 2, 3, 4, 5, 6]
    keys[0] = 9
    assert flat[0] == 9
    flat, shape = as_keys(memoryview(keys).cast("B").cast(code, (2, 3)), "user")
    assert shape == (2, 3)
    assert flat.tolist() == [9, 2, 3, 4, 5, 6]


def test_an_int_is_one_key() -> None:
    """A single int has the empty shape; so has a numpy scalar."""
    assert as_keys(7, "user")[1] == ()
    assert as_keys(7, "user")[0].tolist() == [7]
    assert as_keys(np.int64(-1), "user")[0].tolist() == [2**64 - 1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.zeros(3, np.float32), "found float32, wanted uint64 or int64"),
        (np.zeros(3, np.float64), "found float64"),
        (np.zeros(3, np.bool_), "found bool"),
        (np.zeros(3, np.int32), "found int32"),
        (np.zeros(3, np.uint8), "found uint8"),
        (np.array([1, None], object), "found object"),
        (np.array(["a"]), "found str"),
        (np.zeros(3, "datetime64[s]"), "found datetime64"),
        (np.arange(3, dtype=">i8"), "found int64 in big-endian byte order"),
        (np.zeros(3, [("a", "<i8")]), "wanted uint64 or int64"),
        (np.ma.masked_array(np.arange(3), [0, 1, 0]), "found a masked array"),
        ([1, 2.0], "found float at position 1 of a list, wanted ints"),
        ([True], "found bool at position 0 of a list"),
        ([[1], [2]], "found list at position 0 of a list"),
        (["1"], "found str at position 0"),
        (1.5, "found float, wanted"),
        (True, "found bool, wanted"),
        ("abc", "found str, wanted"),
        (None, "found NoneType, wanted"),
        ({1, 2}, "found set, wanted"),
        ((key for key in [1]), "found generator, wanted"),
        (b"12345678", "found a buffer of bytes"),
        (array.array("i", [1]), "found int32"),
        (array.array("d", [1]), "found float64"),
        (DLPackProducer(np.zeros(3, np.float32)), "found float32"),
        (DLPackProducer(np.arange(3), device=(2, 0)), r"DLPack device \(2, 0\), wanted one on the CPU"),
        (as_tensor(np.zeros(3, np.float32)), "found float32"),
        (as_tensor(np.arange(3), device="cuda:0"), "found a torch tensor on cuda:0, wanted one on the CPU"),
    ],
    ids=named,
)
def test_keys_of_another_type_are_refused(keys: Any, message: str) -> None:
    """BadType, which is a TypeError, names the table, what was found and what is wanted."""
    with pytest.raises(BadType, match=f"table 'user': keys.*{message}"):
        as_keys(keys, "user")
    with pytest.raises(TypeError):
        as_keys(keys, "user")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.arange(6, dtype=np.int64)[::2], r"not C-contiguous \(shape \(3,\), strides \(16,\)\)"),
        (np.arange(6, dtype=np.int64).reshape(2, 3).T, "not C-contiguous"),
        (memoryview(np.arange(6))[::2], "buffer that is not C-contiguous"),
        (as_tensor(np.arange(6)[::2]), "tensor that is not contiguous"),
        (np.frombuffer(bytes(9), np.int64, 1, 1), "does not lie at a multiple of 8 bytes"),
        ([2**64], "found 18446744073709551616 at position 0"),
        ([-(2**63) - 1], "wanted -2\\^63 to 2\\^64 - 1"),
    ],
    ids=["strided", "transposed", "buffer", "tensor", "unaligned", "too-high", "too-low"],
)
def test_keys_that_would_need_a_copy_are_refused(keys: Any, message: str) -> None:
    """BadRequest, which is a ValueError, rather than a silent copy."""
    with pytest.raises(BadRequest, match=message) as raised:
        as_keys(keys, "user")
    assert not isinstance(raised.value, BadType)


def test_gradients_share_memory_and_may_be_read_only() -> None:
    """An array of the table's dtype and the right shape is taken as it is."""
    gradients = np.ones((2, 3, 4), np.float32)
    gradients.flags.writeable = False
    assert as_rows(gradients, "user", "gradients", FLOAT32, (2, 3, 4)) is not None
    assert np.shares_memory(as_rows(gradients, "user", "gradients", FLOAT32, (2, 3, 4)), gradients)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (
            np.ones((3, 4)),
            "found float64, wanted float32; nothing is cast silently: use .astype\\('float32'\\)",
        ),
        (np.ones((3, 4), np.float16), "found float16, wanted float32; .*astype"),
        (np.ones((3, 4), np.int64), "found int64, wanted float32"),
        (np.ones((3, 4), ">f4"), "found float32 in big-endian byte order"),
        ([[1.0] * 4] * 3, "found list, wanted an array of float32"),
        (1.0, "found float"),
        (as_tensor(np.ones((3, 4), np.float32), requires_grad=True), "requires grad"),
    ],
    ids=named,
)
def test_gradients_of_another_type_are_refused(gradients: Any, message: str) -> None:
    """BadType with a hint where a cast would do."""
    with pytest.raises(BadType, match=f"table 'user': gradients.*{message}"):
        as_rows(gradients, "user", "gradients", FLOAT32, (3, 4))


@pytest.mark.parametrize("shape", [(4,), (3,), (4, 3), (3, 4, 1), (1, 3, 4), (2, 4), (0, 4)])
def test_gradients_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Nothing is broadcast."""
    with pytest.raises(BadRequest, match=r"gradients: found shape \(.*\), wanted \(3, 4\)"):
        as_rows(np.ones(shape, np.float32), "user", "gradients", FLOAT32, (3, 4))


def test_gradients_that_would_need_a_copy_are_refused() -> None:
    """Strided gradients are the caller's to copy."""
    with pytest.raises(BadRequest, match="not C-contiguous"):
        as_rows(np.ones((3, 8), np.float32)[:, ::2], "user", "gradients", FLOAT32, (3, 4))
    with pytest.raises(BadRequest, match="not C-contiguous"):
        as_rows(np.ones((4, 3), np.float32).T, "user", "gradients", FLOAT32, (3, 4))


def test_out_must_be_writable() -> None:
    """An array to be filled in place is checked as gradients are, and must be writable besides."""
    out = np.empty((3, 4), np.float32)
    assert np.shares_memory(as_out(out, "user", FLOAT32, (3, 4)), out)
    with pytest.raises(BadRequest, match=r"out: found shape \(3, 4\), wanted \(4, 4\)"):
        as_out(out, "user", FLOAT32, (4, 4))
    with pytest.raises(BadType, match="out: found float32, wanted int64"):
        as_out(out, "user", INT64, (3, 4))
    out.flags.writeable = False
    with pytest.raises(BadRequest, match="out: found an array that is read-only"):
        as_out(out, "user", FLOAT32, (3, 4))


class OldProducer(DLPackProducer):
    """As libraries before DLPack 1.0 did it, which cannot say that memory is read-only."""

    def __dlpack__(self, **arguments: Any) -> Any:
        if not arguments.keys() <= {"stream"}:
            raise TypeError(f"unexpected keyword arguments: {', '.join(arguments)}")
        return self._values.__dlpack__()


# Before, numpy had no word for read-only memory: it exported none, and took all that came as read-only.
says_read_only = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="DLPack 1.0 came to numpy with 2.1"
)


def read_only(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values.flags.writeable = False
    return values


@says_read_only
def test_read_only_keys_and_gradients_by_dlpack_share_memory() -> None:
    """Memory that its owner keeps from being written to is read where it lies."""
    keys = read_only(np.array([[1, -1, 3], [4, 5, 6]], np.int64))
    flat, shape = as_keys(DLPackProducer(keys), "user")
    assert shape == (2, 3)
    assert np.shares_memory(flat, keys) and not flat.flags.writeable
    assert flat.tolist() == [1, 2**64 - 1, 3, 4, 5, 6]
    gradients = read_only(np.ones((2, 3, 4), np.float32))
    rows = as_rows(DLPackProducer(gradients), "user", "gradients", FLOAT32, (2, 3, 4))
    assert np.shares_memory(rows, gradients) and not rows.flags.writeable


@says_read_only
@pytest.mark.parametrize("where", ["tb.Table", "tb.local"])
def test_a_table_takes_arrays_by_dlpack_read_only_or_not(where: str) -> None:
    """Pull, push, assign, and a pull into an array of another library, which is filled and returned itself."""
    spec: dict[str, Any] = {"dim": 4, "optimizer": tb.SGD(1.0), "initializer": tb.Constant(2.0)}
    with tb.local(servers=2) as client:
        table = tb.Table(**spec) if where == "tb.Table" else client.table("table", **spec)
        keys = DLPackProducer(read_only(np.arange(100, 106).reshape(2, 3)))
        assert (table.pull(keys) == 2).all()
        table.push(keys, DLPackProducer(read_only(np.full((2, 3, 4), 0.5, np.float32))))
        memory = np.zeros((2, 3, 4), np.float32)
        out = DLPackProducer(memory)
        assert table.pull(keys, out=out) is out
        assert (memory == 1.5).all()
        table.assign(keys, DLPackProducer(read_only(np.full((2, 3, 4), 7, np.float32))))
        kept = read_only(np.zeros((2, 3, 4), np.float32))
        with pytest.raises(BadRequest, match="table 'table': out: found an array that is read-only"):
            table.pull(keys, out=DLPackProducer(kept))
        assert not kept.any()
        assert (table.pull(keys, out=out) is out) and (memory == 7).all()


@says_read_only
def test_out_by_dlpack_is_filled_in_place() -> None:
    """The array is over the exporter's memory; dtype and shape are checked as an array's are."""
    memory = np.empty((3, 4), np.float32)
    out = as_out(DLPackProducer(memory), "user", FLOAT32, (3, 4))
    assert np.shares_memory(out, memory) and out.flags.writeable
    with pytest.raises(BadType, match="out: found float32, wanted int64"):
        as_out(DLPackProducer(memory), "user", INT64, (3, 4))
    with pytest.raises(BadRequest, match=r"out: found shape \(3, 4\), wanted \(4, 3\)"):
        as_out(DLPackProducer(memory), "user", FLOAT32, (4, 3))
    with pytest.raises(BadRequest, match="out: found an array that is not C-contiguous"):
        as_out(DLPackProducer(memory.T), "user", FLOAT32, (4, 3))


def test_an_exporter_that_cannot_say_read_only_is_read_and_never_written() -> None:
    """Of DLPack before 1.0: its keys are taken as they lie, and it is refused where it would be written to."""
    keys = np.arange(6, dtype=np.int64)
    assert np.shares_memory(as_keys(OldProducer(keys), "user")[0], keys)
    with pytest.raises(BadRequest, match="out: found an array that is read-only"):
        as_out(OldProducer(np.empty((3, 4), np.float32)), "user", FLOAT32, (3, 4))
    # numpy itself exports no read-only memory that way: what it says is passed on.
    with pytest.raises(BadType, match="keys: found .*OldProducer, wanted uint64 or int64: .*readonly"):
        as_keys(OldProducer(read_only(np.arange(6))), "user")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 1, 57, 99])
def test_the_first_row_that_is_not_finite_is_found(value: float, position: int) -> None:
    """NaN and both infinities, wherever they stand."""
    rows = np.ones((100, 3), np.float32)
    assert first_nonfinite(rows) is None
    rows[position, 1] = value
    rows[99, 2] = value
    assert first_nonfinite(rows) == position


def test_large_finite_rows_are_finite() -> None:
    """Rows whose sum overflows are not mistaken for infinite ones."""
    assert first_nonfinite(np.full((100, 3), np.finfo(np.float32).max, np.float32)) is None
    assert first_nonfinite(np.full((2, 3), np.float32(1e-45))) is None
