"""The rows that left a table by themselves, read from its servers on and on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tablebay.client.errors import BadRequest, BadType

EVENTS_MAX = 1_000_000
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}(,[0-9]{1,20}-[0-9]{1,20})*")


@dataclass(frozen=True, eq=False)
class Evictions:
    """Rows that left, in the order of their times.

    keys: uint64 (n,). reasons: text (n,): ttl, count, norm, score, unseen, lru or lfu. times: uint32 (n,), Unix
        time of the server, in seconds.
    cursor: what the next call is given.
    complete: whether nothing that left since the cursor given is missing. False where a server has dropped events since
        (it keeps `events_kept` of them), was restarted, or is one of another number of servers: whoever follows the
        table then has to look at its rows (`contains`, `items`) instead.
    """

    keys: NDArray[np.uint64]
    reasons: NDArray[Any]
    times: NDArray[np.uint32]
    cursor: str
    complete: bool

    def __len__(self) -> int:
        return len(self.keys)


class Some(NamedTuple):
    """What a server answers: events from number `first` of its life `epoch` on."""

    epoch: int
    first: int
    keys: bytes
    times: bytes
    reasons: bytes
    reason_names: tuple[str, ...]


def read(
    ask: Callable[[int, int, int, int], Some], servers: int, cursor: str | None, most: int, table: str
) -> Evictions:
    """Ask each server for what comes after `cursor`. ask: (server, epoch, position, most)."""
    before = _positions(cursor, table)
    if isinstance(most, bool) or not isinstance(most, int):
        raise BadType(f"table '{table}': most: found {type(most).__name__}, wanted an int")
    if not 1 <= most <= EVENTS_MAX:
        raise BadRequest(f"table '{table}': most is {most}, wanted 1 to {EVENTS_MAX}")
    complete = not before or len(before) == servers
    known = len(before) == servers
    keys, times, reasons, positions = [], [], [], []
    for server in range(servers):
        epoch, position = before[server] if known else (0, 0)
        some = ask(server, epoch, position, most)
        complete = complete and some.first == position and (not known or some.epoch == epoch)
        names = np.array(some.reason_names or ("",), np.str_)
        keys.append(np.frombuffer(some.keys, "<u8").astype(np.uint64))
        times.append(np.frombuffer(some.times, "<u4").astype(np.uint32))
        reasons.append(names[np.frombuffer(some.reasons, np.uint8)])
        positions.append(f"{some.epoch}-{some.first + len(keys[-1])}")
    at = np.concatenate(times)
    order = np.argsort(at, kind="stable")
    return Evictions(
        np.concatenate(keys)[order], np.concatenate(reasons)[order], at[order], ",".join(positions), complete
    )


def _positions(cursor: str | None, table: str) -> list[tuple[int, int]]:
    if cursor is None:
        return []
    if not isinstance(cursor, str):
        raise BadType(f"table '{table}': cursor: found {type(cursor).__name__}, wanted str or None")
    if not _CURSOR.fullmatch(cursor):
        raise BadRequest(f"table '{table}': cursor is {cursor[:80]!r}, wanted one that `evictions` gave")
    pairs = [one.split("-") for one in cursor.split(",")]
    positions = [(int(epoch), int(position)) for epoch, position in pairs]
    if any(number >= 2**64 for pair in positions for number in pair):
        raise BadRequest(f"table '{table}': cursor is {cursor[:80]!r}, wanted one that `evictions` gave")
    return positions
