"""`tb.connect`, and what it returns."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from tablebay.client import checkpoints, environment, errors, http2_transport
from tablebay.client.checkpoints import Checkpoint, Restored
from tablebay.client.control import Control
from tablebay.client.environment import WorkerEnvironment, expand_pattern
from tablebay.client.hello import greet
from tablebay.client.latency import LatencyHistogram
from tablebay.client.prefetch import Prefetch
from tablebay.client.proto import tablebay_pb2
from tablebay.client.replay import BYTES_MAX
from tablebay.client.retry import Pace
from tablebay.client.session import Session
from tablebay.client.step import Step, pull_parts
from tablebay.client.table import RemoteTable
from tablebay.client.tables import (
    ADMISSION,
    Dtype,
    Eviction,
    Initializer,
    NonFinite,
    Optimizer,
    PushMissing,
    TableSpec,
    differences,
)
from tablebay.client.tls import Folder
from tablebay.client.transport import MESSAGE_BYTES_MAX, Transport

TIMEOUT_S = 30.0
# Where servers make checkpoints one that is lost comes back: after it was started again and has restored its rows.
RECOVERY_TIMEOUT_S = 600.0

Batch = TypeVar("Batch")

_BARRIER_FIRST_S = 0.005
_BARRIER_LAST_S = 0.2


class Client:
    """One client of a job's servers. Safe in threads; not to be used in a process forked from its own.

    Every call ends within `timeout` seconds, with Unavailable if it must: only that is retried, with the same
    step number and the same bytes, so that a push is applied once however often it is sent.
    """

    def __init__(self, session: Session, workers: int, *, elastic: bool = False) -> None:
        self._session = session
        self._workers = workers
        self._elastic = elastic
        self._tables: dict[str, RemoteTable] = {}
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._reports = 0
        self._reported: dict[str, float] = {}
        self._reported_in = 0
        self._barriers: Counter[str] = Counter()

    # -- who and where --

    @property
    def rank(self) -> int | None:
        """This worker's number, or None for an anonymous client."""
        return self._session.identity.rank

    @property
    def workers(self) -> int:
        """How many workers the job has; what a barrier waits for.

        Of an elastic job, as of this client's last word with server 0: `connect`, `report` and `barrier`.
        """
        return self._workers

    def _learn_workers(self, workers: int) -> None:
        if self._elastic and workers:
            self._workers = workers

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
        push_missing: PushMissing | None = None,
        admit_at: int | None = None,
        admit_probability: float | None = None,
        admit_filter_keys: int | None = None,
        eviction: Eviction | None = None,
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
            "push_missing": push_missing,
            "admit_at": admit_at,
            "admit_probability": admit_probability,
            "admit_filter_keys": admit_filter_keys,
            "eviction": eviction,
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
        session = self._session
        servers = session.speak(lambda control: control.describe(session.timeout))
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
        message = spec.message()
        # Before it is made: a server that comes back in between must get it too.
        session.tables[name] = message
        if len(found) < len(servers):
            found = session.speak(lambda control: control.create_table(message, session.timeout))
            # A server leaves out what it does not know.
            unheard = differences(TableSpec.from_message(found[0].spec), spec, ADMISSION)
            if unheard:
                raise errors.TableMismatch(
                    f"table '{name}' was made without what was asked for: {'; '.join(unheard)}; "
                    "the server is of an older version"
                )
        return RemoteTable(session, spec, found[0])

    # -- steps --

    def step(self) -> Step:
        """`with client.step() as step:` for a step over several tables."""
        return Step(self._session)

    def prefetch(
        self, requests: Mapping[RemoteTable, Any], create: bool = True, *, refresh: bool = True
    ) -> Prefetch:
        """Begin a pull of several tables, and go on; `result()` waits for the rows.

        requests: keys of any shape by table.
        refresh: rows that this client pushes meanwhile are pulled again; False takes them as they were.
        """
        self._session.check()
        parts, rows = pull_parts(self._session, requests, create)
        return Prefetch(self._session, parts, rows, refresh)

    # -- checkpoints --

    def checkpoint(
        self, state: Mapping[str, bytes] | None = None, *, full: bool = False, timeout: float | None = None
    ) -> Checkpoint:
        """Have a checkpoint made that holds all that this client has pushed, and wait for it.

        state: bytes by name, of this worker (its dense model, say), saved with it. full: not a delta.
        timeout: seconds, by default as long as the servers take for one. What pushes left open is sent first.
        Raises CheckpointFailed with the servers' reason, and BadRequest where they make none.
        """
        return checkpoints.make(self._session, state or {}, full=full, timeout=timeout)

    def state(self) -> dict[str, bytes]:
        """What this rank gave as `state` with the checkpoint that the job came back from; else empty."""
        return checkpoints.read_state(self._session)

    def resume(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """Batches with the numbers of their steps, from where this rank stopped.

        batches: in the same order each time; batch number i is for step i. A sequence is indexed, anything
            else is gone through from its beginning. Take one step for each: one push, or one step() block.
        Raises BadRequest where a batch took no step, or several.
        """
        return checkpoints.resume(self._session, batches)

    def restore(
        self,
        source: str = "",
        *,
        number: int | None = None,
        tables: Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        optimizer_state: bool = True,
        timeout: float | None = None,
    ) -> Restored:
        """Replace rows of this job's tables by those of a checkpoint, its own or another job's (a warm start).

        source: a directory that the servers see; by default the job's own destination. number: of the
            checkpoint, by default the newest complete one. tables: by the checkpoint's names, by default all.
        rename: from the checkpoint's names to this job's. optimizer_state: False begins slots anew.
        On each server a table is read and checked whole, then swapped in.
        """
        return checkpoints.restore(
            self._session,
            source,
            number=number,
            tables=tables,
            rename=rename or {},
            optimizer_state=optimizer_state,
            timeout=timeout,
        )

    # -- the job --

    def report(self, **values: float) -> None:
        """Tell the job how training goes; server 0 keeps it.

        `examples` is added up over calls and workers; any other name keeps its latest value. Well known:
        step, loss, auc, logloss, train_seconds. The latencies of this client's pulls so far go with it.
        """
        numbers = {name: _number(name, value) for name, value in values.items()}
        session = self._session
        with self._reporting:
            self._reports += 1
            examples = self._reported.get("examples", 0.0) + numbers.get("examples", 0.0)
            self._reported |= numbers
            if examples:
                self._reported["examples"] = examples
            answer = session.speak(lambda control: control.report(self._report(numbers), session.timeout))
            self._learn_workers(answer.workers)
            self._reported_in = session.lives
        if session.figures is not None:
            session.figures.reported(numbers)

    def _report(self, numbers: dict[str, float]) -> tablebay_pb2.ReportRequest:
        session, who = self._session, self._session.identity
        # A server 0 that came back knows nothing of what it was told before.
        values = numbers if session.lives == self._reported_in else self._reported
        return tablebay_pb2.ReportRequest(
            client_high=who.client_high,
            client_low=who.client_low,
            incarnation=who.incarnation,
            rank=who.rank,
            number=self._reports,
            values=values,
            pull_latency=session.pull_latency.pack(),
            retries=session.retries,
        )

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
            workers=0 if self._elastic else self._workers,
        )
        wait = _BARRIER_FIRST_S
        while True:
            answer = session.speak(lambda control: control.barrier(request, session.timeout))
            self._learn_workers(answer.workers)
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
        session = self._session
        return session.speak(lambda control: control.progress(session.timeout))

    def pull_latency(self) -> LatencyHistogram:
        """How long this client's pulls have taken so far."""
        return LatencyHistogram(self._session.pull_latency.counts)

    # -- the end --

    def close(self) -> None:
        """Send what pushes left open once more, and end the connections. May be called twice.

        With checkpoints it first waits until one has all that this client has pushed: until then the client alone
        could give it to a server that comes back. Raises Unavailable when a step could not be delivered, or no
        checkpoint was made, within the client's timeout. In a forked child it does nothing.
        """
        self._session.close(flush=True, finish=checkpoints.keep_all)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # On the way out of an exception (Ctrl-C) nothing is waited for.
        if error is None:
            self.close()
        else:
            self._session.close(flush=False)

    def __repr__(self) -> str:
        who = "anonymous" if self.rank is None else f"rank {self.rank}"
        return f"<Client {who} of job '{self.job}', {len(self.addresses)} servers>"


def connect(
    address: str | Sequence[str] | None = None,
    *,
    timeout: float | None = None,
    rank: int | None = None,
    workers: int | None = None,
    job: str | None = None,
    generation: int | None = None,
    replay_bytes: int = BYTES_MAX,
    tls_dir: str | os.PathLike[str] | None = None,
    transport: str | None = None,
) -> Client:
    """Connect to a job's servers.

    address: `host:port` of a server's data port; for several servers a pattern (`host-{0..3}:7070`), a comma
        list or a list, in the order of their indices. Without it everything not given is read from the
        worker's environment.
    timeout: seconds that any one call may take, this one included: by default 30, and 600 once connected to
        servers that make checkpoints, for one that is lost comes back.
    rank: this worker's number, which makes its steps resumable; a newer process with the same rank fences
        this one. Without it the client is anonymous, and its own for as long as it lives.
    workers: how many a barrier waits for.
    replay_bytes: how much may have been pushed and be in no checkpoint yet; kept to be sent to a server that
        comes back. At half of it a checkpoint is asked for, at all of it pushes wait.
    job, generation: which must be the servers' own if given.
    tls_dir: a folder with tls.key, tls.crt and ca.crt, which are read again when they change. Without it the
        servers are talked to in plain.
    transport: of pulls and pushes: "native", the core's own HTTP/2, or "grpcio", gRPC's library. By default what
        TABLEBAY_TRANSPORT says; where it says nothing "native", but with TLS only where the system has OpenSSL 3.
    Raises Unavailable naming the address when a server is not reached within `timeout`, also where it does not
    take the certificate, and BadRequest where there is none.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | None):
        raise errors.BadType(f"timeout: found {type(timeout).__name__}, wanted seconds")
    if timeout is not None and not timeout > 0:
        raise errors.BadRequest(f"timeout is {timeout}, wanted more than 0 seconds")
    if isinstance(replay_bytes, bool) or not isinstance(replay_bytes, int):
        raise errors.BadType(f"replay_bytes: found {type(replay_bytes).__name__}, wanted an int")
    if replay_bytes < 1:
        raise errors.BadRequest(f"replay_bytes is {replay_bytes}, wanted at least 1")
    exposed, elastic = False, False
    if address is None:
        worker = WorkerEnvironment.read()
        address = worker.servers
        rank = worker.rank if rank is None else rank
        elastic = workers is None and worker.workers is None
        workers = worker.workers if workers is None else workers
        job = worker.job if job is None else job
        generation = worker.generation if generation is None else generation
        tls_dir = (os.environ.get(environment.TLS_DIR) or None) if tls_dir is None else tls_dir
        exposed = bool(os.environ.get(environment.METRICS_PORT))
    tls = None if tls_dir is None else Folder(tls_dir)
    kind = http2_transport.chosen(transport, secure=tls is not None)
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
            replay_bytes=replay_bytes,
            elastic=elastic,
            halves=tls is not None and kind == http2_transport.GRPCIO,
        )

    def over_wire(message_bytes_max: int) -> Transport:
        return http2_transport.make(addresses, kind, message_bytes_max, tls)

    if not exposed:
        return over(over_wire)
    # Late, for who has no use of it: it loads prometheus_client.
    from tablebay.client import metrics

    return metrics.counting(over_wire, over)


def client_over(
    transport: Transport,
    *,
    timeout: float | None = None,
    rank: int | None = None,
    workers: int | None = None,
    job: str = "",
    generation: int = 0,
    pace: Pace | None = None,
    remake: Callable[[int], Transport] | None = None,
    replay_bytes: int = BYTES_MAX,
    elastic: bool = False,
    halves: bool = False,
) -> Client:
    """A client over any transport, which it closes. pace: its clock, sleep and randomness, for tests.

    elastic: server 0 says how many workers there are. halves: as Session's. remake: makes the transport anew for
    another message limit than MESSAGE_BYTES_MAX.
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise errors.BadType(f"rank: found {type(rank).__name__}, wanted an int")
    if rank is not None and not 0 <= rank < 2**32:
        raise errors.BadRequest(f"rank is {rank}, wanted 0 to 2^32 - 1")
    if workers is not None and workers < 1:
        raise errors.BadRequest(f"workers is {workers}, wanted at least 1")
    pace = pace or Pace()
    deadline = pace.deadline(TIMEOUT_S if timeout is None else timeout)
    try:
        attempt = 0
        while True:
            greeting = greet(
                Control(transport, pace=pace),
                transport.addresses,
                job=job,
                generation=generation,
                rank=rank,
                deadline=deadline,
                pace=pace,
            )
            if greeting.workers or not elastic:
                break
            # Server 0 came back, and the operator has not said it again yet.
            if not deadline.pause(attempt):
                raise errors.Unavailable(
                    f"server 0 at {transport.addresses[0]} does not know yet how many "
                    f"workers job '{greeting.identity.job}' has"
                )
            attempt += 1
        if remake is not None and greeting.message_bytes_max != MESSAGE_BYTES_MAX:
            transport.close()
            transport = remake(greeting.message_bytes_max)
    except BaseException:
        transport.close()
        raise
    if timeout is None:
        timeout = RECOVERY_TIMEOUT_S if greeting.durable else TIMEOUT_S
    session = Session(transport, Control(transport, pace=pace), greeting, timeout, pace, replay_bytes, halves)
    return Client(session, greeting.workers if elastic else workers or 1, elastic=elastic)


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
