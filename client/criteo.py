"""String ids as keys, and the TSV files of Criteo's click logs."""

from __future__ import annotations

import gzip
import os
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


def read_criteo(path: str | os.PathLike[str], batch_size: int = 2048, seed: int = 0) -> Iterator[CriteoBatch]:
    """Batches of a file of Criteo's click logs, in its order; the last may be short.

    path: tab-separated text, gzip if it ends in .gz. A line has a label, 13 whole numbers and 26 ids, any number or id
        of which may be empty. Ids are hashed by `hash_ids` as columns "C1" to "C26"; an empty one is the id "".
    Raises BadRequest naming file and line where a line is otherwise.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise errors.BadRequest(f"batch_size is {batch_size!r}, wanted a whole number of at least 1")
    hash_ids((), "C1", seed)
    return _read(Path(path), batch_size, seed)


def _read(path: Path, batch_size: int, seed: int) -> Iterator[CriteoBatch]:
    known: list[dict[str, int]] = [{} for _ in range(CATEGORIES)]
    labels: list[float] = []
    numbers: list[list[float]] = []
    keys: list[list[int]] = []
    with _open(path) as file:
        for count, line in enumerate(file, start=1):
            where = f"{path}, line {count}"
            try:
                cells = line.decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise errors.BadRequest(f"{where}: {error}") from None
            if len(cells) != COLUMNS:
                raise errors.BadRequest(
                    f"{where}: found {len(cells)} columns, wanted {COLUMNS}, separated by tabs"
                )
            if cells[0] not in ("0", "1"):
                raise errors.BadRequest(f"{where}: label is {cells[0][:40]!r}, wanted 0 or 1")
            labels.append(float(cells[0]))
            numbers.append(
                [_number(cell, where, i) for i, cell in enumerate(cells[1 : 1 + NUMBERS], start=1)]
            )
            keys.append([_key(known[i], cell, i, seed) for i, cell in enumerate(cells[1 + NUMBERS :])])
            if len(labels) == batch_size:
                yield _batch(labels, numbers, keys)
                labels, numbers, keys = [], [], []
    if labels:
        yield _batch(labels, numbers, keys)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _batch(labels: list[float], numbers: list[list[float]], keys: list[list[int]]) -> CriteoBatch:
    return CriteoBatch(np.array(labels, np.float32), np.array(numbers, np.float32), np.array(keys, np.int64))


def _number(cell: str, where: str, column: int) -> float:
    if not cell:
        return float("nan")
    try:
        return float(int(cell))
    except ValueError:
        raise errors.BadRequest(
            f"{where}: I{column} is {cell[:40]!r}, wanted a whole number, or nothing"
        ) from None


def _key(known: dict[str, int], cell: str, column: int, seed: int) -> int:
    key = known.get(cell)
    if key is None:
        if len(known) >= _REMEMBERED:
            known.clear()
        key = known[cell] = int(hash_ids((cell,), f"C{column + 1}", seed)[0])
    return key
