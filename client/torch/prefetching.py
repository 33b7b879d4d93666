"""Pulls a later batch's rows while the model computes on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from tablebay.client import errors
from tablebay.client.prefetch import Prefetch
from tablebay.client.table import RemoteTable
from tablebay.client.torch.jagged import EmbeddingBagCollection, EmbeddingCollection
from tablebay.client.torch.layers import TableLayer
from tablebay.client.torch.rows import Fetched, Wanted, buffer_of, part_of, send_rows

Batch = TypeVar("Batch")

AHEAD_MAX = 16


def prefetch(
    batches: Iterable[Batch],
    lookup: Callable[[Batch], Mapping[Any, Any]],
    *,
    ahead: int = 1,
    refresh: bool = True,
) -> Iterator[Batch]:
    """The batches in their order; the rows of the next `ahead` are on their way when one is given out.

    lookup: what the model will look up of a batch, by layer: {model.users: batch.user_keys, …}; for a collection its
        features. A lookup that was not announced, or of other keys, is a pull of its own.
    ahead: 1 to 16.
    refresh: what this client pushes meanwhile is pulled again, so that one worker learns exactly what it learns
        without. False takes the rows as they were when they were asked for: older by up to ahead + 1 of this client's
        own steps too, and nothing waits for a push.
    What other workers push after the request was sent is not seen: rows are older by up to `ahead` steps. Tables in
    this process and of a checkpoint are read when they are looked up.
    """
    for name, value, kind in (("ahead", ahead, int), ("refresh", refresh, bool)):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise errors.BadType(f"{name}: found {type(value).__name__}, wanted {kind.__name__}")
    if not 1 <= ahead <= AHEAD_MAX:
        raise errors.BadRequest(f"ahead is {ahead}, wanted 1 to {AHEAD_MAX}")
    return _run(batches, lookup, ahead, refresh)


@dataclass
class _Announced(Generic[Batch]):
    """A batch, and the rows that another thread pulls for it as the model computes."""

    batch: Batch
    begun: Future[list[Fetched]]

    def take(self) -> list[Fetched]:
        """From now on lookups find the rows."""
        fetched = self.begun.result()
        for one in fetched:
            one.wanted.rows.fetched.append(one)
        return fetched


def _run(
    batches: Iterable[Batch], lookup: Callable[[Batch], Mapping[Any, Any]], ahead: int, refresh: bool
) -> Iterator[Batch]:
    waiting: deque[_Announced[Batch]] = deque()
    with ThreadPoolExecutor(1, "tablebay-prefetch") as thread:
        try:
            for batch in batches:
                lookups = _checked(lookup(batch))
                begun = thread.submit(_begin, lookups, refresh, torch.is_grad_enabled())
                waiting.append(_Announced(batch, begun))
                if len(waiting) > ahead:
                    yield from _give(waiting.popleft())
            while waiting:
                yield from _give(waiting.popleft())
        finally:
            for one in waiting:
                if not one.begun.cancel() and one.begun.exception() is None:
                    _drop(one.begun.result())


def _give(one: _Announced[Batch]) -> Iterator[Batch]:
    fetched = one.take()
    try:
        yield one.batch
    finally:
        # What was not looked up is given up.
        _drop(fetched)


def _checked(lookups: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    for layer in lookups:
        if not isinstance(layer, TableLayer | EmbeddingBagCollection | EmbeddingCollection):
            raise errors.BadType(f"lookup: found {type(layer).__name__} as a key, wanted a layer of tb.torch")
    return list(lookups.items())


def _begin(lookups: list[tuple[Any, Any]], refresh: bool, learning: bool) -> list[Fetched]:
    calls: dict[tuple[Any, bool], list[Wanted]] = {}
    # Whether gradients are wanted is each thread's own.
    with torch.set_grad_enabled(learning):
        for layer, keys in lookups:
            for one in layer.wanted(keys):
                if isinstance(one.rows.table, RemoteTable) and one.keys.size:
                    # The caller may reuse its tensor of keys.
                    mine = replace(one, given=one.given.copy(), fetched=None)
                    calls.setdefault((one.rows.table.session, one.learns), []).append(mine)
    fetched: list[Fetched] = []
    for (session, _), wanted in calls.items():
        session.check()
        buffers = [buffer_of(one) for one in wanted]
        parts = [part_of(one, buffer) for one, buffer in zip(wanted, buffers, strict=True)]
        request = Prefetch(session, parts, [part[-1] for part in parts], refresh, send=False)
        try:
            request.receive()
        except errors.Unavailable:
            # Asked for again by the lookup, which raises what comes of that.
            pass
        except BaseException:
            request.cancel()
            raise
        final = request.received and not refresh
        fetched += [
            Fetched(one, request, buffer, send_rows(one, buffer) if final else None)
            for one, buffer in zip(wanted, buffers, strict=True)
        ]
    return fetched


def _drop(fetched: list[Fetched]) -> None:
    for one in fetched:
        if one in one.wanted.rows.fetched:
            one.wanted.rows.fetched.remove(one)
        one.prefetch.cancel()
