"""What the cluster holds, kept up to date: list, then watch with bookmarks, and list again when that breaks.

Each informer has a thread that reads the API server; what it finds is handed to the event loop, where the store
is read and written without locks. A list replaces the store whole, so that what was deleted unseen is found.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from tablebay.operator.cluster import PAGE, ApiError, Cluster, Gone, Manifest, Resource
from tablebay.operator.workqueue import Key

_LOG = logging.getLogger(__name__)

# The API server sends a bookmark about once a minute, and ends a watch after so many seconds.
SILENCE_S = 130.0
WATCH_S = 300
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 15.0
# A watch that ends sooner has not worked.
SETTLED_S = 5.0


class Projected(Protocol):
    """What a store holds: it says whose job it belongs to."""

    @property
    def namespace(self) -> str:
        """Its namespace."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def job(self) -> str:
        """The TrainingJob's name."""

    @property
    def resource_version(self) -> str:
        """Which of its states this is; later ones are greater."""


_Item = TypeVar("_Item", bound=Projected)


class Store(Generic[_Item]):
    """The objects of a kind that bear a job's label, as projections.

    changed: told of the job of each object that came, changed or went.
    """

    def __init__(
        self,
        resource: Resource,
        project: Callable[[Mapping[str, Any]], _Item],
        *,
        changed: Callable[[Key], None],
    ) -> None:
        self.resource = resource
        self._project = project
        self._changed = changed
        self._items: dict[Key, _Item] = {}
        self._by_job: dict[Key, dict[str, _Item]] = {}
        # By namespace, or None for all: up to which version everything has been told of. The answer to a write may come
        # after its object's end, so what was written by then and is not known here has ended.
        self._told: dict[str | None, int] = {}

    def of_job(self, key: Key) -> dict[str, _Item]:
        """The objects of a job by name."""
        return self._by_job.get(key, {})

    def __len__(self) -> int:
        return len(self._items)

    def remember(self, body: Manifest) -> _Item:
        """Take in what a write answered, so that the next decision knows it before the watch says it."""
        item = self.projected(body)
        self._put(item)
        return item

    def projected(self, body: Manifest) -> _Item:
        """What is kept of an object."""
        return self._project({"kind": self.resource.kind, **body})

    def take(self, kind: str, item: _Item) -> None:
        """An event of a watch: kind is ADDED, MODIFIED or DELETED."""
        key = (item.namespace, item.name)
        if kind == "DELETED":
            if not self._is_behind(key, item):
                self._drop(key)
        else:
            self._put(item)
        self._told[None if None in self._told else item.namespace] = int(item.resource_version)

    def replace(self, scope: str | None, found: list[_Item], version: int) -> None:
        """A list of a namespace, or of all, at a version: what is not in it is gone."""
        # What it has is there, whatever was told before: versions may have begun anew.
        self._told[scope] = 0
        keys = {(item.namespace, item.name) for item in found}
        for key in [key for key in self._items if scope in (None, key[0]) and key not in keys]:
            self._drop(key)
        for item in found:
            if self._items.get((item.namespace, item.name)) != item:
                self._put(item)
        self._told[scope] = version

    def _put(self, item: _Item) -> None:
        key = (item.namespace, item.name)
        if self._is_behind(key, item) or self._has_ended(key, item):
            return
        known = self._items.get(key)
        if known is not None and known.job != item.job:
            # Somebody has edited its label.
            self._drop(key)
        self._items[key] = item
        self._by_job.setdefault((item.namespace, item.job), {})[item.name] = item
        self._changed((item.namespace, item.job))

    def knows_newer(self, item: _Item) -> bool:
        """Whether a later state of the object is known."""
        return self._is_behind((item.namespace, item.name), item)

    def _is_behind(self, key: Key, item: _Item) -> bool:
        known = self._items.get(key)
        return known is not None and int(known.resource_version) > int(item.resource_version)

    def _has_ended(self, key: Key, item: _Item) -> bool:
        told = max(self._told.get(None, 0), self._told.get(key[0], 0))
        return key not in self._items and int(item.resource_version) <= told

    def _drop(self, key: Key) -> None:
        item = self._items.pop(key, None)
        if item is None:
            return
        job = (item.namespace, item.job)
        mine = self._by_job.get(job, {})
        mine.pop(item.name, None)
        if not mine:
            self._by_job.pop(job, None)
        self._changed(job)


class Informer(Store[_Item]):
    """A store that is kept up to date. namespaces: where to look; none means everywhere."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        project: Callable[[Mapping[str, Any]], _Item],
        *,
        selector: str,
        namespaces: tuple[str, ...],
        changed: Callable[[Key], None],
    ) -> None:
        super().__init__(resource, project, changed=changed)
        self._cluster = cluster
        self._selector = selector
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._scopes: tuple[str | None, ...] = namespaces or (None,)
        self._listed = {scope: asyncio.Event() for scope in self._scopes}
        # Where each scope's watch goes on; "" before a list.
        self._versions: dict[str | None, str] = dict.fromkeys(self._scopes, "")
        self._signs = dict.fromkeys(self._scopes, time.monotonic())
        for scope in self._scopes:
            threading.Thread(
                target=self._run, args=(scope,), name=f"watch-{resource.plural}", daemon=True
            ).start()

    # -- in the event loop --

    async def synced(self) -> None:
        """Wait for the first lists."""
        for event in self._listed.values():
            await event.wait()

    @property
    def is_synced(self) -> bool:
        """Whether the first lists are there."""
        return all(event.is_set() for event in self._listed.values())

    @property
    def silent_s(self) -> float:
        """For how long a watch has shown no sign of life: no event, bookmark, or failed attempt to connect."""
        return time.monotonic() - min(self._signs.values())

    def stop(self) -> None:
        """End the threads, at their next event."""
        self._stopped.set()

    def replace(self, scope: str | None, found: list[_Item], version: int) -> None:
        """As a store does; from then on the first list is there."""
        super().replace(scope, found, version)
        self._listed[scope].set()

    # -- in the thread of a scope --

    def _run(self, scope: str | None) -> None:
        wait = RETRY_FIRST_S
        while not self._stopped.is_set():
            began = time.monotonic()
            cause, respite_s = "", 0.0
            try:
                if not self._versions[scope]:
                    self._versions[scope] = self._list(scope)
                self._watch(scope)
            except Gone:
                self._versions[scope] = ""
            except ApiError as error:
                cause, respite_s = str(error), error.retry_after_s
                if error.status:
                    # Whatever it was, what is known may be old by now.
                    self._versions[scope] = ""
            except RuntimeError:
                # The event loop is closed: the process ends.
                return
            except Exception as error:  # noqa: BLE001 - whatever a proxy answers, the watch must go on
                cause = f"{type(error).__name__}: {error}"
                self._versions[scope] = ""
            self._sign(scope)
            if cause:
                _LOG.warning(
                    "watch.broken", extra={"resource": self.resource.plural, "cause": cause, "retry_s": wait}
                )
            # One that held for a while may be begun again at once; others come ever more slowly.
            if time.monotonic() - began > SETTLED_S:
                wait = RETRY_FIRST_S
            if cause or time.monotonic() - began <= SETTLED_S:
                self._stopped.wait(max(respite_s, wait) * (1.0 + 0.2 * random.random()))
                wait = min(RETRY_MAX_S, wait * 2.0)

    def _list(self, scope: str | None) -> str:
        items: list[_Item] = []
        token = ""
        while True:
            query = {"labelSelector": self._selector, "limit": str(PAGE)}
            if token:
                query["continue"] = token
            page, version, token = self._cluster.list_page(self.resource, scope, query)
            items += [self._project({"kind": self.resource.kind, **body}) for body in page]
            self._sign(scope)
            if not token:
                break
        self._loop.call_soon_threadsafe(self.replace, scope, items, int(version))
        return version

    def _watch(self, scope: str | None) -> None:
        query = {
            "labelSelector": self._selector,
            "resourceVersion": self._versions[scope],
            "timeoutSeconds": str(WATCH_S),
        }
        with self._cluster.watch(self.resource, scope, query, SILENCE_S) as events:
            self._sign(scope)
            for kind, body in events:
                if self._stopped.is_set():
                    return
                self._sign(scope)
                # Kept at each event, so that a watch that breaks off goes on from there.
                self._versions[scope] = body["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._loop.call_soon_threadsafe(self.take, kind, self.projected(body))

    def _sign(self, scope: str | None) -> None:
        self._signs[scope] = time.monotonic()
