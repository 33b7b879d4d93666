"""Certificates of a job on the cluster, by its Secrets, and calls to its servers with them."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass
from typing import Any

import grpc
from e2e.kube import get
from rpcs import DATA, METHODS

from tablebay.client.certificates import Pair, issue
from tablebay.client.peer import Peer
from tablebay.client.proto import tablebay_pb2


def secret(namespace: str, name: str) -> dict[str, bytes]:
    """What a Secret holds."""
    found = get("secret", name, namespace)
    assert found is not None, f"Secret {name} is gone"
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


@dataclass(frozen=True)
class Identity:
    """What a caller shows, and whose certificates it takes."""

    pair: Pair | None
    trusted: bytes

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel."""
        if self.pair is None:
            return grpc.ssl_channel_credentials(self.trusted)
        return grpc.ssl_channel_credentials(self.trusted, self.pair.key, self.pair.certificate)


def made(namespace: str, job: str, who: str, *, uid: str = "", ended: bool = False) -> Identity:
    """A certificate by a job's own authority, of `worker/3` or `operator`. uid: of another job. ended: long ago."""
    body = get("trainingjob", job, namespace)
    assert body is not None
    authority = secret(namespace, f"{job}-authority")
    peer = Peer.parse(f"spiffe://tablebay/ns/{namespace}/job/{uid or body['metadata']['uid']}/{who}")
    now, life = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    if ended:
        # An authority takes effect some minutes before it is made.
        now, life = now - datetime.timedelta(seconds=5), datetime.timedelta(seconds=1)
    by = Pair(authority["signer.key"], authority["signer.crt"])
    return Identity(issue(by, peer, (), now, life), secret(namespace, f"{job}-worker-tls-0")["ca.crt"])


def given(namespace: str, job: str, role: str, index: int) -> Identity:
    """What a pod of the job has."""
    found = secret(namespace, f"{job}-{role}-tls-0")
    return Identity(Pair(found[f"{index}.key"], found[f"{index}.crt"]), found["ca.crt"])


class Caller:
    """Calls to server 0 of a job by its pod's address, under its name. shown: None speaks plain."""

    def __init__(self, job: str, address: str, shown: Identity | None) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.ssl_target_name_override", f"{job}-server-0.{job}-servers"),
        ]
        credentials = None if shown is None else shown.credentials()
        self._channels = [
            grpc.insecure_channel(f"{address}:{port}", options=options[:1])
            if credentials is None
            else grpc.secure_channel(f"{address}:{port}", credentials, options=options)
            for port in (7070, 7072)
        ]

    def call(self, method: str, request: bytes = b"", timeout: float = 5.0) -> bytes:
        """The answer's bytes. Raises grpc.RpcError."""
        service, channel = ("Data", self._channels[0]) if method in DATA else ("Control", self._channels[1])
        found: bytes = channel.unary_unary(f"/tablebay.v1.{service}/{method}")(request, timeout=timeout)
        return found

    def statuses(self, requests: dict[str, bytes] | None = None) -> dict[str, str]:
        """How each RPC, or each of these requests, ends."""
        found = {}
        for method in requests or METHODS:
            try:
                self.call(method, (requests or {}).get(method, b""))
                found[method] = "OK"
            except grpc.RpcError as error:
                found[method] = error.code().name
        return found

    def reported(self) -> dict[int, dict[str, float]]:
        """What each rank has reported last. Raises grpc.RpcError."""
        answer = tablebay_pb2.ProgressResponse.FromString(self.call("Progress", timeout=2.0))
        return {worker.rank: dict(worker.values) for worker in answer.workers}

    def close(self) -> None:
        """End the connections."""
        for channel in self._channels:
            channel.close()
