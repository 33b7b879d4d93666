"""String ids as keys, and the TSV files of Criteo's click logs."""

from __future__ import annotations

import codecs
import gzip
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from tablebay.client import errors

NUMBERS = 13
CATEGORIES = 26
COLUMNS = 1 + NUMBERS + CATEGORIES

_SEED_END = 2**64
# Of a column's ids, most of which come again.
_REMEMBERED = 1_000_000
_LINE_BYTES_MAX = 65_536
_WHOLE = re.compile(r"-?[0-9]{1,19}")
_LOGGER = logging.getLogger(__name__)


def hash_ids(ids: Iterable[str], column: str, seed: int = 0) -> NDArray[np.int64]:
    """Keys int64 (n,) of the ids of a column, the same on every machine and in every version.

    A key is the 8 bytes, read as little-endian, of BLAKE2b with digest size 8, keyed with the seed's 8 little-endian
    bytes, of the column's name, a zero byte and the id, both in UTF-8. Another column or seed gives other keys. Of n
    different ids about n² / 2^65 pairs share a key: with 4 billion, less than one.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise errors.BadType(f"seed: found {type(seed).__name__}, wanted an int")
    if not 0 <= seed < _SEED_END:
        raise errors.BadRequest(f"seed is {seed}, wanted 0 to {_SEED_END - 1}")
    if isinstance(ids, str):
        raise errors.BadType("ids: found str, wanted several of them")
    if "\0" in column:
        raise errors.BadRequest(f"column is {column!r}, wanted a name without a zero byte")
    begun = blake2b(f"{column}\0".encode(), digest_size=8, key=seed.to_bytes(8, "little"))
    digests = []
    for position, one in enumerate(ids):
        if not isinstance(one, str):
            raise errors.BadType(f"ids: found {type(one).__name__} at position {position}, wanted str")
        state = begun.copy()
        state.update(one.encode())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


@dataclass(frozen=True, eq=False)
class CriteoBatch:
    """labels: float32 (B,), 0 or 1. numbers: float32 (B, 13), NaN where there is none. keys: int64 (B, 26)."""

    labels: NDArray[np.float32]
    numbers: NDArray[np.float32]
    keys: NDArray[np.int64]


def read_criteo(
    path: str | os.PathLike[str], batch_size: int = 2048, seed: int = 0, *, bad_lines_max: int = 0
) -> Iterator[CriteoBatch]:
    """Batches of a file of Criteo's click logs, in its order; the last may be short.

    path: tab-separated text, gzip if it ends in .gz. A line has a label, 13 whole numbers and 26 ids, any number or id
        of which may be empty. Ids are hashed by `hash_ids` as columns "C1" to "C26"; an empty one is the id "".
    bad_lines_max: how many lines may be otherwise. They are left out, and logged as warnings.
    Raises BadRequest naming file and line where there are more, where the file is empty, or gzip finds damage.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("bad_lines_max", bad_lines_max, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise errors.BadRequest(f"{name} is {value!r}, wanted a whole number of at least {least}")
    hash_ids((), "C1", seed)
    return _read(Path(path), batch_size, seed, bad_lines_max)


def _read(path: Path, batch_size: int, seed: int, bad_lines_max: int) -> Iterator[CriteoBatch]:
    reader = _Reader(seed)
    batch: list[_Row] = []
    bad = 0
    for count, line in enumerate(_lines(path), start=1):
        try:
            batch.append(reader.row(line))
        except _BadLine as error:
            bad += 1
            text = f"{path}, line {count}: {error}"
            if bad > bad_lines_max:
                counted = f"; bad lines: {bad}, wanted at most {bad_lines_max}" if bad_lines_max else ""
                raise errors.BadRequest(text + counted) from None
            _LOGGER.warning("%s; left out", text)
        if len(batch) == batch_size:
            yield _batch(batch)
            batch = []
    if batch:
        yield _batch(batch)


def _lines(path: Path) -> Iterator[bytes]:
    """With what ends them. A line that is too long comes cut off, as one."""
    count = 0
    with _open(path) as file:
        try:
            while line := file.readline(_LINE_BYTES_MAX + 1):
                count += 1
                yield line
                while len(line) > _LINE_BYTES_MAX and not line.endswith(b"\n"):
                    line = file.readline(_LINE_BYTES_MAX + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise errors.BadRequest(f"{path}, after line {count}: damaged: {error}") from None
    if not count:
        raise errors.BadRequest(f"{path}: found no line, wanted examples")


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


_Row = tuple[float, list[float], list[int]]


def _batch(rows: list[_Row]) -> CriteoBatch:
    labels, numbers, keys = zip(*rows, strict=True)
    return CriteoBatch(np.array(labels, np.float32), np.array(numbers, np.float32), np.array(keys, np.int64))


class _BadLine(Exception):
    """What is wrong with a line."""


class _Reader:
    """Makes rows of lines; keeps the keys of ids, most of which come again."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: list[dict[str, int]] = [{} for _ in range(CATEGORIES)]
        self._begun = False

    def row(self, line: bytes) -> _Row:
        """A line's label, numbers and keys. Raises _BadLine."""
        if not self._begun:
            self._begun = True
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > _LINE_BYTES_MAX:
            raise _BadLine(f"longer than {_LINE_BYTES_MAX:,} bytes")
        if b"\0" in line:
            raise _BadLine("found a zero byte, wanted text")
        try:
            cells = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise _BadLine(str(error)) from None
        if len(cells) != COLUMNS:
            raise _BadLine(f"found {len(cells)} columns, wanted {COLUMNS}, separated by tabs")
        if cells[0] not in ("0", "1"):
            raise _BadLine(f"label is {cells[0][:40]!r}, wanted 0 or 1")
        numbers = [_number(cell, i) for i, cell in enumerate(cells[1 : 1 + NUMBERS], start=1)]
        keys = [self._key(cell, i) for i, cell in enumerate(cells[1 + NUMBERS :])]
        return float(cells[0]), numbers, keys

    def _key(self, cell: str, column: int) -> int:
        known = self._known[column]
        key = known.get(cell)
        if key is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            key = known[cell] = int(hash_ids((cell,), f"C{column + 1}", self._seed)[0])
        return key


def _number(cell: str, column: int) -> float:
    if not cell:
        return float("nan")
    if not _WHOLE.fullmatch(cell):
        raise _BadLine(f"I{column} is {cell[:40]!r}, wanted a whole number of at most 19 digits, or nothing")
    return float(int(cell))
