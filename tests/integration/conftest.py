"""Server processes for the tests that want real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from free_ports import free_data_ports

from tablebay.client.environment import control_port, http_port
from tablebay.client.local.ports import HOST

START_S = 30.0


class ServerProcess:
    """A `tablebay-server` of its own, on free ports of this machine; options as its command line has them."""

    def __init__(self, folder: Path, *options: str, data_port: int | None = None, **environment: str) -> None:
        self.data_port = data_port or free_data_ports(1)[0]
        self.options = options
        self._log = folder / f"server-{self.data_port}-{time.monotonic_ns()}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TABLEBAY_")}
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tablebay.ps_server.main",
                    "--data-port",
                    str(self.data_port),
                    "--exit-with-parent",
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**clean, **environment},
            )
        self._channels: dict[int, grpc.Channel] = {}

    @property
    def address(self) -> str:
        """Of the data port."""
        return f"{HOST}:{self.data_port}"

    @property
    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the HTTP port."""
        try:
            with urllib.request.urlopen(
                f"http://{HOST}:{http_port(self.data_port)}{path}", timeout=10
            ) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_until_ready(self) -> ServerProcess:
        """Return once /readyz says so; fails with the log when the process ends instead."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (
                f"the server ended with {self.process.returncode}:\n{self.log}"
            )
            try:
                if self.get("/readyz")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"the server was not ready within {START_S:g} s:\n{self.log}")

    def wait_until_logged(self, text: str) -> None:
        """Return once its log has the text: a server answers before it says that it does."""
        deadline = time.monotonic() + START_S
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} was not logged within {START_S:g} s:\n{self.log}"
            time.sleep(0.02)

    def channel(self, *, control: bool) -> grpc.Channel:
        """A channel to the data or the control port, without limits of its own."""
        port = control_port(self.data_port) if control else self.data_port
        if port not in self._channels:
            unlimited = ("max_receive_message_length", "max_send_message_length")
            options: list[tuple[str, int]] = [(f"grpc.{name}", -1) for name in unlimited]
            options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            self._channels[port] = grpc.insecure_channel(f"{HOST}:{port}", options=options)
        return self._channels[port]

    def call(self, method: str, request: bytes, *, timeout: float | None = 30.0, **options: Any) -> bytes:
        """One call of bytes. Raises grpc.RpcError."""
        data = method in ("Pull", "Push", "Step")
        path = f"/tablebay.v1.{'Data' if data else 'Control'}/{method}"
        answer: bytes = self.channel(control=not data).unary_unary(path)(request, timeout=timeout, **options)
        return answer

    def end(self, number: signal.Signals = signal.SIGTERM, *, within_s: float = 30.0) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def close(self) -> None:
        """Leave nothing."""
        for channel in self._channels.values():
            channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def new_server() -> Callable[..., ServerProcess]:
    """For a fixture with a life of its own: a server that whoever asked for it waits for and closes."""
    return ServerProcess


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers and waits until they are ready (unless ready=False); none is left in the end."""
    servers: list[ServerProcess] = []

    def start(
        *options: str, ready: bool = True, data_port: int | None = None, **environment: str
    ) -> ServerProcess:
        server = ServerProcess(tmp_path, *options, data_port=data_port, **environment)
        servers.append(server)
        return server.wait_until_ready() if ready else server

    yield start
    for server in servers:
        server.close()
