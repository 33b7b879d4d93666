"""The data port: the native core's own HTTP/2, plain or with TLS (docs/decisions/0017-native-http2-server.md)."""

from __future__ import annotations

import socket
from collections.abc import Callable

import grpc

from tablebay.native import _core

Refusal = tuple[int, str, str]


class DataPort:
    """Unary methods of one service, from `start` to `stop`.

    listener: a socket that listens; it is this object's from now on. handle: of a method's name, a request's
        bytes, which it must not keep, and the caller's certificate (PEM; empty without TLS); the answer's bytes,
        or the status, text and class of an error. Called in any thread. tls: what to show a new connection; None
        is plain.
    """

    def __init__(
        self,
        listener: socket.socket,
        service: str,
        handle: Callable[[str, memoryview, bytes], bytes | Refusal],
        *,
        methods: frozenset[str],
        message_bytes_max: int,
        calls_max: int,
        connections_max: int,
        streams_max: int,
        metadata_bytes_max: int,
        tls: Callable[[], _core.TlsContext] | None = None,
    ) -> None:
        paths = {f"/{service}/{method}": method for method in methods}
        unknown = (grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!", "")

        def answer(path: str, request: memoryview, certificate: bytes) -> bytes | Refusal:
            method = paths.get(path)
            return unknown if method is None else handle(method, request, certificate)

        self._port = _core.Http2Port(
            listener.detach(),
            answer,
            message_bytes_max=message_bytes_max,
            calls_max=calls_max,
            connections_max=connections_max,
            streams_max=streams_max,
            metadata_bytes_max=metadata_bytes_max,
            tls=tls,
        )

    def start(self) -> None:
        """Begin to answer."""
        self._port.start()

    def stop(self, grace_s: float) -> bool:
        """Refuse new calls and wait for those under way; False when some were not done in time."""
        return self._port.stop(grace_s)
