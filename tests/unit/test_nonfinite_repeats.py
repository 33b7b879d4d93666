"""Zero and Reject look at the sum of a repeated key's gradients, wherever the table is.

Finite gradients can have an infinite sum, infinite ones a NaN for a sum. The oracle sums in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tablebay as tb
from tablebay.client.client import client_over
from tablebay.client.inprocess import InProcessTransport
from tablebay.client.proto import tablebay_pb2
from tablebay.client.routing import ShardMap
from tablebay.native import _core
from tablebay.ps_server.service import Service

Floats = NDArray[np.float32]
Keys = NDArray[np.uint64]

DIM = 5
MAX = float(np.finfo(np.float32).max)
INF = float("inf")
OPTIMIZERS: dict[str, Any] = {"SGD": tb.SGD(0.5), "Adagrad": tb.Adagrad(0.1), "Adam": tb.Adam(0.01)}
PLACES = ("tb.Table", "tb.local", "raw")


class Raw:
    """A table of one server: pushed to in messages without the flag UNIQUE, read through a client."""

    def __init__(self, service: Service, table: Any) -> None:
        self._service, self._table = service, table
        hello = tablebay_pb2.HelloRequest(protocol_major=1, nonce=1)
        answer = tablebay_pb2.HelloResponse.FromString(service.handle("Hello", hello.SerializeToString()))
        self._who = {
            "client_high": answer.client_high,
            "client_low": answer.client_low,
            "incarnation": answer.incarnation,
        }
        self._step = 0

    def push(self, keys: Keys, gradients: Floats) -> None:
        part = tablebay_pb2.Part(
            table_id=_core.table_id(self._table.name), dim=DIM, keys=keys.tobytes(), rows=gradients.tobytes()
        )
        assert part.flags & _core.UNIQUE == 0
        request = tablebay_pb2.PushRequest(
            sender=tablebay_pb2.Sender(**self._who), step=self._step, oldest_step=self._step, part=part
        )
        self._step += 1
        self._service.handle("Push", request.SerializeToString())

    def pull(self, keys: Keys) -> Any:
        return self._table.pull(keys)

    def optimizer_state(self, keys: Keys) -> Any:
        return self._table.optimizer_state(keys)


@contextmanager
def table_at(place: str, optimizer: str, non_finite: Any) -> Iterator[Any]:
    """A table whose new rows are the same in every place."""
    spec: dict[str, Any] = {"dim": DIM, "optimizer": OPTIMIZERS[optimizer], "seed": 3}
    spec |= {"initializer": tb.Normal(1.0), "non_finite": non_finite}
    if place == "tb.Table":
        yield tb.Table(name="user", **spec)
    elif place == "tb.local":
        with tb.local(servers=2) as client:
            yield client.table("user", **spec)
    else:
        service = Service()
        with client_over(InProcessTransport([service])) as client:
            yield Raw(service, client.table("user", **spec))


def sums(keys: Keys, gradients: Floats) -> dict[int, list[float]]:
    """Each key's gradients added up in order of occurrence, each sum rounded to float32."""
    found: dict[int, list[float]] = {}
    with np.errstate(all="ignore"):
        for key, row in zip(keys.tolist(), gradients, strict=True):
            before = found.get(key)
            found[key] = [
                float(value if before is None else np.float32(before[column]) + value)
                for column, value in enumerate(row)
            ]
    return found


def bits(table: Any, keys: Keys) -> dict[str, bytes]:
    """Rows and optimizer state."""
    found = {"rows": table.pull(keys), **table.optimizer_state(keys)}
    return {name: array.tobytes() for name, array in found.items()}


def batch(seed: int, extremes: list[float]) -> tuple[Keys, Floats]:
    """Keys that repeat, and gradients of which many are extreme."""
    random = np.random.default_rng(seed)
    keys = random.integers(0, 25, 60, dtype=np.uint64)
    gradients = random.standard_normal((60, DIM)).astype(np.float32)
    where = random.random((60, DIM)) < 0.3
    gradients[where] = random.choice(np.array(extremes, np.float32), int(where.sum()))
    return keys, gradients


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zero_clears_the_elements_of_sums_that_are_not_finite(optimizer: str, place: str) -> None:
    """Bit for bit as if the finite sums, and 0 for the others, had been pushed once for each key."""
    everything = np.arange(25, dtype=np.uint64)
    with (
        table_at(place, optimizer, "Zero") as table,
        table_at("tb.Table", optimizer, "Allow") as wanted,
    ):
        overflowed = cancelled = 0
        for seed in range(20):
            keys, gradients = batch(seed, [MAX, -MAX, 0.6 * MAX, -0.6 * MAX, INF, -INF, float("nan")])
            found = sums(keys, gradients)
            clean = np.array(list(found.values()), np.float32)
            finite = np.isfinite(clean)
            for at, key in enumerate(found):
                parts = gradients[keys == key]
                whole = np.isfinite(parts).all(axis=0)
                overflowed += int((whole & ~finite[at]).sum())
                cancelled += int((np.isnan(clean[at]) & ~np.isnan(parts).any(axis=0)).sum())
            clean[~finite] = 0
            table.push(keys, gradients)
            wanted.push(np.array(list(found), np.uint64), clean)
            assert bits(table, everything) == bits(wanted, everything), f"seed {seed}"
        # Finite parts with an infinite sum, and inf + -inf, were among them.
        assert overflowed > 20 and cancelled > 20


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ([MAX, MAX], 0.0),
        ([-MAX, -MAX], 0.0),
        # In order: what has overflowed does not come back, what has not is what it is.
        ([MAX, MAX, -MAX], 0.0),
        ([MAX, -MAX, MAX], MAX),
        ([INF, -INF], 0.0),
        ([-INF, 1.0, INF, 1.0], 0.0),
        # The whole sum goes, not the part that was to blame.
        ([INF, 1.0], 0.0),
        ([1.0, float("nan"), 1.0], 0.0),
        ([1.0, 2.0], 3.0),
    ],
    ids=str,
)
def test_what_zero_leaves_of_a_sum(parts: list[float], kept: float, place: str) -> None:
    """Of one column of a key that repeats; the other columns, and a key beside it, are summed as ever."""
    keys = np.array([7, 8, *[7] * (len(parts) - 1)], np.uint64)
    gradients = np.ones((len(keys), DIM), np.float32)
    gradients[keys == 7, 2] = parts
    with table_at(place, "SGD", "Zero") as table:
        before = table.pull(keys[:2]).copy()
        table.push(keys, gradients)
        change = np.ones((2, DIM), np.float32)
        change[0] = len(parts)
        change[0, 2] = kept
        assert table.pull(keys[:2]).tobytes() == (before - np.float32(0.5) * change).tobytes()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_reject_refuses_a_sum_that_is_not_finite_and_changes_nothing(optimizer: str, place: str) -> None:
    """Whole: rows and state stay; a push whose sums are finite, though barely, is applied, with the same bits."""
    servers = ShardMap.even(2).owners[_core.shards_of(np.arange(60, dtype=np.uint64))]
    # All on one server: another one may have applied its shards of a refused step.
    own = np.flatnonzero(servers == 0).astype(np.uint64)[:25]
    with (
        table_at(place, optimizer, "Reject") as table,
        table_at("tb.Table", optimizer, "Allow") as wanted,
    ):
        refused = applied = 0
        for seed in range(40):
            keys, gradients = batch(seed, [0.6 * MAX, -0.6 * MAX])
            keys = own[keys.astype(np.int64)]
            # Every other one is small enough for any sum.
            gradients *= np.float32(0.01) if seed % 2 else np.float32(1)
            found = sums(keys, gradients)
            before = bits(table, own)
            bad = [key for key, row in found.items() if not np.isfinite(row).all()]
            if bad:
                with pytest.raises(tb.NonFinite, match=rf"table 'user'.*key ({'|'.join(map(str, bad))}) "):
                    table.push(keys, gradients)
                assert bits(table, own) == before, f"seed {seed}"
                refused += 1
            else:
                table.push(keys, gradients)
                wanted.push(np.array(list(found), np.uint64), np.array(list(found.values()), np.float32))
                applied += 1
            assert bits(table, own) == bits(wanted, own), f"seed {seed}"
        assert refused >= 15 and applied >= 15


@pytest.mark.parametrize("place", PLACES)
def test_reject_refuses_infinities_that_cancel(place: str) -> None:
    """inf + -inf is no number; the client finds the parts, the server the sum, and both name the key."""
    keys = np.array([5, 6, 5], np.uint64)
    gradients = np.ones((3, DIM), np.float32)
    gradients[0, 1], gradients[2, 1] = INF, -INF
    with table_at(place, "Adagrad", "Reject") as table:
        before = bits(table, keys)
        with pytest.raises(tb.NonFinite, match="table 'user'.*key 5 "):
            table.push(keys, gradients)
        assert bits(table, keys) == before
        table.push(keys, np.ones((3, DIM), np.float32))
        assert bits(table, keys) != before
