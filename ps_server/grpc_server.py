"""The two gRPC ports: bytes to Service.handle and back, errors as statuses.

The data port is the native core's (data_port.py), the control port gRPC's library's; so is the data port with TLS
where the system has no OpenSSL for the core.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import grpc

from tablebay.client.environment import control_port
from tablebay.client.errors import ERROR_METADATA, TablebayError, status_code
from tablebay.client.proto import tablebay_pb2
from tablebay.native import _core
from tablebay.ps_server.data_port import DataPort, Refusal
from tablebay.ps_server.secure import Security
from tablebay.ps_server.service import Service
from tablebay.ps_server.standard_services import CONTROL_SERVICE, DATA_SERVICE, StandardServices
from tablebay.ps_server.telemetry import Events

_SERVICES = tablebay_pb2.DESCRIPTOR.services_by_name

METADATA_BYTES_MAX = 8 * 1024
# Of an error's text: it travels as metadata, which the client bounds too.
DETAILS_BYTES_MAX = 2 * 1024
CONNECTIONS_MAX = 4096
STREAMS_PER_CONNECTION = 256
CONTROL_THREADS = 16

_EVENTS = Events(__name__)

Gate = contextlib.AbstractContextManager[Any]


class CannotListen(Exception):
    """A port cannot be had."""


class GrpcServer:
    """The data port and the control port of a service, from `start` to `stop`.

    requests_max: calls under way on each port; more get RESOURCE_EXHAUSTED. security: None is plain.
    Raises CannotListen naming the port.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str,
        data_port: int,
        message_bytes_max: int,
        requests_max: int,
        security: Security | None = None,
    ) -> None:
        self._service = service
        options = _options(message_bytes_max)
        self._control = _server("control", requests_max, options, security)
        self._control.add_generic_rpc_handlers((self._handlers(CONTROL_SERVICE, "Control", CONTROL_THREADS),))
        self._standard = StandardServices(self._control)
        self._data: grpc.Server | DataPort
        if security is None or not _core.tls_missing():
            self._data = DataPort(
                _listener("data", host, data_port),
                DATA_SERVICE,
                partial(_answer, service, security),
                methods=frozenset(method.name for method in _SERVICES["Data"].methods),
                message_bytes_max=message_bytes_max,
                calls_max=requests_max,
                connections_max=CONNECTIONS_MAX,
                streams_max=STREAMS_PER_CONNECTION,
                metadata_bytes_max=METADATA_BYTES_MAX,
                tls=None if security is None else security.contexts(),
            )
        else:
            _EVENTS.warning("data.tls_by_grpc", cause=_core.tls_missing())
            self._data = _server("data", requests_max, options, security)
            self._data.add_generic_rpc_handlers((self._handlers(DATA_SERVICE, "Data", None),))
            _listen(self._data, "data", host, data_port, security)
        _listen(self._control, "control", host, control_port(data_port), security)

    def start(self) -> None:
        """Begin to answer, and say so to health checks."""
        self._control.start()
        self._data.start()
        self._standard.say("SERVING")

    def drain(self) -> None:
        """Say to health checks that the server takes no new calls."""
        self._standard.say("NOT_SERVING")

    def stop(self, grace_s: float) -> bool:
        """Refuse new calls and wait for those under way; False when some were not done in time."""
        if isinstance(self._data, DataPort):
            ended = self._data.stop(grace_s)
        else:
            ended = self._data.stop(grace_s).wait(grace_s + 1.0)
        self._control.stop(min(grace_s, 1.0)).wait(2.0)
        return ended and self._service.in_flight == 0

    def _handlers(self, full_name: str, name: str, threads: int | None) -> Any:
        """Every method of a proto service, bytes in and bytes out: no (de)serializers."""
        gate: Gate = contextlib.nullcontext() if threads is None else threading.BoundedSemaphore(threads)
        return grpc.method_handlers_generic_handler(
            full_name,
            {
                method.name: grpc.unary_unary_rpc_method_handler(_behavior(self._service, method.name, gate))
                for method in _SERVICES[name].methods
            },
        )


def _behavior(service: Service, method: str, gate: Gate) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """What gRPC calls once the whole request is there.

    The pool's threads also wait for requests to arrive, and a slow sender can hold one for as long as it
    likes: so the pool is as large as the bound on calls, and the gate bounds those that work. Of data calls the
    native core does so: one that it keeps waiting, for a checkpoint, takes no other's place.
    """

    def call(request: bytes, context: grpc.ServicerContext) -> bytes:
        with gate:
            # Its deadline may have passed while it waited; then nobody wants the answer.
            if not context.is_active():
                return b""
            try:
                response = service.handle(method, request)
                # gRPC would fail on anything else after this function, and never answer.
                if type(response) is not bytes:
                    raise TypeError(f"{method} answered {type(response).__name__}, wanted bytes")
                return response
            except Exception as error:  # noqa: BLE001 - each becomes a status
                _refuse(context, method, error)

    return call


def _answer(
    service: Service, security: Security | None, method: str, request: memoryview, certificate: bytes
) -> bytes | Refusal:
    """What the data port calls once the whole request is there."""
    try:
        if security is not None:
            security.check(certificate, method, request)
        response = service.handle(method, request)
        if type(response) is not bytes:
            raise TypeError(f"{method} answered {type(response).__name__}, wanted bytes")
        return response
    except Exception as error:  # noqa: BLE001 - each becomes a status
        code, details, kind = _status(method, error)
        return code.value[0], details, kind


def _refuse(context: grpc.ServicerContext, method: str, error: Exception) -> NoReturn:
    code, details, kind = _status(method, error)
    context.set_trailing_metadata(((ERROR_METADATA, kind),))
    context.abort(code, details)


def _status(method: str, error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """Code, text, and the error's class."""
    if isinstance(error, TablebayError):
        details, kind = str(error), type(error).__name__
    else:
        _EVENTS.failure("request.failed", error, method=method)
        details, kind = f"{method}: a fault in the server; its log says more", TablebayError.__name__
    return grpc.StatusCode[status_code(error)], _cut(details), kind


def _cut(details: str) -> str:
    # Escaped for metadata a character can take three bytes for each of its own.
    shown = details.encode(errors="replace")[
        : DETAILS_BYTES_MAX // 3 if not details.isascii() else DETAILS_BYTES_MAX
    ]
    text = shown.decode(errors="ignore")
    return text if len(text) == len(details) else f"{text}..."


def _options(message_bytes_max: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        # Two servers would share a port without a word otherwise.
        ("grpc.so_reuseport", 0),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        # Identity alone: a small compressed message can become any size.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A peer that vanished is noticed; one that pings more often than every 20 s is told off, then cut
        # off.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ]


def _server(
    name: str, requests_max: int, options: Iterable[tuple[str, int]], security: Security | None
) -> grpc.Server:
    return grpc.server(
        ThreadPoolExecutor(requests_max, f"grpc-{name}"),
        interceptors=[] if security is None else [security.interceptor()],
        options=list(options),
        maximum_concurrent_rpcs=requests_max,
    )


def _listener(name: str, host: str, port: int) -> socket.socket:
    # All addresses are those of both kinds, as for gRPC's library.
    all_of_them = host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6()  # noqa: S104 - only if asked
    try:
        return socket.create_server(
            ("::" if all_of_them else host, port),
            family=socket.AF_INET6 if all_of_them or ":" in host else socket.AF_INET,
            backlog=socket.SOMAXCONN,
            dualstack_ipv6=all_of_them,
        )
    except OSError as error:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise CannotListen(f"{name} port {address}: {_why(error)}") from None


def _listen(server: grpc.Server, name: str, host: str, port: int, security: Security | None) -> None:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if security is None:
            found = server.add_insecure_port(address)
        else:
            found = server.add_secure_port(address, security.credentials())
        if found == port:
            return
        reason = "it cannot be bound"
    except RuntimeError as error:
        # gRPC does not say why; a plain socket does.
        reason = why_not(host, port) or str(error)
    raise CannotListen(f"{name} port {address}: {reason}")


def why_not(host: str, port: int) -> str | None:
    """Why a port cannot be had, or None when a plain socket can have it."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return None
    except OSError as error:
        return _why(error)


def _why(error: OSError) -> str:
    # Without the address, which create_server adds to the text of the system's.
    return os.strerror(error.errno) if error.errno else str(error)
