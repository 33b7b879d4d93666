"""The certificates of a job's pods: what its Secrets are to hold, and when they change. Pure but for new keys.

A job has an authority of its own, whose key no pod sees, and Secrets with the pairs of its servers and of its workers.
An authority is replaced in three steps, each of which begins when every pod has had time to see the one before: all
trust the new one beside the old; it signs; the old one is trusted no more. So at no moment does a pod meet another
whose certificate it does not trust, whichever of the two is behind.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from tablebay.client import certificates
from tablebay.client.certificates import EARLY, Pair
from tablebay.client.peer import Peer
from tablebay.client.tls import AUTHORITIES, Credentials
from tablebay.operator import manifests, pod_tls
from tablebay.operator.cluster import Manifest
from tablebay.operator.manifests import SERVER, WORKER, JobObject

# A certificate is made anew in the middle of its life, so an operator may be away for the other half.
LIFE = datetime.timedelta(days=30)
AUTHORITY_LIFE = datetime.timedelta(days=365)
# An authority that ends sooner is replaced: while it is, certificates that it signed go on being used.
AUTHORITY_LEFT = 2 * LIFE

# On a TrainingJob: each new text asks for new certificates, or for a new authority. On its Secrets: the text obeyed.
RENEW_ANNOTATION = "tablebay.dev/renew-certificates"
ROTATE_ANNOTATION = "tablebay.dev/rotate-authority"
# On a Secret with pairs: when the operator wrote it last.
_WRITTEN = "tablebay.dev/written"

_SIGNER_KEY, _SIGNER, _NEXT_KEY, _NEXT, _OLD = "signer.key", "signer.crt", "next.key", "next.crt", "old.crt"


@dataclass(frozen=True)
class Authority:
    """Who signs; who is about to; and what is still trusted of before. rotated: the wish that was obeyed last."""

    signer: Pair
    next: Pair | None = None
    old: bytes = b""
    rotated: str = ""

    @property
    def trusted(self) -> bytes:
        """The certificates that pods trust, as PEM."""
        parts = [self.signer.certificate, self.next.certificate if self.next else b"", self.old]
        return b"".join(parts)

    @property
    def ends(self) -> datetime.datetime:
        """The signer's."""
        return x509.load_pem_x509_certificate(self.signer.certificate).not_valid_after_utc


@dataclass(frozen=True)
class Block:
    """One Secret: the pairs of the processes of a role from `first` on."""

    role: str
    first: int
    count: int
    name: str

    @property
    def indices(self) -> range:
        """Of the processes."""
        return range(self.first, self.first + self.count)


def blocks(job: JobObject) -> list[Block]:
    """The Secrets with pairs that a job has."""
    found = []
    for role in (SERVER, WORKER):
        processes = pod_tls.processes(job, role)
        for number, name in enumerate(pod_tls.pair_secrets(job, role)):
            first = number * pod_tls.PAIRS_PER_SECRET
            found.append(Block(role, first, min(pod_tls.PAIRS_PER_SECRET, processes - first), name))
    return found


# ---- the authority


def new_authority(job: JobObject, now: datetime.datetime, wish: str = "") -> Authority:
    """The first of a job."""
    return Authority(_made(job, now), rotated=wish)


def _made(job: JobObject, now: datetime.datetime) -> Pair:
    return certificates.make_authority(f"tablebay {job.uid}", now, AUTHORITY_LIFE)


def advance(
    job: JobObject, found: Authority, wish: str, now: datetime.datetime, *, settled: bool
) -> Authority:
    """The next step, or the same. settled: every pod has had time to see what the Secrets hold."""
    if found.next is not None:
        if not settled:
            return found
        return replace(found, signer=found.next, next=None, old=found.signer.certificate)
    if found.old:
        return replace(found, old=b"") if settled else found
    if wish != found.rotated or found.ends - now < AUTHORITY_LEFT:
        # To trust one more harms no one.
        return replace(found, next=_made(job, now), rotated=wish)
    return found


def authority_secret(job: JobObject, found: Authority) -> Manifest:
    """The Secret of an authority, which no pod mounts."""
    data = {_SIGNER_KEY: found.signer.key, _SIGNER: found.signer.certificate}
    if found.next is not None:
        data |= {_NEXT_KEY: found.next.key, _NEXT: found.next.certificate}
    if found.old:
        data[_OLD] = found.old
    return _secret(job, pod_tls.authority_secret(job), "job", data, {ROTATE_ANNOTATION: found.rotated})


def read_authority(secret: Mapping[str, Any]) -> Authority | None:
    """What a Secret holds; None where a hand has made it something else."""
    data = _data(secret)
    try:
        found = Authority(
            Pair(data[_SIGNER_KEY], data[_SIGNER]),
            Pair(data[_NEXT_KEY], data[_NEXT]) if _NEXT in data or _NEXT_KEY in data else None,
            data.get(_OLD, b""),
            _annotation(secret, ROTATE_ANNOTATION),
        )
        for pair in (found.signer, *([found.next] if found.next else ())):
            certificate = x509.load_pem_x509_certificate(pair.certificate)
            key = serialization.load_pem_private_key(pair.key, None)
            if key.public_key() != certificate.public_key():
                return None
        if found.old:
            x509.load_pem_x509_certificates(found.old)
    except (KeyError, ValueError, TypeError):
        return None
    return found


def own_credentials(job: JobObject, found: Authority, now: datetime.datetime) -> Credentials:
    """What the operator shows to a job's servers; good for an hour and never stored. Raises BadRequest."""
    peer = Peer(job.namespace, job.uid, "operator")
    pair = certificates.issue(found.signer, peer, (), now, datetime.timedelta(hours=1))
    return Credentials(pair.key, pair.certificate, found.trusted)


# ---- pairs


@dataclass(frozen=True)
class Standing:
    """How a Secret with pairs is. content: what is to be written, None if it is as it should be.

    written: when it was last. renew: when the first of its certificates is to be made anew.
    """

    content: Manifest | None
    written: datetime.datetime
    renew: datetime.datetime


def standing(
    job: JobObject,
    block: Block,
    found: Authority,
    secret: Mapping[str, Any] | None,
    wish: str,
    now: datetime.datetime,
) -> Standing:
    """What becomes of a Secret with pairs. wish: the text that asks for new ones. Raises BadRequest."""
    data = _data(secret) if secret is not None else {}
    signer = x509.load_pem_x509_certificate(found.signer.certificate)
    asked = secret is not None and _annotation(secret, RENEW_ANNOTATION) != wish
    wanted: dict[str, bytes] = {AUTHORITIES: found.trusted}
    renew = now + LIFE
    for index in block.indices:
        key_name, name = pod_tls.pair_files(index)
        peer = Peer.parse(f"spiffe://tablebay/ns/{job.namespace}/job/{job.uid}/{block.role}/{index}")
        names = pod_tls.server_host_names(job, index) if block.role == SERVER else ()
        pair = None
        if not asked and key_name in data and name in data:
            pair = Pair(data[key_name], data[name])
            due = _due(pair, signer, peer, names)
            if due is None or due <= now:
                pair = None
            else:
                renew = min(renew, due)
        if pair is None:
            pair = certificates.issue(found.signer, peer, names, now, LIFE)
            renew = min(renew, now + LIFE / 2)
        wanted[key_name], wanted[name] = pair.key, pair.certificate
    written = _moment(_annotation(secret, _WRITTEN) if secret is not None else "", now)
    if secret is not None and data == wanted and not asked:
        return Standing(None, written, renew)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    content = _secret(job, block.name, block.role, wanted, {RENEW_ANNOTATION: wish, _WRITTEN: stamp})
    return Standing(content, now, renew)


def _due(pair: Pair, signer: x509.Certificate, peer: Peer, names: Sequence[str]) -> datetime.datetime | None:
    """When a pair is to be made anew; None if it is none of this process by this signer."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, None)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return None
    if key.public_key() != certificate.public_key():
        return None
    if alternatives.get_values_for_type(x509.UniformResourceIdentifier) != [peer.uri]:
        return None
    if alternatives.get_values_for_type(x509.DNSName) != list(names):
        return None
    begins, ends = certificate.not_valid_before_utc + EARLY, certificate.not_valid_after_utc
    if ends >= signer.not_valid_after_utc:
        # A new one would end with its authority as well.
        return ends
    return begins + (ends - begins) / 2


# ---- Secrets


def _secret(
    job: JobObject, name: str, role: str, data: Mapping[str, bytes], annotations: Mapping[str, str]
) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": manifests.labels(job, role),
            "annotations": dict(annotations),
            "ownerReferences": [manifests.owner_reference(job)],
        },
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def _data(secret: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        return {
            name: base64.b64decode(value, validate=True) for name, value in (secret.get("data") or {}).items()
        }
    except (binascii.Error, TypeError, ValueError):
        return {}


def _annotation(secret: Mapping[str, Any], name: str) -> str:
    return str((secret["metadata"].get("annotations") or {}).get(name, ""))


def _moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """What was noted; now where nothing can be read, or what is to come."""
    try:
        found = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return now
    return min(found, now)
