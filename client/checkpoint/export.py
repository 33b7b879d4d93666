"""A table of a checkpoint as a file for other programs: .npz, .tsv or .parquet."""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.manifest import Manifest, TableEntry
from tablebay.client.checkpoint.reading import Rows, dtype_of, table_rows
from tablebay.client.checkpoint.storage import StorageError
from tablebay.client.errors import BadRequest, TablebayError
from tablebay.client.int8 import to_int8


def export(source: Destination, manifest: Manifest, name: str, target: Path, *, int8: bool = False) -> int:
    """Write a table's keys and weights; how many rows. The suffix of `target` says how; it must not be there yet.

    int8: weights as int8, and a scale for each row (client/int8.py); .npz alone.

    The file appears when it is whole. Memory: a few MiB, and 8 bytes for each row that is in several links; for
    .npz 8 bytes for each row. Raises BadRequest, CheckpointInvalid, StorageError.
    """
    write = _WRITERS.get(target.suffix)
    if write is None:
        raise BadRequest(f"{target}: found the ending '{target.suffix}', wanted one of {', '.join(_WRITERS)}")
    table = next((one for one in manifest.tables if one.spec.name == name), None)
    if table is None:
        names = ", ".join(one.spec.name for one in manifest.tables)
        raise BadRequest(
            f"{source.name}: checkpoint {manifest.number} has no table '{name}', wanted one of {names or 'none'}"
        )
    if int8 and (target.suffix != ".npz" or table.spec.dtype == "int64"):
        raise BadRequest(
            f"{target}: int8 of table '{name}', whose dtype is {table.spec.dtype}; wanted a .npz of another than int64"
        )
    if target.exists():
        raise BadRequest(f"{target} is there already, wanted a new file's name")
    unfinished = target.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        if int8:
            write = _write_int8
        rows = write(unfinished, table, lambda: table_rows(source, manifest, table))
        os.link(unfinished, target)
    except FileExistsError:
        raise BadRequest(f"{target} is there already, wanted a new file's name") from None
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


Read = Callable[[], Iterator[Rows]]


def _write_npz(path: Path, table: TableEntry, read: Read) -> int:
    """Arrays `keys` (n,) and `weights` (n, dim); np.load reads them."""
    # An array's length stands before it, so the rows are counted first.
    rows = sum(len(part.keys) for part in read())
    keys = np.empty(rows, np.uint64)
    at = 0
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("weights.npy", "w", force_zip64=True) as member:
            _npy_header(member, dtype_of(table), (rows, table.spec.dim))
            for part in read():
                member.write(np.ascontiguousarray(part.weights).data.cast("B"))
                keys[at : at + len(part.keys)] = part.keys
                at += len(part.keys)
        with archive.open("keys.npy", "w", force_zip64=True) as member:
            _npy_header(member, np.dtype("<u8"), (rows,))
            if rows:
                member.write(keys.astype("<u8").data.cast("B"))
    return rows


def _write_int8(path: Path, table: TableEntry, read: Read) -> int:
    """Arrays `keys` (n,), `weights` int8 (n, dim) and `scales` float32 (n,): a row is its weights times its scale."""
    rows = sum(len(part.keys) for part in read())
    keys, scales = np.empty(rows, "<u8"), np.empty(rows, "<f4")
    after: tuple[tuple[str, NDArray[Any]], ...] = (("keys", keys), ("scales", scales))
    at = 0
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("weights.npy", "w", force_zip64=True) as member:
            _npy_header(member, np.dtype(np.int8), (rows, table.spec.dim))
            for part in read():
                numbers, scales[at : at + len(part.keys)] = to_int8(part.weights)
                member.write(np.ascontiguousarray(numbers).data.cast("B"))
                keys[at : at + len(part.keys)] = part.keys
                at += len(part.keys)
        for name, array in after:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _npy_header(member, array.dtype, (rows,))
                if rows:
                    member.write(array.data.cast("B"))
    return rows


def _npy_header(member: Any, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        member, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )


def _write_tsv(path: Path, table: TableEntry, read: Read) -> int:
    """A line for each row: the key and its weights between tabs; nine digits, which give a float32 back."""
    weight = "%d" if table.spec.dtype == "int64" else "%.9g"
    line = "\t".join(["%d", *[weight] * table.spec.dim]) + "\n"
    rows = 0
    with path.open("x", encoding="ascii", newline="\n") as file:
        for part in read():
            pairs = zip(part.keys.tolist(), part.weights.tolist(), strict=True)
            file.writelines(line % (key, *row) for key, row in pairs)
            rows += len(part.keys)
    return rows


def _write_parquet(path: Path, table: TableEntry, read: Read) -> int:
    """Columns `key` (uint64) and `weights` (a list of fixed size)."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise TablebayError(
            f"{path.suffix}: pyarrow cannot be imported ({error}); install it with: pip install 'tablebay[parquet]'"
        ) from None
    element = pa.int64() if table.spec.dtype == "int64" else pa.float32()
    schema = pa.schema(
        [
            pa.field("key", pa.uint64(), nullable=False),
            pa.field(
                "weights", pa.list_(pa.field("item", element, nullable=False), table.spec.dim), nullable=False
            ),
        ]
    )
    rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for part in read():
            weights = pa.FixedSizeListArray.from_arrays(
                pa.array(part.weights.reshape(-1)), type=schema.field("weights").type
            )
            writer.write_batch(pa.record_batch([pa.array(part.keys), weights], schema=schema))
            rows += len(part.keys)
    return rows


_WRITERS: dict[str, Callable[[Path, TableEntry, Read], int]] = {
    ".npz": _write_npz,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
}
