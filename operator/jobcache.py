"""The TrainingJobs that kopf tells of, and a check that it still tells the truth.

kopf keeps watching through broken connections, but says nothing of objects that were deleted while it could not
watch, and nothing of its own health. So the names and uids are listed now and then, and compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tablebay.operator.cluster import TRAINING_JOBS, ApiError, Cluster, Manifest
from tablebay.operator.workqueue import Key

_LOG = logging.getLogger(__name__)


class JobCache:
    """Bodies of TrainingJobs by (namespace, name). changed: told of each that came, changed or went."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._clock = clock
        self._bodies: dict[Key, Manifest] = {}
        self._differs: dict[Key, str] = {}
        self._agreed = self._compared = clock()

    def __len__(self) -> int:
        return len(self._bodies)

    def get(self, key: Key) -> Manifest | None:
        """The body last seen."""
        return self._bodies.get(key)

    def bodies(self) -> list[Manifest]:
        """All of them."""
        return list(self._bodies.values())

    def event(self, kind: str | None, body: Manifest) -> None:
        """What kopf saw: kind is ADDED, MODIFIED, DELETED, or None for what was there before."""
        key = _key(body)
        known = self._bodies.get(key)
        if kind == "DELETED":
            # kopf keeps the order of each uid's events, not of a name's: the end may be a predecessor's.
            if known is None or known["metadata"]["uid"] == body["metadata"]["uid"]:
                self.drop(key)
        elif (
            known is None
            or known["metadata"]["uid"] != body["metadata"]["uid"]
            or _version(body) >= _version(known)
        ):
            self._bodies[key] = body
            self._changed(key)

    def remember(self, body: Manifest) -> None:
        """What a read or a write of ours answered; an event may have told of something newer meanwhile."""
        known = self._bodies.get(_key(body))
        if (
            known is not None
            and known["metadata"]["uid"] == body["metadata"]["uid"]
            and _version(body) >= _version(known)
        ):
            self._bodies[_key(body)] = body

    def drop(self, key: Key) -> None:
        """It is gone."""
        if self._bodies.pop(key, None) is not None:
            self._changed(key)

    @property
    def stale_s(self) -> float:
        """For how long kopf's picture has differed from the API server's."""
        return self._clock() - self._agreed if self._differs else 0.0

    async def compare(self, cluster: Cluster, namespaces: tuple[str, ...]) -> None:
        """Hold what is cached against the API server; what differs twice in a row is a fault, and is mended."""
        live: dict[Key, str] = {}
        try:
            for namespace in namespaces or (None,):
                live |= await cluster.names(TRAINING_JOBS, namespace)
        except ApiError:
            # Whether kopf is behind cannot be said now.
            return
        mine = {key: str(body["metadata"]["uid"]) for key, body in self._bodies.items()}
        differs = {
            key: f"{mine.get(key, '')}/{live.get(key, '')}"
            for key in mine.keys() | live.keys()
            if mine.get(key) != live.get(key)
        }
        twice = [key for key, what in differs.items() if self._differs.get(key) == what]
        if not twice:
            # What differed last time was told of meanwhile: that jobs come and go is no fault.
            self._agreed = self._compared if differs else self._clock()
        self._compared = self._clock()
        self._differs = differs
        for key in twice:
            _LOG.warning("job.missed", extra={"job": "/".join(key), "there": key in live})
            if key not in live:
                self.drop(key)
                self._differs.pop(key, None)
                continue
            try:
                body = await cluster.get(TRAINING_JOBS, *key)
            except ApiError:
                continue
            if body is not None:
                self.event("MODIFIED", body)


def _key(body: Manifest) -> Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _version(body: Manifest) -> int:
    return int(body["metadata"]["resourceVersion"])
