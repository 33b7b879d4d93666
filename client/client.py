"""`tb.connect`, and what it returns."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from tablebay.client import environment, errors
from tablebay.client.control import Control
from tablebay.client.environment import WorkerEnvironment, expand_pattern
from tablebay.client.hello import greet
from tablebay.client.latency import LatencyHistogram
from tablebay.client.prefetch import Prefetch
from tablebay.client.proto import tablebay_pb2
from tablebay.client.retry import Pace
from tablebay.client.session import Session
from tablebay.client.step import Step, pull_parts
from tablebay.client.table import RemoteTable
from tablebay.client.tables import Dtype, Initializer, NonFinite, Optimizer, TableSpec, differences
from tablebay.client.transport import MESSAGE_BYTES_MAX, GrpcTransport, Transport

TIMEOUT_S = 30.0

_BARRIER_FIRST_S = 0.005
_BARRIER_LAST_S = 0.2


class Client:
    """One client of a job's servers. Safe in threads; not to be used in a process forked from its own.

    Every call ends within `timeout` seconds, with Unavailable if it must: only that is retried, with the same
    step number and the same bytes, so that a push is applied once however often it is sent.
    """

    def __init__(self, session: Session, workers: int) -> None:
        self._session = session
        self._workers = workers
        self._tables: dict[str, RemoteTable] = {}
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._reports = 0
        self._barriers: Counter[str] = Counter()

    # -- who and where --

    @property
    def rank(self) -> int | None:
        """This worker's number, or None for an anonymous client."""
        return self._session.identity.rank

    @property
    def workers(self) -> int:
        """How many workers the job has; what a barrier waits for."""
        return self._workers

    @property
    def job(self) -> str:
        """The servers' job."""
        return self._session.identity.job

    @property
    def addresses(self) -> Sequence[str]:
        """The servers' data ports."""
        return self._session.transport.addresses

    @property
    def next_step(self) -> int:
        """The number that the next push or step block gets; after connecting, where this rank goes on."""
        return self._session.ledger.next

    @property
    def cursor(self) -> bytes:
        """What was pushed as cursor with the step before the first of this client; b"" if nothing was."""
        return self._session.cursor

    # -- tables --

    def table(
        self,
        name: str,
        dim: int | None = None,
        *,
        dtype: Dtype | None = None,
        optimizer: Optimizer | None = None,
        initializer: Initializer | None = None,
        seed: int | None = None,
        non_finite: NonFinite | None = None,
    ) -> RemoteTable:
        """Open a table, or make it if there is none.

        An existing table must agree with each argument given, or TableMismatch lists the differences. To make
        one, `dim` must be given; without it an unknown name is NotRegistered.
        """
        given: dict[str, Any] = {
            "dim": dim,
            "dtype": dtype,
            "optimizer": optimizer,
            "initializer": initializer,
            "seed": seed,
            "non_finite": non_finite,
        }
        given = {field: value for field, value in given.items() if value is not None}
        with self._lock:
            table = self._tables.get(name)
            if table is None:
                table = self._tables[name] = self._open(name, given)
            else:
                self._session.check()
                _require_agreement(table.spec, given)
            return table

    def _open(self, name: str, given: dict[str, Any]) -> RemoteTable:
        with self._session.speaking() as control:
            servers = control.describe(self._session.timeout)
            found = [table for tables in servers for table in tables if table.spec.name == name]
            if found:
                spec = TableSpec.from_message(found[0].spec)
                _require_agreement(spec, given)
            elif "dim" in given:
                spec = TableSpec(name=name, **given)
            else:
                names = sorted({table.spec.name for tables in servers for table in tables})
                raise errors.NotRegistered(
                    f"table '{name}' does not exist, and cannot be made without dim; "
                    f"existing tables: {', '.join(names) or 'none'}"
                )
            if len(found) < len(servers):
                found = control.create_table(spec.message(), self._session.timeout)
        return RemoteTable(self._session, spec, found[0])

    # -- steps --

    def step(self) -> Step:
        """`with client.step() as step:` for a step over several tables."""
        return Step(self._session)

    def prefetch(self, requests: Mapping[RemoteTable, Any], create: bool = True) -> Prefetch:
        """Begin a pull of several tables, and go on; `result()` waits for the rows.

        requests: keys of any shape by table. Rows that this client pushes meanwhile are pulled again.
        """
        self._session.check()
        parts, rows = pull_parts(self._session, requests, create)
        return Prefetch(self._session, parts, rows)

    # -- the job --

    def report(self, **values: float) -> None:
        """Tell the job how training goes; server 0 keeps it.

        `examples` is added up over calls and workers; any other name keeps its latest value. Well known:
        step, loss, auc, logloss, train_seconds. The latencies of this client's pulls so far go with it.
        """
        numbers = {name: _number(name, value) for name, value in values.items()}
        who = self._session.identity
        with self._reporting, self._session.speaking() as control:
            self._reports += 1
            request = tablebay_pb2.ReportRequest(
                client_high=who.client_high,
                client_low=who.client_low,
                incarnation=who.incarnation,
                rank=who.rank,
                number=self._reports,
                values=numbers,
                pull_latency=self._session.pull_latency.pack(),
                retries=self._session.retries,
            )
            control.report(request, self._session.timeout)
        if self._session.figures is not None:
            self._session.figures.reported(numbers)

    def barrier(self, name: str, timeout: float | None = None) -> None:
        """Wait until every worker has called barrier(name), as often as this one has by now.

        timeout: seconds, without end by default; then DeadlineExceeded says how many had come. A server that
            cannot be reached for the client's own timeout is Unavailable all the same.
        What pushes left open is sent first.
        """
        if not isinstance(name, str):
            raise errors.BadType(f"barrier: found {type(name).__name__} as its name, wanted str")
        session = self._session
        session.check()
        session.flush(session.deadline())
        deadline = None if timeout is None else session.deadline(timeout)
        # A released name stays released, so that a lost answer can be asked for again: the second use of a
        # name is another name.
        use = self._barriers[name] + 1
        who = session.identity
        request = tablebay_pb2.BarrierRequest(
            name=name if use == 1 else f"{name}#{use}",
            client_high=who.client_high,
            client_low=who.client_low,
            incarnation=who.incarnation,
            workers=self._workers,
        )
        wait = _BARRIER_FIRST_S
        while True:
            with session.speaking() as control:
                answer = control.barrier(request, session.timeout)
            if answer.released:
                self._barriers[name] = use
                return
            if deadline is not None and deadline.passed():
                raise errors.DeadlineExceeded(
                    f"barrier '{name}': {answer.arrived} of {self._workers} workers have come "
                    f"within {timeout:g} s"
                )
            session.pace.sleep(wait if deadline is None else min(wait, deadline.remaining()))
            wait = min(_BARRIER_LAST_S, wait * 1.5)

    def stats(self) -> list[tablebay_pb2.StatsResponse]:
        """Each server's tables and counters."""
        return self._session.stats()

    def progress(self) -> list[tablebay_pb2.WorkerProgress]:
        """What each worker last reported."""
        with self._session.speaking() as control:
            return control.progress(self._session.timeout)

    def pull_latency(self) -> LatencyHistogram:
        """How long this client's pulls have taken so far."""
        return LatencyHistogram(self._session.pull_latency.counts)

    # -- the end --

    def close(self) -> None:
        """Send what pushes left open once more, and end the connections. May be called twice.

        Raises Unavailable when a step could not be delivered. In a forked child it does nothing.
        """
        self._session.close(flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # On the way out of an exception (Ctrl-C) nothing is waited for.
        self._session.close(flush=error is None)

    def __repr__(self) -> str:
        who = "anonymous" if self.rank is None else f"rank {self.rank}"
        return f"<Client {who} of job '{self.job}', {len(self.addresses)} servers>"


def connect(
    address: str | Sequence[str] | None = None,
    *,
    timeout: float = TIMEOUT_S,
    rank: int | None = None,
    workers: int | None = None,
    job: str | None = None,
    generation: int | None = None,
) -> Client:
    """Connect to a job's servers.

    address: `host:port` of a server's data port; for several servers a pattern (`host-{0..3}:7070`), a comma
        list or a list, in the order of their indices. Without it everything not given is read from the
        worker's environment.
    timeout: seconds that any one call may take, this one included.
    rank: this worker's number, which makes its steps resumable; a newer process with the same rank fences
        this one. Without it the client is anonymous, and its own for as long as it lives.
    workers: how many a barrier waits for.
    job, generation: which must be the servers' own if given.
    Raises Unavailable naming the address when a server is not reached within `timeout`.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise errors.BadType(f"timeout: found {type(timeout).__name__}, wanted seconds")
    if not timeout > 0:
        raise errors.BadRequest(f"timeout is {timeout}, wanted more than 0 seconds")
    exposed = False
    if address is None:
        worker = WorkerEnvironment.read()
        address = worker.servers
        rank = worker.rank if rank is None else rank
        workers = worker.workers if workers is None else workers
        job = worker.job if job is None else job
        generation = worker.generation if generation is None else generation
        exposed = bool(os.environ.get(environment.METRICS_PORT))
    addresses = expand_pattern(address) if isinstance(address, str) else list(address)
    if not addresses:
        raise errors.BadRequest("connect: found no address, wanted host:port, a pattern, or a list")

    def over(transport: Callable[[int], Transport]) -> Client:
        return client_over(
            transport(MESSAGE_BYTES_MAX),
            timeout=timeout,
            rank=rank,
            workers=workers,
            job=job or "",
            generation=generation or 0,
            remake=transport,
        )

    def plain(message_bytes_max: int) -> Transport:
        return GrpcTransport(addresses, message_bytes_max=message_bytes_max)

    if not exposed:
        return over(plain)
    # Late, for who has no use of it: it loads prometheus_client.
    from tablebay.client import metrics

    return metrics.counting(plain, over)


def client_over(
    transport: Transport,
    *,
    timeout: float = TIMEOUT_S,
    rank: int | None = None,
    workers: int | None = None,
    job: str = "",
    generation: int = 0,
    pace: Pace | None = None,
    remake: Callable[[int], Transport] | None = None,
) -> Client:
    """A client over any transport, which it closes. pace: its clock, sleep and randomness, for tests.

    remake: makes the transport anew for another message limit than MESSAGE_BYTES_MAX.
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise errors.BadType(f"rank: found {type(rank).__name__}, wanted an int")
    if rank is not None and not 0 <= rank < 2**32:
        raise errors.BadRequest(f"rank is {rank}, wanted 0 to 2^32 - 1")
    if workers is not None and workers < 1:
        raise errors.BadRequest(f"workers is {workers}, wanted at least 1")
    pace = pace or Pace()
    deadline = pace.deadline(timeout)
    try:
        greeting = greet(
            Control(transport, pace=pace),
            transport.addresses,
            job=job,
            generation=generation,
            rank=rank,
            deadline=deadline,
            pace=pace,
        )
        if remake is not None and greeting.message_bytes_max != MESSAGE_BYTES_MAX:
            transport.close()
            transport = remake(greeting.message_bytes_max)
    except BaseException:
        transport.close()
        raise
    return Client(Session(transport, Control(transport, pace=pace), greeting, timeout, pace), workers or 1)


def _require_agreement(spec: TableSpec, given: dict[str, Any]) -> None:
    """Raises TableMismatch listing each argument that differs; BadRequest for a wrong argument."""
    wanted = TableSpec(name=spec.name, **{"dim": spec.dim, **given})
    problems = differences(spec, wanted, fields=given)
    if problems:
        raise errors.TableMismatch(f"table '{spec.name}' exists and differs: {'; '.join(problems)}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise errors.BadType(f"report: {name}: found {type(value).__name__}, wanted a number")
    return float(value)
