"""What workers report, and how a report sent again or from a restarted worker counts."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import pytest

from tablebay.client.errors import BadRequest
from tablebay.client.latency import LatencyHistogram
from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.members import Member
from tablebay.ps_server.progress import NAMES_MAX, Progress


class Reporter:
    """One client and its reports."""

    def __init__(self, progress: Progress, rank: int | None = 0, low: int = 0) -> None:
        self.member = Member((1, low), rank, incarnation=1, nonce=0, heard=0.0)
        self._progress = progress

    def say(
        self, number: int, incarnation: int = 1, latency: bytes = b"", retries: int = 0, **values: float
    ) -> None:
        request = tablebay_pb2.ReportRequest(
            number=number, incarnation=incarnation, values=values, pull_latency=latency, retries=retries
        )
        self._progress.report(self.member, request)


def only(progress: Progress) -> Any:
    """The one client's progress."""
    (worker,) = progress.read().workers
    return worker


def test_examples_add_up_and_the_rest_keeps_its_latest() -> None:
    """A name not reported again stays."""
    progress = Progress(lambda: 0.0)
    worker = Reporter(progress)
    worker.say(1, examples=100, loss=0.5, step=1)
    worker.say(2, examples=50, loss=0.25)
    assert dict(only(progress).values) == {"examples": 150.0, "loss": 0.25, "step": 1.0}


def test_a_report_sent_again_is_not_added_twice() -> None:
    """Its number shows it, in whatever order the copies come."""
    progress = Progress(lambda: 0.0)
    worker = Reporter(progress)
    for number in (1, 1, 2, 1, 2, 2):
        worker.say(number, examples=10, loss=float(number))
    assert dict(only(progress).values) == {"examples": 20.0, "loss": 2.0}


def test_a_restarted_workers_examples_go_on_adding() -> None:
    """Its numbers begin at 1 again; counts of its earlier lives stay."""
    progress = Progress(lambda: 0.0)
    worker = Reporter(progress)
    worker.say(1, examples=10)
    worker.say(2, examples=10, retries=3)
    worker.say(1, incarnation=2, examples=10, retries=1)
    worker.say(1, incarnation=2, examples=10, retries=1)
    found = only(progress)
    assert (found.values["examples"], found.retries, found.incarnation) == (30.0, 4, 2)


def test_pull_latencies_of_all_lives_are_counted_once() -> None:
    """Each report carries its process's histogram from the beginning on, so it replaces the one before."""
    progress = Progress(lambda: 0.0)
    worker = Reporter(progress)
    first, second = LatencyHistogram(), LatencyHistogram()
    for seconds in (1e-3, 2e-3):
        first.record(seconds)
    worker.say(1, latency=first.pack())
    first.record(5e-3)
    worker.say(2, latency=first.pack())
    second.record(1e-3)
    worker.say(1, incarnation=2, latency=second.pack())
    found = LatencyHistogram.unpack(only(progress).pull_latency)
    wanted = first
    wanted.merge(second)
    assert found.counts == wanted.counts
    assert found.count == 4


def test_a_count_too_large_for_the_wire_says_the_most_there_can_be() -> None:
    """Two lives' counts may add up to more than a u32."""
    progress = Progress(lambda: 0.0)
    worker = Reporter(progress)
    full = struct.pack("<256I", *[2**32 - 1] * 256)
    worker.say(1, latency=full)
    worker.say(1, incarnation=2, latency=full)
    assert only(progress).pull_latency == full


def test_ranks_come_in_order_and_anonymous_clients_after_them() -> None:
    """Each with its own values."""
    progress = Progress(lambda: 0.0)
    for low, rank in enumerate([None, 2, 0, None, 1]):
        Reporter(progress, rank, low).say(1, loss=float(low))
    found = progress.read().workers
    ranks = [worker.rank if worker.HasField("rank") else None for worker in found]
    assert ranks == [0, 1, 2, None, None]
    assert [worker.values["loss"] for worker in found] == [2.0, 4.0, 1.0, 0.0, 3.0]


def test_the_age_of_a_report_is_told() -> None:
    """By the server's clock; a copy of an old report does not make it young."""
    now = [10.0]
    progress = Progress(lambda: now[0])
    worker = Reporter(progress)
    worker.say(1)
    now[0] = 25.0
    worker.say(1)
    assert only(progress).seconds_since_report == 15.0
    progress.forget(worker.member.client)
    assert not progress.read().workers


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"number": 0}, "number 0"),
        ({"number": 2**64 - 1}, "below 2\\^63"),
        ({"number": 1, "retries": 2**64 - 1}, "below 2\\^63"),
        ({"number": 1, "pull_latency": b"x"}, "1 bytes of pull latencies, wanted 1024"),
        ({"number": 1, "values": {"examples": math.nan}}, "examples is nan"),
        ({"number": 1, "values": {"examples": -1.0}}, "examples is -1"),
        ({"number": 1, "values": {"examples": math.inf}}, "examples is inf"),
        ({"number": 1, "values": {"x" * 129: 1.0}}, "129 characters"),
        ({"number": 1, "values": {"": 1.0}}, "0 characters"),
        ({"number": 1, "values": {str(n): 1.0 for n in range(NAMES_MAX + 1)}}, "65 names, wanted at most 64"),
    ],
)
def test_a_senseless_report_is_refused_and_nothing_is_kept_of_it(fields: dict[str, Any], said: str) -> None:
    """Neither its values nor its number."""
    progress = Progress(lambda: 0.0)
    worker = Reporter(progress)
    with pytest.raises(BadRequest, match=said):
        progress.report(worker.member, tablebay_pb2.ReportRequest(incarnation=1, **fields))
    worker.say(1, examples=1)
    assert dict(only(progress).values) == {"examples": 1.0}


def test_a_loss_that_is_no_number_is_kept_as_it_is() -> None:
    """That training went wrong is worth seeing."""
    progress = Progress(lambda: 0.0)
    Reporter(progress).say(1, loss=math.nan, auc=math.inf)
    values = only(progress).values
    assert math.isnan(values["loss"])
    assert values["auc"] == math.inf


def test_reports_lost_repeated_and_restarted_at_random_add_up_exactly() -> None:
    """Against a plain count of the distinct reports."""
    for seed in range(200):
        chance = random.Random(seed)
        progress, wanted = Progress(lambda: 0.0), 0
        worker = Reporter(progress)
        for incarnation in range(1, 4):
            for number in range(1, chance.randint(2, 10)):
                examples = chance.randint(0, 1000)
                wanted += examples
                for _ in range(chance.randint(1, 3)):
                    worker.say(number, incarnation, examples=examples)
        assert only(progress).values["examples"] == wanted, f"seed {seed}"
