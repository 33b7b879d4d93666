"""Real servers of one job on this machine, with one destination for checkpoints; one that ends is started again."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from free_ports import free_data_ports

from tablebay.client.environment import http_port
from tablebay.client.local.ports import HOST

READY_S = 60.0
_LOOK_EVERY_S = 0.02


class Servers:
    """What a kubelet does for a StatefulSet: a server that ends is started again on its ports, at once.

    options: of every server's command line. killed: how often each index was killed by `kill`. program: a Python file
    in the server's place. within: what the command line begins with. environment: beside the usual, of the servers
    `odd`, by default all.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *options: str,
        restart: bool = True,
        program: str = "",
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        odd: Collection[int] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.count = count
        self.destination = folder / "checkpoints"
        self._environment = dict(environment or {})
        self._odd = range(count) if odd is None else odd
        self._within = within
        self.killed: Counter[int] = Counter()
        self._options = options
        self._restart = restart
        self._program = program
        self._ports = free_data_ports(count)
        self._lock = threading.Lock()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def addresses(self) -> list[str]:
        """Of the data ports."""
        return [f"{HOST}:{port}" for port in self._ports]

    def __enter__(self) -> Self:
        for index in range(self.count):
            self.start(index)
        self._keeper.start()
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._keeper.join()
        for process in self._processes.values():
            process.kill()
            process.wait()
        if error is not None:
            for index in range(self.count):
                print(f"--- the end of server {index}'s log\n{self.log(index)[-4000:]}")

    def start(self, index: int) -> None:
        """Start a server's next life."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TABLEBAY_")}
        more = self._environment if index in self._odd else {}
        program = [self._program] if self._program else ["-m", "tablebay.ps_server.main"]
        command = [
            *self._within,
            sys.executable,
            *program,
            "--data-port",
            str(self._ports[index]),
            "--exit-with-parent",
        ]
        command += ["--servers", ",".join(self.addresses), "--index", str(index), "--job", "faults"]
        command += ["--checkpoint", str(self.destination), *self._options]
        with self._lock, open(self.folder / f"server-{index}.log", "ab") as log:
            self._processes[index] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**clean, "TABLEBAY_LOG_FORMAT": "text", **more},
            )

    def kill(self, index: int, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill a server's process; its pid, which is gone when this returns."""
        process = self._processes[index]
        assert process.poll() is None, f"server {index} was gone already:\n{self.log(index)[-2000:]}"
        process.send_signal(number)
        process.wait()
        self.killed[index] += 1
        return process.pid

    def pid(self, index: int) -> int:
        """Of the life that runs now."""
        return self._processes[index].pid

    def send(self, index: int, number: signal.Signals) -> None:
        """Send a signal and do not wait for what it does."""
        self._processes[index].send_signal(number)

    def is_ready(self, index: int) -> bool:
        """As /readyz says."""
        try:
            with urllib.request.urlopen(
                f"http://{HOST}:{http_port(self._ports[index])}/readyz", timeout=2
            ) as page:
                return int(page.status) == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_until_ready(self, *indices: int) -> None:
        """Return once these, by default all, say that they are ready."""
        deadline = time.monotonic() + READY_S
        for index in indices or range(self.count):
            while not self.is_ready(index):
                assert time.monotonic() < deadline, (
                    f"server {index} was not ready within {READY_S:g} s:\n{self.log(index)[-4000:]}"
                )
                time.sleep(_LOOK_EVERY_S)

    def log(self, index: int) -> str:
        """All that a server's lives have written."""
        return (self.folder / f"server-{index}.log").read_text(errors="replace")

    def stop_keeping(self) -> None:
        """From now on a server that ends stays away until `start`."""
        self._restart = False

    def wait(self, index: int, within_s: float = READY_S) -> int:
        """The exit code of the life that runs now. Raises TimeoutExpired."""
        return self._processes[index].wait(within_s)

    def is_alive(self, index: int) -> bool:
        """Whether its process runs."""
        return self._processes[index].poll() is None

    def end_all(self, number: signal.Signals = signal.SIGTERM) -> list[int]:
        """Stop starting them again, send all a signal at once; their exit codes."""
        self._restart = False
        for process in self._processes.values():
            process.send_signal(number)
        return [process.wait(READY_S) for process in self._processes.values()]

    def _keep(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            for index, process in list(self._processes.items()):
                if self._restart and process.poll() is not None and not self._ended.is_set():
                    self.start(index)


def wait_for(condition: Callable[[], object], what: str, within_s: float = READY_S) -> None:
    """Return once something is so; fails saying what was waited for."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(_LOOK_EVERY_S)
