"""What the workers of a job report, and how its checkpoints stand, asked of its server 0 beside the reconciling."""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from tablebay.client.control import Control
from tablebay.client.errors import TablebayError
from tablebay.client.tls import Source
from tablebay.operator.plans import Progress, Tell
from tablebay.operator.workqueue import Key

_LOG = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

INTERVAL_S = 30.0
FIRST_S = 5.0
RETRY_S = 2.0
CALL_S = 5.0

MESSAGE_MAX = 1024

# Of the address of server 0, and what is shown to it; None where it speaks plain.
Ask = Callable[[str, Source | None], Sequence[Mapping[str, float]]]
Mode = Literal["running", "last", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """How a job's checkpoints stand. last: of status.checkpoint.lastSuccessful; empty before the first.

    epoch: of the life of server 0 within which tickets count. ticket: of the attempt that was asked for, 0 if none
    was. ended: attempts up to this one have ended. failures: of this life; error, error_ticket: of the newest.
    """

    last: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    ticket: int = 0
    ended: int = 0
    failures: int = 0
    error: str = ""
    error_ticket: int = 0


# Told whether a checkpoint is to be begun.
AskCheckpoints = Callable[[str, Source | None, bool], Checkpoints]
TellServers = Callable[[Sequence[str], Source | None, Tell], None]


def ask_server(address: str, tls: Source | None) -> Sequence[Mapping[str, float]]:
    """What each worker last reported, in order of rank. Raises TablebayError."""
    with Control([address], timeout=CALL_S, tls=tls) as control:
        return [dict(worker.values) for worker in control.progress(CALL_S)]


def tell_servers(addresses: Sequence[str], tls: Source | None, tell: Tell) -> None:
    """Tell a job's servers. Raises TablebayError."""
    with Control(addresses, timeout=CALL_S, tls=tls) as control:
        if tell.workers:
            control.set_workers(tell.workers, CALL_S)
        for table, option, value in tell.options:
            control.update_table(table, {option: value}, CALL_S)


def ask_checkpoints(address: str, tls: Source | None, begin: bool) -> Checkpoints:
    """How a job's checkpoints stand; begin: and let another begin. Raises TablebayError."""
    with Control([address], timeout=CALL_S, tls=tls) as control:
        answer = control.checkpoint(begin=begin, timeout=CALL_S)
    last: dict[str, Any] = {}
    if answer.HasField("last"):
        made = answer.last
        last = {
            "number": made.number,
            "kind": made.kind,
            "time": _text(datetime.datetime.fromtimestamp(made.created, datetime.UTC)),
            "bytes": made.bytes,
            "rows": made.rows,
            "durationSeconds": round(made.seconds, 3),
            "pauseSeconds": round(made.pause_seconds, 6),
            "aligned": made.aligned,
        }
    return Checkpoints(
        last=last,
        epoch=answer.epoch,
        ticket=answer.ticket,
        ended=answer.ended,
        failures=answer.failures,
        error=answer.last_error,
        error_ticket=answer.last_error_ticket,
    )


@dataclass
class _Known:
    uid: str
    progress: Progress = field(default_factory=Progress)
    # (epoch, ticket) of the last checkpoint that is under way.
    ticket: tuple[int, int] | None = None
    failures: tuple[int, int] = (0, 0)
    examples: float = 0.0
    examples_at: float = 0.0
    asked: float = -math.inf
    asking: bool = False
    mode: str = ""
    telling: bool = False
    told_at: float = -math.inf


class Poller:
    """Asks servers in a few threads. changed: told of a job of which something new is known."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        later: Callable[[Key, float], None],
        *,
        ask: Ask = ask_server,
        ask_checkpoints: AskCheckpoints = ask_checkpoints,
        tell: TellServers = tell_servers,
        threads: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._later = later
        self._ask = ask
        self._ask_checkpoints = ask_checkpoints
        self._tell = tell
        self._clock = clock
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="progress")
        self._known: dict[Key, _Known] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of_job(self, key: Key, uid: str) -> Progress:
        """What is known of a job."""
        known = self._known.get(key)
        if known is None or known.uid != uid:
            return Progress()
        return replace(known.progress, asking=True) if known.mode == "checkpoint" else known.progress

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._known.pop(key, None)

    def goes_on(self, key: Key) -> None:
        """The job trains, or may train again: a last checkpoint of before is none of what comes."""
        known = self._known.get(key)
        if known is not None and (known.progress.kept or known.progress.trouble or known.ticket):
            known.progress = replace(known.progress, kept=False, trouble="")
            known.ticket = None
        if known is not None and known.mode == "checkpoint":
            known.mode = ""

    def want(
        self,
        key: Key,
        uid: str,
        address: str,
        mode: Mode,
        *,
        tls: Source | None = None,
        durable: bool = False,
    ) -> None:
        """Ask now if it is time, else have the job looked at when it is. durable: the job makes checkpoints."""
        known = self._known.get(key)
        if known is None or known.uid != uid:
            # A moment later: the workers have only begun.
            known = self._known[key] = _Known(uid)
            if mode == "running":
                known.asked = self._clock() - INTERVAL_S + FIRST_S
        if known.asking or (known.progress.kept if mode == "checkpoint" else known.progress.last):
            return
        interval = INTERVAL_S * (1.0 + 0.1 * random.random()) if mode == "running" else RETRY_S
        if mode == "checkpoint" and known.mode != mode:
            # Nobody waits for what was asked before.
            interval = 0.0
        wait = known.asked + interval - self._clock()
        if wait > 0:
            self._later(key, wait)
            return
        known.asking, known.mode = True, mode
        task = asyncio.get_running_loop().create_task(self._poll(key, known, address, tls, mode, durable))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tell(
        self, key: Key, uid: str, addresses: Sequence[str], tell: Tell, *, tls: Source | None = None
    ) -> None:
        """Tell the servers of something, a moment later where they were told only just now."""
        known = self._known.get(key)
        if known is None or known.uid != uid:
            known = self._known[key] = _Known(uid)
        if known.telling or known.progress.told == tell:
            return
        wait = known.told_at + RETRY_S - self._clock()
        if wait > 0:
            self._later(key, wait)
            return
        known.telling = True
        task = asyncio.get_running_loop().create_task(self._say(key, known, addresses, tls, tell))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say(
        self, key: Key, known: _Known, addresses: Sequence[str], tls: Source | None, tell: Tell
    ) -> None:
        def say() -> bool:
            self._tell(addresses, tls, tell)
            return True

        if await self._call(key, say):
            known.progress = replace(known.progress, told=tell)
            known.told_at = -math.inf
        else:
            known.told_at = self._clock()
        known.telling = False
        self._changed(key)

    async def _poll(
        self, key: Key, known: _Known, address: str, tls: Source | None, mode: Mode, durable: bool
    ) -> None:
        if mode != "checkpoint":
            workers = await self._call(key, lambda: self._ask(address, tls))
            if workers is not None:
                known.progress = self._figures(known, workers, last=mode == "last")
        if durable:
            begin = mode == "checkpoint" and known.ticket is None
            standing = await self._call(key, lambda: self._ask_checkpoints(address, tls, begin))
            if standing is not None:
                known.progress = _with_checkpoints(known, standing)
            if mode == "checkpoint":
                _last_one(known, standing)
        known.asked = self._clock()
        known.asking = False
        self._changed(key)

    async def _call(self, key: Key, question: Callable[[], _Answer]) -> _Answer | None:
        """The answer, or None where there is none."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, question)
        except TablebayError as error:
            _LOG.info("progress.unknown", extra={"job": "/".join(key), "cause": str(error)})
        except Exception:  # noqa: BLE001 - whatever it is, the job is asked again
            _LOG.exception("progress.failed", extra={"job": "/".join(key)})
        return None

    def _figures(self, known: _Known, workers: Sequence[Mapping[str, float]], *, last: bool) -> Progress:
        now = self._clock()
        examples = sum(worker.get("examples", 0.0) for worker in workers)
        values: dict[str, Any] = {}
        steps = _finite("step", workers)
        if steps:
            values["step"] = int(max(steps))
        losses = _finite("loss", workers)
        if losses:
            values["loss"] = sum(losses) / len(losses)
        # A metric of the whole model is not a sum over ranks: the lowest rank that has it says it.
        for name in ("auc", "logloss"):
            found = _finite(name, workers)
            if found:
                values[name] = found[0]
        seconds = _finite("train_seconds", workers)
        if seconds and max(seconds) > 0:
            values["examplesPerSecond"] = examples / max(seconds)
        elif known.examples_at and examples > known.examples:
            values["examplesPerSecond"] = (examples - known.examples) / (now - known.examples_at)
        known.examples, known.examples_at = examples, now
        before = {name: value for name, value in known.progress.values.items() if name != "updatedTime"}
        if values == before:
            return replace(known.progress, last=last)
        moment = _text(datetime.datetime.now(datetime.UTC))
        return replace(known.progress, values={**values, "updatedTime": moment} if values else {}, last=last)


def _with_checkpoints(known: _Known, standing: Checkpoints) -> Progress:
    """What is known, with how the checkpoints stand now."""
    found = dict(known.progress.checkpoint)
    if standing.last:
        found["lastSuccessful"] = standing.last
    failures = (standing.epoch, standing.failures)
    if standing.failures and failures != known.failures:
        moment = _text(datetime.datetime.now(datetime.UTC))
        found["lastFailed"] = {"message": standing.error[:MESSAGE_MAX], "time": moment}
    known.failures = failures
    return replace(known.progress, checkpoint=found)


def _last_one(known: _Known, standing: Checkpoints | None) -> None:
    """Note how it stands with the checkpoint that a job waits for before its servers end."""
    if standing is None:
        trouble = "server 0 does not answer"
        known.progress = replace(known.progress, trouble=known.progress.trouble or trouble)
        return
    if known.ticket is None:
        known.ticket = (standing.epoch, standing.ticket)
    epoch, ticket = known.ticket
    if epoch != standing.epoch:
        # Server 0 came back: what was asked of it is forgotten.
        known.ticket = None
    elif standing.ended >= ticket:
        known.ticket = None
        if standing.error_ticket == ticket:
            known.progress = replace(
                known.progress, trouble=standing.error[:MESSAGE_MAX] or "no reason given"
            )
        else:
            known.progress = replace(known.progress, kept=True, trouble="")


def _text(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _finite(name: str, workers: Sequence[Mapping[str, float]]) -> list[float]:
    return [worker[name] for worker in workers if name in worker and math.isfinite(worker[name])]
