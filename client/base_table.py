"""What a remote table and one in this process have in common: the interface, and its checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.arrays import Keys, Rows, Shape, as_keys, as_out, as_rows, first_nonfinite
from tablebay.client.evictions import Evictions, Some
from tablebay.client.evictions import read as read_evictions
from tablebay.client.tables import TableSpec

ITEMS_BATCH = 100_000
_LEARNING_RATE_MAX = 1e30


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

    def push(self, keys: Any, gradients: Any) -> None:
        """Apply the optimizer once to each key; gradients of a key that repeats are summed first, in order.

        Returns when the rows have changed. Raises NonFinite for NaN or infinity, before anything is applied,
        unless the table's non_finite says otherwise.
        """
        flat, shape = as_keys(keys, self.name)
        self._push(flat, self.rows_of(gradients, "gradients", flat, shape))

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

    def set(self, *, learning_rate: float) -> None:
        """Change the learning rate of every later push, whoever sends it."""
        if "learning_rate" not in self._spec.optimizer.parameters():
            raise errors.BadRequest(
                f"table '{self.name}': optimizer {self._spec.optimizer.type} has no learning_rate"
            )
        if isinstance(learning_rate, bool) or not isinstance(learning_rate, int | float | np.floating):
            found = type(learning_rate).__name__
            raise errors.BadType(f"table '{self.name}': learning_rate: found {found}, wanted a number")
        if not 0.0 <= learning_rate <= _LEARNING_RATE_MAX:
            raise errors.BadRequest(
                f"table '{self.name}': learning_rate is {learning_rate}, wanted 0 to {_LEARNING_RATE_MAX:g}"
            )
        self._set_learning_rate(float(learning_rate))

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
    def _push(self, keys: Keys, gradients: Rows) -> None: ...

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
    def _servers(self) -> int: ...

    @abstractmethod
    def _evicted(self, server: int, epoch: int, position: int, most: int) -> Some: ...

    @abstractmethod
    def _set_learning_rate(self, value: float) -> None: ...

    @abstractmethod
    def _items(self, batch: int) -> Iterator[tuple[Keys, Rows]]: ...
