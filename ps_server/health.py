"""The HTTP port: /metrics, /healthz, /readyz. A slow or senseless client costs a thread for seconds."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# A request is one line and a few headers, sent at once.
_SILENCE_S = 5.0
_CONNECTIONS_MAX = 64


class HttpServer:
    """Answers in threads of its own from `start` to `close`.

    host: an address or a name. ready: why the server is not ready, or None when it is.
    Raises OSError when the port cannot be had.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], str | None]
    ) -> None:
        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, port), _Handler, registry, ready)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="http", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Free the port; answers under way are not waited for."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[_Handler],
        registry: CollectorRegistry,
        ready: Callable[[], str | None],
    ) -> None:
        self.registry = registry
        self.ready = ready
        self._open: dict[int, socket.socket] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's question to the name service, which may hang."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection; past the limit the oldest one goes, since an honest one lasts milliseconds."""
        with self._open_lock:
            oldest = next(iter(self._open.values())) if len(self._open) >= _CONNECTIONS_MAX else None
            self._open[id(request)] = request
            if oldest is not None:
                self._open.pop(id(oldest), None)
                _end(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        with self._open_lock:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a broken connection is the client's affair, and there may be very many."""


def _end(connection: socket.socket) -> None:
    # Its thread wakes up from reading, and closes it.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "tablebay"
    sys_version = ""
    timeout = _SILENCE_S

    def do_GET(self) -> None:
        """Answer one of the three pages."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(HTTPStatus.OK, b"ok\n")
        elif path == "/readyz":
            reason = self.server.ready()
            if reason is None:
                self._answer(HTTPStatus.OK, b"ready\n")
            else:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode())
        elif path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.server.registry), content_type)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"wanted /metrics, /healthz or /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""
