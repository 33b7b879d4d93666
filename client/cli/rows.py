"""`tablebay rows`: what running servers hold under some keys."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tablebay.client.cli.usage import UsageError
from tablebay.client.client import connect
from tablebay.client.criteo import hash_ids
from tablebay.client.table import RemoteTable

_SHOWN = 8
_KEY = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")
_KEYS_END = 2**64


@dataclass(frozen=True)
class Question:
    """Which rows: of these keys, or ids of the column `hashed`; without keys any `limit` of them."""

    table: str
    words: tuple[str, ...]
    hashed: str | None
    limit: int


@dataclass(frozen=True)
class _Row:
    key: int
    word: str
    present: bool
    values: list[float]


def show(question: Question, *, servers: str, tls_dir: Path | None, timeout: float, as_json: bool) -> None:
    """Print them. Raises TablebayError, and UsageError for what is no key."""
    keys = _keys(question)
    with connect(servers, timeout=timeout, tls_dir=tls_dir) as client:
        table = client.table(question.table)
        rows = list(_named(table, question.words, keys) if keys else _any(table, question.limit))
        total, dim, dtype = len(table), table.dim, table.spec.dtype
    if as_json:
        content: dict[str, Any] = {
            "table": question.table,
            "dim": dim,
            "dtype": dtype,
            "rows": total,
            # Numbers as text, for JSON readers keep 53 bits.
            "found": [{"key": str(row.key), "present": row.present, "row": row.values} for row in rows],
        }
        print(json.dumps(content, indent=2))
        return
    print(f"{question.table}: {total} rows of {dim} {dtype}")
    for row in rows:
        values = " ".join(f"{value:.6g}" for value in row.values[:_SHOWN])
        more = " …" if len(row.values) > _SHOWN else ""
        print(f"{row.word}  {values}{more}" if row.present else f"{row.word}  no row")


def show_evicted(
    name: str, cursor: str | None, *, servers: str, tls_dir: Path | None, timeout: float, as_json: bool
) -> None:
    """Print the rows that left by themselves since `cursor`. Raises TablebayError."""
    with connect(servers, timeout=timeout, tls_dir=tls_dir) as client:
        found = client.table(name).evictions(cursor)
    events = list(zip(found.keys.tolist(), found.reasons.tolist(), found.times.tolist(), strict=True))
    if as_json:
        content: dict[str, Any] = {
            "table": name,
            "complete": found.complete,
            "cursor": found.cursor,
            "evicted": [{"key": str(key), "reason": why, "time": at} for key, why, at in events],
        }
        print(json.dumps(content, indent=2))
        return
    print(
        f"{name}: {len(found)} rows left{'' if found.complete else ', and more that are not known any more'}"
    )
    for key, why, at in events:
        print(f"{key}  {why}  {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}")
    print(f"go on with --cursor {found.cursor}")


def _keys(question: Question) -> list[int]:
    if question.hashed is not None:
        if not question.words:
            raise UsageError("found --hashed without an id; wanted ids of the column")
        return [int(key) for key in hash_ids(question.words, question.hashed).view(np.uint64)]
    keys = []
    for word in question.words:
        key = int(word, 0 if word[:2] in ("0x", "0X") else 10) if _KEY.fullmatch(word) else _KEYS_END
        if key >= _KEYS_END:
            raise UsageError(
                f"found the key {word!r}, wanted a whole number from 0 to 2^64 - 1; ids that are text need --hashed"
            )
        keys.append(key)
    return keys


def _named(table: RemoteTable, words: tuple[str, ...], keys: list[int]) -> Iterator[_Row]:
    array = np.array(keys, np.uint64)
    present, rows = table.contains(array), table.pull(array, create=False)
    for word, key, there, row in zip(words, keys, present, rows, strict=True):
        yield _Row(key, word, bool(there), row.tolist() if there else [])


def _any(table: RemoteTable, limit: int) -> Iterator[_Row]:
    pairs = (
        (int(key), row.tolist())
        for keys, rows in table.items(batch=limit)
        for key, row in zip(keys, rows, strict=True)
    )
    for key, values in itertools.islice(pairs, limit):
        yield _Row(key, str(key), True, values)
