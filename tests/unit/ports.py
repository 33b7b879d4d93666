"""Ports of the native core for tests, plain and with TLS, and those who call them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certificates as made
from faults.http2_frames import Caller

from tablebay.client.tls import Folder
from tablebay.native import _core

MESSAGE_MAX = 8 << 20
Handler = Callable[[str, memoryview], Any]


class World:
    """An authority, and what a server and a worker of it show."""

    def __init__(self, folder: Path) -> None:
        by = made.authority()
        self.server = made.write(folder / "server", made.pair(by, made.peer("server/0")), by)
        self.worker = made.write(folder / "worker", made.pair(by, made.peer("worker/0")), by)

    def context(self, folder: Path) -> Any:
        """As the native core has it."""
        found = Folder(folder).read()
        return _core.TlsContext(
            server=folder == self.server,
            key=found.key,
            certificate=found.certificate,
            authorities=found.authorities,
        )

    def pythons(self) -> ssl.SSLContext:
        """A worker's, as Python's own library has it."""
        context = ssl.create_default_context(cafile=str(self.worker / "ca.crt"))
        context.load_cert_chain(self.worker / "tls.crt", self.worker / "tls.key")
        context.set_alpn_protocols(["h2"])
        return context


class Port:
    """A port and what is asked of it. world: of its certificates; None is plain."""

    def __init__(self, handler: Handler, world: World | None, **limits: int) -> None:
        self._world = world
        self.peers: set[bytes] = set()

        def handle(path: str, content: memoryview, peer: bytes) -> Any:
            self.peers.add(peer)
            return handler(path, content)

        listener = socket.create_server(("127.0.0.1", 0))
        self.number = listener.getsockname()[1]
        limits = {"message_bytes_max": MESSAGE_MAX, "calls_max": 8, "connections_max": 64, **limits}
        self._port = _core.Http2Port(
            listener.detach(),
            handle,
            streams_max=16,
            metadata_bytes_max=8192,
            tls=None if world is None else lambda: world.context(world.server),
            **limits,
        )
        self._port.start()
        self._ends = contextlib.ExitStack()

    def caller(self, **values: int) -> Caller:
        """A client whose frames the test says."""
        tls = None if self._world is None else self._world.pythons()
        return self._ends.enter_context(contextlib.closing(Caller(self.number, tls, **values)))

    def client(self) -> Any:
        """A client that keeps to the rules."""
        tls = None if self._world is None else self._world.context(self._world.worker)
        return _core.Http2Server("127.0.0.1", self.number, "test", MESSAGE_MAX, tls)

    def connect(self, tls: ssl.SSLContext | None = None) -> Any:
        """A client that says nothing yet, and shows this, or a worker's certificate."""
        end = socket.create_connection(("127.0.0.1", self.number), timeout=10)
        if self._world is None:
            return end
        with contextlib.ExitStack() as opened:
            opened.enter_context(end)
            shown = (tls or self._world.pythons()).wrap_socket(end, server_hostname="127.0.0.1")
            opened.pop_all()
        return shown

    def stop(self, grace_s: float = 0.0) -> bool:
        """Whether all calls had ended."""
        return self._port.stop(grace_s)

    def close(self) -> None:
        """End all of it."""
        self._ends.close()
        self.stop()
