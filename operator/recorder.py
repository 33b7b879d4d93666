"""Events for people who `kubectl describe` a job: one for what happened, not one for each look at it."""

from __future__ import annotations

import datetime
import logging
import time
import uuid
from collections.abc import Callable

from tablebay.operator.cluster import EVENTS, FIELD_MANAGER, ApiError, Cluster
from tablebay.operator.plans import Happened

_LOG = logging.getLogger(__name__)

# Of one reason for one job, at most one Event in so many seconds.
QUIET_S = 60.0
_MESSAGE_MAX = 1024


class Recorder:
    """Writes Events; one that cannot be written is logged and forgotten."""

    def __init__(
        self, cluster: Cluster, instance: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._instance = instance
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}

    async def record(self, namespace: str, name: str, uid: str, happened: Happened) -> None:
        """Write an Event about a TrainingJob, unless its like was written a moment ago."""
        now = self._clock()
        self._said = {key: at for key, at in self._said.items() if now - at < QUIET_S}
        if (uid, happened.reason) in self._said:
            return
        self._said[(uid, happened.reason)] = now
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": "tablebay.dev/v1alpha1",
                "kind": "TrainingJob",
                "namespace": namespace,
                "name": name,
                "uid": uid,
            },
            "type": happened.kind,
            "reason": happened.reason,
            "message": happened.message[:_MESSAGE_MAX],
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._instance,
        }
        try:
            await self._cluster.create(EVENTS, namespace, body)
        except ApiError as error:
            _LOG.warning("event.lost", extra={"job": f"{namespace}/{name}", "cause": str(error)})
