"""What callers give as keys, gradients and rows, taken as numpy views of the same memory.

Nothing is copied, cast or reinterpreted: what does not have the wanted dtype and layout is refused with what
was found and what is wanted. The one conversion is of a flat list or tuple of Python ints, which has no
memory to share.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tablebay.client.errors import BadRequest, BadType
from tablebay.native import _core

Keys = NDArray[np.uint64]
Rows = NDArray[Any]
Shape = tuple[int, ...]

KEYS_WANTED = "uint64 or int64"

_KEY_DTYPES = (np.dtype(np.uint64), np.dtype(np.int64))
_DLPACK_CPU = 1
_KEYS_END = 2**64


def as_keys(keys: Any, table: str) -> tuple[Keys, Shape]:
    """Keys as uint64 (n,) over the caller's memory, and the shape they had.

    keys: numpy uint64 or int64 of any shape, a torch CPU tensor of int64, anything on the CPU that speaks
        DLPack, a buffer of format q or Q, an int, or a flat list or tuple of ints (copied). Negative keys map
        to 2^64 - |key|.
    Raises BadType for any other type or dtype, BadRequest for a layout that would need a copy.
    """
    if type(keys) is np.ndarray and keys.dtype in _KEY_DTYPES and _lies_well(keys):
        return keys.view(np.uint64).reshape(-1), keys.shape
    what = f"table '{table}': keys"
    if isinstance(keys, list | tuple):
        return _keys_of_ints(keys, what), (len(keys),)
    if type(keys) is int:
        return _keys_of_ints((keys,), what), ()
    array = _view(keys, what, KEYS_WANTED)
    if array.dtype not in _KEY_DTYPES:
        raise BadType(f"{what}: found {_name(array.dtype)}, wanted {KEYS_WANTED}")
    _require_layout(array, what)
    return array.view(np.uint64).reshape(-1), array.shape


def as_rows(rows: Any, table: str, what: str, dtype: np.dtype[Any], shape: Shape) -> Rows:
    """Gradients or weights of exactly `dtype` and `shape`, over the caller's memory; may be read-only.

    what: "gradients" or "rows", for messages.
    """
    if type(rows) is np.ndarray and rows.dtype == dtype and rows.shape == shape and _lies_well(rows):
        return rows
    what = f"table '{table}': {what}"
    array = _view(rows, what, _name(dtype))
    _require_dtype(array, what, dtype)
    _require_shape(array, what, shape)
    _require_layout(array, what)
    return array


def as_out(out: Any, table: str, dtype: np.dtype[Any], shape: Shape) -> Rows:
    """The array that a pull fills in place: exactly `dtype` and `shape`, writable."""
    what = f"table '{table}': out"
    array = _view(out, what, _name(dtype))
    _require_dtype(array, what, dtype)
    _require_shape(array, what, shape)
    _require_layout(array, what)
    if not array.flags.writeable:
        raise BadRequest(
            f"{what}: found an array that is read-only, or does not say that it is not; wanted a writable one"
        )
    return array


def first_nonfinite(rows: Rows) -> int | None:
    """Index of the first row of float32 (n, dim) that has a NaN or an infinity."""
    found: int | None = _core.first_nonfinite(rows)
    return found


def _keys_of_ints(keys: Sequence[Any], what: str) -> Keys:
    for position, key in enumerate(keys):
        if type(key) is not int:
            raise BadType(
                f"{what}: found {_type_name(key)} at position {position} of a {type(keys).__name__}, "
                f"wanted ints, or an array of {KEYS_WANTED}"
            )
        if not -(2**63) <= key < _KEYS_END:
            raise BadRequest(f"{what}: found {key} at position {position}, wanted -2^63 to 2^64 - 1")
    return np.array([key % _KEYS_END for key in keys], np.uint64)


def _view(value: Any, what: str, wanted: str) -> Rows:
    """`value` as a numpy array over its own memory, whatever its dtype."""
    if isinstance(value, np.ma.MaskedArray):
        raise BadType(f"{what}: found a masked array, whose mask would be lost; wanted an array of {wanted}")
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    if isinstance(value, np.generic):
        return np.asarray(value)
    if _is_torch(value):
        return _torch_view(value, what, wanted)
    if hasattr(value, "__dlpack__"):
        return _dlpack_view(value, what, wanted)
    try:
        memory = memoryview(value)
    except TypeError:
        raise BadType(f"{what}: found {_type_name(value)}, wanted an array of {wanted}") from None
    return _buffer_view(memory, what, wanted)


def _is_torch(value: Any) -> bool:
    return any(cls.__module__ == "torch" and cls.__name__ == "Tensor" for cls in type(value).__mro__)


def _torch_view(value: Any, what: str, wanted: str) -> Rows:
    # torch's own bridge: it shares memory, and unlike DLPack it says whether the tensor may be written to.
    if value.device.type != "cpu":
        raise BadType(f"{what}: found a torch tensor on {value.device}, wanted one on the CPU; use .cpu()")
    if not value.is_contiguous():
        raise BadRequest(f"{what}: found a torch tensor that is not contiguous; use .contiguous()")
    try:
        return cast(Rows, value.numpy())
    except (RuntimeError, TypeError) as error:
        raise BadType(f"{what}: found a torch tensor of {value.dtype}, wanted {wanted}: {error}") from None


def _dlpack_view(value: Any, what: str, wanted: str) -> Rows:
    try:
        device = tuple(value.__dlpack_device__())
        if int(device[0]) != _DLPACK_CPU:
            raise BadType(
                f"{what}: found {_type_name(value)} on DLPack device {device}, wanted one on the CPU"
            )
        return cast(Rows, np.from_dlpack(value))
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, BadType):
            raise
        raise BadType(f"{what}: found {_type_name(value)}, wanted {wanted}: {error}") from None


def _buffer_view(memory: memoryview, what: str, wanted: str) -> Rows:
    if memory.format in ("B", "b", "c"):
        # bytes have no element type: to take them as keys would be to reinterpret them.
        raise BadType(f"{what}: found a buffer of bytes, wanted a buffer of {wanted}; use memoryview.cast")
    if not memory.c_contiguous:
        raise BadRequest(f"{what}: found a buffer that is not C-contiguous; use numpy.ascontiguousarray")
    try:
        return np.asarray(memory)
    except (ValueError, RuntimeError, TypeError):
        raise BadType(f"{what}: found a buffer of format '{memory.format}', wanted {wanted}") from None


def _require_dtype(array: Rows, what: str, dtype: np.dtype[Any]) -> None:
    if array.dtype == dtype:
        return
    hint = ""
    if array.dtype.kind in "fiu" and array.dtype.isnative:
        hint = f"; nothing is cast silently: use .astype({dtype.name!r})"
    raise BadType(f"{what}: found {_name(array.dtype)}, wanted {_name(dtype)}{hint}")


def _require_shape(array: Rows, what: str, shape: Shape) -> None:
    if array.shape != shape:
        raise BadRequest(f"{what}: found shape {array.shape}, wanted {shape}")


def _lies_well(array: Rows) -> bool:
    return array.flags.c_contiguous and array.flags.aligned


def _require_layout(array: Rows, what: str) -> None:
    if not array.flags.c_contiguous:
        raise BadRequest(
            f"{what}: found an array that is not C-contiguous (shape {array.shape}, "
            f"strides {array.strides}), and nothing is copied silently; use numpy.ascontiguousarray"
        )
    if not array.flags.aligned:
        raise BadRequest(
            f"{what}: found an array that does not lie at a multiple of {array.itemsize} bytes; use .copy()"
        )


def _name(dtype: np.dtype[Any]) -> str:
    if dtype.isnative:
        return dtype.name
    order = "big" if sys.byteorder == "little" else "little"
    return f"{dtype.name} in {order}-endian byte order"


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
