"""Follows the jobs of a namespace through lost connections and restarts of the API server."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tablebay.client.jobs.cluster import Cluster, job_request
from tablebay.client.jobs.errors import ClusterUnreachable

LISTED, ADDED, MODIFIED, DELETED = "LISTED", "ADDED", "MODIFIED", "DELETED"
# How long the API server may be away, once it was there, before whoever follows is told.
PATIENCE_S = 60.0
_AGAIN_S = 1.0
_WATCH_S = 240


def follow(
    cluster: Cluster,
    namespace: str | None,
    selector: Mapping[str, str],
    deadline: float | None,
    since: Sequence[Mapping[str, Any]] = (),
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """LISTED with each object there is, then each change, until the deadline. Raises ClusterError.

    since: the objects as the caller knows them; then there is no LISTED, only what has changed since.
    """
    known = {_uid(item): item for item in since}
    version = ""
    begun = bool(since)
    silent_since: float | None = None
    while deadline is None or time.monotonic() < deadline:
        try:
            if not version:
                answer = cluster.ask(job_request("list", namespace, query=selector))
                version = _version(answer)
                now: dict[str, Mapping[str, Any]] = {_uid(item): item for item in answer.get("items") or []}
                for uid, item in known.items():
                    if uid not in now:
                        yield DELETED, item
                for uid, item in now.items():
                    if not begun:
                        yield LISTED, item
                    elif uid not in known:
                        yield ADDED, item
                    elif _version(known[uid]) != _version(item):
                        yield MODIFIED, item
                known, begun = now, True
            for kind, item in _watch(cluster, namespace, selector, version, deadline):
                silent_since = None
                if kind == "ERROR":
                    # Mostly that the version is too old to go on from.
                    version = ""
                    break
                version = _version(item) or version
                if kind == DELETED:
                    known.pop(_uid(item), None)
                elif kind in (ADDED, MODIFIED):
                    known[_uid(item)] = item
                if kind in (ADDED, MODIFIED, DELETED):
                    yield kind, item
            else:
                silent_since = None
        except ClusterUnreachable:
            silent_since = silent_since or time.monotonic()
            if not begun or time.monotonic() - silent_since > PATIENCE_S:
                raise
            time.sleep(_AGAIN_S)


def _watch(
    cluster: Cluster, namespace: str | None, selector: Mapping[str, str], version: str, deadline: float | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    left = _WATCH_S if deadline is None else max(1, min(_WATCH_S, math.ceil(deadline - time.monotonic())))
    query = {
        **selector,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": str(left),
    }
    # A little longer than the API server itself keeps it open.
    for line in cluster.stream(job_request("watch", namespace, query=query), read_s=left + 2.0):
        try:
            event = json.loads(line)
            yield str(event["type"]), dict(event["object"])
        except (ValueError, KeyError, TypeError):
            yield "ERROR", {}
            return


def _version(value: Mapping[str, Any]) -> str:
    return str((value.get("metadata") or {}).get("resourceVersion") or "")


def _uid(value: Mapping[str, Any]) -> str:
    return str((value.get("metadata") or {}).get("uid") or "")
