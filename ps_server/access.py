"""Who may call what: the peer that a certificate names, against the method and the rank that a request speaks for.

Pure but for the certificates' library. A peer that gRPC lets in has shown a certificate of an authority that this
server trusts, in its time; here the rest is asked: is it of this job, still in its time, and is this its to do.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from tablebay.client.errors import BadRequest, PermissionDenied, Unauthenticated
from tablebay.client.peer import WANTED, Peer
from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.members import ClientId, ranked_high

# What trains, in a pod or outside; the last ones are a server's own to another.
_TRAINING = frozenset(
    {
        "Pull", "Push", "Step", "Hello", "CreateTable", "UpdateTable", "DescribeTables", "GetShardMap", "Scan",
        "Evict", "Evicted",
        "Barrier", "Report", "Progress", "Stats", "Checkpoint", "PutState", "GetState", "Restore",
    }
)  # fmt: skip
ALLOWED: Mapping[str, frozenset[str]] = {
    "worker": _TRAINING,
    "client": _TRAINING,
    "server": frozenset({"Cut", "Checkpoint", "Hello", "Stats"}),
    "operator": frozenset({"Checkpoint", "Drain", "Hello", "Progress", "SetWorkers", "Stats", "UpdateTable"}),
}
_DATA = frozenset({"Pull", "Push", "Step"})
# Requests that carry the two halves of a client's id at their top.
_BEARERS: Mapping[str, Any] = {
    "Barrier": tablebay_pb2.BarrierRequest,
    "Report": tablebay_pb2.ReportRequest,
    "Checkpoint": tablebay_pb2.CheckpointRequest,
    "PutState": tablebay_pb2.PutStateRequest,
}
_KNOWN_MAX = 4096


@dataclass(frozen=True)
class Shown:
    """What a certificate shows. ends: after then it is worth nothing."""

    peer: Peer
    ends: datetime.datetime


def shown(certificate: bytes) -> Shown:
    """Of a PEM certificate. Raises Unauthenticated."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate)
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
    except ValueError as error:
        raise Unauthenticated(f"the certificate cannot be read: {error}") from None
    if len(uris) != 1:
        raise Unauthenticated(f"the certificate has {len(uris)} URIs among its names, wanted one: {WANTED}")
    try:
        return Shown(Peer.parse(uris[0]), found.not_valid_after_utc)
    except BadRequest as error:
        raise Unauthenticated(f"the certificate's URI: {error}") from None


class Access:
    """Safe in threads.

    own: this server, as its certificate says. job: its name, of which clients' ids are made.
    """

    def __init__(
        self,
        own: Peer,
        job: str,
        *,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._own = own
        self._high = ranked_high(job)
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[bytes, Shown] = {}

    def peer(self, certificate: bytes | None) -> Peer:
        """The peer of this job that shows a certificate (PEM; None where it shows none).

        Raises Unauthenticated, and PermissionDenied for another job's.
        """
        if not certificate:
            raise Unauthenticated(f"found no certificate, wanted one of job {self._own.job}")
        found = self._known.get(certificate)
        if found is None:
            found = shown(certificate)
            with self._lock:
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                self._known[certificate] = found
        # Of a connection that was made while it was in its time.
        if self._now() > found.ends:
            raise Unauthenticated(
                f"the certificate of {found.peer.name} has expired at {found.ends:%Y-%m-%dT%H:%M:%SZ}; wanted a "
                "renewed one"
            )
        if not found.peer.same_job(self._own):
            raise PermissionDenied(
                f"the certificate is of job {found.peer.job} in namespace {found.peer.namespace}, and this server "
                f"of job {self._own.job} in namespace {self._own.namespace}"
            )
        return found.peer

    def check(self, peer: Peer, method: str, request: bytes | memoryview) -> None:
        """Whether a peer may send a request. Raises PermissionDenied, and BadRequest for what cannot be read."""
        if method not in ALLOWED[peer.role]:
            raise PermissionDenied(
                f"{method} is not for {peer.role}s; they may call {', '.join(sorted(ALLOWED[peer.role]))}"
            )
        if peer.role == "client":
            return
        try:
            rank = self._rank(method, request)
        except (DecodeError, ValueError) as error:
            raise BadRequest(f"{method}: {len(request)} bytes that are no such message ({error})") from None
        if rank is not None and (peer.role, peer.index) != ("worker", rank):
            raise PermissionDenied(f"{method} speaks for rank {rank}, and the certificate is of {peer.name}")

    def _rank(self, method: str, request: bytes | memoryview) -> int | None:
        """The rank that a request speaks for, if any. Raises DecodeError or ValueError."""
        if method == "Hello":
            hello = tablebay_pb2.HelloRequest.FromString(bytes(request))
            claimed = self._rank_of((hello.client_high, hello.client_low))
            return hello.rank if hello.HasField("rank") else claimed
        if method in _DATA:
            content = sender_of(request)
            if content is None:
                return None
            sender = tablebay_pb2.Sender.FromString(content)
            return self._rank_of((sender.client_high, sender.client_low))
        message = _BEARERS.get(method)
        if message is None:
            return None
        found = message.FromString(bytes(request))
        rank = self._rank_of((found.client_high, found.client_low))
        if method == "Report" and rank is None and found.HasField("rank"):
            return int(found.rank)
        return rank

    def _rank_of(self, client: ClientId) -> int | None:
        return client[1] if client[0] == self._high else None


def sender_of(request: bytes | memoryview) -> bytes | None:
    """The bytes of a data request's sender, field 1: the last one, as the native core reads it.

    Raises ValueError where the request is no message.
    """
    at, end, sender = 0, len(request), None
    while at < end:
        tag, at = _varint(request, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(request, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(request, at)
            if tag >> 3 == 1:
                sender = bytes(request[at : at + size])
            at += size
        else:
            raise ValueError(f"wire type {kind}")
        if tag >= 2**32:
            raise ValueError("a tag of more than 32 bits")
    if at != end:
        raise ValueError("cut off")
    return sender


def _varint(content: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64 and at < len(content):
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")
