"""The operator's questions for the workers' progress."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

import pytest

from tablebay.client.errors import Unavailable
from tablebay.operator.decisions import Progress
from tablebay.operator.progress import FIRST_S, INTERVAL_S, RETRY_S, Answer, Poller
from tablebay.operator.workqueue import Key

KEY = ("ads", "flights")
ADDRESS = "flights-server-0.flights-servers.ads.svc:7070"
Report = Sequence[Mapping[str, float]]


class Asked:
    """A poller, its clock, and servers whose answer a test sets: a report, or what is raised."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.answer: Report | Exception = []
        self.asked: list[str] = []
        self.told: list[Key] = []
        self.later: list[float] = []
        self.held = threading.Event()
        self.held.set()
        self.poller = Poller(
            self.told.append,
            lambda key, seconds: self.later.append(seconds),
            ask=self._ask,
            clock=lambda: self.now,
        )

    def _ask(self, address: str, durable: bool) -> Answer:
        self.asked.append(address)
        assert self.held.wait(5)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Answer(self.answer, {"number": 3} if durable else {})

    async def want(
        self, mode: Literal["running", "last"] = "running", uid: str = "u-1", *, durable: bool = False
    ) -> Progress:
        """Ask, and wait for the answer if one was asked for."""
        self.poller.want(KEY, uid, ADDRESS, mode, durable=durable)
        await self.settle()
        return self.poller.of_job(KEY, uid)

    async def settle(self) -> None:
        while self.poller._tasks:
            await asyncio.wait(list(self.poller._tasks), timeout=5)
            await asyncio.sleep(0)

    async def report(
        self, *workers: Mapping[str, float], mode: Literal["running", "last"] = "running"
    ) -> Any:
        """The values that come of a report, an interval later."""
        self.now += 2 * INTERVAL_S
        self.answer = workers
        return (await self.want(mode)).values


def played(play: Callable[[Asked], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        asked = Asked()
        # A job's first question comes a moment after it began.
        await asked.want()
        await play(asked)

    asyncio.run(run())


def test_a_new_job_is_asked_a_moment_after_it_began() -> None:
    """Its workers have only started; the job is looked at again when it is time."""

    async def run() -> None:
        asked = Asked()
        await asked.want()
        assert asked.asked == []
        assert len(asked.later) == 1
        assert FIRST_S <= asked.later[0] <= FIRST_S + 0.1 * INTERVAL_S
        asked.now += asked.later[0] + 0.1 * INTERVAL_S
        asked.answer = [{"step": 1}]
        assert (await asked.want()).values["step"] == 1
        assert asked.asked == [ADDRESS]
        assert asked.told == [KEY]

    asyncio.run(run())


def test_a_job_is_asked_once_in_an_interval() -> None:
    """However often it is looked at; each time it says how long is left."""

    async def play(asked: Asked) -> None:
        await asked.report({"step": 1})
        asked.later.clear()
        for _ in range(10):
            await asked.want()
        assert len(asked.asked) == 1
        assert all(INTERVAL_S <= wait <= 1.1 * INTERVAL_S for wait in asked.later)
        assert len(set(asked.later)) > 1, "1,000 jobs would all ask at the same moment"

    played(play)


def test_a_server_that_is_being_asked_is_not_asked_again() -> None:
    """A slow server: one question at a time."""

    async def play(asked: Asked) -> None:
        asked.held.clear()
        asked.now += 2 * INTERVAL_S
        for _ in range(5):
            asked.poller.want(KEY, "u-1", ADDRESS, "running")
            asked.now += 2 * INTERVAL_S
        await asyncio.sleep(0.05)
        assert len(asked.asked) == 1
        asked.held.set()
        await asked.settle()

    played(play)


def test_the_last_report_is_asked_for_at_once_and_once() -> None:
    """The workers have ended: their last figures, marked as such, and no question after it."""

    async def play(asked: Asked) -> None:
        await asked.report({"step": 1})
        asked.now += RETRY_S
        asked.answer = [{"step": 2}]
        progress = await asked.want("last")
        assert progress.last
        assert progress.values["step"] == 2
        asked.now += 10 * INTERVAL_S
        await asked.want("last")
        assert len(asked.asked) == 2

    played(play)


def test_a_server_that_does_not_answer_is_asked_again() -> None:
    """What was known stays known; for the last report the wait is short."""

    async def play(asked: Asked) -> None:
        known = await asked.report({"step": 1})
        asked.now += 2 * INTERVAL_S
        asked.answer = Unavailable("server 0 does not answer")
        progress = await asked.want()
        assert progress == Progress(values=known, last=False)
        assert asked.told == [KEY, KEY]
        asked.now += RETRY_S / 2
        asked.later.clear()
        assert not (await asked.want("last")).last
        assert asked.later == [RETRY_S / 2]
        asked.now += RETRY_S
        asked.answer = [{"step": 2}]
        assert (await asked.want("last")).last

    played(play)


def test_figures_of_ranks_become_the_jobs() -> None:
    """The furthest step, the mean of the losses, the lowest rank's metrics; what is no number is left out."""

    async def play(asked: Asked) -> None:
        values = await asked.report(
            {"step": 7, "loss": 0.5, "auc": math.nan, "examples": 100},
            {"step": 9, "loss": 0.3, "auc": 0.75, "logloss": 0.4, "examples": 100},
            {"step": 8, "loss": math.inf, "auc": 0.1},
        )
        assert values["step"] == 9
        assert isinstance(values["step"], int)
        assert values["loss"] == pytest.approx(0.4)
        assert (values["auc"], values["logloss"]) == (0.75, 0.4)
        assert "examplesPerSecond" not in values, "nothing is known of the time that they took"
        assert values["updatedTime"].endswith("Z")

    played(play)


def test_the_rate_is_the_workers_own_if_they_say_it() -> None:
    """All examples, over the time that the longest of them trained."""

    async def play(asked: Asked) -> None:
        values = await asked.report(
            {"examples": 1000, "train_seconds": 4.0}, {"examples": 3000, "train_seconds": 5.0}
        )
        assert values["examplesPerSecond"] == pytest.approx(800.0)

    played(play)


def test_the_rate_is_else_that_between_two_reports() -> None:
    """By the operator's own clock."""

    async def play(asked: Asked) -> None:
        await asked.report({"examples": 1000})
        values = await asked.report({"examples": 4000}, {"examples": 3000})
        assert values["examplesPerSecond"] == pytest.approx(6000 / (2 * INTERVAL_S))

    played(play)


def test_a_rate_is_never_negative() -> None:
    """A worker that is replaced begins to count anew."""

    async def play(asked: Asked) -> None:
        await asked.report({"examples": 4000})
        assert "examplesPerSecond" not in await asked.report({"examples": 10})

    played(play)


def test_figures_that_do_not_change_keep_their_time() -> None:
    """So that the status is not written every half a minute for a job whose workers hang."""

    async def play(asked: Asked) -> None:
        first = await asked.report({"step": 3, "loss": 0.5})
        object.__setattr__(
            asked.poller.of_job(KEY, "u-1"), "values", {**first, "updatedTime": "2026-01-02T03:04:05Z"}
        )
        assert (await asked.report({"step": 3, "loss": 0.5}))["updatedTime"] == "2026-01-02T03:04:05Z"
        assert (await asked.report({"step": 4, "loss": 0.5}))["updatedTime"] != "2026-01-02T03:04:05Z"

    played(play)


def test_no_report_is_no_progress() -> None:
    """Workers that report nothing leave the status as it is."""

    async def play(asked: Asked) -> None:
        assert await asked.report() == {}
        assert await asked.report({}, {"other": 1.0}) == {}

    played(play)


def test_a_job_made_anew_begins_without_progress() -> None:
    """Of the job before, nothing is known any more; nor after a job was forgotten."""

    async def play(asked: Asked) -> None:
        await asked.report({"step": 9})
        assert asked.poller.of_job(KEY, "u-2") == Progress()
        await asked.want(uid="u-2")
        assert asked.poller.of_job(KEY, "u-1") == Progress()
        asked.now += 2 * INTERVAL_S
        asked.answer = [{"step": 1}]
        assert (await asked.want(uid="u-2")).values["step"] == 1
        asked.poller.forget(KEY)
        assert asked.poller.of_job(KEY, "u-2") == Progress()

    played(play)


def test_an_answer_about_the_job_before_is_not_the_new_ones() -> None:
    """A job is made anew while its predecessor's server is being asked."""

    async def play(asked: Asked) -> None:
        asked.held.clear()
        asked.now += 2 * INTERVAL_S
        asked.answer = [{"step": 99}]
        asked.poller.want(KEY, "u-1", ADDRESS, "running")
        asked.poller.want(KEY, "u-2", ADDRESS, "running")
        asked.held.set()
        await asked.settle()
        assert asked.poller.of_job(KEY, "u-2") == Progress()

    played(play)


def test_bug_an_error_of_another_kind_does_not_end_the_questions() -> None:
    """Whatever asking raises, the job is asked again: its progress must not stand still for ever, unsaid."""

    async def play(asked: Asked) -> None:
        asked.now += 2 * INTERVAL_S
        asked.answer = ValueError("not from us")
        await asked.want()
        assert (await asked.report({"step": 2})).get("step") == 2

    played(play)


def test_a_job_with_checkpoints_is_asked_for_the_newest() -> None:
    """With the report; a job without them is not."""

    async def play(asked: Asked) -> None:
        asked.now += 2 * INTERVAL_S
        assert (await asked.want()).checkpoint == {}
        asked.now += 2 * INTERVAL_S
        assert (await asked.want(durable=True)).checkpoint == {"number": 3}

    played(play)
