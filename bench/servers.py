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
