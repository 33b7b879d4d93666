"""Prefetches: pulls that overlap with this client's pushes."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tablebay.client.client import Client, client_over
from tablebay.client.errors import BadRequest, BadType, Closed, ResourceExhausted, Unavailable
from tablebay.client.inprocess import InProcessTransport, local, services
from tablebay.client.prefetch import PREFETCHES_MAX
from tablebay.client.retry import Pace
from tablebay.client.tables import Constant


class Later:
    """An answer that is computed when it is asked for, or when its transport says."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._answer: bytes | None = None

    def deliver(self) -> None:
        if self._answer is None:
            self._answer = self._send()

    def result(self) -> bytes:
        self.deliver()
        assert self._answer is not None
        return self._answer

    def cancel(self) -> bool:
        return False


class Delaying:
    """A transport that handles a pull at once, or only when its answer is wanted, as `late` says."""

    def __init__(self, servers: int) -> None:
        self.inner = InProcessTransport(services(servers))
        self.late = False
        self.refuse = False
        self.pulls = 0

    @property
    def addresses(self) -> Sequence[str]:
        return self.inner.addresses

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Any:
        if method not in ("Pull", "Step"):
            return self.inner.call(server, method, request, timeout)
        self.pulls += 1

        def send() -> bytes:
            if self.refuse:
                raise Unavailable("not now")
            return self.inner.call(server, method, request, timeout).result()

        answer = Later(send)
        if not self.late and not self.refuse:
            answer.deliver()
        return answer

    def rebuild(self) -> None:
        self.inner.rebuild()

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def client() -> Client:
    """A client of two servers."""
    return local(servers=2)


def sums_of(client: Client, name: str = "sums") -> Any:
    """An int64 table with two columns."""
    return client.table(name, dim=2, dtype="int64")


def test_a_prefetch_gives_the_rows_of_a_pull(client: Client) -> None:
    """In the mapping's order, in the keys' shapes; as often as it is asked."""
    users = client.table("user", dim=4)
    items = client.table("item", dim=2, initializer=Constant(3.0))
    user_keys, item_keys = np.array([[1, 2], [2, 9]]), np.arange(100)
    future = client.prefetch({items: item_keys, users: user_keys})
    first, second = future.result()
    assert (first == items.pull(item_keys)).all()
    assert first.shape == (100, 2)
    assert (second == users.pull(user_keys)).all()
    assert second.shape == (2, 2, 4)
    again = future.result()
    assert again[0] is first
    assert again[1] is second


def test_a_prefetch_without_keys_or_tables_is_empty(client: Client) -> None:
    """Shapes are kept."""
    assert client.prefetch({}).result() == []
    assert client.prefetch({sums_of(client): np.empty((2, 0), np.int64)}).result()[0].shape == (2, 0, 2)


@pytest.mark.parametrize("servers", [1, 3])
def test_a_prefetch_sees_what_this_client_pushes_meanwhile(servers: int) -> None:
    """Whether the servers answered before the pushes or after: rows are those of a pull at result()."""
    for seed in range(40):
        draw = np.random.default_rng(seed)
        transport = Delaying(servers)
        client = client_over(transport, pace=Pace(random=random.Random(seed)))
        tables = [sums_of(client), sums_of(client, "others")]
        outstanding: list[tuple[Any, list[Any]]] = []
        for _ in range(30):
            transport.late = bool(draw.integers(2))
            keys = [draw.integers(0, 60, int(draw.integers(0, 40))) for _ in tables]
            gradients = [draw.integers(0, 9, (size.size, 2)) for size in keys]
            kind = draw.integers(5)
            if kind == 0:
                tables[0].push(keys[0], gradients[0])
            elif kind == 1:
                tables[1].assign(keys[1], gradients[1])
            elif kind == 2:
                tables[0].delete(keys[0])
            elif kind == 3:
                with client.step() as step:
                    step.push({tables[0]: (keys[0], gradients[0]), tables[1]: (keys[1], gradients[1])})
            else:
                outstanding.append((client.prefetch(dict(zip(tables, keys, strict=True))), keys))
            if outstanding and draw.random() < 0.4:
                future, keys = outstanding.pop(int(draw.integers(len(outstanding))))
                rows = future.result()
                for table, found, wanted in zip(tables, rows, keys, strict=True):
                    assert (found == table.pull(wanted)).all(), f"seed {seed}"


def test_only_rows_that_were_pushed_are_pulled_again() -> None:
    """A push of other keys, or of another table, costs nothing."""
    transport = Delaying(1)
    client = client_over(transport)
    sums, others = sums_of(client), sums_of(client, "others")
    keys = np.arange(100)
    future = client.prefetch({sums: keys})
    sums.push(keys + 100, np.ones((100, 2), np.int64))
    others.push(keys, np.ones((100, 2), np.int64))
    before = transport.pulls
    future.result()
    assert transport.pulls == before
    future = client.prefetch({sums: keys})
    sums.push([3, 3], np.ones((2, 2), np.int64))
    before = sum(stats.counters["keys_pulled"] for stats in client.stats())
    (rows,) = future.result()
    assert rows[3].tolist() == [2, 2]
    assert sum(stats.counters["keys_pulled"] for stats in client.stats()) == before + 1


def test_a_push_left_open_before_a_prefetch_counts_as_under_way() -> None:
    """It may be applied between the prefetch and its result: its rows are pulled again."""
    transport = Delaying(1)
    client = client_over(transport, timeout=0.05)
    sums, others = sums_of(client), sums_of(client, "others")
    transport.refuse = True
    with pytest.raises(Unavailable), client.step() as step:
        step.push({sums: ([1], np.ones((1, 2), np.int64)), others: ([1], np.ones((1, 2), np.int64))})
    transport.refuse = False
    future = client.prefetch({sums: [1, 2]})
    others.push([5], np.ones((1, 2), np.int64))
    (rows,) = future.result()
    assert rows.tolist() == [[1, 1], [0, 0]]


def test_a_result_that_failed_may_be_asked_for_again() -> None:
    """Unavailable once, the rows later."""
    transport = Delaying(2)
    client = client_over(transport, timeout=0.05)
    sums = sums_of(client)
    sums.push(np.arange(10), np.ones((10, 2), np.int64))
    transport.refuse = True
    future = client.prefetch({sums: np.arange(10)})
    with pytest.raises(Unavailable):
        future.result()
    transport.refuse = False
    sums.push([0], np.ones((1, 2), np.int64))
    assert future.result()[0].tolist() == [[2, 2]] + [[1, 1]] * 9


def test_prefetches_are_bounded_and_may_be_dropped(client: Client) -> None:
    """Too many without a result are refused; cancelled and forgotten ones do not count."""
    sums = sums_of(client)
    kept = [client.prefetch({sums: [1]}) for _ in range(PREFETCHES_MAX)]
    with pytest.raises(ResourceExhausted, match=f"{PREFETCHES_MAX} prefetches have not given their result"):
        client.prefetch({sums: [1]})
    kept[0].cancel()
    kept[0].cancel()
    with pytest.raises(BadRequest, match="has been cancelled"):
        kept[0].result()
    kept[1].result()
    extra = [client.prefetch({sums: [1]}) for _ in range(2)]
    del kept, extra
    gc.collect()
    assert client.prefetch({sums: [1]}).result()[0].tolist() == [[0, 0]]


def test_wrong_keys_are_refused_before_anything_is_sent(client: Client) -> None:
    """By the table's name; after close() the result is Closed."""
    sums = sums_of(client)
    with pytest.raises(BadType, match="table 'sums': keys: found float64"):
        client.prefetch({sums: np.zeros(3)})
    future = client.prefetch({sums: [1]})
    client.close()
    with pytest.raises(Closed):
        future.result()


def test_threads_may_prefetch_and_push_at_once(client: Client) -> None:
    """A prefetch's rows hold at least what its own thread had pushed before asking for them."""
    sums = sums_of(client)
    failures: list[str] = []

    def run(seed: int) -> None:
        draw = np.random.default_rng(seed)
        pushed = np.zeros(20, np.int64)
        for _ in range(40):
            keys = draw.integers(0, 20, 10)
            future = client.prefetch({sums: np.arange(20)})
            sums.push(keys, np.ones((10, 2), np.int64))
            np.add.at(pushed, keys, 1)
            (rows,) = future.result()
            if not (rows[:, 0] >= pushed).all() or not (rows[:, 0] == rows[:, 1]).all():
                failures.append(f"seed {seed}")

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert int(sums.pull(np.arange(20)).sum()) == 6 * 40 * 10 * 2
