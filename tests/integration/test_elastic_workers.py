"""Workers of an elastic job as they come and go, seen by their clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from tablebay.client.client import Client, client_over
from tablebay.client.control import Control
from tablebay.client.environment import WorkerEnvironment
from tablebay.client.errors import BadRequest, DeadlineExceeded, Unavailable
from tablebay.client.inprocess import InProcessTransport, services
from tablebay.ps_server.service import Service

ENVIRONMENT = {"TABLEBAY_JOB": "local", "TABLEBAY_RANK": "3", "TABLEBAY_SERVERS": "s-{0..1}:7070"}


@pytest.fixture
def servers() -> Sequence[Service]:
    """Two of one job."""
    return services(2)


def say(servers: Sequence[Service], workers: int) -> None:
    """What the operator says."""
    Control(InProcessTransport(servers)).set_workers(workers)


def worker(servers: Sequence[Service], rank: int, timeout: float = 10.0) -> Client:
    """A worker of the job."""
    return client_over(InProcessTransport(servers), rank=rank, elastic=True, timeout=timeout)


def test_a_worker_learns_how_many_there_are_from_server_0(servers: Sequence[Service]) -> None:
    """When it connects, when it reports, and at a barrier."""
    say(servers, 2)
    first = worker(servers, 0)
    assert first.workers == 2
    say(servers, 4)
    assert worker(servers, 3).workers == 4
    assert first.workers == 2
    first.report(step=1)
    assert first.workers == 4
    say(servers, 1)
    first.barrier("alone", timeout=5)
    assert first.workers == 1


def test_a_barrier_waits_for_those_who_have_come_and_not_for_those_who_left(
    servers: Sequence[Service],
) -> None:
    """One worker waits in a thread while the number changes under it."""
    say(servers, 2)
    first, second = worker(servers, 0), worker(servers, 1)
    passed = threading.Event()

    def wait() -> None:
        first.barrier("end", timeout=20)
        passed.set()

    thread = threading.Thread(target=wait)
    thread.start()
    say(servers, 3)
    third = worker(servers, 2)
    with pytest.raises(DeadlineExceeded, match="barrier 'end': 2 of 3 workers have come"):
        third.barrier("end", timeout=0.3)
    assert not passed.is_set()
    # Rank 1 never comes: it leaves, and rank 2 with it.
    say(servers, 1)
    thread.join(20)
    assert passed.is_set()
    second.barrier("end", timeout=5)


def test_a_worker_waits_until_server_0_knows(servers: Sequence[Service]) -> None:
    """Of a server 0 that came back: not longer than its timeout, and it says for what."""
    with pytest.raises(Unavailable, match="does not know yet how many workers job 'local' has"):
        worker(servers, 0, timeout=0.3)
    timer = threading.Timer(0.5, say, (servers, 2))
    timer.start()
    began = time.monotonic()
    assert worker(servers, 0).workers == 2
    assert time.monotonic() - began > 0.3
    timer.join()


def test_what_a_rank_that_left_reported_counts_for_its_examples_alone(servers: Sequence[Service]) -> None:
    """Its loss is none of the job's any more."""
    say(servers, 2)
    first, second = worker(servers, 0), worker(servers, 1)
    first.report(step=5, loss=0.5, examples=10)
    second.report(step=9, loss=0.9, examples=30)
    say(servers, 1)
    assert [dict(one.values) for one in first.progress()] == [
        {"step": 5.0, "loss": 0.5, "examples": 10.0},
        {"examples": 30.0},
    ]


def test_the_environment_of_an_elastic_worker() -> None:
    """Its bounds say that the number is server 0's to say, so no rank is above it; what is no number stays refused."""
    found = WorkerEnvironment.read({**ENVIRONMENT, "TABLEBAY_WORKERS": "1..2"})
    assert (found.rank, found.workers) == (3, None)
    for text in ("1..", "..2", "1..2..3", "0..2", "1-2"):
        with pytest.raises(BadRequest, match="TABLEBAY_WORKERS"):
            WorkerEnvironment.read({**ENVIRONMENT, "TABLEBAY_WORKERS": text})


def test_another_server_is_not_asked(servers: Sequence[Service]) -> None:
    """Server 0 alone keeps the number, and takes none that cannot be."""
    with pytest.raises(BadRequest, match="SetWorkers came to server 1, wanted server 0"):
        servers[1].handle("SetWorkers", b"\x08\x02")
    with pytest.raises(BadRequest, match="workers is 0, wanted 1 to 65536"):
        say(servers, 0)
