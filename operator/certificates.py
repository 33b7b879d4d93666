"""The Secrets of jobs' certificates: made, renewed, and what the operator itself shows to a job's servers."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tablebay.client.errors import BadRequest
from tablebay.client.tls import Credentials, Source
from tablebay.operator import authority, pod_tls
from tablebay.operator.authority import RENEW_ANNOTATION, ROTATE_ANNOTATION, Authority, Block, Standing
from tablebay.operator.cluster import SECRETS, ApiError, Cluster, Manifest
from tablebay.operator.manifests import JobObject
from tablebay.operator.workqueue import Key

_LOG = logging.getLogger(__name__)

# Nobody tells of a Secret that a hand has changed: there is no right to watch Secrets.
LOOK_EVERY_S = 600.0
# Of a pod's volumes: a kubelet's period is a minute and a half at most, unless it is told otherwise.
SPREAD_S = 300.0
_WISH_MAX = 256


@dataclass
class _Known:
    uid: str
    # What the last look was for, and when the next is due.
    wanted: object = None
    due: datetime.datetime | None = None
    authority: Authority | None = None
    credentials: Credentials | None = None
    credentials_until: datetime.datetime | None = None


class _Shown(Source):
    """Credentials in memory."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def version(self) -> object:
        """Of these."""
        return self._credentials.certificate

    def read(self) -> Credentials:
        """These."""
        return self._credentials


class Certificates:
    """Of all jobs with TLS. spread_s: after it every pod has what a Secret holds. aside: how keys are made.

    The API server is asked in the reconciling itself, since no pod starts before its Secrets are there.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        spread_s: float = SPREAD_S,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        aside: Callable[..., Awaitable[Standing]] = asyncio.to_thread,
    ) -> None:
        self._cluster = cluster
        self._aside = aside
        self._spread = datetime.timedelta(seconds=spread_s)
        self._now = now
        self._jobs: dict[Key, _Known] = {}

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._jobs.pop(key, None)

    async def taken(self, job: JobObject) -> list[str]:
        """The names of a job's Secrets that something else has. Raises ApiError."""

        async def look(name: str) -> str:
            secret = await self._cluster.get(SECRETS, job.namespace, name)
            return "" if secret is None or _owned(job, secret) else f"Secret {name}"

        names = [pod_tls.authority_secret(job), *(block.name for block in authority.blocks(job))]
        return [found for found in await asyncio.gather(*map(look, names)) if found]

    async def keep(self, job: JobObject) -> list[str]:
        """Bring a job's Secrets to what they should be, if it is time; the names that something else has.

        Raises ApiError.
        """
        known = self._of(job)
        blocks = authority.blocks(job)
        rotate, renew = _wish(job, ROTATE_ANNOTATION), _wish(job, RENEW_ANNOTATION)
        wanted = (rotate, renew, tuple(blocks))
        if known.due is not None and self._now() < known.due and known.wanted == wanted:
            return []
        name = pod_tls.authority_secret(job)
        secret = await self._cluster.get(SECRETS, job.namespace, name)
        if secret is not None and not _owned(job, secret):
            return [f"Secret {name}"]
        found = authority.read_authority(secret) if secret is not None else None
        if found is None or found.ends <= self._now():
            # Of one that is lost or has ended nobody has anything left, so there is nothing to be careful of.
            found = authority.new_authority(job, self._now(), rotate)
            secret = await self._write(secret, authority.authority_secret(job, found))
        # At most three steps, each with its own reads; more than one only where there is no time to wait.
        for _ in range(3):
            known.authority, known.credentials = found, None
            foreign, settled, due = await self._pairs(job, blocks, found, renew)
            if foreign:
                return foreign
            following = authority.advance(job, found, rotate, self._now(), settled=settled)
            if following == found:
                break
            _LOG.info(
                "authority.changed", extra={"job": f"{job.namespace}/{job.name}", "step": _step(following)}
            )
            secret = await self._write(secret, authority.authority_secret(job, following))
            found = following
        known.wanted, known.due = wanted, due
        return []

    def due_s(self, key: Key) -> float | None:
        """In how many seconds a job's certificates are to be looked at again; None if they never were."""
        known = self._jobs.get(key)
        if known is None or known.due is None:
            return None
        return max(0.1, (known.due - self._now()).total_seconds())

    async def source(self, job: JobObject) -> Source | None:
        """What the operator shows to a job's servers; None where there is no authority. Raises ApiError."""
        known = self._of(job)
        if known.authority is None:
            secret = await self._cluster.get(SECRETS, job.namespace, pod_tls.authority_secret(job))
            if secret is None or not _owned(job, secret):
                return None
            known.authority = authority.read_authority(secret)
            if known.authority is None:
                return None
        now = self._now()
        if known.credentials is None or known.credentials_until is None or now >= known.credentials_until:
            try:
                known.credentials = authority.own_credentials(job, known.authority, now)
            except BadRequest as error:
                _LOG.warning(
                    "authority.unusable", extra={"job": f"{job.namespace}/{job.name}", "cause": str(error)}
                )
                return None
            known.credentials_until = now + datetime.timedelta(minutes=30)
        return _Shown(known.credentials)

    def _of(self, job: JobObject) -> _Known:
        key = (job.namespace, job.name)
        known = self._jobs.get(key)
        if known is None or known.uid != job.uid:
            known = self._jobs[key] = _Known(job.uid)
        return known

    async def _pairs(
        self, job: JobObject, blocks: list[Block], found: Authority, renew: str
    ) -> tuple[list[str], bool, datetime.datetime]:
        """What something else has; whether every pod has seen all of it; when to look next."""

        async def one(block: Block) -> tuple[str, Standing | None]:
            secret = await self._cluster.get(SECRETS, job.namespace, block.name)
            if secret is not None and not _owned(job, secret):
                return f"Secret {block.name}", None
            try:
                # A key takes a moment to make, and there may be hundreds.
                standing = await self._aside(
                    authority.standing, job, block, found, secret, renew, self._now()
                )
            except BadRequest as error:
                raise ApiError(0, "NoAuthority", f"Secret {block.name}: {error}") from None
            if standing.content is not None:
                await self._write(secret, standing.content)
                _LOG.info(
                    "certificates.written",
                    extra={"job": f"{job.namespace}/{job.name}", "secret": block.name, "new": secret is None},
                )
            return "", standing

        results = await asyncio.gather(*(one(block) for block in blocks))
        foreign = [name for name, _ in results if name]
        standings = [standing for _, standing in results if standing is not None]
        now = self._now()
        seen = max((one.written for one in standings), default=now) + self._spread
        settled = all(one.content is None for one in standings) and seen <= now
        due = min(
            now + datetime.timedelta(seconds=LOOK_EVERY_S * (1.0 + 0.2 * random.random())),
            *(one.renew for one in standings),
        )
        if found.next is not None or found.old:
            due = min(due, max(seen, now))
        return foreign, settled, due

    async def _write(self, before: Manifest | None, content: Manifest) -> Manifest:
        """Make it, or change what was read. Raises ApiError 409 where somebody else did meanwhile."""
        meta = content["metadata"]
        if before is None:
            return await self._cluster.create(SECRETS, meta["namespace"], content)
        meta["resourceVersion"] = before["metadata"]["resourceVersion"]
        gone = (before.get("data") or {}).keys() - content["data"].keys()
        content["data"] |= dict.fromkeys(gone)
        # A Secret's type can never change.
        body: dict[str, Any] = {name: content[name] for name in ("metadata", "data")}
        return await self._cluster.patch(SECRETS, meta["namespace"], meta["name"], body)


def _owned(job: JobObject, secret: Manifest) -> bool:
    return any(one["uid"] == job.uid for one in secret["metadata"].get("ownerReferences") or ())


def _wish(job: JobObject, name: str) -> str:
    return job.annotations.get(name, "")[:_WISH_MAX]


def _step(found: Authority) -> str:
    if found.next is not None:
        return "both are trusted, the old one signs"
    return "the new one signs, both are trusted" if found.old else "the new one alone is trusted"
