"""The same rows: one worker's training on flights gives the same bits wherever the tables are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from free_ports import free_data_ports
from numpy.typing import NDArray

import tablebay as tb
from tablebay.examples.flights import data, train
from tablebay.examples.flights.batches import Share

EXAMPLES = 25_000
DIM = 9
SHARE = Share(EXAMPLES, batch_size=256, epochs=3, seed=11, rank=0, workers=1)
SPECS: dict[str, dict[str, Any]] = {
    # The first is the table of examples/flights/job.yaml.
    "Adagrad": {"optimizer": tb.Adagrad(0.05, 1e-8), "initializer": tb.Normal(0.01)},
    "Adam": {"optimizer": tb.Adam(0.01), "initializer": tb.Uniform(-0.02, 0.02), "seed": 2**63 + 5},
}


class Alone:
    """What the worker uses of a client, on one tb.Table in this process."""

    next_step, cursor = 0, b""

    @contextmanager
    def step(self) -> Iterator[Alone]:
        """A step: its own pull and push, as they come."""
        yield self

    def pull(self, requests: Mapping[tb.Table, data.Keys]) -> list[NDArray[Any]]:
        return [table.pull(keys) for table, keys in requests.items()]

    def push(self, updates: Mapping[tb.Table, tuple[data.Keys, NDArray[Any]]], cursor: bytes) -> None:
        for table, (keys, gradients) in updates.items():
            table.push(keys, gradients)

    def report(self, **values: float) -> None:
        """Nobody listens."""


@pytest.fixture(scope="module")
def training() -> data.Examples:
    """Flights from all over the year."""
    return data.split(data.load(), "random")[0].take(np.arange(EXAMPLES))


def trained(client: Any, table: Any, training: data.Examples, **options: Any) -> dict[str, bytes]:
    """Train; all rows, and all of the optimizer's state, in the order of the keys."""
    train.train(client, table, None, training, SHARE, train.Options(**options))
    parts = list(table.items())
    keys = np.concatenate([keys for keys, _ in parts])
    rows = np.concatenate([rows for _, rows in parts])
    order = np.argsort(keys)
    state = table.optimizer_state(keys[order])
    found = {"keys": keys[order], "rows": rows[order], **state}
    return {name: array.tobytes() for name, array in found.items()}


@pytest.mark.parametrize("optimizer", SPECS)
def test_one_workers_training_gives_the_same_bits_everywhere(
    training: data.Examples,
    start_server: Callable[..., Any],
    optimizer: str,
) -> None:
    """In process, on 1, 2 and 5 servers in this process, on two real ones: rows and state are equal byte for byte."""
    where = f"{optimizer}, seed {SHARE.seed}"
    spec: dict[str, Any] = {"dim": DIM, **SPECS[optimizer]}
    assert 200 < SHARE.steps < 400
    found: dict[str, dict[str, bytes]] = {}

    found["tb.Table"] = trained(Alone(), tb.Table(name="fields", **spec), training)
    for servers in (1, 2, 5):
        with tb.local(servers=servers) as client:
            found[f"tb.local({servers})"] = trained(client, client.table("fields", **spec), training)
    with tb.local(servers=2) as client:
        found["prefetching"] = trained(client, client.table("fields", **spec), training, prefetch=True)

    ports = free_data_ports(2)
    address = ",".join(f"127.0.0.1:{port}" for port in ports)
    for index, port in enumerate(ports):
        start_server("--servers", address, "--index", str(index), data_port=port)
    with tb.connect(address, rank=0, workers=1) as client:
        found["tb.connect, 2 servers"] = trained(client, client.table("fields", **spec), training)
        rows = [stats.counters["rows"] for stats in client.stats()]
        assert min(rows) > 0, f"{where}: all rows on one server: {rows}"

    first = found["tb.Table"]
    keys = np.unique(np.append(training.keys, data.BIAS_KEY))
    assert first["keys"] == keys.tobytes(), where
    assert len(first["rows"]) == len(keys) * DIM * 4, where
    assert first.keys() - {"keys", "rows"} == (
        {"accumulator"} if optimizer == "Adagrad" else {"m", "v", "step"}
    )
    for place, other in found.items():
        differing = [name for name, content in first.items() if other[name] != content]
        assert other.keys() == first.keys() and not differing, f"{where}, {place}: {differing} differ"
