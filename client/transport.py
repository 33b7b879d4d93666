"""Bytes to a server and bytes back: the seam that every call of a client goes through.

`Transport` has a gRPC implementation here, one with data calls of its own in http2_transport.py, one without
sockets in inprocess.py, and others in tests. A transport tries once; retries are the business of those who call it.
It raises the classes of errors.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from tablebay.client import environment, errors
from tablebay.client.tls import Credentials, Renewals, Source

DATA_METHODS = frozenset({"Pull", "Push", "Step"})
DATA_SERVICE = "tablebay.v1.Data"
CONTROL_SERVICE = "tablebay.v1.Control"

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
# The process that started gRPC; its threads are not in a child that is forked from it, where one call in
# seven was seen to abort the process.
_grpc_process: list[int] = []

# How long calls that began with an old certificate may take.
_OLD_CHANNELS_S = 600.0


def _require_own_grpc() -> None:
    if not _grpc_process:
        _grpc_process.append(os.getpid())
    elif _grpc_process[0] != os.getpid():
        raise errors.Forked(
            f"process {_grpc_process[0]} has connected to servers, and process {os.getpid()} was forked from "
            "it, where gRPC cannot be used. Start processes with 'spawn' "
            "(multiprocessing.get_context('spawn')), or fork before anything connects"
        )


class Answer(Protocol):
    """What a call will answer."""

    def result(self) -> bytes:
        """Wait for the answer, at most until the call's timeout. Raises TablebayError."""

    def cancel(self) -> object:
        """Stop waiting; whether the server handles the call is then unknown."""


class Transport(Protocol):
    """Calls to the servers of one job, by their index."""

    @property
    def addresses(self) -> Sequence[str]:
        """Each server's `host:port` of its data port."""

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Send a request of `method` ("Pull", "Hello", ...).

        timeout: seconds. wait: the caller does nothing until the answer is there, so that the call may be made
            in its own thread.
        """

    def rebuild(self) -> None:
        """Make new connections; calls under way end with Unavailable."""

    def close(self) -> None:
        """End every connection. May be called twice."""


def background(transport: Transport) -> Transport:
    """What makes calls whose answers are to come while nobody waits for them: the transport, if it names no other."""
    other: Transport = getattr(transport, "background", transport)
    return other


class GrpcTransport:
    """Safe in threads, not across a fork.

    addresses: `host:port` of each server's data port; its control port is two above.
    message_bytes_max: of one message, either way. tls: both ends show certificates; None is plain. A renewed one is
        found by itself: later calls go over new connections, and calls under way end on the old ones.
    Raises BadRequest where there are no certificates.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        tls: Source | None = None,
    ) -> None:
        _require_own_grpc()
        self._addresses = tuple(addresses)
        self._control_addresses = tuple(control_address(address) for address in self._addresses)
        self._options = _options(message_bytes_max)
        self._lock = threading.Lock()
        self._closed = False
        self._renewals = None if tls is None else Renewals(tls)
        self._credentials = None if self._renewals is None else self._renewals.first()
        # (when they may be closed, channels) of before the last renewals.
        self._old: list[tuple[float, list[_Channel]]] = []
        self._channels: list[_Channel] = self._connect()

    @property
    def addresses(self) -> Sequence[str]:
        """Each server's `host:port` of its data port."""
        return self._addresses

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Send a request; the answer's result() raises what became of it."""
        data = method in DATA_METHODS
        address = (self._addresses if data else self._control_addresses)[server]
        if self._renewals is not None:
            self._renew(self._renewals)
        channel = self._channels[2 * server + (0 if data else 1)]
        where = f"server {server} at {address}"
        if self._closed:
            return Failed(errors.Closed(f"{method} to {where}: the connection has been closed"))
        what = f"{method} to {where}"
        try:
            if wait:
                # gRPC serves a future by a thread that it starts for the purpose; a waiting caller needs none.
                return _Answered(channel.method(method)(request, timeout=timeout))
            return _GrpcAnswer(channel.method(method).future(request, timeout=timeout), what)
        except grpc.RpcError as error:
            return Failed(_error_of(error, what))
        except ValueError as error:
            # "Cannot invoke RPC on closed channel": rebuild() came between.
            return Failed(errors.Unavailable(f"{method} to {where}: {error}"))

    def rebuild(self) -> None:
        """Make new channels; calls under way on the old ones end with Unavailable."""
        with self._lock:
            if self._closed:
                return
            old, self._channels = self._channels, self._connect()
        for channel in old:
            channel.close()

    def close(self) -> None:
        """Close every channel. May be called twice."""
        with self._lock:
            self._closed = True
            old, self._old = self._old, []
        for channels in (self._channels, *(channels for _, channels in old)):
            for channel in channels:
                channel.close()

    def _renew(self, renewals: Renewals) -> None:
        """New channels where there is a new certificate; old ones are closed when nobody waits for them any more."""
        found = renewals.look()
        if found is None and not self._old:
            return
        with self._lock:
            if self._closed:
                return
            now = time.monotonic()
            if found is not None:
                self._old.append((now + _OLD_CHANNELS_S, self._channels))
                self._credentials = found
                self._channels = self._connect()
            done = [channels for until, channels in self._old if until <= now]
            self._old = [one for one in self._old if one[0] > now]
        for channels in done:
            for channel in channels:
                channel.close()

    def _connect(self) -> list[_Channel]:
        """Channels that show the credentials of now."""
        shown = None if self._credentials is None else channel_credentials(self._credentials)
        channels = []
        for data, control in zip(self._addresses, self._control_addresses, strict=True):
            channels.append(_Channel(data, DATA_SERVICE, self._options, shown))
            channels.append(_Channel(control, CONTROL_SERVICE, self._options, shown))
        return channels


def channel_credentials(found: Credentials) -> Any:
    """For gRPC's secure channels."""
    return grpc.ssl_channel_credentials(found.authorities, found.key, found.certificate)


def open_channel(address: str, options: Sequence[tuple[str, int]], credentials: Any) -> Any:
    """A channel; plain where there are no credentials."""
    if credentials is None:
        return grpc.insecure_channel(address, options=list(options))
    return grpc.secure_channel(address, credentials, options=list(options))


def control_address(address: str) -> str:
    """The control port's address of a server whose data port is `address`. Raises BadRequest."""
    host, port = environment.split_address(address)
    return f"{host}:{environment.control_port(port)}"


def _options(message_bytes_max: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        # Below 30 s a server answers too_many_pings and ends the connection.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Channels of their own: else rebuild() would get the old connection back from the process's pool.
        ("grpc.use_local_subchannel_pool", 1),
        # A restarted server is found within a second or two; gRPC's own values are up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A pod's name appears in DNS when the pod is ready; gRPC would ask again only after 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Servers are reached directly: a web proxy of the environment is not for them.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]


class _Channel:
    """One gRPC channel and its methods, bytes in and bytes out."""

    def __init__(
        self, address: str, service: str, options: list[tuple[str, int]], credentials: Any = None
    ) -> None:
        self._service = service
        self._channel: Any = open_channel(address, options, credentials)
        self._methods: dict[str, Any] = {}

    def method(self, name: str) -> Any:
        method = self._methods.get(name)
        if method is None:
            # No (de)serializers: bytes go through as they are, which the native core reads and writes.
            method = self._methods[name] = self._channel.unary_unary(f"/{self._service}/{name}")
        return method

    def close(self) -> None:
        self._channel.close()


class _GrpcAnswer:
    def __init__(self, future: Any, what: str) -> None:
        self._future = future
        self._what = what

    def result(self) -> bytes:
        try:
            answer: bytes = self._future.result()
        except grpc.RpcError as error:
            raise _error_of(error, self._what) from None
        except grpc.FutureCancelledError:
            raise errors.Unavailable(f"{self._what}: cancelled") from None
        return answer

    def cancel(self) -> object:
        return self._future.cancel()


class _Answered:
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def result(self) -> bytes:
        return self._answer

    def cancel(self) -> object:
        return False


class Failed:
    """The answer of a call that has failed already."""

    def __init__(self, error: errors.TablebayError) -> None:
        self._error = error

    def result(self) -> bytes:
        """Raises what the call ended with."""
        raise self._error

    def cancel(self) -> object:
        """Nothing is waited for."""
        return False


_BY_CODE: dict[grpc.StatusCode, type[errors.TablebayError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    # What a closed channel, ours or a stopping server's, leaves of a call under way, and gRPC under a flood.
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: errors.BadRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotRegistered,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.DATA_LOSS: errors.CorruptMessage,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


# What gRPC itself answers for a server that has too many calls: it may have room in a moment.
_OVERLOADED = "Concurrent RPC limit exceeded"


def _error_of(error: Any, what: str) -> errors.TablebayError:
    metadata = error.trailing_metadata() or ()
    kind = next((str(value) for key, value in metadata if key == errors.ERROR_METADATA), None)
    return error_of(error.code(), str(error.details()), kind, what)


def error_of(code: grpc.StatusCode, details: str, kind: str | None, what: str) -> errors.TablebayError:
    """The error that a status is. kind: what the server's metadata name, if any. what: the call, for the text."""
    if kind is not None:
        # A server's own words name the thing; where they came from is added.
        return errors.error_named(kind, f"{details} ({what})")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _OVERLOADED in details:
        return errors.Unavailable(f"{what}: {details}")
    cls = _BY_CODE.get(code)
    if cls is None:
        return errors.TablebayError(f"{what}: {code.name}: {details}")
    return cls(f"{what}: {details}")
