"""What workers report of their training. Held by server 0."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tablebay.client.errors import BadRequest
from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.members import ClientId, Clock, Member

# "examples" is added up over the reports of a client; any other name keeps its latest value.
ADDED_UP = "examples"
NAMES_MAX = 64
NAME_CHARACTERS_MAX = 128
LATENCY_BUCKETS = 256

_Counts = NDArray[np.uint64]


def _no_counts() -> _Counts:
    return np.zeros(LATENCY_BUCKETS, np.uint64)


@dataclass
class _Worker:
    """One client. before_*: of its earlier incarnations, whose own counts began at 0."""

    rank: int | None
    incarnation: int
    heard: float
    number: int = 0
    values: dict[str, float] = field(default_factory=dict)
    latency: _Counts = field(default_factory=_no_counts)
    latency_before: _Counts = field(default_factory=_no_counts)
    retries: int = 0
    retries_before: int = 0


class Progress:
    """Safe in threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._workers: dict[ClientId, _Worker] = {}

    def report(self, member: Member, request: tablebay_pb2.ReportRequest) -> None:
        """Take a report in. One whose number the client has used is one sent again: it changes nothing.

        A rank's newer incarnation begins again with number 1, and goes on adding to the rank's examples.
        Raises BadRequest.
        """
        values = _checked(request)
        latency = _unpack(request.pull_latency)
        with self._lock:
            worker = self._workers.get(member.client)
            if worker is None:
                worker = self._workers[member.client] = _Worker(
                    member.rank, request.incarnation, self._clock()
                )
            if request.incarnation > worker.incarnation:
                worker.incarnation, worker.number = request.incarnation, 0
                worker.latency_before, worker.latency = worker.latency_before + worker.latency, _no_counts()
                worker.retries_before, worker.retries = worker.retries_before + worker.retries, 0
            if request.number <= worker.number:
                return
            total = {**worker.values, **values}
            if len(total) > NAMES_MAX:
                raise BadRequest(
                    f"{member.name} reports values of {len(total)} names, wanted at most {NAMES_MAX}"
                )
            if ADDED_UP in values:
                total[ADDED_UP] = worker.values.get(ADDED_UP, 0.0) + values[ADDED_UP]
            worker.number = request.number
            worker.values = total
            worker.latency = latency
            worker.retries = request.retries
            worker.heard = self._clock()

    def forget(self, client: ClientId) -> None:
        """Drop what a client reported."""
        with self._lock:
            self._workers.pop(client, None)

    def read(self, expected: int = 0) -> tablebay_pb2.ProgressResponse:
        """Every client's latest, ranks first and in order. expected: how many workers the job has, if it was said.

        Of a rank that has left, the examples that it trained on count on, and nothing else does.
        """
        with self._lock:
            now = self._clock()
            order = sorted(
                self._workers.values(), key=lambda worker: math.inf if worker.rank is None else worker.rank
            )
            return tablebay_pb2.ProgressResponse(
                workers=[
                    tablebay_pb2.WorkerProgress(
                        rank=worker.rank,
                        incarnation=worker.incarnation,
                        values=_left(worker.values) if _has_left(worker.rank, expected) else worker.values,
                        pull_latency=_pack(worker.latency_before + worker.latency),
                        retries=worker.retries_before + worker.retries,
                        seconds_since_report=now - worker.heard,
                    )
                    for worker in order
                ]
            )


def _has_left(rank: int | None, expected: int) -> bool:
    return rank is not None and 0 < expected <= rank


def _left(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name == ADDED_UP}


def _checked(request: tablebay_pb2.ReportRequest) -> dict[str, float]:
    if not 1 <= request.number < 2**63 or request.retries >= 2**63:
        raise BadRequest(
            f"a report with number {request.number} and retries {request.retries}; wanted a "
            "number from 1, both below 2^63"
        )
    values = dict(request.values)
    for name in values:
        if not 1 <= len(name) <= NAME_CHARACTERS_MAX:
            raise BadRequest(f"a reported name has {len(name)} characters, wanted 1 to {NAME_CHARACTERS_MAX}")
    examples = values.get(ADDED_UP, 0.0)
    # One NaN added up would stay for ever.
    if not 0.0 <= examples < math.inf:
        raise BadRequest(f"report: {ADDED_UP} is {examples}, wanted a number from 0")
    return values


def _unpack(packed: bytes) -> _Counts:
    if not packed:
        return _no_counts()
    if len(packed) != 4 * LATENCY_BUCKETS:
        raise BadRequest(
            f"report: {len(packed)} bytes of pull latencies, wanted {4 * LATENCY_BUCKETS} or none"
        )
    return np.frombuffer(packed, "<u4").astype(np.uint64)


def _pack(counts: _Counts) -> bytes:
    """Little-endian u32; a count beyond them says the most that there can be."""
    return np.minimum(counts, np.uint64(2**32 - 1)).astype("<u4").tobytes()
