"""Control calls from one server to all servers of its job, itself too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from tablebay.client.environment import control_port, split_address
from tablebay.client.errors import BadRequest, CheckpointFailed
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tls import Source

_CUT = "/tablebay.v1.Control/Cut"
_CHECKPOINT = "/tablebay.v1.Control/Checkpoint"


class Peers(Protocol):
    """What a coordinator needs of the other servers."""

    def cut(self, request: tablebay_pb2.CutRequest, timeout_s: float) -> list[tablebay_pb2.CutResponse]:
        """The same phase to every server at once, in order of index. Raises CheckpointFailed naming one."""

    def greet(self, timeout_s: float) -> None:
        """Have connections to whom will have to be talked to."""


class GrpcPeers:
    """Peers over gRPC; this server's own answers come straight from `own`. Safe in threads.

    servers: data addresses of all. own: answers a CutRequest to this server. tls: None is plain.
    """

    def __init__(
        self,
        servers: Sequence[str],
        index: int,
        own: Callable[[tablebay_pb2.CutRequest], tablebay_pb2.CutResponse],
        tls: Source | None = None,
    ) -> None:
        self._servers = servers
        self._index = index
        self._own = own
        self._tls = tls
        # By server, each with the version of the certificate that it shows.
        self._channels: dict[int, tuple[object, grpc.Channel]] = {}
        self._old: list[grpc.Channel] = []

    def cut(self, request: tablebay_pb2.CutRequest, timeout_s: float) -> list[tablebay_pb2.CutResponse]:
        """The same phase to every server at once."""
        content = request.SerializeToString()
        calls = {
            server: self._method(server, _CUT).future(content, timeout=timeout_s)
            for server in range(len(self._servers))
            if server != self._index
        }
        try:
            own = self._own(request)
            return [
                own if server == self._index else self._result(server, request.phase, calls[server])
                for server in range(len(self._servers))
            ]
        finally:
            for call in calls.values():
                call.cancel()

    def greet(self, timeout_s: float) -> None:
        """Call each server that this one will have to talk to: server 0 all others, and these server 0.

        When a job is deleted its servers' names may go before they have made their last checkpoint; connections that
        are there stay.
        """
        with contextlib.suppress(CheckpointFailed):
            if self._index == 0:
                self.cut(tablebay_pb2.CutRequest(phase="Greet"), timeout_s)
            else:
                self.at_coordinator(timeout_s)

    def begin_at_coordinator(self, timeout_s: float) -> tablebay_pb2.CheckpointResponse:
        """Ask server 0 for a checkpoint. Raises CheckpointFailed."""
        return self._checkpoint(True, timeout_s)

    def at_coordinator(self, timeout_s: float) -> tablebay_pb2.CheckpointResponse:
        """How checkpoints stand at server 0. Raises CheckpointFailed."""
        return self._checkpoint(False, timeout_s)

    def close(self) -> None:
        """End the connections."""
        for channel in (*(channel for _, channel in self._channels.values()), *self._old):
            channel.close()

    def _checkpoint(self, begin: bool, timeout_s: float) -> tablebay_pb2.CheckpointResponse:
        request = tablebay_pb2.CheckpointRequest(begin=begin).SerializeToString()
        call = self._method(0, _CHECKPOINT).future(request, timeout=timeout_s)
        return tablebay_pb2.CheckpointResponse.FromString(self._answer(0, "Checkpoint", call))

    def _result(self, server: int, phase: str, call: Any) -> tablebay_pb2.CutResponse:
        try:
            return tablebay_pb2.CutResponse.FromString(self._answer(server, phase, call))
        except DecodeError as error:
            raise CheckpointFailed(
                f"{phase}: server {server} answered what cannot be read: {error}"
            ) from None

    def _answer(self, server: int, what: str, call: Any) -> bytes:
        try:
            content: bytes = call.result()
            return content
        except grpc.RpcError as found:
            # A call's error is a call too, with a code and a text.
            error: Any = found
            code, text = error.code(), error.details()
            raise CheckpointFailed(
                f"{what}: server {server} at {self._servers[server]}: {code.name}: {text}"
            ) from None
        except grpc.FutureCancelledError:
            raise CheckpointFailed(f"{what}: server {server}: cancelled") from None

    def _method(self, server: int, path: str) -> Any:
        # No (de)serializers: bytes in and bytes out.
        return cast("Any", self._channel(server).unary_unary)(path)

    def _channel(self, server: int) -> grpc.Channel:
        known = self._channels.get(server)
        version = self._version()
        if known is None or known[0] != version:
            host, port = split_address(self._servers[server])
            channel = self._open(f"{host}:{control_port(port)}")
            if known is not None:
                # Calls may be under way on it. Of renewals there are few.
                self._old.append(known[1])
            known = self._channels[server] = version, channel
        return known[1]

    def _version(self) -> object:
        try:
            return None if self._tls is None else self._tls.version()
        except BadRequest as error:
            raise CheckpointFailed(str(error)) from None

    def _open(self, address: str) -> grpc.Channel:
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ]
        if self._tls is None:
            return grpc.insecure_channel(address, options=options)
        try:
            found = self._tls.read()
        except BadRequest as error:
            raise CheckpointFailed(str(error)) from None
        credentials = grpc.ssl_channel_credentials(found.authorities, found.key, found.certificate)
        # Channels of their own: of the same address and another certificate there may be one in the process's pool.
        own_pool = [*options, ("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(address, credentials, options=own_pool)
