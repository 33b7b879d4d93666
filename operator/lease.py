"""Which of the operator's replicas acts: a Lease of coordination.k8s.io, as client-go uses it.

Safety does not rest on it. Two that both believe to hold it do no harm, since every write is by server-side apply
of the same content, or on the condition of a resource version.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import time

from tablebay.operator.cluster import LEASES, SERVICE_ACCOUNTS, ApiError, Cluster, Manifest

_LOG = logging.getLogger(__name__)

DURATION_S = 15
RENEW_WITHIN_S = 10.0
RETRY_S = 2.0
_RELEASES = 3  # attempts to give it up


class Lease:
    """Held by `identity` while it is renewed.

    account: the service account, in the same namespace, with which the lease is to go; "" for none.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, identity: str, *, account: str = ""
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._account = account
        # What was seen of another holder, and when by this machine's clock: the two clocks need not agree.
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0
        self.held = False

    async def acquire(self) -> None:
        """Wait until it is ours."""
        while not await self._try():  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(RETRY_S)
        self.held = True
        _LOG.info("lease.acquired", extra={"lease": f"{self._namespace}/{self._name}"})

    async def keep(self) -> None:
        """Renew it for as long as that works; returns when it is lost."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_WITHIN_S):
                    if await self._try():
                        renewed = time.monotonic()
                        continue
            if self._seen[0] not in ("", self._identity) or time.monotonic() - renewed > RENEW_WITHIN_S:
                self.held = False
                _LOG.error("lease.lost", extra={"holder": self._seen[0]})
                return

    async def release(self) -> None:
        """Give it up, so that another replica need not wait for its end."""
        if not self.held:
            return
        self.held = False
        # A renewal that was under way may come in between.
        for _ in range(_RELEASES):
            try:
                found = await self._cluster.get(LEASES, self._namespace, self._name)
                if found is None or found["spec"].get("holderIdentity") != self._identity:
                    return
                found["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=_now())
                await self._cluster.replace(LEASES, self._namespace, self._name, found)
                return
            except ApiError as error:
                if error.status != 409:
                    return

    async def _try(self) -> bool:
        try:
            found = await self._cluster.get(LEASES, self._namespace, self._name)
            if found is None:
                await self._cluster.create(LEASES, self._namespace, self._new(await self._owners()))
                return True
            spec = found["spec"]
            holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
            if (holder, renewed) != self._seen:
                self._seen, self._seen_at = (holder, renewed), time.monotonic()
            duration = spec.get("leaseDurationSeconds") or DURATION_S
            expired = time.monotonic() - self._seen_at > duration
            if holder not in ("", self._identity) and not expired:
                return False
            if holder != self._identity:
                spec["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
                spec["acquireTime"] = _now()
                if not found["metadata"].get("ownerReferences"):
                    found["metadata"]["ownerReferences"] = await self._owners()
            spec.update(holderIdentity=self._identity, leaseDurationSeconds=DURATION_S, renewTime=_now())
            answer = await self._cluster.replace(LEASES, self._namespace, self._name, found)
            self._seen = (self._identity, answer["spec"]["renewTime"])
            self._seen_at = time.monotonic()
            return True
        except ApiError as error:
            _LOG.warning("lease.failed", extra={"cause": str(error)})
            return False

    async def _owners(self) -> list[Manifest]:
        """What the lease is deleted with: whoever uninstalls the operator deletes its account, and knows no lease."""
        if not self._account:
            return []
        found = await self._cluster.get(SERVICE_ACCOUNTS, self._namespace, self._account)
        if found is None:
            return []
        return [
            {
                "apiVersion": SERVICE_ACCOUNTS.api,
                "kind": SERVICE_ACCOUNTS.kind,
                "name": self._account,
                "uid": found["metadata"]["uid"],
            }
        ]

    def _new(self, owners: list[Manifest]) -> Manifest:
        return {
            "apiVersion": LEASES.api,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace, "ownerReferences": owners},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
