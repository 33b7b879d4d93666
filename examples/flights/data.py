"""The flights data: 327,346 flights out of New York in 2013, as keys of 12 fields and a label.

A key is `field number << 56 | value`: no two fields share a key and nothing is hashed, so a key can be read
back. Field 0 is the bias, one key that belongs to every example; it is not one of the 12 fields.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tablebay as tb

FILE = "flights.npz"
# What `load` needs of the file.
COLUMNS = ("month", "day", "hour", "carrier", "flight", "tailnum", "origin", "dest", "arr_delay")
# What zipfile and numpy raise for bytes that are none of theirs.
_DAMAGE = (
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

FIELDS = (
    "carrier",
    "flight",  # carrier and flight number
    "tail",
    "origin",
    "dest",
    "hour",  # of the scheduled departure
    "month",
    "dow",  # 0 = Monday
    "date",
    "route_hour",  # origin, destination, hour
    "tail_dest",
    "origin_date_hour",
)
FIELD_SHIFT = 56
BIAS_KEY = np.uint64(0)

SPLITS = ("random", "time")
LATE_MINUTES = 15  # the label: arrived more than this many minutes late
SPLIT_SEED = 0
TRAIN_SHARE = 0.8
TIME_SPLIT_FIRST_TEST_MONTH = 11

Keys = NDArray[np.uint64]
Labels = NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """Examples in the file's order.

    keys:   uint64 (n, 12), one column for each of FIELDS.
    labels: float32 (n,), 1 where the flight arrived more than 15 minutes late.
    month:  int8 (n,), 1 to 12.
    """

    keys: Keys
    labels: Labels
    month: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: NDArray[np.int64]) -> Examples:
        """The examples at `positions`, int64 (m,), in that order."""
        return Examples(self.keys[positions], self.labels[positions], self.month[positions])


def columns() -> dict[str, NDArray[Any]]:
    """The columns of flights.npz by name, as cut.py wrote them. Raises TablebayError for a damaged file."""
    file = resources.files(__package__).joinpath(FILE)
    try:
        # Read whole before numpy sees it, so that each column's checksum is compared first.
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
            contents = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        found = {name: np.load(io.BytesIO(content), allow_pickle=False) for name, content in contents.items()}
        lengths = {len(found[name]) for name in COLUMNS}
    except KeyError as error:
        raise _damaged(file, f"it has no column {error}") from None
    except _DAMAGE as error:
        raise _damaged(file, " ".join(str(error).split()) or type(error).__name__) from None
    if len(lengths) > 1:
        raise _damaged(file, f"its columns have lengths {sorted(lengths)}")
    return found


def _damaged(file: object, what: str) -> tb.TablebayError:
    return tb.TablebayError(
        f"{file}: found a damaged file ({what}), wanted the one that comes with Tablebay; install it again"
    )


def load() -> Examples:
    """All 327,346 examples."""
    table = columns()

    def numbers(name: str) -> Keys:
        return table[name].astype(np.uint64)

    def packed(first: Keys, *others: tuple[Keys, int]) -> Keys:
        value = first
        for other, bits in others:
            value = value << np.uint64(bits) | other
        return value

    carrier, tail, origin, dest = (numbers(name) for name in ("carrier", "tailnum", "origin", "dest"))
    hour, month, day = (numbers(name) for name in ("hour", "month", "day"))
    values = {
        "carrier": carrier,
        "flight": packed(carrier, (numbers("flight"), 16)),
        "tail": tail,
        "origin": origin,
        "dest": dest,
        "hour": hour,
        "month": month,
        "dow": day_of_week(table["month"], table["day"]),
        "date": packed(month, (day, 8)),
        "route_hour": packed(origin, (dest, 8), (hour, 8)),
        "tail_dest": packed(tail, (dest, 8)),
        "origin_date_hour": packed(origin, (month, 8), (day, 8), (hour, 8)),
    }
    keys = np.empty((len(month), len(FIELDS)), np.uint64)
    for column, field in enumerate(FIELDS):
        keys[:, column] = np.uint64(column + 1 << FIELD_SHIFT) | values[field]
    labels = (table["arr_delay"] > LATE_MINUTES).astype(np.float32)
    return Examples(keys, labels, table["month"].astype(np.int8))


def day_of_week(month: NDArray[Any], day: NDArray[Any]) -> Keys:
    """Day of the week of dates in 2013, 0 = Monday."""
    first_of_month = np.array([f"2013-{number:02}-01" for number in range(1, 13)], "datetime64[D]")
    dates = first_of_month[month.astype(np.int64) - 1] + (day.astype(np.int64) - 1)
    # Day 0 of datetime64, 1970-01-01, was a Thursday.
    return ((dates.astype(np.int64) + 3) % 7).astype(np.uint64)


def split(examples: Examples, kind: str) -> tuple[Examples, Examples]:
    """Training and test part.

    `random`: 80/20 by a permutation of fixed seed. Hours of the test part are also in the training part, so a
    model interpolates between flights of the same hour. `time`: January to October, November and December.
    """
    if kind == "random":
        order = np.random.RandomState(SPLIT_SEED).permutation(len(examples))
        count = int(TRAIN_SHARE * len(examples))
        return examples.take(order[:count]), examples.take(order[count:])
    if kind == "time":
        test = examples.month >= TIME_SPLIT_FIRST_TEST_MONTH
        return examples.take(np.flatnonzero(~test)), examples.take(np.flatnonzero(test))
    raise ValueError(f"split is {kind!r}, wanted one of {', '.join(SPLITS)}")
