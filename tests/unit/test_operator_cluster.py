"""The operator's requests, against an API server on loopback. `Api` is that server; other tests use it as well."""

from __future__ import annotations

import asyncio
import copy
import datetime
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from unit.api_server import write_kubeconfig

from tablebay.operator import cluster as subject
from tablebay.operator.clock import Clock
from tablebay.operator.cluster import (
    JOBS,
    LEASES,
    POD_MONITORS,
    PODS,
    SERVICES,
    TRAINING_JOBS,
    ApiError,
    Cluster,
    Resource,
    Respite,
    TokenBucket,
)

Body = dict[str, Any]
Answer = tuple[int, Any]


def refusal(code: int, reason: str, message: str = "") -> Answer:
    """As the API server writes it."""
    return code, {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


def thing(name: str, job: str = "a", namespace: str = "ads", **content: Any) -> Body:
    """An object of a job, as much of it as every projection needs."""
    labels = {"tablebay.dev/job": job} if job else {}
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {}, **content}


class Api:
    """Objects of all kinds with resource versions, lists in pages, and watches with a history.

    fault: asked first; an answer of its own goes out instead. silent: watches send nothing.
    gone: how a version that is forgotten is refused: as a "status" or as an "event".
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Body] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.fault: Callable[[str, str, dict[str, str]], Answer | None] = lambda method, path, query: None
        # Headers of what is not a success.
        self.headers: dict[str, str] = {}
        self.groups: dict[str, list[str]] = {}
        self.silent = False
        self.gone = "status"
        self.version = 10
        self.address = ""
        self._forgotten = 0
        self._history: list[tuple[int, str, str, Body]] = []
        self._breaks: list[bool] = []
        self._changed = threading.Condition(threading.RLock())

    # -- what a test does --

    def put(self, resource: Resource, body: Body) -> Body:
        """Make or change an object."""
        with self._changed:
            key = self._key(resource.plural, body)
            known = self.objects.get(key)
            made = copy.deepcopy(body)
            made["metadata"].setdefault("uid", known["metadata"]["uid"] if known else f"uid-{self.version}")
            made["metadata"]["resourceVersion"] = str(self.version + 1)
            self.objects[key] = made
            self._note("MODIFIED" if known else "ADDED", resource.plural, made)
            return copy.deepcopy(made)

    def remove(self, resource: Resource, name: str, namespace: str = "ads") -> None:
        """Delete an object."""
        with self._changed:
            body = self.objects.pop((resource.plural, namespace, name))
            body["metadata"]["resourceVersion"] = str(self.version + 1)
            self._note("DELETED", resource.plural, body)

    def bookmark(self, resource: Resource) -> str:
        """Say how far the watches are."""
        with self._changed:
            self._note("BOOKMARK", resource.plural, {"metadata": {"resourceVersion": str(self.version + 1)}})
            return str(self.version)

    def forget(self) -> None:
        """Whoever asks for what happened until now must list."""
        with self._changed:
            self._forgotten = self.version
            self._history.clear()

    def break_watches(self, *, properly: bool = False) -> None:
        """End every connection that watches, in the middle or properly."""
        with self._changed:
            self._breaks.append(properly)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let watches see that `silent` has changed."""
        with self._changed:
            self._changed.notify_all()

    def asked(self, *, watch: bool) -> list[dict[str, str]]:
        """The queries of the lists, or of the watches."""
        with self._changed:
            return [
                query
                for method, path, query in self.requests
                if method == "GET" and ("watch" in query) == watch and "labelSelector" in query
            ]

    # -- what it answers --

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer | None:
        """None: a watch."""
        if (answer := self.fault(method, path, query)) is not None:
            return answer
        parts = path.strip("/").split("/")
        group, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        if not rest:
            found = self.groups.get(group)
            return (
                (200, {"resources": [{"name": one} for one in found]}) if found else refusal(404, "NotFound")
            )
        namespace, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" else (None, rest)
        if method == "POST":
            body["metadata"].setdefault("namespace", namespace)
            if self._key(rest[0], body) in self.objects:
                return refusal(409, "AlreadyExists", body["metadata"]["name"])
            return 201, self.put(Resource("", rest[0], ""), body)
        if len(rest) == 1:
            return None if "watch" in query else self._list(rest[0], namespace, query)
        return self._one(method, rest[0], (rest[0], namespace or "", rest[1]), query, body)

    def _one(
        self, method: str, plural: str, key: tuple[str, str, str], query: dict[str, str], body: Any
    ) -> Answer:
        known = self.objects.get(key)
        resource = Resource("", plural, "")
        if known is None and not (method == "PATCH" and "force" in query):
            return refusal(404, "NotFound", key[2])
        if method == "GET":
            return 200, known
        meta = known["metadata"] if known else {}
        if method == "DELETE":
            if body["preconditions"]["uid"] != meta["uid"]:
                return refusal(409, "Conflict", "uid")
            self.remove(resource, key[2], key[1])
            return 200, {"kind": "Status", "status": "Success"}
        if body["metadata"].get("resourceVersion", meta.get("resourceVersion")) != meta.get(
            "resourceVersion"
        ):
            return refusal(409, "Conflict", "resourceVersion")
        if method == "PATCH":
            body = merged(known or {}, body)
        if "dryRun" in query:
            return 200, body
        return 200, self.put(resource, body)

    def _list(self, plural: str, namespace: str | None, query: dict[str, str]) -> Answer:
        found = [
            body
            for (kind, where, _), body in sorted(self.objects.items())
            if kind == plural and namespace in (None, where) and selected(body, query)
        ]
        begin = int(query.get("continue", "0"))
        end = begin + int(query.get("limit", "1000000"))
        meta = {"resourceVersion": str(self.version)}
        if end < len(found):
            meta["continue"] = str(end)
        return 200, {"metadata": meta, "items": found[begin:end]}

    def events(
        self, plural: str, namespace: str | None, query: dict[str, str], begun: int
    ) -> Iterator[Body | bool]:
        """The events of a watch that was asked for after so many breaks; last, whether it ends properly."""
        since = int(query["resourceVersion"])
        with self._changed:
            if since < self._forgotten:
                yield {"type": "ERROR", "object": refusal(410, "Expired")[1]}
                yield True
                return
        while True:
            with self._changed:
                if len(self._breaks) > begun:
                    yield self._breaks[begun]
                    return
                fresh = [] if self.silent else [one for one in self._history if one[0] > since]
                if not fresh:
                    self._changed.wait(0.5)
            for version, kind, found, body in fresh:
                since = version
                where = body["metadata"].get("namespace")
                if found == plural and (
                    kind == "BOOKMARK" or (namespace in (None, where) and selected(body, query))
                ):
                    yield {"type": kind, "object": body}

    def _note(self, kind: str, plural: str, body: Body) -> None:
        self.version += 1
        self._history.append((self.version, kind, plural, copy.deepcopy(body)))
        self._changed.notify_all()

    @staticmethod
    def _key(plural: str, body: Body) -> tuple[str, str, str]:
        return plural, body["metadata"]["namespace"], body["metadata"]["name"]


def selected(body: Body, query: dict[str, str]) -> bool:
    """Whether a label selector of one term takes an object."""
    name, _, value = query.get("labelSelector", "").partition("=")
    labels = body["metadata"].get("labels", {})
    return not name or (name in labels and value in ("", labels[name]))


def merged(into: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict) or not isinstance(into, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(into)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def handler(api: Api) -> type[BaseHTTPRequestHandler]:
    """Speaks HTTP for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _do(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with api._changed:
                api.requests.append((self.command, url.path, query))
                answer = api.answer(self.command, url.path, query, body)
                old = answer is None and int(query["resourceVersion"]) < api._forgotten
                if old and api.gone == "status":
                    answer = refusal(410, "Expired", "too old resource version")
                data = b"" if answer is None else answer_bytes(answer[1])
                begun = len(api._breaks)
            if answer is None:
                self._stream(url.path, query, begun)
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(data)))
            for name, value in (api.headers if answer[0] >= 400 else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, path: str, query: dict[str, str], begun: int) -> None:
            parts = path.split("/")
            namespace = parts[-2] if "namespaces" in parts else None
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in api.events(parts[-1], namespace, query, begun):
                if isinstance(event, bool):
                    self.close_connection = True
                    if event:
                        self.wfile.write(b"0\r\n\r\n")
                    return
                data = json.dumps(event).encode() + b"\n"
                # In two pieces, because a line may come in more than one.
                for piece in (data[:7], data[7:]):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on standard error."""

    return Handler


def answer_bytes(content: Any) -> bytes:
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that has gone away is no error."""


@contextmanager
def serving() -> Iterator[Api]:
    """An API server at `address`, until the end."""
    api = Api()
    server = _Quiet(("127.0.0.1", 0), handler(api))
    api.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        api.break_watches(properly=True)
        server.server_close()
        thread.join()


def use(api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kubernetes package find this server, by a kubeconfig."""
    write_kubeconfig(folder / "config", api.address)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))
    # The package reads the variable when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "config"))


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names."""
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


def test_an_object_is_made_read_and_deleted(api: Api) -> None:
    """Answers are the objects; what is not there is None, and deleting it is no error."""

    async def run() -> None:
        cluster = Cluster()
        assert await cluster.get(PODS, "ads", "p") is None
        made = await cluster.create(PODS, "ads", thing("p"))
        assert await cluster.get(PODS, "ads", "p") == made
        await cluster.delete(PODS, "ads", "p", uid=made["metadata"]["uid"])
        assert await cluster.get(PODS, "ads", "p") is None
        await cluster.delete(PODS, "ads", "p", uid=made["metadata"]["uid"])

    asyncio.run(run())


def test_another_object_of_the_name_is_not_deleted(api: Api) -> None:
    """The uid is a precondition; that it is another's is no error."""

    async def run() -> None:
        api.put(PODS, thing("p"))
        await Cluster().delete(PODS, "ads", "p", uid="of the one before")

    asyncio.run(run())
    assert ("pods", "ads", "p") in api.objects


def test_a_patch_of_an_older_state_is_a_conflict(api: Api) -> None:
    """The resourceVersion in the body is a precondition."""

    async def run() -> None:
        cluster = Cluster()
        made = api.put(JOBS, thing("j", kind="Job"))
        body = {
            "metadata": {"resourceVersion": made["metadata"]["resourceVersion"]},
            "spec": {"suspend": False},
        }
        live = await cluster.patch(JOBS, "ads", "j", body)
        assert live["spec"] == {"suspend": False}
        with pytest.raises(ApiError) as caught:
            await cluster.patch(JOBS, "ads", "j", body)
        assert caught.value.status == 409

    asyncio.run(run())


def test_apply_says_who_applies_and_a_dry_run_changes_nothing(api: Api) -> None:
    """Server-side apply, forced, and strict about fields that do not exist."""

    async def run() -> None:
        cluster = Cluster()
        manifest = {"apiVersion": "v1", "kind": "Service", **thing("s")}
        await cluster.apply(manifest, dry_run=True)
        assert not api.objects
        await cluster.apply(manifest)

    asyncio.run(run())
    assert ("services", "ads", "s") in api.objects
    method, path, query = api.requests[-1]
    assert (method, path) == ("PATCH", "/api/v1/namespaces/ads/services/s")
    assert query == {"fieldManager": "tablebay-operator", "force": "true", "fieldValidation": "Strict"}


def test_a_list_is_read_to_its_last_page(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every namespace, or of one, and only what the selector takes."""
    monkeypatch.setattr(subject, "PAGE", 2)
    for number in range(5):
        api.put(SERVICES, thing(f"s{number}", job="ab"[number % 2]))
    api.put(SERVICES, thing("s9", namespace="else"))

    async def run() -> tuple[list[Body], list[Body]]:
        cluster = Cluster()
        of_a = {"labelSelector": "tablebay.dev/job=a"}
        return await cluster.list_all(SERVICES, "ads", of_a), await cluster.list_all(SERVICES, None)

    mine, every = asyncio.run(run())
    assert [one["metadata"]["name"] for one in mine] == ["s0", "s2", "s4"]
    assert len(every) == 6


def test_names_and_uids_are_read_from_the_api_servers_cache(api: Api) -> None:
    """One cheap request for all jobs."""
    made = api.put(TRAINING_JOBS, thing("a"))
    found = asyncio.run(Cluster().names(TRAINING_JOBS, None))
    assert found == {("ads", "a"): made["metadata"]["uid"]}
    assert api.requests[-1][2] == {"resourceVersion": "0"}


def test_a_kind_that_the_cluster_lacks_is_not_served(api: Api) -> None:
    """Neither without the group nor with a group that has other kinds."""
    assert asyncio.run(Cluster().serves(POD_MONITORS)) is False
    api.groups["monitoring.coreos.com/v1"] = ["prometheuses"]
    assert asyncio.run(Cluster().serves(POD_MONITORS)) is False
    api.groups["monitoring.coreos.com/v1"] = ["prometheuses", "podmonitors"]
    assert asyncio.run(Cluster().serves(POD_MONITORS)) is True


@pytest.mark.parametrize(
    ("code", "message", "refused"),
    [
        (422, "invalid", True),
        (403, "forbidden", True),
        (400, "bad", True),
        (500, "failed to create typed patch object (ads/j)", True),
        (500, "etcdserver: leader changed", False),
        (503, "", False),
        (429, "", False),
        (409, "", False),
    ],
)
def test_what_would_be_refused_again_is_told_from_what_may_pass(
    api: Api, code: int, message: str, refused: bool
) -> None:
    """The first is the user's to mend, the second is tried again."""
    api.fault = lambda method, path, query: refusal(code, "Why", message)
    with pytest.raises(ApiError) as caught:
        asyncio.run(Cluster().get(LEASES, "ads", "l"))
    assert (caught.value.status, caught.value.reason, caught.value.message) == (code, "Why", message)
    assert caught.value.refused is refused


def test_a_server_that_is_not_there_is_said_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 0, and no endless tries."""
    seen: list[tuple[str, str, str]] = []
    with socket.socket() as nobody:
        # Bound, but not listening.
        nobody.bind(("127.0.0.1", 0))
        absent = Api()
        absent.address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        use(absent, tmp_path, monkeypatch)
        with pytest.raises(ApiError, match=rf"{absent.address}: .*refused") as caught:
            asyncio.run(Cluster(on_request=lambda *what: seen.append(what)).get(PODS, "ads", "p"))
    assert caught.value.status == 0
    assert not caught.value.refused
    assert seen == [("get", "pods", "error")]


def test_each_request_is_counted_with_its_answer(api: Api) -> None:
    """Verb, resource, code; the token of the kubeconfig goes with it."""
    seen: list[tuple[str, str, str]] = []

    async def run() -> None:
        cluster = Cluster(on_request=lambda *what: seen.append(what))
        await cluster.create(PODS, "ads", thing("p"))
        await cluster.get(PODS, "ads", "p")
        await cluster.get(PODS, "ads", "q")

    asyncio.run(run())
    assert seen == [("create", "pods", "201"), ("get", "pods", "200"), ("get", "pods", "404")]


def test_writes_are_held_to_their_rate() -> None:
    """A burst at once, the rest one after another."""

    async def run() -> float:
        bucket = TokenBucket(100.0, 10)
        began = time.monotonic()
        await asyncio.gather(*(bucket.take() for _ in range(30)))
        return time.monotonic() - began

    assert 0.18 <= asyncio.run(run()) < 2.0


def date(seconds: float) -> str:
    """As HTTP writes a time so many seconds from now."""
    return formatdate(time.time() + seconds, usegmt=True)


# (Dates have names of their own: processes that test side by side must collect the same.)
@pytest.mark.parametrize(
    ("status", "said", "least", "most"),
    [
        (429, "40", 39, 40),
        (503, "7", 6, 7),
        pytest.param(429, date(3600), 299, 300, id="in an hour"),
        (503, "999999999", 299, 300),
        (429, "", 0, 0),
        (429, "soon", 0, 0),
        pytest.param(429, date(-60), 0, 0, id="a minute ago"),
        (429, "-5", 0, 0),
        (500, "40", 0, 0),
        (403, "40", 0, 0),
    ],
)
def test_f7_an_api_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_says(
    api: Api, status: int, said: str, least: float, most: float
) -> None:
    """Nothing is asked of it meanwhile but the lease; what would be says so, and for how long still."""
    api.headers = {"Retry-After": said}
    api.fault = lambda method, path, query: refusal(status, "Busy") if path.endswith("/p") else None

    async def run() -> None:
        cluster = Cluster()
        with pytest.raises(ApiError):
            await cluster.get(PODS, "ads", "p")
        before = len(api.requests)
        assert await cluster.get(LEASES, "ads", "l") is None
        assert len(api.requests) == before + 1
        if most == 0:
            assert await cluster.get(PODS, "ads", "q") is None
            return
        with pytest.raises(ApiError) as caught:
            await cluster.get(PODS, "ads", "q")
        assert len(api.requests) == before + 1
        assert caught.value.status == 429
        assert least <= caught.value.retry_after_s <= most

    asyncio.run(run())


def test_f7_when_that_time_is_over_it_is_asked_again() -> None:
    """By a clock that no hand moves; a shorter time that is said later takes nothing away."""
    now = [100.0]
    respite = Respite(lambda: now[0])
    respite.check()
    respite.give(10)
    respite.give(1)
    now[0] = 109.9
    with pytest.raises(ApiError, match=r"another 0\.1 s"):
        respite.check()
    now[0] = 110.0
    respite.check()


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_f43_the_api_servers_time_is_the_operators(
    api: Api, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer bears it, a refusal too; a second or two are no difference."""
    wrong = datetime.timedelta(hours=hours)
    local = datetime.datetime.now(datetime.UTC)

    async def run() -> None:
        cluster = Cluster()
        cluster.clock = Clock(lambda: local - wrong)
        assert cluster.clock.now() == local - wrong
        assert await cluster.get(PODS, "ads", "p") is None
        assert abs(cluster.clock.now() - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(seconds=4)
        if hours == 0:
            assert cluster.clock.now() == local

    asyncio.run(run())
