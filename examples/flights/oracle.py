"""An oracle of exactly-once pushes, trained beside the model in the same steps.

Worker `rank` adds, at its step `step`, the pseudo-random 63-bit number h(rank, step, key) to the row of each
different key of its batch, in an int64 table whose optimizer is Add. So a row must end as the sum of h over
all (rank, step) that hold its key, modulo 2**64. A push that was lost, applied twice or applied to another
row shows, with a probability of 1 - 2**-63, and no tolerance is needed.

    h(rank, step, key) = mix(mix(mix(rank) ^ step) ^ key) >> 1

where mix(x) is the number that splitmix64 (Steele, Lea, Flood 2014) gives first when it is seeded with x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tablebay.examples.flights.batches import Share
from tablebay.examples.flights.data import Keys
from tablebay.examples.flights.model import batch_keys

if TYPE_CHECKING:
    from tablebay.client.table import RemoteTable

TABLE = "fpadd"
KEYS_PER_PULL = 65_536

Sums = NDArray[np.int64]


def mix(values: Keys) -> Keys:
    """The first output of splitmix64 seeded with each of `values`, uint64 of any shape."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def additions(rank: int, step: int, keys: Keys) -> Sums:
    """h(rank, step, key) of each key, uint64 (n,): int64 (n,), never negative."""
    worker = mix(np.array([rank], np.uint64))
    return (mix(mix(worker ^ np.uint64(step)) ^ keys) >> np.uint64(1)).view(np.int64)


def expected(keys: Keys, share: Share) -> tuple[Keys, Sums]:
    """What the oracle's table must hold after all ranks have done all their steps.

    keys:  uint64 (n, 12), of the training examples.
    share: any rank's.
    Returns the different keys in ascending order, uint64 (m,), and the sum of each, int64 (m,).
    """
    every_key: list[Keys] = []
    every_addition: list[Sums] = []
    for rank in range(share.workers):
        of_rank = replace(share, rank=rank)
        for step in range(of_rank.steps):
            unique = np.unique(batch_keys(keys[of_rank.positions(step)]))
            every_key.append(unique)
            every_addition.append(additions(rank, step, unique))
    different, rows = np.unique(np.concatenate(every_key), return_inverse=True)
    sums = np.zeros(len(different), np.int64)
    np.add.at(sums, rows.reshape(-1), np.concatenate(every_addition))
    return different, sums


def pull_sums(table: RemoteTable, keys: Keys) -> Sums:
    """The rows that the servers hold for `keys`, uint64 (m,): int64 (m,), 0 where there is none."""
    parts: Sequence[Sums] = [
        table.pull(keys[start : start + KEYS_PER_PULL], create=False).reshape(-1)
        for start in range(0, len(keys), KEYS_PER_PULL)
    ]
    return np.concatenate(parts)


def difference(keys: Keys, wanted: Sums, found: Sums, rows: int) -> str | None:
    """None where the servers hold exactly what was wanted; else what differs, in one line.

    rows: how many rows the servers hold.
    """
    wrong = np.flatnonzero(wanted != found)
    if len(wrong):
        first = wrong[0]
        return (
            f"{len(wrong)} of {len(keys)} rows differ; key {keys[first]:#018x}: "
            f"found {found[first]}, wanted {wanted[first]}"
        )
    if rows != len(keys):
        return f"found {rows} rows, wanted {len(keys)}"
    return None
