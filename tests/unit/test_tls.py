"""Certificates without sockets: names, files, and the check of a peer."""

from __future__ import annotations

import datetime
import random
from dataclasses import replace
from pathlib import Path

import certificates as made
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import message_factory

from tablebay.client.errors import BadRequest, PermissionDenied, Unauthenticated
from tablebay.client.peer import Peer
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tls import Folder
from tablebay.ps_server.access import ALLOWED, Access, sender_of, shown
from tablebay.ps_server.members import ranked_high

OWN = made.peer("server/0")


def test_a_peers_uri_reads_back_and_any_other_text_is_refused() -> None:
    """Each role with its index, and none without one where it wants one, or the other way round."""
    for name in ("server/0", "server/1023", "worker/0", "worker/9999", "operator", "client"):
        peer = made.peer(name)
        assert Peer.parse(peer.uri) == peer
        assert peer.name == name.replace("/", " ")
    for uri in (
        "",
        "spiffe://tablebay/ns/ads/job/0b7c/worker",
        "spiffe://tablebay/ns/ads/job/0b7c/operator/0",
        "spiffe://tablebay/ns/ads/job/0b7c/worker/01",
        "spiffe://tablebay/ns/ads/job/0b7c/worker/4294967296",
        "spiffe://tablebay/ns/ads/job/0b7c/server/1024",
        "spiffe://tablebay/ns/ads/job/0b7c/chief/0",
        "spiffe://tablebay/ns/ads/job/../worker/0",
        "spiffe://tablebay/ns/a/s/job/0b7c/worker/0",
        "spiffe://other/ns/ads/job/0b7c/worker/0",
        "spiffe://tablebay/ns/ads/job/0b7c/worker/0\n",
        "https://tablebay/ns/ads/job/0b7c/worker/0",
    ):
        with pytest.raises(BadRequest, match="wanted"):
            Peer.parse(uri)


def test_a_certificate_is_ecdsa_on_p256_for_its_role_and_no_authority() -> None:
    """A server's serves and calls, any other's calls alone; it ends with its authority at the latest."""
    authority = made.authority()
    for name, uses in (("server/0", 2), ("worker/3", 1), ("operator", 1)):
        found = x509.load_pem_x509_certificate(made.pair(authority, made.peer(name)).certificate)
        key = found.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert len(list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)) == uses
    life = 1000 * made.HOUR
    long = made.issue(authority, made.peer("worker/0"), (), made.now(), life)
    signer = x509.load_pem_x509_certificate(authority.certificate)
    assert shown(long.certificate).ends == signer.not_valid_after_utc
    mixed = replace(authority, key=made.authority().key)
    with pytest.raises(BadRequest, match="the authority's key is not its certificate's"):
        made.issue(mixed, made.peer("worker/0"), (), made.now(), life)
    with pytest.raises(BadRequest, match="the authority has ended at"):
        made.issue(made.authority(ended=True), made.peer("worker/0"), (), made.now(), life)
    assert b"PRIVATE" not in repr(long).encode()


def test_a_connection_outlives_no_certificate() -> None:
    """A peer that connected in its certificate's time is unauthenticated from the second on that it has expired."""
    time = [made.now()]
    access = Access(OWN, "local", now=lambda: time[0])
    found = made.pair(made.authority(), made.peer("worker/0")).certificate
    assert access.peer(found) == made.peer("worker/0")
    time[0] = shown(found).ends
    assert access.peer(found).role == "worker"
    time[0] += datetime.timedelta(seconds=1)
    with pytest.raises(
        Unauthenticated, match="the certificate of worker 0 has expired at .*; wanted a renewed one"
    ):
        access.peer(found)
    with pytest.raises(Unauthenticated, match="found no certificate"):
        access.peer(None)


def test_whoever_cannot_be_told_from_another_rank_is_refused() -> None:
    """Bytes that are no message of their method are BadRequest here already, so that none reads them otherwise."""
    access = Access(OWN, "local")
    worker = made.peer("worker/1")
    for method, request in (
        ("Push", b"\x0a\xff"),
        ("Pull", b"\x0b"),
        ("Hello", b"\xff"),
        ("Step", b"\x80" * 11),
    ):
        with pytest.raises(BadRequest, match="that are no such message"):
            access.check(worker, method, request)
    # A tag of more than 32 bits, which a reader of 32 would take for field 1.
    with pytest.raises(BadRequest, match="32 bits"):
        access.check(worker, "Push", b"\x8a\x80\x80\x80\x80\x10\x00")
    with pytest.raises(PermissionDenied, match="Cut is not for workers"):
        access.check(worker, "Cut", b"")
    access.check(made.peer("client"), "Hello", tablebay_pb2.HelloRequest(rank=7).SerializeToString())


def test_every_rpc_is_some_roles_to_call_and_none_speaks_for_a_rank_unseen() -> None:
    """Of the public .proto, but for what is reserved: workers and clients may call all but what is a server's or the
    operator's own, so that a new RPC works with TLS too; each request that carries a client's id is looked into."""
    methods = {
        method.name: method.input_type
        for service in tablebay_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.input_type.name != "Reserved"
    }
    assert ALLOWED["worker"] == ALLOWED["client"] == methods.keys() - {"Cut", "Drain", "SetWorkers"}
    assert all(allowed <= methods.keys() for allowed in ALLOWED.values())
    access = Access(OWN, "local")
    looked_into = set()
    for name, request in methods.items():
        fields = {field.name: field for field in request.fields}
        carrier = fields["sender"].message_type if "sender" in fields else request
        if "client_high" not in {field.name for field in carrier.fields} or name not in ALLOWED["worker"]:
            continue
        looked_into.add(name)
        identity = {"client_high": ranked_high("local"), "client_low": 0}
        message = message_factory.GetMessageClass(request)()
        for field, value in identity.items():
            setattr(message.sender if "sender" in fields else message, field, value)
        with pytest.raises(PermissionDenied, match=f"{name} speaks for rank 0"):
            access.check(made.peer("worker/1"), name, message.SerializeToString())
        access.check(made.peer("worker/0"), name, message.SerializeToString())
    assert {"Pull", "Push", "Step", "Hello", "Barrier", "Report", "Checkpoint", "PutState"} <= looked_into


def test_a_requests_sender_is_found_wherever_it_stands() -> None:
    """Against protobuf's own reading, of requests with fields at random; of two senders the last one counts."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(300):
        sender = tablebay_pb2.Sender(
            client_high=rng.getrandbits(64), client_low=rng.getrandbits(64), incarnation=1
        )
        request = tablebay_pb2.StepRequest(step=rng.getrandbits(64), piece=rng.getrandbits(32))
        if rng.random() < 0.5:
            request.pushes.add(keys=rng.randbytes(rng.randrange(300)))
        parts = [request.SerializeToString(), tablebay_pb2.StepRequest(sender=sender).SerializeToString()]
        if rng.random() < 0.5:
            parts.reverse()
        parts.insert(0, tablebay_pb2.StepRequest(sender=tablebay_pb2.Sender(epoch=5)).SerializeToString())
        assert sender_of(b"".join(parts)) == sender.SerializeToString()
    assert sender_of(tablebay_pb2.StepRequest(step=1).SerializeToString()) is None


def test_a_folders_three_files_are_of_one_moment(tmp_path: Path) -> None:
    """The version changes with any of the files and with the link; what is missing is named."""
    authority = made.authority()
    folder = made.write(tmp_path / "tls", made.pair(authority, OWN), authority)
    source = Folder(folder)
    first, version = source.read(), source.version()
    assert source.version() == version
    made.write(folder, made.pair(authority, OWN), authority)
    assert source.version() != version
    assert source.read() != first
    version = source.version()
    (folder / "ca.crt").write_bytes(first.authorities * 2)
    assert source.version() != version
    (folder / "tls.key").unlink()
    for look in (source.version, source.read):
        with pytest.raises(
            BadRequest, match=r"tls\.key: No such file or directory; wanted tls\.key, tls\.crt"
        ):
            look()
