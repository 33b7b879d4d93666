"""A worker's own Prometheus metrics: what its clients count, and the HTTP server that shows it.

`tb.connect()` imports this module when the environment asks for metrics, and only then. One server for the
process: the first client to connect starts it, the last to close stops it. A scrape reads counts that were made
anyway; between scrapes a request costs one count, and a data call one measured time.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tablebay.client import environment, errors
from tablebay.client.transport import DATA_METHODS, Answer, Transport, background

if TYPE_CHECKING:
    from tablebay.client.client import Client
    from tablebay.client.session import Session

# Seconds, as a server's; the last bucket is everything beyond.
BUCKETS = (5e-05, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
HOST = "0.0.0.0"  # noqa: S104 - Prometheus comes from outside of the pod
# As many as server 0 keeps of a worker; each is a time series.
NAMES_MAX = 64

_EXAMPLES = "examples"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waits:
    """Data calls of one method: how many took how long."""

    buckets: Sequence[int]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A process's figures at one moment. requests: by method and code. waits: by method."""

    requests: Mapping[tuple[str, str], int]
    waits: Mapping[str, Waits]
    retries: int
    open_steps: int
    steps: int
    examples: float
    reported: Mapping[str, float]


class _Member:
    """A client that counts, and what it had counted when last seen: one may be dropped without close()."""

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)
        self.retries = self.steps = self.open_steps = 0
        self.look()

    def look(self) -> bool:
        """Read the client's counts; whether there is still a client."""
        session = self._session()
        if session is None:
            self.open_steps = 0
            return False
        self.retries, self.steps = session.retries, session.steps_applied
        self.open_steps = session.open_steps
        return True

    def is_of(self, session: Session) -> bool:
        """Whether this is that client."""
        return self._session() is session


class Figures:
    """What all clients of a process count, since its first. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All begin at 0, so that a rate sees the first of them.
        self._requests = {(method, "OK"): 0 for method in sorted(DATA_METHODS)}
        self._buckets = {method: [0] * (len(BUCKETS) + 1) for method in sorted(DATA_METHODS)}
        self._seconds = dict.fromkeys(sorted(DATA_METHODS), 0.0)
        self._examples = 0.0
        self._reported: dict[str, float] = {}
        self._told = False
        self._members: list[_Member] = []
        # Of clients that are gone.
        self._retries = self._steps = 0

    def ended(self, method: str, code: str) -> None:
        """A request to one server is over, with that gRPC status code."""
        key = (method, code)
        with self._lock:
            self._requests[key] = self._requests.get(key, 0) + 1

    def waited(self, method: str, seconds: float) -> None:
        """A data call is over: what it took with all its servers and attempts."""
        bucket = bisect_left(BUCKETS, seconds)
        with self._lock:
            self._buckets[method][bucket] += 1
            self._seconds[method] += seconds

    def reported(self, values: Mapping[str, float]) -> None:
        """What report() told the job. Of names only the first 64 are kept."""
        with self._lock:
            for name, value in values.items():
                if name == _EXAMPLES:
                    # A counter knows nothing else.
                    self._examples += value if 0.0 < value < math.inf else 0.0
                elif name in self._reported or len(self._reported) < NAMES_MAX:
                    self._reported[name] = value
                elif not self._told:
                    self._told = True
                    _LOG.warning(
                        "metrics: report() has given more than %d names; %r and others are not shown",
                        NAMES_MAX,
                        name,
                    )

    def join(self, session: Session) -> None:
        """Read this client's counts from now on."""
        member = _Member(session)
        with self._lock:
            self._members.append(member)

    def leave(self, session: Session) -> None:
        """A client has closed; its counts stay."""
        with self._lock:
            self._look()
            self._retire([member for member in self._members if member.is_of(session)])

    @property
    def members(self) -> int:
        """How many clients there are."""
        with self._lock:
            self._look()
            return len(self._members)

    def read(self) -> Snapshot:
        """All of it."""
        with self._lock:
            self._look()
            return Snapshot(
                requests=dict(self._requests),
                waits={
                    method: Waits(tuple(buckets), self._seconds[method])
                    for method, buckets in self._buckets.items()
                },
                retries=self._retries + sum(member.retries for member in self._members),
                open_steps=sum(member.open_steps for member in self._members),
                steps=self._steps + sum(member.steps for member in self._members),
                examples=self._examples,
                reported=dict(self._reported),
            )

    def _look(self) -> None:
        """Read every client; those dropped without close() are members no more."""
        self._retire([member for member in self._members if not member.look()])

    def _retire(self, gone: list[_Member]) -> None:
        for member in gone:
            self._members.remove(member)
            self._retries += member.retries
            self._steps += member.steps


class CountingTransport:
    """A transport whose requests are counted."""

    def __init__(self, transport: Transport, figures: Figures) -> None:
        self._transport = transport
        self._figures = figures

    @property
    def addresses(self) -> Sequence[str]:
        """Each server's `host:port` of its data port."""
        return self._transport.addresses

    @property
    def background(self) -> Transport:
        """For calls whose answers are to come while nobody waits for them; counted too."""
        return CountingTransport(background(self._transport), self._figures)

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Send a request; it is counted when its answer is taken or given up."""
        answer = self._transport.call(server, method, request, timeout, wait)
        return _CountingAnswer(answer, method, self._figures)

    def rebuild(self) -> None:
        """Make new connections."""
        self._transport.rebuild()

    def close(self) -> None:
        """End every connection."""
        self._transport.close()


class _CountingAnswer:
    __slots__ = ("_answer", "_counted", "_figures", "_method")

    def __init__(self, answer: Answer, method: str, figures: Figures) -> None:
        self._answer = answer
        self._method = method
        self._figures = figures
        self._counted = False

    def result(self) -> bytes:
        try:
            answer = self._answer.result()
        except errors.TablebayError as error:
            self._count(errors.status_code(error))
            raise
        self._counted = True
        self._figures.ended(self._method, "OK")
        return answer

    def cancel(self) -> object:
        self._count("CANCELLED")
        return self._answer.cancel()

    def _count(self, code: str) -> None:
        if not self._counted:
            self._counted = True
            self._figures.ended(self._method, code)


class WorkerCollector(Collector):
    """A process's figures as metric families, read when Prometheus asks for them."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Every family with its samples."""
        found = self._figures.read()
        info = GaugeMetricFamily("tablebay_client_build_info", "Build of the SDK", labels=("version",))
        info.add_metric((environment.VERSION,), 1)
        yield info
        requests = CounterMetricFamily(
            "tablebay_client_requests",
            "Requests to one server that have ended, each attempt for itself",
            labels=("method", "code"),
        )
        for (method, code), number in found.requests.items():
            requests.add_metric((method, code), number)
        yield requests
        duration = HistogramMetricFamily(
            "tablebay_client_request_duration_seconds",
            "Time that a data call waited for its answers, of all servers and with all attempts",
            labels=("method",),
        )
        for method, waits in found.waits.items():
            duration.add_metric((method,), _cumulative(waits.buckets), waits.seconds)
        yield duration
        yield CounterMetricFamily(
            "tablebay_client_retries", "Times that requests were sent again", value=found.retries
        )
        yield GaugeMetricFamily(
            "tablebay_client_open_steps", "Steps sent and not settled", value=found.open_steps
        )
        yield CounterMetricFamily(
            "tablebay_train_steps", "Steps that every server concerned has applied", value=found.steps
        )
        yield CounterMetricFamily(
            "tablebay_train_examples", "Sum of examples= in report()", value=found.examples
        )
        reported = GaugeMetricFamily(
            "tablebay_train_reported", "Latest value of each other name in report()", labels=("name",)
        )
        for name, value in found.reported.items():
            reported.add_metric((name,), value)
        yield reported


def _cumulative(buckets: Sequence[int]) -> list[tuple[str, float]]:
    names = [*(str(bound) for bound in BUCKETS), "+Inf"]
    so_far = 0
    result: list[tuple[str, float]] = []
    for name, number in zip(names, buckets, strict=True):
        so_far += number
        result.append((name, so_far))
    return result


def registry(figures: Figures) -> CollectorRegistry:
    """A process's figures beside those of Python."""
    result = CollectorRegistry()
    ProcessCollector(registry=result)
    PlatformCollector(registry=result)
    GCCollector(registry=result)
    result.register(WorkerCollector(figures))
    return result


class Exposure:
    """The process's HTTP server, there while a client is. Safe in threads."""

    def __init__(self) -> None:
        self.figures = Figures()
        self._process = os.getpid()
        # Reentrant: a signal's handler may close a client while another call here is under way.
        self._lock = threading.RLock()
        self._connecting = 0
        self._server: tuple[WSGIServer, threading.Thread] | None = None

    def enter(self, host: str, port: int) -> bool:
        """A client begins to connect: serve. False when that cannot be, which the log then says."""
        with self._lock:
            if os.getpid() != self._process:
                return False
            if self._server is None:
                try:
                    self._server = start_http_server(port, host, registry(self.figures))
                except (OSError, ValueError, RuntimeError) as error:
                    _LOG.warning(
                        "metrics: %s:%d cannot be served on (%s); the work goes on without /metrics",
                        host,
                        port,
                        error,
                    )
                    return False
            self._connecting += 1
            return True

    def join(self, session: Session) -> None:
        """The client that began to connect has done so; it counts until it closes."""
        self.figures.join(session)
        session.figures = self.figures
        session.on_close = self._closed
        with self._lock:
            self._connecting -= 1

    def give_up(self) -> None:
        """The client that began to connect could not."""
        with self._lock:
            self._connecting -= 1
            self._stop_if_last()

    def _closed(self, session: Session) -> None:
        with self._lock:
            self.figures.leave(session)
            self._stop_if_last()

    def _stop_if_last(self) -> None:
        if self._connecting or self._server is None or self.figures.members:
            return
        (server, thread), self._server = self._server, None
        server.shutdown()
        server.server_close()
        thread.join()

    def forked(self) -> None:
        """This process was forked from the one that serves, whose port must not stay open for this one's sake."""
        if self._server is not None:
            self._server[0].socket.close()
            self._server = None
        self._lock = threading.RLock()


_exposure = Exposure()
os.register_at_fork(after_in_child=_exposure.forked)


def counting(
    transport: Callable[[int], Transport],
    connect: Callable[[Callable[[int], Transport]], Client],
    variables: Mapping[str, str] | None = None,
) -> Client:
    """The client that `connect` makes over `transport`, counted and shown if the process can serve metrics.

    variables: the environment's. Nothing that is wrong with metrics is an error of training: the log has it.
    """
    found = os.environ if variables is None else variables
    try:
        port = environment.number(found, environment.METRICS_PORT, 1, 65535, None)
    except errors.BadRequest as error:
        _LOG.warning("metrics: %s; the work goes on without /metrics", error)
        port = None
    if port is None or not _exposure.enter(found.get(environment.METRICS_HOST) or HOST, port):
        return connect(transport)
    figures = _exposure.figures
    try:
        client = connect(lambda message_bytes_max: CountingTransport(transport(message_bytes_max), figures))
    except BaseException:
        _exposure.give_up()
        raise
    _exposure.join(client._session)
    return client
