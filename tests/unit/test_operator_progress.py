"""The operator's questions for the workers' progress."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

import pytest

from tablebay.client.errors import Unavailable
from tablebay.client.tls import Source
from tablebay.operator.plans import Progress, Tell
from tablebay.operator.progress import FIRST_S, INTERVAL_S, RETRY_S, Checkpoints, Poller
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

    def _ask(self, address: str, tls: Source | None) -> Report:
        self.asked.append(address)
        assert self.held.wait(5)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def want(self, mode: Literal["running", "last"] = "running", uid: str = "u-1") -> Progress:
        """Ask, and wait for the answer if one was asked for."""
        self.poller.want(KEY, uid, ADDRESS, mode)
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


# ---- checkpoints


class Server0:
    """What server 0 says of checkpoints: attempts end when a test says so."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.standing = Checkpoints(epoch=1)
        self.silent = False

    def __call__(self, address: str, tls: Source | None, begin: bool) -> Checkpoints:
        assert address == ADDRESS
        self.asked.append(begin)
        if self.silent:
            raise Unavailable("server 0 is away")
        if begin:
            self.standing = dataclasses.replace(self.standing, ticket=self.standing.ended + 1)
            return self.standing
        return dataclasses.replace(self.standing, ticket=0)

    def end(self, error: str = "") -> None:
        """The attempt that was begun has ended."""
        ticket = self.standing.ended + 1
        failed = {"failures": self.standing.failures + 1, "error": error, "error_ticket": ticket}
        made = {"last": {"number": ticket, "time": "2026-01-02T03:04:05Z"}}
        self.standing = dataclasses.replace(self.standing, ended=ticket, **(failed if error else made))

    def restart(self) -> None:
        """Another life: it knows of no ticket."""
        self.standing = Checkpoints(epoch=self.standing.epoch + 1, last=self.standing.last)


def halted(play: Callable[[Asked, Server0], Coroutine[Any, Any, None]]) -> None:
    """With a job that was polled while it ran."""

    async def run() -> None:
        asked, server = Asked(), Server0()
        asked.poller._ask_checkpoints = server
        await asked.want()
        await play(asked, server)

    asyncio.run(run())


async def last_one(asked: Asked) -> Progress:
    """The next question for a last checkpoint, when it is time."""
    asked.now += RETRY_S
    asked.poller.want(KEY, "u-1", ADDRESS, "checkpoint", durable=True)
    await asked.settle()
    return asked.poller.of_job(KEY, "u-1")


def test_a_running_job_tells_its_newest_checkpoint_with_its_progress() -> None:
    """One more question, which begins nothing; a job without checkpoints is not asked it."""

    async def play(asked: Asked, server: Server0) -> None:
        server.end()
        asked.answer = [{"step": 5}]
        for durable in (False, True):
            asked.now += 2 * INTERVAL_S
            asked.poller.want(KEY, "u-1", ADDRESS, "running", durable=durable)
            await asked.settle()
            found = asked.poller.of_job(KEY, "u-1")
            assert found.values["step"] == 5
            assert server.asked == ([False] if durable else [])
        assert found.checkpoint == {"lastSuccessful": {"number": 1, "time": "2026-01-02T03:04:05Z"}}
        assert not found.kept

    halted(play)


def test_a_checkpoint_that_failed_is_told_once_with_its_reason() -> None:
    """Its time is that of the first answer that tells of it."""

    async def play(asked: Asked, server: Server0) -> None:
        server.end("no space left on device")
        times = []
        for _ in range(3):
            asked.now += 2 * INTERVAL_S
            asked.poller.want(KEY, "u-1", ADDRESS, "running", durable=True)
            await asked.settle()
            found = asked.poller.of_job(KEY, "u-1").checkpoint["lastFailed"]
            assert found["message"] == "no space left on device"
            times.append(found)
        assert times[0] is times[1] is times[2]

    halted(play)


def test_a_last_checkpoint_is_asked_for_once_and_waited_for() -> None:
    """At once, though the job was polled a moment ago; then until it has ended."""

    async def play(asked: Asked, server: Server0) -> None:
        asked.now += 2 * INTERVAL_S
        await asked.want()
        asked.poller.want(KEY, "u-1", ADDRESS, "checkpoint", durable=True)
        await asked.settle()
        assert server.asked == [True]
        for _ in range(3):
            assert not (await last_one(asked)).kept
        server.end()
        found = await last_one(asked)
        assert found.kept
        assert found.checkpoint["lastSuccessful"]["number"] == 1
        assert server.asked == [True, False, False, False, False]
        await last_one(asked)
        assert len(server.asked) == 5

    halted(play)


def test_a_last_checkpoint_that_fails_is_tried_again() -> None:
    """With the reason meanwhile."""

    async def play(asked: Asked, server: Server0) -> None:
        await last_one(asked)
        server.end("no space left on device")
        found = await last_one(asked)
        assert (found.kept, found.trouble) == (False, "no space left on device")
        await last_one(asked)
        assert server.asked == [True, False, True]
        server.end()
        found = await last_one(asked)
        assert (found.kept, found.trouble) == (True, "")

    halted(play)


def test_a_server_0_that_comes_back_is_asked_anew() -> None:
    """Its tickets count from the beginning: an old one must not pass for a new one that has ended."""

    async def play(asked: Asked, server: Server0) -> None:
        server.end()
        server.end()
        await last_one(asked)
        server.silent = True
        assert (await last_one(asked)).trouble == "server 0 does not answer"
        server.silent = False
        server.restart()
        assert not (await last_one(asked)).kept
        assert not (await last_one(asked)).kept
        assert server.asked[-1] is True
        server.end()
        assert (await last_one(asked)).kept

    halted(play)


def test_what_was_kept_once_is_not_kept_when_training_goes_on() -> None:
    """The next suspension asks for a checkpoint of its own."""

    async def play(asked: Asked, server: Server0) -> None:
        await last_one(asked)
        server.end()
        assert (await last_one(asked)).kept
        asked.poller.goes_on(KEY)
        assert not asked.poller.of_job(KEY, "u-1").kept
        await last_one(asked)
        assert server.asked[-1] is True

    halted(play)


def test_servers_are_told_once_and_again_where_they_did_not_hear() -> None:
    """What was said is remembered with who heard it; a server that does not answer is told a moment later."""
    said: list[tuple[Sequence[str], Tell]] = []
    trouble: list[Exception] = [Unavailable("no answer")]
    changed: list[Key] = []
    later: list[float] = []
    now = 1000.0

    def say(addresses: Sequence[str], tls: Source | None, tell: Tell) -> None:
        said.append((addresses, tell))
        if trouble:
            raise trouble.pop()

    async def settle(poller: Poller) -> None:
        while poller._tasks:
            await asyncio.wait(list(poller._tasks), timeout=5)
            await asyncio.sleep(0)

    async def tell() -> None:
        nonlocal now
        poller = Poller(
            changed.append, lambda key, seconds: later.append(seconds), tell=say, clock=lambda: now
        )
        first = Tell(workers=2, lives=("c-0",))
        poller.tell(KEY, "u-1", [ADDRESS], first)
        poller.tell(KEY, "u-1", [ADDRESS], first)
        await settle(poller)
        assert (len(said), poller.of_job(KEY, "u-1").told, changed) == (1, None, [KEY])
        poller.tell(KEY, "u-1", [ADDRESS], first)
        assert later == [RETRY_S]
        now += RETRY_S
        for _ in range(3):
            poller.tell(KEY, "u-1", [ADDRESS], first)
            await settle(poller)
        assert (len(said), poller.of_job(KEY, "u-1").told) == (2, first)
        second = dataclasses.replace(first, lives=("c-0-again",))
        poller.tell(KEY, "u-1", [ADDRESS], second)
        await settle(poller)
        assert (len(said), poller.of_job(KEY, "u-1").told) == (3, second)
        assert poller.of_job(KEY, "u-2").told is None

    asyncio.run(tell())
