"""Guarantee G1, exactly once: each step of each client is applied once on each shard, whatever the network does.

The oracle is an int64 table whose rows add up (tests T3 and T4 of docs/guarantees.md): client c at step s adds a
63-bit pseudo-random number to each key of its batch. Any loss, repeat or mix-up shows, without tolerance.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from faults.simulated_network import Faults, Network, SimulatedTransport, VirtualLock
from numpy.typing import NDArray

import tablebay as tb
from tablebay.client.client import Client, client_over
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.client.transport import MESSAGE_BYTES_MAX
from tablebay.ps_server.service import Service

ORACLE = tb.TableSpec("oracle", 2, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())

OPEN_MAX = 16  # steps that a client has open at once
STEPS_MORE = 3  # that it takes beyond those


def amounts(client: int, step: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What client adds at a step to each key: shape (n, 2), pseudo-random."""
    random = np.random.default_rng([client, step])
    return random.integers(-(2**62), 2**62, (len(keys), 2))


class Total:
    """What every row should be: the sum over the pushes, wrapping."""

    def __init__(self) -> None:
        self.rows: dict[int, NDArray[np.int64]] = {}

    def add(self, keys: NDArray[np.uint64], more: NDArray[np.int64]) -> None:
        for key, row in zip(keys.tolist(), more, strict=True):
            self.rows[key] = self.rows.get(key, np.zeros(2, np.int64)) + row

    def check(self, services: list[Service], where: str) -> None:
        """Every row of the servers equals its sum, and there are no others."""
        found: dict[int, NDArray[np.int64]] = {}
        for service in services:
            scan = messages.ScanRequest(table="oracle", rows_max=1000)
            while True:
                answer = messages.ScanResponse.FromString(service.handle("Scan", scan.SerializeToString()))
                rows = np.frombuffer(answer.rows, np.int64).reshape(-1, 2)
                found |= dict(zip(np.frombuffer(answer.keys, np.uint64).tolist(), rows, strict=True))
                scan.position = answer.position
                if scan.position == 0:
                    break
        assert found.keys() == self.rows.keys(), where
        wrong = [key for key in found if not np.array_equal(found[key], self.rows[key])]
        assert not wrong, f"{where}: {len(wrong)} rows differ"


def counters(service: Service) -> dict[str, int]:
    """What a server has counted."""
    return dict(messages.StatsResponse.FromString(service.handle("Stats", b"")).counters)


def connect(network: Network, rank: int | None, timeout: float) -> Client:
    """A client in the network."""
    return client_over(
        SimulatedTransport(network), timeout=timeout, rank=rank, workers=4, pace=network.pace()
    )


class Pusher:
    """A client that has up to `open_max` of its steps open at once.

    widest: how many pushes were under way at most.
    """

    def __init__(self, network: Network, number: int, rank: int | None, open_max: int, total: Total) -> None:
        self.client = connect(network, rank, timeout=60.0)
        self.steps = open_max + STEPS_MORE
        self.widest = 0
        self._network, self._number, self._total = network, number, total
        self._table = self.client.table("oracle")
        self._pushed = self._under_way = 0
        session = self.client._session
        session._flushing = VirtualLock(network)  # type: ignore[assignment]
        # A deadline shorter than the worst delays: some steps are left open, and sent again before the next.
        session.timeout = network.random.uniform(0.25, 5.0)
        for _ in range(open_max):
            network.start(self._work)

    def _work(self) -> None:
        while self._pushed < self.steps:
            self._pushed += 1
            self._push(self._pushed)
            if self._network.random.random() < 0.1:
                self._network.sleep(1.0)

    def _push(self, number: int) -> None:
        random = np.random.default_rng([self._network.seed, self._number, number])
        keys = np.unique(random.integers(0, 40, int(random.integers(1, 25)), dtype=np.uint64))
        more = amounts(self._number, number, keys)
        self._total.add(keys, more)
        self._under_way += 1
        self.widest = max(self.widest, self._under_way)
        pushed = False
        while not pushed:
            try:
                self._table.push(keys, more)
                pushed = True
            except tb.Unavailable as error:
                # Left open, it is this client's to settle; not begun, it is ours to push again.
                pushed = "has not begun" not in str(error)
        self._under_way -= 1


def duplicated_and_reordered(seed: int) -> tuple[Counter[str], int]:
    """One run of T4: three clients, two of them ranked, through duplicates, losses and delays up to 200 ms.

    Each has as many as OPEN_MAX steps open at once, which come to the servers in any order. Returns what struck,
    and by how many steps a push was overtaken at most.
    """
    where = f"REPRO: seed {seed} of tests/faults/test_exactly_once.py"
    # Half of them cut their steps into messages, which come in any order as well.
    limit = MESSAGE_BYTES_MAX if seed % 2 else 2300
    services = [
        Service(index=i, servers=2, tables=[ORACLE], epoch=i + 1, message_bytes_max=limit) for i in range(2)
    ]
    faults = Faults(drop_request=0.05, drop_answer=0.1, duplicate=0.2, delay=0.2)
    network = Network(services, faults, seed)
    total = Total()
    widths = (OPEN_MAX, network.random.randint(1, OPEN_MAX), network.random.randint(1, OPEN_MAX))
    pushers = [
        Pusher(network, number, rank, width, total)
        for number, (rank, width) in enumerate(zip((0, 1, None), widths, strict=True))
    ]
    network.run()
    assert tuple(pusher.widest for pusher in pushers) == widths, where
    for pusher in pushers:
        session = pusher.client._session
        for _ in range(100):
            try:
                session.flush(session.deadline())
                break
            except tb.Unavailable:
                network.sleep(1.0)
        assert session.unsettled == [], where
        # No number was left out: as many steps as pushes.
        assert (session.ledger.oldest, session.ledger.next) == (pusher.steps, pusher.steps), where
    network.settle()
    total.check(services, where)
    counted = [counters(service) for service in services]
    assert sum(one["duplicates_changed"] for one in counted) == 0, where
    network.struck["applied before"] = sum(one["duplicates"] for one in counted)
    return network.struck, network.farthest


def over_seeds(seeds: range) -> None:
    """T4 for each seed; over all of them every fault must have struck, each seed's share being small."""
    struck: Counter[str] = Counter()
    farthest: list[int] = []
    for seed in seeds:
        of_seed, far = duplicated_and_reordered(seed)
        struck += of_seed
        farthest.append(far)
        # Steps came in another order than they were numbered in, and not by one place only.
        assert of_seed["overtaken"] >= 10 and far >= 4, f"seed {seed}: {of_seed}, by {far} steps at most"
    for fault in ("duplicate", "drop_request", "drop_answer", "applied before", "cut"):
        assert struck[fault] >= len(seeds), f"seeds {seeds}: {fault} struck {struck[fault]} times"
    far_enough = sum(far >= OPEN_MAX - 1 for far in farthest)
    assert far_enough >= len(seeds) // 4, f"seeds {seeds}: overtaken by at most {farthest} steps"


@pytest.mark.parametrize("first", range(1, 501, 50))
def test_T4_G1_duplicates_losses_and_reordering_add_up_exactly(first: int) -> None:
    """Over 500 seeds of doubled, lost and late messages, 16 steps of a client side by side, rows are sums of pushes."""
    over_seeds(range(first, first + 50))


def test_T4_the_same_seed_is_the_same_run() -> None:
    """Threads or not: what struck, and in which order steps came, is the seed's."""
    assert duplicated_and_reordered(7) == duplicated_and_reordered(7)


@pytest.mark.parametrize("seed", range(5))
def test_T3_G1_an_answer_lost_five_times_is_applied_once(seed: int) -> None:
    """The reply is dropped after the push was applied; five retries are answered as duplicates."""
    services = [Service(tables=[ORACLE], epoch=1)]
    network = Network(services, Faults(drop_answer=1.0), seed)
    client = connect(network, 0, timeout=60.0)
    keys = np.arange(20, dtype=np.uint64)
    total = Total()
    total.add(keys, amounts(0, 0, keys))

    def heal_after_five() -> None:
        if network.struck["drop_answer"] >= 5:
            network.faults = Faults()
        else:
            network.after(0.05, heal_after_five)

    heal_after_five()
    client.table("oracle").push(keys, amounts(0, 0, keys))
    assert network.struck["drop_answer"] >= 5, f"seed {seed}"
    counted = counters(services[0])
    assert counted["pushes_applied"] == 1, f"seed {seed}"
    assert counted["duplicates"] >= 5, f"seed {seed}"
    total.check(services, f"seed {seed}")


def test_T3_G9_a_retry_that_lands_after_a_restart_is_refused() -> None:
    """The answer is lost, the server comes back empty: the retry must not be applied to other rows; it is told."""
    services = [Service(tables=[ORACLE], epoch=1)]
    network = Network(services, Faults(drop_answer=1.0), 0)
    client = connect(network, 0, timeout=1.5)
    keys = np.arange(5, dtype=np.uint64)
    table = client.table("oracle")
    with pytest.raises(tb.Unavailable, match="may or may not be applied"):
        table.push(keys, amounts(0, 0, keys))
    assert network.struck["drop_answer"] > 0
    services[0] = Service(tables=[ORACLE], epoch=2)
    network.faults = Faults()
    with pytest.raises(tb.ServerLost, match="epoch was 1 and is 2"):
        table.push(keys, amounts(0, 1, keys))
    with pytest.raises(tb.ServerLost):
        table.pull(keys)
    assert counters(services[0])["rows"] == 0


@pytest.mark.parametrize("seed", range(10))
def test_G9_a_replaced_worker_changes_nothing_more(seed: int) -> None:
    """Late copies of an old process's pushes arrive after its successor said Hello: none is applied twice or at all
    beyond what the successor was told."""
    services = [Service(index=i, servers=2, tables=[ORACLE], epoch=1) for i in range(2)]
    network = Network(services, Faults(duplicate=0.5, delay=0.2), seed)
    where = f"seed {seed}"
    total = Total()
    old = connect(network, 0, timeout=30.0)
    keys = np.arange(64, dtype=np.uint64)
    for step in range(5):
        old.table("oracle").push(keys, amounts(0, step, keys))
        total.add(keys, amounts(0, step, keys))
    new = connect(network, 0, timeout=30.0)
    assert new.next_step == 5, where
    with pytest.raises(tb.Fenced):
        old.table("oracle").push(keys, amounts(9, 9, keys))
    with pytest.raises(tb.Fenced):
        old.table("oracle").pull(keys)
    for step in range(5, 8):
        new.table("oracle").push(keys, amounts(0, step, keys))
        total.add(keys, amounts(0, step, keys))
    network.settle()
    assert network.struck["duplicate"] > 0, where
    total.check(services, where)
