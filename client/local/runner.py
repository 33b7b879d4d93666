"""The local runner: a job's servers and workers as processes of this machine, with the environment a pod
gets.

What to do when a process ends is in decisions.py, the processes in processes.py, the figures in report.py.
"""

from __future__ import annotations

import fcntl
import http.client
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol

from tablebay.client import environment as names
from tablebay.client.control import Control
from tablebay.client.errors import JobFailed, TablebayError
from tablebay.client.job import TrainingJob
from tablebay.client.local import checkpoints, pod
from tablebay.client.local.decisions import (
    Ended,
    Fail,
    Finish,
    Restart,
    Standing,
    cannot_restore,
    decide,
    how,
)
from tablebay.client.local.ports import HOST, free_block
from tablebay.client.local.processes import Process, ProcessGroup
from tablebay.client.local.report import REPORT_FILE, Figures, figures, report, write_report
from tablebay.client.tables import dump_tables
from tablebay.ps_server import memory

BLOCKS_TRIED = 8
TICK_S = 0.1
FIGURES_EVERY_S = 1.0
FIGURES_TIMEOUT_S = 10.0
_GRACE = "TABLEBAY_GRACE_SECONDS"
_MEMORY_LIMIT = "TABLEBAY_MEMORY_LIMIT_BYTES"


class Interrupted(Exception):
    """A signal told the run to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"interrupted by {number.name}")
        self.number = number


class View(Protocol):
    """Who watches a run."""

    def line(self, name: str, text: str) -> None:
        """A process wrote a line."""

    def note(self, text: str) -> None:
        """The runner has something to say."""

    def progress(self, found: Figures, *, restarts: int) -> None:
        """New figures, about once a second."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """arguments: appended to the workers' command. ready_s: how long the servers may take to be ready.

    worker_grace_s, server_grace_s: from SIGTERM to SIGKILL. free_block: the first of so many free ports, or
    None.
    """

    run_dir: Path
    arguments: tuple[str, ...] = ()
    ready_s: float = 60.0
    worker_grace_s: float = 5.0
    server_grace_s: float = 10.0
    free_block: Callable[[int], int | None] = field(
        default_factory=lambda: lambda count: free_block(count, randomness=random.Random())
    )


def default_run_dir(job: TrainingJob) -> Path:
    """Where a run of this job leaves its report and logs unless told otherwise."""
    return Path(".tablebay") / job.name


def run_job(job: TrainingJob, options: RunOptions, view: View) -> dict[str, Any]:
    """Run a job to its end and answer its report, which is then in the run directory too.

    Call it from the main thread. No process that it started is left when it returns or raises.
    Raises JobInvalid for what cannot run here, JobFailed with the cause on one line, Interrupted on SIGINT,
    SIGTERM and SIGHUP.
    """
    pod.check(job)
    missing = pod.cluster_only(job)
    with _run_folder(options.run_dir) as logs, _Interruption() as interruption:
        if missing:
            view.note(f"only a cluster gives {', '.join(missing)}: this run does without")
        said = checkpoints.begin(job, options.run_dir)
        if said:
            view.note(said)
        with ProcessGroup(lambda process, text: view.line(process.name, text)) as group:
            content = _Run(job, options, view, logs, group, interruption).run()
        checkpoints.finish(options.run_dir)
        return content


class _Run:
    """One run, from the first process to the report."""

    def __init__(
        self,
        job: TrainingJob,
        options: RunOptions,
        view: View,
        logs: Path,
        group: ProcessGroup,
        interruption: _Interruption,
    ) -> None:
        self._job = job
        self._options = options
        self._view = view
        self._logs = logs
        self._group = group
        self._interruption = interruption
        self._began = time.monotonic()
        self._base = {name: value for name, value in os.environ.items() if not names.is_identity(name)}
        self._servers: dict[Process, int] = {}
        self._workers: dict[Process, int] = {}
        self._restarts: Counter[int] = Counter()
        # When each restart was that counts.
        self._counts: list[float] = []
        self._server_restarts: Counter[int] = Counter()
        # Since each server was last ready.
        self._server_deaths: Counter[int] = Counter()
        # When a rank, or the server of an index, is started again.
        self._due: dict[int, float] = {}
        self._servers_due: dict[int, float] = {}
        self._checkpoint = checkpoints.variables(job, options.run_dir)
        self._first_port = 0

    def run(self) -> dict[str, Any]:
        try:
            self._start_servers()
            with _Watch(self._addresses()) as watch:
                for rank in range(self._job.spec.workers.replicas):
                    self._start_worker(rank)
                self._train(watch)
                # Those that a success policy does not wait for.
                self._end(self._workers, self._options.worker_grace_s)
                self._workers.clear()
                self._due.clear()
                self._await_servers()
                content = self._report(watch.last())
            write_report(content, self._options.run_dir)
            return content
        except Interrupted as error:
            self._view.note(f"{error}; ending every process")
            raise
        finally:
            # Workers first: a worker that loses its servers would call that an error.
            self._end(self._workers, self._options.worker_grace_s)
            self._end(self._servers, self._server_grace_s)

    @property
    def _server_grace_s(self) -> float:
        """A last checkpoint may take its time."""
        checkpoint = self._job.spec.checkpoint
        more_s = checkpoint.timeout_seconds if self._checkpoint and checkpoint is not None else 0.0
        return self._options.server_grace_s + more_s

    def _end(self, processes: Mapping[Process, int], grace_s: float) -> None:
        self._group.end(list(processes), grace_s=grace_s, hurry=self._interruption.insists)

    # Servers ------------------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        count = self._job.spec.servers.replicas
        for _ in range(BLOCKS_TRIED):
            # One more port than the servers need: the workers' own meeting point.
            first = self._options.free_block(names.PORTS_PER_SERVER * count + 1)
            if first is None:
                break
            self._first_port = first
            for index in range(count):
                self._start_server(index)
            if self._servers_are_ready():
                return
            self._view.note(f"a port from {first} on was taken meanwhile; trying others")
            self._end(self._servers, grace_s=0)
            self._servers.clear()
        wanted = names.PORTS_PER_SERVER * count + 1
        raise JobFailed(f"found no {wanted} free ports in a row on {HOST}; wanted them for the servers")

    def _start_server(self, index: int) -> None:
        spec = self._job.spec
        environment = {
            **pod.variables(pod.server_container(self._job), self._base),
            names.JOB: self._job.name,
            names.ROLE: "server",
            names.INDEX: str(index),
            names.WORKERS: str(spec.workers.replicas),
            names.GENERATION: "0",
            names.SERVERS: self._pattern(),
            names.TABLES: dump_tables(spec.tables),
            **self._checkpoint,
        }
        environment.setdefault(names.LOG_FORMAT, "text")
        # Alone, each would take most of the machine's memory, and longer to end than it gets here.
        environment.setdefault(_GRACE, f"{0.8 * self._server_grace_s:g}")
        environment.setdefault(_MEMORY_LIMIT, str(memory.default_limit() // spec.servers.replicas))
        # -P: a file of the user's current directory must not stand in for one of the server's modules.
        command = [sys.executable, "-P", "-m", "tablebay.ps_server.main", "--host", HOST]
        command += ["--data-port", str(self._data_port(index)), "--exit-with-parent"]
        name = f"server-{index}"
        self._servers[self._group.start(name, index, command, environment, self._log(name))] = index

    def _servers_are_ready(self) -> bool:
        """True once all are; False when one could not have its port. Raises JobFailed."""
        deadline = time.monotonic() + self._options.ready_s
        waiting = dict(self._servers)
        while waiting:
            for process in self._poll():
                if _lost_its_port(process):
                    return False
                self._say_last_lines(process)
                if self._checkpoint and _code(process) == names.NO_CHECKPOINT_EXIT:
                    raise JobFailed(cannot_restore(_ended("server", process)))
                raise JobFailed(
                    f"server {process.number} {how(_code(process))} before it was ready; "
                    f"its log is {process.log}"
                )
            waiting = {process: index for process, index in waiting.items() if not self._is_ready(index)}
            if waiting and time.monotonic() > deadline:
                process = next(iter(waiting))
                self._say_last_lines(process)
                raise JobFailed(
                    f"server {process.number} was not ready after {self._options.ready_s:g} s; "
                    f"its log is {process.log}"
                )
        return True

    def _is_ready(self, index: int) -> bool:
        connection = http.client.HTTPConnection(HOST, names.http_port(self._data_port(index)), timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _say_last_lines(self, process: Process) -> None:
        for line in list(process.tail):
            self._view.note(f"{process.name} said: {line}")

    def _data_port(self, index: int) -> int:
        return self._first_port + names.PORTS_PER_SERVER * index

    def _pattern(self) -> str:
        count, step = self._job.spec.servers.replicas, names.PORTS_PER_SERVER
        if count == 1:
            return f"{HOST}:{self._first_port}"
        return f"{HOST}:{{{self._first_port}..{self._data_port(count - 1)}..{step}}}"

    def _addresses(self) -> list[str]:
        return [f"{HOST}:{self._data_port(index)}" for index in range(self._job.spec.servers.replicas)]

    # Workers ------------------------------------------------------------------------------------------------

    def _start_worker(self, rank: int) -> None:
        workers = self._job.spec.workers
        own = pod.variables(workers.container, self._base)
        environment = {
            **own,
            **pod.thread_limits(workers.replicas, own),
            names.JOB: self._job.name,
            names.ROLE: "worker",
            names.RANK: str(rank),
            names.WORKERS: str(workers.replicas),
            names.GENERATION: "0",
            names.SERVERS: self._pattern(),
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(self._data_port(self._job.spec.servers.replicas)),
            "RANK": str(rank),
            "WORLD_SIZE": str(workers.replicas),
            "LOCAL_RANK": str(rank),
        }
        # Without it Python keeps what a worker prints until there are kilobytes of it.
        environment.setdefault("PYTHONUNBUFFERED", "1")
        environment.setdefault(names.LOG_FORMAT, "text")
        command = pod.command(workers.container, self._options.arguments, environment)
        name = f"worker-{rank}"
        self._workers[self._group.start(name, rank, command, environment, self._log(name))] = rank

    def _train(self, watch: _Watch) -> None:
        while True:
            for process in self._poll():
                if self._after(process):
                    return
            self._start_due()
            found = watch.news()
            if found is not None:
                self._view.progress(found, restarts=self._restarts.total())

    def _await_servers(self) -> None:
        """The workers are done; a server that is coming back is needed for the figures."""
        while self._servers_due or any(self._server_deaths.values()):
            for process in self._poll():
                self._after(process)
            self._start_due()

    def _after(self, process: Process) -> bool:
        """Do what a process's end asks for; True when the job is done. Raises JobFailed."""
        role: Literal["server", "worker"] = "server" if process in self._servers else "worker"
        self._workers.pop(process, None)
        self._servers.pop(process, None)
        if role == "server":
            self._server_deaths[process.number] += 1
        ended = _ended(role, process)
        policy = self._job.spec.run_policy
        standing = Standing(
            durable=bool(self._checkpoint),
            server_deaths=self._server_deaths[process.number],
            restarts=self._counted(),
            restarts_max=policy.failure_policy.max_restarts,
            restarts_of_rank=self._restarts[process.number],
            workers_left=len(self._workers) + len(self._due),
            policy=policy.failure_policy,
            success=policy.success_policy.operator,
        )
        match decide(ended, standing):
            case Fail(reason):
                raise JobFailed(self._first_cause(reason))
            case Restart(after_s) if role == "server":
                self._server_restarts[process.number] += 1
                self._servers_due[process.number] = time.monotonic() + after_s
                self._view.note(
                    f"{ended.name} {how(ended.code)}; it is started again and restores its rows "
                    f"(server restart {self._server_restarts.total()} of this run)"
                )
            case Restart(after_s, ignored):
                self._restarts[process.number] += 1
                if not ignored:
                    self._counts.append(time.monotonic())
                self._due[process.number] = time.monotonic() + after_s
                counted = "not counted" if ignored else f"{self._counted()} of {standing.restarts_max}"
                self._view.note(
                    f"{ended.name} {how(ended.code)}; starting it again in {after_s:g} s (restart {counted})"
                )
            case Finish():
                return True
        return False

    def _counted(self) -> int:
        """Restarts of workers that count for maxRestarts."""
        window_s = self._job.spec.run_policy.failure_policy.window_seconds
        oldest = -math.inf if window_s is None else time.monotonic() - window_s
        return sum(1 for moment in self._counts if moment > oldest)

    def _first_cause(self, reason: str) -> str:
        """A worker that fails because its server died may be seen to end before the server is."""
        for process in self._group.poll(TICK_S):
            if process in self._servers and not self._checkpoint:
                ended = _ended("server", process)
                action = decide(
                    ended, Standing(restarts=0, restarts_max=0, restarts_of_rank=0, workers_left=0)
                )
                return action.reason if isinstance(action, Fail) else reason
        return reason

    def _start_due(self) -> None:
        now = time.monotonic()
        for index in [index for index, due in self._servers_due.items() if due <= now]:
            del self._servers_due[index]
            self._start_server(index)
        for index in self._servers.values():
            if self._server_deaths[index] and self._is_ready(index):
                del self._server_deaths[index]
        for rank in [rank for rank, due in self._due.items() if due <= now]:
            del self._due[rank]
            self._start_worker(rank)

    # Both ---------------------------------------------------------------------------------------------------

    def _poll(self) -> list[Process]:
        """The processes that ended in a tick, servers first. Raises Interrupted; JobFailed past the deadline."""
        ended = self._group.poll(TICK_S)
        self._interruption.check()
        limit_s = self._job.spec.run_policy.active_deadline_seconds
        if limit_s is not None and time.monotonic() - self._began > limit_s:
            raise JobFailed(
                f"the job ran longer than spec.runPolicy.activeDeadlineSeconds, which is {limit_s}"
            )
        return sorted(ended, key=lambda process: process not in self._servers)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _report(self, found: Figures) -> dict[str, Any]:
        # Imported late: the command line starts without it.
        from tablebay import __version__, native

        return report(
            found,
            job=self._job.name,
            servers=self._job.spec.servers.replicas,
            workers=self._job.spec.workers.replicas,
            restarts=self._restarts.total(),
            server_restarts=self._server_restarts.total(),
            version=__version__,
            commit=native.commit(),
        )


class _Watch:
    """Asks the servers for figures about once a second, in a thread of its own."""

    def __init__(self, addresses: list[str]) -> None:
        self._control = Control(addresses)
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._news: Figures | None = None
        self._thread = threading.Thread(target=self._ask_on, name="figures", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=FIGURES_TIMEOUT_S)
        self._control.close()

    def news(self) -> Figures | None:
        """The newest figures, once."""
        with self._lock:
            found, self._news = self._news, None
            return found

    def last(self) -> Figures:
        """The figures as they are now. Raises JobFailed when a server does not give them."""
        try:
            return self._ask(FIGURES_TIMEOUT_S)
        except TablebayError as error:
            raise JobFailed(f"the workers are done, but the servers' figures are missing: {error}") from error

    def _ask_on(self) -> None:
        while not self._done.wait(FIGURES_EVERY_S):
            try:
                found = self._ask(FIGURES_EVERY_S)
            except TablebayError:
                # A busy or dying server; the run itself notices the latter.
                continue
            with self._lock:
                self._news = found

    def _ask(self, timeout_s: float) -> Figures:
        return figures(self._control.progress(timeout=timeout_s), self._control.stats(timeout=timeout_s))


class _Interruption:
    """Signals that end a run, remembered until the run looks. Only the main thread has any."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._seen: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._seen:
            raise Interrupted(self._seen[0])

    def insists(self) -> bool:
        """Whether a second signal came: no more waiting."""
        return len(self._seen) > 1

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._seen.append(signal.Signals(number))


@contextmanager
def _run_folder(run_dir: Path) -> Iterator[Path]:
    """The folder of logs, emptied, the last run's report gone; held against another run. Raises JobFailed."""
    logs = run_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / "lock", "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise JobFailed(f"the run directory {run_dir} cannot be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobFailed(
                f"another run uses the run directory {run_dir}; wanted one for each run"
            ) from None
        (run_dir / REPORT_FILE).unlink(missing_ok=True)
        for log in logs.glob("*.log"):
            log.unlink()
        yield logs


def _ended(role: Literal["server", "worker"], process: Process) -> Ended:
    said = next((line for line in reversed(process.tail) if line.strip()), "")
    return Ended(role=role, number=process.number, code=_code(process), log=str(process.log), said=said)


def _code(process: Process) -> int:
    assert process.code is not None
    return process.code


def _lost_its_port(process: Process) -> bool:
    """Whether it ended because somebody else has one of its ports."""
    return any("address already in use" in line.lower() for line in process.tail)
