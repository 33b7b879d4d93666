"""Processes of a local run, each with a session and a log of its own, none outliving the runner."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tablebay.client.local import launch, warden

# A longer line is cut in pieces: a process that never ends its line must not fill this one's memory.
LINE_BYTES_MAX = 64 * 1024
TAIL_LINES = 20
_READ_BYTES = 64 * 1024
# What Linux lets a pipe hold at most, by default.
_PIPE_BYTES_MAX = 1024 * 1024

OnLine = Callable[["Process", str], None]


class Process:
    """One started command. `number` is its rank or index; `pid` is also its process group and session."""

    def __init__(
        self, name: str, number: int, command: Sequence[str], environment: Mapping[str, str], log: Path
    ):
        self.name = name
        self.number = number
        self.log = log
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.code: int | None = None
        self._partial = b""
        self._log_file = open(log, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except BaseException:
            self._log_file.close()
            raise
        assert self._popen.stdout is not None
        self.pid = self._popen.pid
        self.output = self._popen.stdout.fileno()
        os.set_blocking(self.output, False)

    def read(self) -> tuple[list[str], bool]:
        """The whole lines that came, and whether more may come."""
        try:
            content = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return [], True
        if content:
            self._log_file.write(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        if self._partial and (not content or len(self._partial) > LINE_BYTES_MAX):
            lines.append(self._partial)
            self._partial = b""
        texts = [_text(line) for line in lines]
        self.tail.extend(texts)
        return texts, bool(content)

    def ended(self) -> bool:
        """Whether the command has ended; then `code` is known and nothing of its group is left."""
        if self.code is None and _has_exited(self.pid):
            # Before it is reaped: until then its number, which is its group's too, belongs to nobody else.
            self.send(signal.SIGKILL)
            self.code = self._popen.wait()
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command and to all that it started in its group."""
        if self.code is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Close the log and the pipe. The command must have ended."""
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        self._log_file.close()


class ProcessGroup:
    """The processes of a run. Leaving the block ends them all."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, Process] = {}
        self._reading: set[Process] = set()
        self._warden: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ProcessGroup:
        # Started first, so that no process is without it.
        self._warden = subprocess.Popen(
            [sys.executable, "-I", "-S", warden.__file__], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(list(self._running.values()), grace_s=0)
        for process in list(self._reading):
            self._finish_reading(process)
        self._selector.close()
        if self._warden is not None and self._warden.stdin is not None:
            self._warden.stdin.close()
            self._warden.wait()

    def start(
        self, name: str, number: int, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Process:
        """Start a command. From the main thread: the death signal comes when the thread that asked for it ends."""
        process = Process(name, number, command, environment, log)
        self._running[process.pid] = process
        self._reading.add(process)
        self._tell_warden("+", process)
        self._selector.register(process.output, selectors.EVENT_READ, process)
        return process

    def poll(self, timeout_s: float) -> list[Process]:
        """Pass on the lines that come within `timeout_s`; answer the processes that have ended by then."""
        for key, _ in self._selector.select(timeout_s):
            self._read(key.data)
        ended = [process for process in self._running.values() if process.ended()]
        for process in ended:
            self._finish_reading(process)
            self._tell_warden("-", process)
            del self._running[process.pid]
        return ended

    def end(
        self, processes: Sequence[Process], *, grace_s: float, hurry: Callable[[], bool] = lambda: False
    ) -> None:
        """SIGTERM, then SIGKILL after `grace_s` or once `hurry` says so. Returns when all are gone."""
        left = [process for process in processes if process.pid in self._running]
        if grace_s > 0:
            for process in left:
                process.send(signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while left and time.monotonic() < deadline and not hurry():
                self.poll(0.05)
                left = [process for process in left if process.pid in self._running]
        for process in left:
            process.send(signal.SIGKILL)
        while any(process.pid in self._running for process in left):
            self.poll(0.02)

    def _read(self, process: Process) -> None:
        lines, more = process.read()
        for line in lines:
            self._on_line(process, line)
        if not more:
            self._close(process)

    def _finish_reading(self, process: Process) -> None:
        # What is in the pipe now is all that the process said. A child of it that left its session may hold
        # the pipe open, and may even go on writing, so there is no waiting for the end.
        for _ in range(_PIPE_BYTES_MAX // _READ_BYTES):
            if process not in self._reading or not _readable(process.output):
                break
            self._read(process)
        if process in self._reading:
            self._close(process)

    def _close(self, process: Process) -> None:
        self._reading.discard(process)
        self._selector.unregister(process.output)
        process.close()

    def _tell_warden(self, sign: str, process: Process) -> None:
        assert self._warden is not None
        assert self._warden.stdin is not None
        try:
            self._warden.stdin.write(f"{sign}{process.pid}\n".encode())
            self._warden.stdin.flush()
        except BrokenPipeError:
            # Somebody killed it. The death signal of each process is still there.
            return


def _has_exited(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _readable(file: int) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(0))


def _text(line: bytes) -> str:
    """A line as a terminal would show it at its end: what follows the last carriage return."""
    return line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
