"""What the workers of a job report, asked of its server 0 now and then, beside the reconciling."""

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
from typing import Any, Literal

from tablebay.client.control import Control
from tablebay.client.errors import TablebayError
from tablebay.client.proto import tablebay_pb2
from tablebay.operator.decisions import Progress
from tablebay.operator.workqueue import Key

_LOG = logging.getLogger(__name__)

INTERVAL_S = 30.0
FIRST_S = 5.0
RETRY_S = 2.0
CALL_S = 5.0


@dataclass(frozen=True)
class Answer:
    """What server 0 says. workers: what each last reported, in order of rank. checkpoint: of status.checkpoint."""

    workers: Sequence[Mapping[str, float]]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)


Ask = Callable[[str, bool], Answer]


def ask_server(address: str, durable: bool) -> Answer:
    """durable: it makes checkpoints. Raises TablebayError."""
    with Control([address], timeout=CALL_S) as control:
        workers = [dict(worker.values) for worker in control.progress(CALL_S)]
        return Answer(
            workers, _checkpoint(control.checkpoint(begin=False, timeout=CALL_S)) if durable else {}
        )


def _checkpoint(said: tablebay_pb2.CheckpointResponse) -> dict[str, Any]:
    found: dict[str, Any] = {"failures": said.failures}
    if said.failures:
        found["message"] = said.last_error[:1024]
    if said.HasField("last") and said.last.kind != "Empty":
        moment = datetime.datetime.fromtimestamp(said.last.created, datetime.UTC)
        found |= {
            "number": said.last.number,
            "time": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "bytes": said.last.bytes,
            "seconds": round(said.last.seconds, 3),
        }
    return found


@dataclass
class _Known:
    uid: str
    progress: Progress = field(default_factory=Progress)
    examples: float = 0.0
    examples_at: float = 0.0
    asked: float = -math.inf
    asking: bool = False


class Poller:
    """Asks servers in a few threads. changed: told of a job of which something new is known."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        later: Callable[[Key, float], None],
        *,
        ask: Ask = ask_server,
        threads: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._later = later
        self._ask = ask
        self._clock = clock
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="progress")
        self._known: dict[Key, _Known] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of_job(self, key: Key, uid: str) -> Progress:
        """What is known of a job."""
        known = self._known.get(key)
        return known.progress if known is not None and known.uid == uid else Progress()

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._known.pop(key, None)

    def want(
        self, key: Key, uid: str, address: str, mode: Literal["running", "last"], *, durable: bool = False
    ) -> None:
        """Ask now if it is time, else have the job looked at when it is. durable: it makes checkpoints."""
        known = self._known.get(key)
        if known is None or known.uid != uid:
            # A moment later: the workers have only begun.
            known = self._known[key] = _Known(uid)
            if mode == "running":
                known.asked = self._clock() - INTERVAL_S + FIRST_S
        if known.asking or known.progress.last:
            return
        interval = INTERVAL_S * (1.0 + 0.1 * random.random()) if mode == "running" else RETRY_S
        wait = known.asked + interval - self._clock()
        if wait > 0:
            self._later(key, wait)
            return
        known.asking = True
        task = asyncio.get_running_loop().create_task(self._poll(key, known, address, mode, durable))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _poll(self, key: Key, known: _Known, address: str, mode: str, durable: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._threads, self._ask, address, durable)
        except TablebayError as error:
            _LOG.info("progress.unknown", extra={"job": "/".join(key), "cause": str(error)})
            answer = None
        except Exception:  # noqa: BLE001 - whatever it is, the job is asked again
            _LOG.exception("progress.failed", extra={"job": "/".join(key)})
            answer = None
        known.asked = self._clock()
        known.asking = False
        if answer is not None:
            figures = self._figures(known, answer.workers, last=mode == "last")
            known.progress = replace(figures, checkpoint=answer.checkpoint)
        self._changed(key)

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
            return Progress(values=known.progress.values, last=last)
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Progress(values={**values, "updatedTime": moment} if values else {}, last=last)


def _finite(name: str, workers: Sequence[Mapping[str, float]]) -> list[float]:
    return [worker[name] for worker in workers if name in worker and math.isfinite(worker[name])]
