"""The API server: the only module that talks to it.

Requests are made by the `kubernetes` package's connections in a pool of threads, and answers stay dictionaries:
no object of another version's fields is lost on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode

from tablebay.operator.clock import Clock

FIELD_MANAGER = "tablebay-operator"
REQUEST_S = 30.0
CONNECT_S = 5.0
PAGE = 500
# No longer than that is the API server left alone, whatever it says.
RESPITE_MAX_S = 300.0

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"

Manifest = dict[str, Any]
# Told of each request: verb, resource, status code as text ("error" where there was no answer).
OnRequest = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Resource:
    """A kind of object, as the API server's paths name it. api: `v1` or `group/version`."""

    api: str
    plural: str
    kind: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The path of one object, of all in a namespace, or of all."""
        parts = ["api" if self.api == "v1" else "apis", self.api]
        if namespace:
            parts += ["namespaces", quote(namespace)]
        parts += [part for part in (self.plural, quote(name), subresource) if part]
        return "/" + "/".join(parts)


TRAINING_JOBS = Resource("tablebay.dev/v1alpha1", "trainingjobs", "TrainingJob")
STATEFUL_SETS = Resource("apps/v1", "statefulsets", "StatefulSet")
JOBS = Resource("batch/v1", "jobs", "Job")
PODS = Resource("v1", "pods", "Pod")
SERVICES = Resource("v1", "services", "Service")
SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts", "ServiceAccount")
DISRUPTION_BUDGETS = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES = Resource("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy")
CLAIMS = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
POD_MONITORS = Resource("monitoring.coreos.com/v1", "podmonitors", "PodMonitor")
SECRETS = Resource("v1", "secrets", "Secret")
EVENTS = Resource("v1", "events", "Event")
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")

# By the scheduler that they are of, as a job file names it.
POD_GROUPS = {
    "Volcano": Resource("scheduling.volcano.sh/v1beta1", "podgroups", "PodGroup"),
    "Coscheduling": Resource("scheduling.x-k8s.io/v1alpha1", "podgroups", "PodGroup"),
}

# What Kueue makes of a Job that waits in one of its queues: of what it serves the first is taken.
WORKLOADS = tuple(
    Resource(f"kueue.x-k8s.io/{version}", "workloads", "Workload") for version in ("v1beta2", "v1beta1")
)

_BY_KIND = {
    (resource.api, resource.kind): resource
    for resource in (
        STATEFUL_SETS,
        JOBS,
        PODS,
        SERVICES,
        SERVICE_ACCOUNTS,
        DISRUPTION_BUDGETS,
        NETWORK_POLICIES,
        POD_MONITORS,
        *POD_GROUPS.values(),
        SECRETS,
    )
}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The resource that a manifest is of."""
    return _BY_KIND[manifest["apiVersion"], manifest["kind"]]


class ApiError(Exception):
    """The API server refused, or did not answer (status 0). retry_after_s: for how long it wants to be left alone."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after_s: float = 0.0) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {reason}: {message}" if status else message)

    @property
    def refused(self) -> bool:
        """Whether the same request would be refused again: the object itself is at fault, or forbidden."""
        # Server-side apply says 500 of a field of the wrong type.
        mistyped = self.status == 500 and "failed to create typed patch object" in self.message
        return mistyped or self.status in (400, 403, 405, 413, 415, 422)


class Gone(Exception):
    """A watch can go on only after a new list."""


class Respite:
    """For how long the API server wants to be left alone, as it said last. For any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0

    def give(self, seconds: float) -> None:
        """The API server has asked for so many seconds from now."""
        self._until = max(self._until, self._clock() + min(seconds, RESPITE_MAX_S))

    def check(self) -> None:
        """Raises ApiError 429 while it lasts: what is asked for then is not asked for at all."""
        left = self._until - self._clock()
        if left > 0:
            text = f"the API server asked to be left alone for another {left:.1f} s"
            raise ApiError(429, "TooManyRequests", text, retry_after_s=left)


class TokenBucket:
    """Lets `rate` writes a second through, after a burst of `burst`."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._filled = time.monotonic()

    async def take(self) -> None:
        """Wait for a token."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        # Below 0 it is a debt: whoever comes later waits longer, in order.
        self._tokens -= 1.0
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)


class Cluster:
    """Reads and writes of the API server.

    threads: requests at once. qps, burst: of writes, all kinds together.
    """

    def __init__(
        self,
        *,
        threads: int = 16,
        qps: float = 100.0,
        burst: int = 200,
        on_request: OnRequest = lambda verb, resource, code: None,
    ) -> None:
        from kubernetes import client, config

        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call,unused-ignore]
        except config.ConfigException:
            config.load_kube_config()  # type: ignore[no-untyped-call,unused-ignore]
        configuration = client.Configuration.get_default_copy()
        # Each watch holds a connection for itself.
        configuration.connection_pool_maxsize = threads + 16
        configuration.retries = False
        self._configuration = configuration
        self._connections = client.ApiClient(configuration).rest_client.pool_manager
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="api")
        self._writes = TokenBucket(qps, burst)
        self._respite = Respite()
        self.clock = Clock()
        self._on_request = on_request

    @property
    def address(self) -> str:
        """The API server's URL."""
        return str(self._configuration.host)

    # -- one object --

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """The live object, or None."""
        try:
            return await self._run("get", resource, "GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, resource: Resource, namespace: str, body: Manifest) -> Manifest:
        """Make an object that must not exist yet (ApiError 409)."""
        await self._writes.take()
        return await self._run("create", resource, "POST", resource.path(namespace), body)

    async def apply(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Server-side apply of what we own of an object; the live object that comes of it."""
        if not dry_run:
            await self._writes.take()
        resource, meta = resource_of(manifest), manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = resource.path(meta["namespace"], meta["name"])
        return await self._run("apply", resource, "PATCH", path, manifest, query, _APPLY)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Manifest, *, subresource: str = ""
    ) -> Manifest:
        """Merge patch; a `metadata.resourceVersion` in the body is a precondition (ApiError 409)."""
        await self._writes.take()
        path = resource.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._run("patch", resource, "PATCH", path, body, query, _MERGE)

    async def replace(self, resource: Resource, namespace: str, name: str, body: Manifest) -> Manifest:
        """Put an object in place of the one of its resourceVersion (ApiError 409)."""
        return await self._run("update", resource, "PUT", resource.path(namespace, name), body)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, resource_version: str = ""
    ) -> None:
        """Delete this very object; one that is gone, or another of its name, is none of ours."""
        await self._writes.take()
        preconditions = {"uid": uid}
        if resource_version:
            preconditions["resourceVersion"] = resource_version
        body = {"propagationPolicy": "Background", "preconditions": preconditions}
        try:
            await self._run("delete", resource, "DELETE", resource.path(namespace, name), body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def list_all(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """All objects, live, page by page."""
        items: list[Manifest] = []
        token = ""
        while True:
            page = {**(query or {}), "limit": str(PAGE), **({"continue": token} if token else {})}
            answer = await self._run("list", resource, "GET", resource.path(namespace), None, page)
            items += answer.get("items") or []
            token = answer["metadata"].get("continue", "")
            if not token:
                return items

    async def names(self, resource: Resource, namespace: str | None) -> dict[tuple[str, str], str]:
        """The uid of each object by (namespace, name), from the API server's cache: cheap for both."""
        accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
        answer = await self._run(
            "list",
            resource,
            "GET",
            resource.path(namespace),
            None,
            {"resourceVersion": "0"},
            accept=accept,
        )
        return {
            (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item["metadata"]["uid"]
            for item in answer.get("items") or []
        }

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows this kind of object."""
        path = f"/apis/{resource.api}"
        try:
            answer = await self._run("get", resource, "GET", path)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(one["name"] == resource.plural for one in answer.get("resources", ()))

    async def _run(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Manifest:
        def request() -> Manifest:
            response = self._request(
                verb, resource, method, path, body, query, content_type, accept, stream=False
            )
            answer: Manifest = json.loads(response.data)
            return answer

        return await asyncio.get_running_loop().run_in_executor(self._threads, request)

    # -- for informers, in threads of their own --

    def list_page(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str]
    ) -> tuple[list[Manifest], str, str]:
        """A page of a list: its items, the resource version, and the token of the next page or ""."""
        response = self._request("list", resource, "GET", resource.path(namespace), None, query)
        answer = json.loads(response.data)
        meta = answer["metadata"]
        return answer["items"] or [], meta["resourceVersion"], meta.get("continue", "")

    @contextlib.contextmanager
    def watch(
        self, resource: Resource, namespace: str | None, query: Mapping[str, str], silence_s: float
    ) -> Iterator[Iterator[tuple[str, Manifest]]]:
        """The events of a watch, as (type, object). Raises Gone; ApiError, also after `silence_s` without any."""
        response = self._request(
            "watch",
            resource,
            "GET",
            resource.path(namespace),
            None,
            {**query, "watch": "true", "allowWatchBookmarks": "true"},
            stream=True,
            read_s=silence_s,
        )
        try:
            yield _events(response)
        finally:
            response.close()
            response.release_conn()

    def _request(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        *,
        stream: bool = False,
        read_s: float = REQUEST_S,
    ) -> Any:
        import urllib3

        if resource is not LEASES:
            # Of the one who does not renew it another would take over, and ask no less.
            self._respite.check()
        headers = {"Accept": accept, "User-Agent": FIELD_MANAGER}
        settings: Mapping[str, Any] = self._configuration.auth_settings()
        for setting in settings.values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        content = None
        if body is not None:
            headers["Content-Type"] = content_type
            content = json.dumps(body).encode()
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._connections.request(
                method,
                url,
                body=content,
                headers=headers,
                preload_content=not stream,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s),
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._on_request(verb, resource.plural, "error")
            raise ApiError(0, "Unreachable", f"{self.address}: {_cause(error)}") from None
        self._on_request(verb, resource.plural, str(response.status))
        told = _moment(response.headers.get("Date", ""))
        if told is not None:
            self.clock.heard(told)
        if response.status >= 400:
            refusal = _refusal(response)
            if isinstance(refusal, ApiError):
                self._respite.give(refusal.retry_after_s)
            raise refusal
        return response


def _events(response: Any) -> Iterator[tuple[str, Manifest]]:
    import urllib3

    rest = b""
    try:
        for chunk in response.stream(64 * 1024):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not line.strip():
                    continue
                event = json.loads(line)
                kind, content = event["type"], event["object"]
                if kind == "ERROR":
                    if content.get("code") == 410:
                        raise Gone
                    raise ApiError(
                        content.get("code", 0), content.get("reason", ""), content.get("message", "")
                    )
                yield kind, content
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ApiError(0, "Unreachable", f"the watch broke off: {_cause(error)}") from None


def _refusal(response: Any) -> ApiError | Gone:
    content = response.data or response.read()
    try:
        status = json.loads(content)
        reason, message = status.get("reason", ""), status.get("message", "")
    except (ValueError, AttributeError):
        reason, message = "", content[:300].decode("utf-8", "replace")
    if response.status == 410:
        return Gone()
    return ApiError(response.status, reason, message, retry_after_s=_retry_after_s(response))


def _retry_after_s(response: Any) -> float:
    """What Retry-After says of a server that has too much to do: seconds, or a time; 0 where it says nothing."""
    said = response.headers.get("Retry-After", "").strip() if response.status in (429, 503) else ""
    if said.isdecimal():
        return float(said)
    at, now = _moment(said), _moment(response.headers.get("Date", "")) or datetime.datetime.now(datetime.UTC)
    return 0.0 if at is None else max(0.0, (at - now).total_seconds())


def _moment(said: str) -> datetime.datetime | None:
    """A time as HTTP writes it; None of another text."""
    try:
        found = parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def own_namespace() -> str:
    """The namespace that this pod, or else the kubeconfig's context, is in."""
    found = os.environ.get("POD_NAMESPACE", "")
    if found:
        return found
    with (
        contextlib.suppress(OSError),
        open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file,
    ):
        return file.read().strip()
    return "default"
