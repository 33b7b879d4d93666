"""Barriers: when a name is released, and that it stays so."""

from __future__ import annotations

import random
import threading

import pytest

from tablebay.client.errors import BadRequest, ResourceExhausted
from tablebay.ps_server.barriers import Barriers


def test_a_barrier_is_released_when_all_have_come() -> None:
    """Each is told how many have come, and those who came first learn of it when they ask again."""
    barriers = Barriers()
    assert barriers.arrive("end", (1, 0), 3) == (False, 1)
    assert barriers.arrive("end", (1, 1), 3) == (False, 2)
    assert barriers.arrive("end", (1, 2), 3) == (True, 3)
    assert barriers.arrive("end", (1, 0), 3) == (True, 3)
    assert barriers.arrive("end", (1, 1), 3) == (True, 3)


def test_one_client_counts_once_however_often_it_asks() -> None:
    """A rank's newer process has the same id, so it takes the older one's place."""
    barriers = Barriers()
    for _ in range(10):
        assert barriers.arrive("end", (1, 0), 2) == (False, 1)
    assert barriers.arrive("end", (1, 1), 2) == (True, 2)


def test_a_released_barrier_stays_released() -> None:
    """For a client whose answer was lost, and for a worker that was restarted behind it."""
    barriers = Barriers()
    barriers.arrive("epoch", (1, 0), 1)
    for _ in range(3):
        assert barriers.arrive("epoch", (1, 0), 1) == (True, 1)
    assert barriers.arrive("epoch#2", (1, 0), 2) == (False, 1)


def test_barriers_of_different_names_do_not_touch() -> None:
    """One may wait for ever beside another."""
    barriers = Barriers()
    assert barriers.arrive("a", (1, 0), 2) == (False, 1)
    assert barriers.arrive("b", (1, 1), 2) == (False, 1)
    assert barriers.arrive("b", (1, 0), 2) == (True, 2)
    assert barriers.arrive("a", (1, 0), 2) == (False, 1)


def test_clients_must_agree_on_how_many_come() -> None:
    """Else one would pass while another waits for ever; both numbers are named."""
    barriers = Barriers()
    barriers.arrive("end", (1, 0), 2)
    with pytest.raises(BadRequest, match="barrier 'end': workers is 3, and 2 to those who came before"):
        barriers.arrive("end", (1, 1), 3)
    assert barriers.arrive("end", (1, 1), 2) == (True, 2)


def test_an_elastic_barrier_waits_for_every_rank_that_there_is() -> None:
    """Nobody passes before the number is said; then it is the ranks below it that count, not how many have come."""
    barriers = Barriers()
    assert barriers.arrive("end", (1, 0), 0, 0) == (False, 0)
    barriers.expect(2)
    assert barriers.arrive("end", (1, 3), 0, 3) == (False, 1)
    assert barriers.arrive("end", (1, 0), 0, 0) == (False, 1)
    assert barriers.arrive("end", (1, 1), 0, 1) == (True, 2)


def test_an_elastic_barrier_waits_no_more_for_those_who_left() -> None:
    """4 to 1 while rank 0 waits: it passes; 2 to 4: who has come in the meantime is waited for."""
    barriers = Barriers()
    barriers.expect(4)
    for rank in range(3):
        assert barriers.arrive("a", (1, rank), 0, rank) == (False, rank + 1)
    assert barriers.arrive("b", (1, 2), 0, 2) == (False, 1)
    barriers.expect(1)
    assert barriers.arrive("a", (1, 0), 0, 0) == (True, 1)
    assert barriers.arrive("b", (1, 2), 0, 2) == (False, 0)
    barriers.expect(2)
    assert barriers.arrive("c", (1, 0), 0, 0) == (False, 1)
    barriers.expect(3)
    assert barriers.arrive("c", (1, 1), 0, 1) == (False, 2)
    assert barriers.arrive("c", (1, 2), 0, 2) == (True, 3)


def test_a_release_by_those_who_left_is_written_down() -> None:
    """As any other: a server 0 that comes back knows of it."""
    kept: dict[str, int] = {}
    barriers = Barriers(write_down=kept.__setitem__)
    barriers.expect(2)
    barriers.arrive("end", (1, 0), 0, 0)
    assert kept == {}
    barriers.expect(1)
    assert kept == {"end": 1}


@pytest.mark.parametrize("workers", [0, 2**32 - 1])
def test_a_number_of_workers_that_cannot_be_is_refused(workers: int) -> None:
    """With the number found and the one wanted."""
    with pytest.raises(BadRequest, match=f"workers is {workers}, wanted 1 to 65536"):
        Barriers().expect(workers)


@pytest.mark.parametrize(("name", "workers"), [("", 1), ("x" * 257, 1), ("end", 0)])
def test_a_barrier_without_a_name_or_workers_is_refused(name: str, workers: int) -> None:
    """And one with a name that is too long."""
    with pytest.raises(BadRequest):
        Barriers().arrive(name, (1, 0), workers)


def test_memory_for_barriers_is_bounded() -> None:
    """The names released longest ago go first; ones that wait are never dropped."""
    barriers = Barriers(barriers_max=3)
    for number in range(10):
        assert barriers.arrive(f"step-{number}", (1, 0), 1) == (True, 1)
    assert barriers.arrive("step-9", (1, 0), 1) == (True, 1)
    for number in range(3):
        barriers.arrive(f"wait-{number}", (1, 0), 2)
    with pytest.raises(ResourceExhausted, match="3 barriers wait"):
        barriers.arrive("wait-3", (1, 0), 2)
    assert barriers.arrive("wait-0", (1, 1), 2) == (True, 2)


@pytest.mark.parametrize("seed", range(20))
def test_exactly_one_arrival_of_many_at_once_is_the_last(seed: int) -> None:
    """32 clients in random order, from many threads: all numbers from 1 to 32 are given once."""
    barriers, found, lock = Barriers(), list[int](), threading.Lock()
    clients = [(1, number) for number in range(32)]
    random.Random(seed).shuffle(clients)

    def come(client: tuple[int, int]) -> None:
        _, arrived = barriers.arrive("end", client, 32)
        with lock:
            found.append(arrived)

    threads = [threading.Thread(target=come, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 33)), f"seed {seed}"
