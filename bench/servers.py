"""Servers of the benchmarks' own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import measure


@contextmanager
def tablebay_servers(count: int, tls_dir: Path | None = None) -> Iterator[tuple[list[str], list[int]]]:
    """Addresses and processes of as many servers of one job, for the time of a block. tls_dir: of the only one."""
    ports = measure.free_ports(count)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        log = stack.enter_context((measure.ROOT / "build" / "bench-server.log").open("w"))
        processes = []
        for index, port in enumerate(ports):
            command = [sys.executable, "-m", "tablebay.ps_server.main", "--exit-with-parent"]
            command += ["--host", "127.0.0.1", "--data-port", str(port), "--index", str(index)]
            if tls_dir is not None:
                command += ["--tls-dir", str(tls_dir)]
            process = subprocess.Popen([*command, "--servers", ",".join(addresses)], stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process.pid)
        yield addresses, processes


class JobServers:
    """`tablebay-server` processes of one job, without a keeper."""

    def __init__(self, folder: Path, count: int, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.destination = folder / "checkpoints"
        self._log = folder / "log"
        self._options = options
        self._ports = measure.free_ports(count)
        self.addresses = [f"127.0.0.1:{port}" for port in self._ports]
        self.processes = [self.start(index) for index in range(count)]

    def start(self, index: int) -> subprocess.Popen[bytes]:
        """A server's next life."""
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-m",
                        "tablebay.ps_server.main",
                        "--exit-with-parent",
                        "--job",
                        "bench",
                    ),
                    *("--data-port", str(self._ports[index]), "--index", str(index)),
                    *("--servers", ",".join(self.addresses), *self._options),
                ],
                stderr=log,
            )

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def job_servers(folder: Path, count: int, *options: str, checkpoints: bool = True) -> Iterator[JobServers]:
    """Servers for the time of a block; their log, and checkpoints if they make any, in the folder."""
    if checkpoints:
        options = ("--checkpoint", str(folder / "checkpoints"), *options)
    servers = JobServers(folder, count, *options)
    try:
        yield servers
    finally:
        servers.close()
