"""A table's rows as autograd sees them: pulled for a forward pass, their gradients kept until they are pushed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tablebay.client import errors
from tablebay.client.native import native
from tablebay.client.prefetch import Prefetch
from tablebay.client.routing import SHARDS
from tablebay.client.session import Part
from tablebay.client.table import RemoteTable
from tablebay.client.torch.devices import Sent, fetch, host_buffer, send
from tablebay.native import _core

Keys = NDArray[np.uint64]

# Its plans are for finding unique keys, wherever the rows are.
_ROUTER = _core.Router(np.zeros(SHARDS, np.uint16), 1)


class Pulled(Protocol):
    """What the layers need of a table: of servers, in this process, or of a checkpoint."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def dim(self) -> int:
        """Elements of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an element."""

    def pull(self, keys: Any, out: Any = None, create: bool = True) -> Any:
        """Rows of keys."""


@dataclass(frozen=True)
class Lookup:
    """The rows of one forward pass.

    leaf: (n, dim), or (n + 1, dim) where a padding index occurs: the last row is then zeros, and never pushed.
    inverse: int64, in the shape of the keys: where in `leaf` each key's row is.
    padding: the position of the padding row in `leaf`, if there is one.
    """

    leaf: torch.Tensor
    inverse: torch.Tensor
    padding: int | None


@dataclass(frozen=True)
class Wanted:
    """What a forward pass asks of one table: unique keys, and where each given key is among them.

    given: the keys, flat, in their order; padding_idx: of the layer. inverse: in this process's memory.
    fetched: where the rows come from.
    """

    rows: Rows
    given: Keys
    padding_idx: int | None
    keys: Keys
    inverse: torch.Tensor
    padding: int | None
    learns: bool
    fetched: Fetched | None = None


@dataclass(frozen=True, eq=False)
class Fetched:
    """Rows under way for what is wanted: a prefetch fills `buffer`.

    sent: the rows and their `inverse` on their way to the layer's device, where nothing will change them any more.
    """

    wanted: Wanted
    prefetch: Prefetch
    buffer: torch.Tensor
    sent: tuple[Sent, Sent] | None = None


class Rows(torch.nn.Parameter):
    """A table's place among a model's parameters; one for each table, however many layers use it.

    It is empty until a backward pass. Then it holds the rows that the pass used, (n, dim), and `.grad` their
    gradients, each key once, summed over all passes since the last step: so clip_grad_norm_ and GradScaler see and
    change what `tb.torch.Optimizer` will push. `requires_grad` is always False, so that DistributedDataParallel leaves
    it alone: each worker pushes its own. state_dict and copies hold the table's name, never its rows.
    """

    table: Any
    learns: bool
    own_dtype: torch.dtype
    _keys: Keys
    _lock: threading.Lock
    fetched: list[Fetched]

    def __new__(cls, table: Pulled) -> Self:
        """Of `table`; `rows_of` gives the one that there is already."""
        for name in ("name", "dim", "dtype", "pull"):
            if not hasattr(table, name):
                raise errors.BadType(
                    f"found {type(table).__name__} as a table, wanted one of client.table(), tb.Table or tb.open()"
                )
        if table.dtype.kind != "f":
            raise errors.BadType(
                f"table '{table.name}': its rows are {table.dtype}, wanted float32 for a layer"
            )
        empty = torch.from_numpy(np.empty((0, table.dim), table.dtype))
        self: Self = super().__new__(cls, empty, requires_grad=False)
        self.table = table
        self.learns = hasattr(table, "push")
        self.own_dtype = empty.dtype
        self._keys = np.empty(0, np.uint64)
        self._lock = threading.Lock()
        self.fetched = []
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """False freezes the rows: they are read as in eval mode. The attribute requires_grad stays False."""
        self.learns = bool(requires_grad) and hasattr(self.table, "push")
        return self

    # -- forward --

    def wanted(self, keys: torch.Tensor, training: bool, padding_idx: int | None = None) -> Wanted:
        """What `keys`, int32 or int64 of any shape, ask of the table. training: rows may be made, and learn."""
        self._require_own_dtype()
        flat = as_keys(keys, self.table.name)
        learns = training and self.learns and torch.is_grad_enabled()
        for one in self.fetched:
            found = one.wanted
            alike = (found.learns, found.padding_idx) == (learns, padding_idx)
            if alike and np.array_equal(found.given, flat):
                return replace(found, inverse=found.inverse.reshape(keys.shape), fetched=one)
        padding: int | None = None
        if padding_idx is None:
            unique, inverse = unique_of(flat)
        else:
            real = flat != np.uint64(padding_idx % 2**64)
            unique, places = unique_of(flat[real])
            padding = None if real.all() else unique.size
            inverse = np.full(flat.size, unique.size, np.int64)
            inverse[real] = places
        where = torch.from_numpy(inverse).reshape(keys.shape)
        return Wanted(self, flat, padding_idx, unique, where, padding, learns)

    def lookup(self, keys: torch.Tensor, training: bool, padding_idx: int | None = None) -> Lookup:
        """Pull the rows of `keys`."""
        return pull([self.wanted(keys, training, padding_idx)])[0]

    def _require_own_dtype(self) -> None:
        if self.dtype != self.own_dtype:
            raise errors.BadType(
                f"table '{self.table.name}': the layer was converted to {self.dtype}, and the table's rows are "
                f"{self.own_dtype}; "
                "use torch.autocast for lower precision"
            )

    # -- backward --

    def keep(self, keys: Keys, leaf: torch.Tensor) -> None:
        """Add what a backward pass found for `leaf`, the rows of `keys`, to what waits for the next step."""
        found = leaf.grad
        assert found is not None
        leaf.grad = None
        if found.requires_grad:
            raise errors.BadRequest(
                f"table '{self.table.name}': double backward is not supported: backward was called with "
                "create_graph=True, and the gradients of rows leave the graph when they are pushed"
            )
        with self._lock, torch.no_grad():
            # A padding row is the last one.
            found, rows = found[: keys.size], leaf.detach()[: keys.size]
            if self.grad is None:
                self._set(keys, rows, found)
            elif self._keys.size == keys.size and np.array_equal(self._keys, keys):
                self.grad += found
            else:
                self._merge(keys, rows, found)

    def _merge(self, keys: Keys, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        assert self.grad is not None
        all_keys, inverse = unique_of(np.concatenate((self._keys, keys)))
        where = send(torch.from_numpy(inverse), rows.device).take()
        merged_rows, merged = (torch.zeros(all_keys.size, self.table.dim).to(rows) for _ in range(2))
        for begin, count, values, gradient in (
            (0, self._keys.size, self.data, self.grad),
            (self._keys.size, keys.size, rows, gradients),
        ):
            place = where[begin : begin + count]
            merged_rows[place] = values
            merged[place] += gradient
        self._set(all_keys, merged_rows, merged)

    def _set(self, keys: Keys, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        self.grad = None
        self._keys = keys
        self.data = rows
        self.grad = gradients

    def clear(self) -> None:
        """Forget what waits for the next step."""
        with self._lock:
            self.grad = None
            self._keys = np.empty(0, np.uint64)
            self.data = self.data.new_empty((0, self.table.dim))

    def update(self) -> tuple[Keys, Sent] | None:
        """What a step pushes: unique keys (n,) and their gradients (n, dim), on their way; None if there is nothing."""
        with self._lock:
            if self.grad is None or not self._keys.size:
                return None
            return self._keys, fetch(self.grad)

    # -- what a handle is not --

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy of a model looks up the same table.
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise errors.BadRequest(
            f"table '{self.table.name}': a layer cannot be saved as an object; save model.state_dict(), which "
            "names the table, and make the layer anew"
        )

    def __repr__(self) -> str:
        return f"Rows of {self.table!r}"


_KNOWN: weakref.WeakValueDictionary[int, Rows] = weakref.WeakValueDictionary()
_KNOWN_LOCK = threading.Lock()


def rows_of(table: Pulled) -> Rows:
    """The one `Rows` of a table: layers that name one table share it."""
    with _KNOWN_LOCK:
        # A Rows keeps its table alive, so that no other gets the same id meanwhile.
        rows = _KNOWN.get(id(table))
        if rows is None:
            rows = _KNOWN[id(table)] = Rows(table)
        return rows


def pull(wanted: Sequence[Wanted]) -> list[Lookup]:
    """Rows for several tables, in one call to each server."""
    found: list[tuple[Sent, Sent] | None] = []
    buffers: list[torch.Tensor] = []
    # Tables of one client that make rows, and that do not, are two calls: a call does one or the other.
    calls: dict[tuple[int, bool], list[int]] = {}
    for index, one in enumerate(wanted):
        fetched = _prefetched(one)
        found.append(None if fetched is None else fetched.sent)
        buffers.append(buffer_of(one) if fetched is None else fetched.buffer)
        if fetched is not None or not one.keys.size:
            continue
        table = one.rows.table
        if isinstance(table, RemoteTable):
            calls.setdefault((id(table.session), one.learns), []).append(index)
        else:
            table.pull(one.keys, out=buffers[index].numpy()[: one.keys.size], create=one.learns)
    for indices in calls.values():
        _pull_remote([(wanted[i], buffers[i]) for i in indices])
    sent = [
        send_rows(one, buffer) if there is None else there
        for one, buffer, there in zip(wanted, buffers, found, strict=True)
    ]
    return [_lookup(one, *there) for one, there in zip(wanted, sent, strict=True)]


def _pull_remote(wanted: Sequence[tuple[Wanted, torch.Tensor]]) -> None:
    session = wanted[0][0].rows.table.session
    session.check()
    began = session.pace.clock()
    session.pull([part_of(one, buffer) for one, buffer in wanted], session.deadline())
    session.pull_latency.record(session.pace.clock() - began)


def _prefetched(one: Wanted) -> Fetched | None:
    """The prefetch of just these keys, its buffer filled, if there is one."""
    fetched = one.fetched
    if fetched is None or fetched not in one.rows.fetched:
        return None
    one.rows.fetched.remove(fetched)
    fetched.prefetch.result()
    return fetched


def buffer_of(one: Wanted) -> torch.Tensor:
    """Where the rows are pulled to, with zeros for a padding row."""
    table = one.rows.table
    count = one.keys.size + (one.padding is not None)
    buffer = host_buffer((count, table.dim), one.rows.own_dtype, one.rows.device)
    buffer[one.keys.size :] = 0
    return buffer


def part_of(one: Wanted, buffer: torch.Tensor) -> Part:
    """A pull of a server's table into `buffer`."""
    part: Part = one.rows.table.pull_part(one.keys, buffer.numpy()[: one.keys.size], one.learns)[0]
    return part


def send_rows(one: Wanted, buffer: torch.Tensor) -> tuple[Sent, Sent]:
    """The rows and their `inverse`, sent to the layer's device."""
    device = one.rows.device
    return send(buffer, device), send(one.inverse, device)


def _lookup(one: Wanted, rows_sent: Sent, inverse_sent: Sent) -> Lookup:
    leaf = rows_sent.take()
    inverse = inverse_sent.take().reshape(one.inverse.shape)
    if one.learns:
        rows, keys = one.rows, one.keys
        leaf.requires_grad_()
        leaf.register_post_accumulate_grad_hook(lambda leaf: rows.keep(keys, leaf))
    return Lookup(leaf, inverse, one.padding)


def unique_of(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """Each key once, and for each given key its place among them."""
    plan: _core.Plan = native(_ROUTER.plan, keys)
    return np.array(plan.keys(), np.uint64), plan.inverse().astype(np.int64)


def as_keys(keys: torch.Tensor, table: str) -> Keys:
    """Keys (n,) of a tensor of int32 or int64 of any shape, on any device; -1 and 2^64 - 1 are the same key."""
    if not isinstance(keys, torch.Tensor):
        raise errors.BadType(
            f"table '{table}': keys: found {type(keys).__name__}, wanted a tensor of int64 or int32"
        )
    if keys.dtype not in (torch.int64, torch.int32):
        raise errors.BadType(f"table '{table}': keys: found {keys.dtype}, wanted int64 or int32")
    flat: Keys = keys.detach().to("cpu", torch.int64).contiguous().numpy().reshape(-1).view(np.uint64)
    return flat
