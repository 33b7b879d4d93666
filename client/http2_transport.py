"""Data calls by the native core's own HTTP/2, in the caller's thread; every other call by gRPC's library.

A data call is one request and one answer of megabytes, and of a call's time gRPC's library took a third for
copies and hand-overs between threads (docs/decisions/0009-native-http2-client.md), with TLS more than half
(0018-native-tls.md). The servers see no difference.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import grpc

from tablebay.client import environment, errors
from tablebay.client.tls import Credentials, Renewals, Source
from tablebay.client.transport import (
    DATA_METHODS,
    DATA_SERVICE,
    MESSAGE_BYTES_MAX,
    Answer,
    Failed,
    GrpcTransport,
    Transport,
    error_of,
)
from tablebay.native import _core

NATIVE, GRPCIO = "native", "grpcio"

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def chosen(transport: str | None, *, secure: bool) -> str:
    """Which transport an argument wants; where it is None, which one the environment wants. Raises BadRequest.

    secure: with TLS, for which the native one needs OpenSSL of the system; where that is not there nobody's wish
        is gRPC's library's.
    """
    what = "transport"
    missing = _core.tls_missing() if secure else ""
    if transport is None:
        what = environment.TRANSPORT
        transport = os.environ.get(what) or (GRPCIO if missing else NATIVE)
    if transport not in (NATIVE, GRPCIO):
        raise errors.BadRequest(f"{what} is {transport!r}, wanted {NATIVE!r} or {GRPCIO!r}")
    if transport == NATIVE and missing:
        raise errors.BadRequest(f"{what} is {NATIVE!r}, wanted {GRPCIO!r} with tls_dir: {missing}")
    return transport


def make(
    addresses: Sequence[str], transport: str, message_bytes_max: int, tls: Source | None = None
) -> Transport:
    """A transport of the kind that `chosen` says."""
    if transport == NATIVE:
        return Http2Transport(addresses, message_bytes_max=message_bytes_max, tls=tls)
    return GrpcTransport(addresses, message_bytes_max=message_bytes_max, tls=tls)


class Http2Transport:
    """Safe in threads, not across a fork.

    addresses: `host:port` of each server's data port; its control port is two above.
    message_bytes_max: of one message, either way. tls: as GrpcTransport's.
    Raises BadRequest where there are no certificates.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        tls: Source | None = None,
    ) -> None:
        # Its channels to the data ports connect only if something is sent over them.
        self._grpc = GrpcTransport(addresses, message_bytes_max=message_bytes_max, tls=tls)
        self._message_bytes_max = message_bytes_max
        self._renewals = None if tls is None else Renewals(tls)
        self._lock = threading.Lock()
        self._closed = False
        self._servers = self._connect(None if self._renewals is None else self._renewals.first())
        # Of the certificate before, whose calls may go on.
        self._old: list[_core.Http2Server] = []

    @property
    def addresses(self) -> Sequence[str]:
        """Each server's `host:port` of its data port."""
        return self._grpc.addresses

    @property
    def background(self) -> Transport:
        """For calls whose answers are to come while nobody waits for them."""
        return self._grpc

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Send a request: on return of a data call it is on its way whole, or has failed."""
        if method not in DATA_METHODS:
            return self._grpc.call(server, method, request, timeout, wait)
        what = f"{method} to server {server} at {self.addresses[server]}"
        if self._renewals is not None:
            self._renew(self._renewals)
        if self._closed:
            return Failed(errors.Closed(f"{what}: the connection has been closed"))
        return _Answer(self._servers[server].call(f"/{DATA_SERVICE}/{method}", request, timeout), what)

    def rebuild(self) -> None:
        """Make new connections; calls under way on the old ones end with Unavailable."""
        self._drop(for_good=False)
        self._grpc.rebuild()

    def close(self) -> None:
        """End every connection. May be called twice."""
        with self._lock:
            self._closed = True
        self._drop(for_good=True)
        self._grpc.close()

    def _drop(self, *, for_good: bool) -> None:
        for server in (*self._servers, *self._old):
            server.drop(for_good)

    def _renew(self, renewals: Renewals) -> None:
        """New connections where there is a new certificate; calls under way end on the old ones."""
        found = renewals.look()
        if found is None:
            return
        with self._lock, contextlib.suppress(errors.BadRequest):
            if not self._closed:
                self._old, self._servers = self._servers, self._connect(found)

    def _connect(self, found: Credentials | None) -> list[_core.Http2Server]:
        context = None
        if found is not None:
            try:
                context = _core.TlsContext(
                    server=False,
                    key=found.key,
                    certificate=found.certificate,
                    authorities=found.authorities,
                )
            except _core.StatusError as error:
                raise errors.BadRequest(f"certificates: {error.args[1]}") from None
        agent = f"tablebay/{environment.VERSION}"
        return [
            _core.Http2Server(*environment.split_address(address), agent, self._message_bytes_max, context)
            for address in self._grpc.addresses
        ]


class _Answer:
    def __init__(self, call: Any, what: str) -> None:
        self._call = call
        self._what = what

    def result(self) -> bytes:
        code, details, kind, answer = self._call.result()
        if code != 0:
            raise error_of(_CODES.get(code, grpc.StatusCode.UNKNOWN), details, kind, self._what)
        found: bytes = answer
        return found

    def cancel(self) -> object:
        return self._call.cancel()
