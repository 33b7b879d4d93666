"""What a remote table and one in this process have in common: the interface, and its checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.arrays import Keys, Rows, Shape, as_keys, as_out, as_rows, first_nonfinite
from tablebay.client.eviction import Eviction
from tablebay.client.evictions import Evictions, Some
from tablebay.client.evictions import read as read_evictions
from tablebay.client.tables import LIVE_OPTIONS, TableSpec

ITEMS_BATCH = 100_000
_LIVE_MAX = 1e30
_COUNTS_MAX = 1e30
EPOCH_MAX = 2**31


class BaseTable(ABC):
    """Rows of `dim` elements by 64-bit key.

    Keys are numpy uint64 or int64 arrays of any shape, whose shape the results keep; torch CPU tensors of
    int64, other CPU arrays by DLPack, buffers of format q or Q, and flat lists of Python ints (which are
    converted) do as well. Every 64-bit value is a key; -1 and 2^64 - 1 are the same one. Keys may repeat.
    Gradients and rows have exactly the table's dtype, shape keys.shape + (dim,), and are C-contiguous; they
    may be read-only. Nothing is copied or cast silently: BadType names the dtype found and the one wanted,
    BadRequest the shape or layout. A call without keys does nothing. Safe in threads.
    """

    def __init__(self, spec: TableSpec, state_names: Sequence[str]) -> None:
        self._spec = spec
        self._dtype = np.dtype(spec.call_dtype)
        self._state_names = tuple(state_names)

    @property
    def spec(self) -> TableSpec:
        """The table as it was declared; `set` does not change it."""
        return self._spec

    @property
    def name(self) -> str:
        """Its name."""
        return self._spec.name

    @property
    def dim(self) -> int:
        """Elements of a row."""
        return self._spec.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or int64."""
        return self._dtype

    def shows(self, keys: Any) -> NDArray[np.float32]:
        """Shows and clicks of the rows of `keys` as they are today, float32 keys.shape + (2,); 0 without a row.

        Raises BadRequest for a table that does not count them.
        """
        flat, shape = as_keys(keys, self.name)
        self._require_shows()
        return self._shows(flat).reshape(*shape, 2)

    def pull_cvm(self, keys: Any, create: bool = True) -> NDArray[np.float32]:
        """Rows of `keys` with two columns more: shows, and ln(clicks + 1) - ln(shows + 1), as TensorNet has them.

        float32, keys.shape + (dim + 2,). The rows and the columns may be some pushes apart. Raises BadRequest for a
        table that does not count shows, or whose rows are int64.
        """
        flat, shape = as_keys(keys, self.name)
        self._require_shows()
        if self._dtype != np.float32:
            raise errors.BadRequest(
                f"table '{self.name}': dtype is {self._dtype}, wanted float32 with CVM columns"
            )
        rows = np.empty((flat.size, self.dim + 2), np.float32)
        pulled = self.new_rows((flat.size,))
        self._pull(flat, pulled, create)
        shows = self._shows(flat)
        rows[:, : self.dim] = pulled
        rows[:, self.dim] = shows[:, 0]
        rows[:, self.dim + 1] = np.log1p(shows[:, 1]) - np.log1p(shows[:, 0])
        return rows.reshape(*shape, self.dim + 2)

    def decay(self, epoch: int) -> bool:
        """End days until number `epoch`: shows and clicks of all rows fade by `decay` for each; whether any day ended.

        epoch: 1 to 2^31, the number of the day, which rises by 1 for each: an epoch that was passed over counts too. An
        epoch that has come already, or is older, changes nothing, so that a call may be made again. The first epoch
        of a table ends one day. Rows that leave for it leave at the next sweep (`evict`).
        """
        eviction = self._require_shows()
        if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer):
            raise errors.BadType(f"table '{self.name}': epoch: found {type(epoch).__name__}, wanted an int")
        if not 1 <= epoch <= EPOCH_MAX:
            raise errors.BadRequest(f"table '{self.name}': epoch is {epoch}, wanted 1 to {EPOCH_MAX}")
        if eviction.decay_every_seconds:
            raise errors.BadRequest(
                f"table '{self.name}': its days end by the clock, every {eviction.decay_every_seconds} s "
                "(decay_every_seconds); wanted a table without"
            )
        return self._decay(int(epoch))

    def pull(self, keys: Any, out: Any = None, create: bool = True) -> Any:
        """Rows of `keys`, as an array of shape keys.shape + (dim,).

        out: an array of that shape and the table's dtype, writable, C-contiguous: it is filled and returned.
        create: False makes no rows; a key without one reads as zeros.
        """
        flat, shape = as_keys(keys, self.name)
        rows = (
            self.new_rows(shape) if out is None else as_out(out, self.name, self._dtype, (*shape, self.dim))
        )
        self._pull(flat, rows.reshape(-1, self.dim), create)
        return rows if out is None else out

    def push(self, keys: Any, gradients: Any, counts: Any = None) -> None:
        """Apply the optimizer once to each key; gradients of a key that repeats are summed first, in order.

        counts: float32 keys.shape + (2,), shows and clicks of each key, which are added to the row's, repeats summed;
        for a table whose eviction counts them. Without, each key of the push had one show.

        Returns when the rows have changed. Raises NonFinite for NaN or infinity, before anything is applied,
        unless the table's non_finite says otherwise.
        """
        flat, shape = as_keys(keys, self.name)
        rows = self.rows_of(gradients, "gradients", flat, shape)
        if counts is None:
            self._push(flat, rows)
        else:
            self._push(flat, rows, self.counts_of(counts, shape))

    def assign(self, keys: Any, rows: Any) -> None:
        """Set the weights of `keys`; optimizer state stays. Of a key that repeats the last row counts."""
        flat, shape = as_keys(keys, self.name)
        self._assign(flat, self.rows_of(rows, "rows", flat, shape))

    def delete(self, keys: Any) -> None:
        """Remove the rows of `keys`, with their optimizer state; a key without a row is passed over."""
        flat, _ = as_keys(keys, self.name)
        self._delete(flat)

    def contains(self, keys: Any) -> NDArray[np.bool_]:
        """Which of `keys` have a row: bool, keys.shape."""
        flat, shape = as_keys(keys, self.name)
        return self._contains(flat).reshape(shape)

    def optimizer_state(self, keys: Any) -> dict[str, NDArray[Any]]:
        """The optimizer's state of `keys` by name; a key without a row has the state that a new row begins
        with.

        float32, keys.shape + (dim,), or keys.shape where the whole row has one number (RowwiseAdagrad); "step",
        uint32 keys.shape. The names are in each optimizer's docstring: Adagrad has "accumulator", Adam "m", "v" and
        "step", SGD and Add have none.
        """
        flat, shape = as_keys(keys, self.name)
        if not self._state_names:
            return {}
        return self._split_state(self._state(flat), shape)

    def evict(self) -> int:
        """Sweep now: look at every row, and remove those that the table's `eviction` names; how many those were.

        Servers sweep by themselves too. Raises BadRequest for a table without eviction.
        """
        if self._spec.eviction is None:
            raise errors.BadRequest(f"table '{self.name}' has no eviction, so that no row leaves by itself")
        return self._evict()

    def evictions(self, cursor: str | None = None, most: int = 100_000) -> Evictions:
        """The rows that left by themselves since `cursor`, or that each server can still name; `most` of each server.

        cursor: of the `Evictions` that the call before gave. Their `complete` says whether some are missing. Raises
        BadRequest for a table without eviction.
        """
        if self._spec.eviction is None:
            raise errors.BadRequest(f"table '{self.name}' has no eviction, so that no row leaves by itself")
        return read_evictions(self._evicted, self._servers(), cursor, most, self.name)

    def set(self, *, learning_rate: float | None = None, weight_decay: float | None = None) -> None:
        """Change the learning rate, the weight decay, or both, of every later push, whoever sends it.

        Raises BadRequest for what the table's optimizer has not, and where neither is given.
        """
        given = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        values = {name: self._live(name, value) for name, value in given.items() if value is not None}
        if not values:
            raise errors.BadRequest(
                f"table '{self.name}': found nothing to set; wanted {' or '.join(LIVE_OPTIONS)}"
            )
        self._set(values)

    def _live(self, name: str, value: float) -> float:
        if name not in self._spec.live_options():
            raise errors.BadRequest(
                f"table '{self.name}': optimizer {self._spec.optimizer.type} has no {name}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
            found = type(value).__name__
            raise errors.BadType(f"table '{self.name}': {name}: found {found}, wanted a number")
        if not 0.0 <= value <= _LIVE_MAX:
            raise errors.BadRequest(f"table '{self.name}': {name} is {value}, wanted 0 to {_LIVE_MAX:g}")
        return float(value)

    def items(self, batch: int = ITEMS_BATCH) -> Iterator[tuple[Keys, Rows]]:
        """All rows, in no order: pairs of keys, uint64 (n,), and rows, (n, dim), n at most `batch`; both
        read-only.

        Rows that are made meanwhile may be missed, and one that a deletion moves may be seen twice; a row
        that is there throughout is never missed.
        """
        if isinstance(batch, bool) or not isinstance(batch, int):
            raise errors.BadType(f"table '{self.name}': batch: found {type(batch).__name__}, wanted an int")
        if batch < 1:
            raise errors.BadRequest(f"table '{self.name}': batch is {batch}, wanted at least 1")
        return self._items(batch)

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    def __bool__(self) -> bool:
        """True, with rows or without: asking must not cost a call to the servers."""
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.name}' dim={self.dim} dtype={self._spec.dtype}>"

    def new_rows(self, shape: Shape) -> Rows:
        """An unfilled array for the rows of keys of `shape`."""
        return np.empty((*shape, self.dim), self._dtype)

    def rows_of(self, rows: Any, what: str, keys: Keys, shape: Shape) -> Rows:
        """A caller's gradients or rows as (n, dim), checked. what: "gradients" or "rows"."""
        array = as_rows(rows, self.name, what, self._dtype, (*shape, self.dim)).reshape(-1, self.dim)
        if self._spec.non_finite == "Reject" and self._dtype == np.float32:
            # Checked before it is sent: one server's refusal would come after the others have applied their
            # part.
            position = first_nonfinite(array)
            if position is not None:
                raise errors.NonFinite(
                    f"table '{self.name}': {what} of key {keys[position]} at position {position} hold NaN or "
                    "infinity, wanted finite numbers (non_finite is Reject)"
                )
        return array

    def counts_of(self, counts: Any, shape: Shape) -> Rows:
        """A caller's shows and clicks as (n, 2) float32, checked."""
        self._require_shows()
        array = as_rows(counts, self.name, "counts", np.dtype(np.float32), (*shape, 2)).reshape(-1, 2)
        bad = ~((array >= 0) & (array <= _COUNTS_MAX)).all(axis=1)
        if bad.any():
            at = int(bad.argmax())
            raise errors.BadRequest(
                f"table '{self.name}': counts at position {at} are {array[at].tolist()}, wanted shows and clicks, each "
                f"from 0 to {_COUNTS_MAX:g}"
            )
        return array

    def _require_shows(self) -> Eviction:
        eviction = self._spec.eviction
        if eviction is None or not eviction.counts_shows:
            raise errors.BadRequest(
                f"table '{self.name}' counts no shows and clicks; wanted decay, min_score or max_unseen_days in its "
                "eviction"
            )
        return eviction

    def _split_state(self, state: NDArray[np.uint8], shape: Shape) -> dict[str, NDArray[Any]]:
        """Optimizer state as the core lays it out: float32[dim] for each name, but one number where a row has one."""
        result: dict[str, NDArray[Any]] = {}
        begin = 0
        for name in self._state_names:
            dtype = np.dtype("<u4" if name == "step" else "<f4")
            whole = name == "step" or name in self._spec.optimizer.OF_A_ROW
            end = begin + (1 if whole else self.dim) * dtype.itemsize
            values = np.ascontiguousarray(state[:, begin:end]).view(dtype)
            result[name] = values.reshape(shape if whole else (*shape, self.dim))
            begin = end
        return result

    @abstractmethod
    def _pull(self, keys: Keys, rows: Rows, create: bool) -> None: ...

    @abstractmethod
    def _push(self, keys: Keys, gradients: Rows, counts: Rows | None = None) -> None: ...

    @abstractmethod
    def _assign(self, keys: Keys, rows: Rows) -> None: ...

    @abstractmethod
    def _delete(self, keys: Keys) -> None: ...

    @abstractmethod
    def _contains(self, keys: Keys) -> NDArray[np.bool_]: ...

    @abstractmethod
    def _state(self, keys: Keys) -> NDArray[np.uint8]: ...

    @abstractmethod
    def _evict(self) -> int: ...

    @abstractmethod
    def _shows(self, keys: Keys) -> NDArray[np.float32]: ...

    @abstractmethod
    def _decay(self, epoch: int) -> bool: ...

    @abstractmethod
    def _servers(self) -> int: ...

    @abstractmethod
    def _evicted(self, server: int, epoch: int, position: int, most: int) -> Some: ...

    @abstractmethod
    def _set(self, values: dict[str, float]) -> None: ...

    @abstractmethod
    def _items(self, batch: int) -> Iterator[tuple[Keys, Rows]]: ...
