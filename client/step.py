"""The `with client.step() as step:` block: one step number for pulls and one push over several tables."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.arrays import Rows
from tablebay.client.session import CURSOR_BYTES_MAX, Part, PushPart, Session
from tablebay.client.table import RemoteTable


class Step:
    """Pull as often as you like, then push once. Made by `client.step()`; one thread uses it.

    A block that ends without a push uses its number all the same: a ranked client tells every server, so that
    no hole stays behind it. A block that an exception ends before the push was sent leaves its number to the
    next push.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._number: int | None = None
        self._pushed = False
        self._ended = False

    @property
    def number(self) -> int:
        """This step's number. Raises BadRequest outside of the block."""
        if self._number is None:
            raise errors.BadRequest("this step has not begun; wanted `with client.step() as step:`")
        return self._number

    def __enter__(self) -> Self:
        if self._number is not None:
            raise errors.BadRequest(
                f"step {self._number} has begun already; take a new client.step() for each block"
            )
        self._session.check()
        self._session.settle()
        self._number = self._session.ledger.take(self._session.deadline())
        return self

    def pull(self, requests: Mapping[RemoteTable, Any], create: bool = True) -> list[NDArray[Any]]:
        """Rows of several tables, in one call to each server.

        requests: keys of any shape by table. Returns arrays of shape keys.shape + (dim,), in the mapping's
            order.
        """
        self._require_block()
        session = self._session
        began = session.pace.clock()
        parts, rows = pull_parts(session, requests, create)
        if any(array.size for array in rows):
            session.pull(parts, session.deadline())
            session.pull_latency.record(session.pace.clock() - began)
        return rows

    def push(self, updates: Mapping[RemoteTable, tuple[Any, ...]], cursor: bytes = b"") -> None:
        """Apply gradients to several tables as one step; on each shard all of it or nothing. Once in a block.

        updates: (keys, gradients), or (keys, gradients, counts), by table, as `push` has them; may be empty.
        cursor: at most 1 KiB, kept with the step for whoever takes this client's rank next.
        """
        self._require_block()
        if self._pushed:
            raise errors.BadRequest(f"step {self.number} has been pushed already; wanted one push in a block")
        if not isinstance(cursor, bytes):
            raise errors.BadType(f"cursor: found {type(cursor).__name__}, wanted bytes")
        if len(cursor) > CURSOR_BYTES_MAX:
            raise errors.BadRequest(f"cursor: found {len(cursor)} bytes, wanted at most {CURSOR_BYTES_MAX}")
        parts: list[PushPart] = []
        for table, update in updates.items():
            _require_own(self._session, table)
            if not isinstance(update, tuple) or len(update) not in (2, 3):
                raise errors.BadType(
                    f"table '{table.name}': found {type(update).__name__}, wanted (keys, gradients)"
                )
            parts.append(table.push_part(*update))
        self._send(parts, cursor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        if self._pushed:
            return
        if error is not None:
            self._session.ledger.give_back(self.number)
            return
        try:
            self._session.check()
            self._send([], b"")
        except BaseException:
            if not self._pushed:
                self._session.ledger.give_back(self.number)
            raise

    def _send(self, parts: list[PushPart], cursor: bytes) -> None:
        deadline = self._session.deadline()
        self._session.flush(deadline)
        self._session.make_room(deadline)
        # From here on the number is the session's business: given back, kept open or used.
        self._pushed = True
        self._session.push_step(parts, cursor, self.number, deadline)

    def _require_block(self) -> None:
        self._session.check()
        if self._ended:
            raise errors.BadRequest(f"step {self.number} has ended; wanted a call inside of its block")
        _ = self.number


def pull_parts(
    session: Session, requests: Mapping[RemoteTable, Any], create: bool
) -> tuple[list[Part], list[Rows]]:
    """The parts of a pull of several tables, and the arrays that they fill."""
    parts: list[Part] = []
    rows: list[Rows] = []
    for table, keys in requests.items():
        _require_own(session, table)
        part, array = table.pull_part(keys, None, create)
        parts.append(part)
        rows.append(array)
    return parts, rows


def _require_own(session: Session, table: Any) -> None:
    if not isinstance(table, RemoteTable):
        raise errors.BadType(
            f"found {type(table).__name__} as a key of the mapping, wanted a table of this client"
        )
    if table.session is not session:
        raise errors.BadRequest(
            f"table '{table.name}' belongs to another client; open it with this one's table()"
        )
