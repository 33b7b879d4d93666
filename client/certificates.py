"""Authorities and certificates of a job's processes: ECDSA on P-256. Needs the package cryptography.

Whoever holds an authority's key can be any process of its job, so the key stays where certificates are made.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tablebay.client.errors import BadRequest
from tablebay.client.peer import Peer

# A process whose clock is behind takes a certificate that was made just now.
EARLY = datetime.timedelta(minutes=5)
_COMMON_NAME_MAX = 64


@dataclass(frozen=True)
class Pair:
    """A key and its certificate, as PEM."""

    key: bytes = field(repr=False)
    certificate: bytes


def make_authority(name: str, now: datetime.datetime, life: datetime.timedelta) -> Pair:
    """A new authority, which signs for itself, from `now` on."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(name)
    usage = _usage(signs_certificates=True)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(key, certificate)


def issue(
    authority: Pair, peer: Peer, names: Sequence[str], now: datetime.datetime, life: datetime.timedelta
) -> Pair:
    """A certificate for a process. names: host names and addresses that it serves under, none of a client's.

    It ends with its authority at the latest. Raises BadRequest where the authority cannot be read or has ended.
    """
    try:
        signer = serialization.load_pem_private_key(authority.key, None)
        issuer = x509.load_pem_x509_certificate(authority.certificate)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"the authority cannot be read: {error}") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise BadRequest("the authority's key is no elliptic curve's, wanted ECDSA on P-256")
    if signer.public_key() != issuer.public_key():
        raise BadRequest("the authority's key is not its certificate's")
    ends = min(now + life, issuer.not_valid_after_utc)
    if ends <= now:
        raise BadRequest(f"the authority has ended at {issuer.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    key = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if peer.role == "server":
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(peer.uri)]
    alternatives += [_general(name) for name in names]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_named(peer.name))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - EARLY, issuer.not_valid_before_utc))
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return _pair(key, certificate)


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME_MAX])])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Pair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(text, certificate.public_bytes(serialization.Encoding.PEM))
