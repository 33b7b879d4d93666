"""Pulls a later batch's rows while the model computes on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tablebay.client import errors
from tablebay.client.prefetch import Prefetch
from tablebay.client.step import pull_parts
from tablebay.client.table import RemoteTable
from tablebay.client.torch.jagged import EmbeddingBagCollection, EmbeddingCollection
from tablebay.client.torch.layers import TableLayer
from tablebay.client.torch.rows import Fetched, Rows, Wanted

Batch = TypeVar("Batch")

AHEAD_MAX = 16


def prefetch(
    batches: Iterable[Batch], lookup: Callable[[Batch], Mapping[Any, Any]], *, ahead: int = 1
) -> Iterator[Batch]:
    """The batches in their order; the rows of the next `ahead` are on their way when one is given out.

    lookup: what the model will look up of a batch, by layer: {model.users: batch.user_keys, …}; for a collection its
        features. A lookup that was not announced, or of other keys, is a pull of its own.
    ahead: 1 to 16.
    What this client pushes meanwhile is pulled again, so that one worker learns exactly what it learns without. What
    other workers push after the request was sent is not seen: rows are older by up to `ahead` steps. Tables in this
    process and of a checkpoint are read when they are looked up.
    """
    if isinstance(ahead, bool) or not isinstance(ahead, int):
        raise errors.BadType(f"ahead: found {type(ahead).__name__}, wanted an int")
    if not 1 <= ahead <= AHEAD_MAX:
        raise errors.BadRequest(f"ahead is {ahead}, wanted 1 to {AHEAD_MAX}")
    return _run(batches, lookup, ahead)


def _run(
    batches: Iterable[Batch], lookup: Callable[[Batch], Mapping[Any, Any]], ahead: int
) -> Iterator[Batch]:
    waiting: deque[tuple[Batch, list[tuple[Rows, Fetched]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, _begin(lookup(batch))))
            if len(waiting) > ahead:
                yield waiting[0][0]
                _drop(waiting.popleft()[1])
        while waiting:
            yield waiting[0][0]
            _drop(waiting.popleft()[1])
    finally:
        for _, fetched in waiting:
            _drop(fetched)


def _begin(lookups: Mapping[Any, Any]) -> list[tuple[Rows, Fetched]]:
    calls: dict[tuple[Any, bool], list[Wanted]] = {}
    for layer, keys in lookups.items():
        if not isinstance(layer, TableLayer | EmbeddingBagCollection | EmbeddingCollection):
            raise errors.BadType(f"lookup: found {type(layer).__name__} as a key, wanted a layer of tb.torch")
        for one in layer.wanted(keys):
            if isinstance(one.rows.table, RemoteTable) and one.keys.size:
                calls.setdefault((one.rows.table.session, one.learns), []).append(one)
    fetched: list[tuple[Rows, Fetched]] = []
    for (session, learns), wanted in calls.items():
        parts, rows = [], []
        for one in wanted:
            more_parts, more_rows = pull_parts(session, {one.rows.table: one.keys}, learns)
            parts += more_parts
            rows += more_rows
        session.check()
        request = Prefetch(session, parts, rows)
        fetched += [(one.rows, Fetched(one.keys, learns, request, i)) for i, one in enumerate(wanted)]
    for rows_of_table, one_fetched in fetched:
        rows_of_table.fetched.append(one_fetched)
    return fetched


def _drop(fetched: list[tuple[Rows, Fetched]]) -> None:
    """Give up what was not looked up."""
    for rows, one in fetched:
        if one in rows.fetched:
            rows.fetched.remove(one)
        one.prefetch.cancel()
