"""A small API server on loopback: TrainingJobs, pods, logs and events as Kubernetes speaks of them over HTTP."""

from __future__ import annotations

import copy
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

JOBS = "/apis/tablebay.dev/v1alpha1"
CREATED = "2026-01-02T03:04:05Z"


def status(code: int, reason: str, message: str, **details: Any) -> tuple[int, dict[str, Any]]:
    """A refusal as the API server writes it."""
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }


class ApiServer:
    """Jobs by (namespace, name). `forced` answers before all else; `requests` is what was asked."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.logs: dict[tuple[str, bool], str] = {}
        self.forced: list[tuple[int, Any]] = []
        self.refused: dict[str, tuple[int, Any]] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.address = ""
        self._version = 10
        self._watchers: list[queue.Queue[Any]] = []
        self._lock = threading.RLock()

    def put(self, job: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
        """Store a job, as created or changed, and tell whoever watches."""
        with self._lock:
            key = (namespace, job["metadata"]["name"])
            kind = "MODIFIED" if key in self.jobs else "ADDED"
            self._version += 1
            made = copy.deepcopy(job)
            made["metadata"] = {
                "uid": f"uid-{self._version}",
                "creationTimestamp": CREATED,
                **self.jobs.get(key, {"metadata": {}})["metadata"],
                **made["metadata"],
                "namespace": namespace,
                "resourceVersion": str(self._version),
                "managedFields": [{"manager": "x"}],
            }
            self.jobs[key] = made
            self._tell(kind, made)
            return made

    def change(self, name: str, found: dict[str, Any]) -> None:
        """Set a job's status."""
        with self._lock:
            self.put({**self.jobs[("default", name)], "status": found})

    def remove(self, name: str, namespace: str = "default") -> None:
        """Delete a job."""
        with self._lock:
            self._tell("DELETED", self.jobs.pop((namespace, name)))

    def break_watches(self, event: Any = None) -> None:
        """End every watch, with this event before."""
        with self._lock:
            for watcher in self._watchers:
                if event is not None:
                    watcher.put(event)
                watcher.put(None)

    def _tell(self, kind: str, job: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.put({"type": kind, "object": copy.deepcopy(job)})

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """(status, body), or a queue of events to stream, or text."""
        if self.forced:
            return self.forced.pop(0)
        for prefix, refusal in self.refused.items():
            if path.startswith(prefix):
                return refusal
        if path.startswith(JOBS):
            return self._jobs(method, path.removeprefix(JOBS).strip("/").split("/"), query, body)
        parts = path.strip("/").split("/")
        if parts[-1] == "log":
            text = self.logs.get((parts[-2], query.get("previous") == "true"))
            if text is None:
                return status(
                    400, "BadRequest", f'container "worker" in pod "{parts[-2]}" is waiting to start: X'
                )
            tail = int(query.get("tailLines", "1000"))
            return "".join(text.splitlines(keepends=True)[-tail:] if tail else [])
        items = self.pods if parts[-1] == "pods" else self.events
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        found = [one for one in items if wanted.items() <= one["metadata"].get("labels", {}).items()]
        return 200, {"kind": "List", "metadata": {}, "items": found}

    def _jobs(self, method: str, parts: list[str], query: dict[str, str], body: Any) -> Any:
        namespace = parts[1] if parts[0] == "namespaces" else None
        name = parts[3] if len(parts) > 3 else query.get("fieldSelector", "").removeprefix("metadata.name=")
        if method == "POST":
            key = (namespace or "", body["metadata"]["name"])
            if query.get("dryRun") == "All":
                return 201, body
            if key in self.jobs:
                return status(409, "AlreadyExists", "exists", name=key[1], kind="trainingjobs")
            return 201, self.put(body, key[0])
        if len(parts) > 3:
            key = (namespace or "", name)
            if key not in self.jobs:
                return status(
                    404, "NotFound", "not found", name=name, group="tablebay.dev", kind="trainingjobs"
                )
            if method == "DELETE":
                uid = self.jobs[key]["metadata"]["uid"]
                self.remove(*reversed(key))
                return 200, {"kind": "Status", "status": "Success", "details": {"name": name, "uid": uid}}
            if method == "PATCH":
                known = self.jobs[key]
                made = {**known, "spec": {**known["spec"], **body["spec"]}}
                generation = known["metadata"].get("generation", 1) + (made["spec"] != known["spec"])
                made["metadata"] = {**known["metadata"], "generation": generation}
                return 200, self.put(made, key[0])
            return 200, self.jobs[key]
        if query.get("watch") == "true":
            watcher: queue.Queue[Any] = queue.Queue()
            # What changed between the list and the watch, as a real one sends it.
            since = int(query["resourceVersion"])
            for job in self.jobs.values():
                if int(job["metadata"]["resourceVersion"]) > since:
                    watcher.put({"type": "MODIFIED", "object": job})
            self._watchers.append(watcher)
            return watcher
        found = [
            job for (where, own), job in self.jobs.items() if namespace in (None, where) and name in ("", own)
        ]
        return 200, {
            "kind": "TrainingJobList",
            "metadata": {"resourceVersion": str(self._version)},
            "items": found,
        }


def handler(api: ApiServer) -> type[BaseHTTPRequestHandler]:
    """Speaks HTTP for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with api._lock:
                api.requests.append((self.command, url.path, query, body))
                answer = api.answer(self.command, url.path, query, body)
            if isinstance(answer, queue.Queue):
                self._stream(answer, float(query.get("timeoutSeconds", "5")))
                return
            code, content = (200, answer) if isinstance(answer, str) else answer
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, events: queue.Queue[Any], seconds: float) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while (event := events.get(timeout=seconds)) is not None:
                    data = json.dumps(event).encode() + b"\n"
                    # In two pieces, because a line may come in more than one.
                    for piece in (data[:7], data[7:]):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                        self.wfile.flush()
            except (queue.Empty, OSError):
                pass
            with api._lock:
                api._watchers.remove(events)
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = do_PATCH = _do  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on standard error."""

    return Handler


@contextmanager
def serving() -> Iterator[ApiServer]:
    """An API server at `address`, until the end."""
    api = ApiServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(api))
    server.daemon_threads = True
    api.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        api.break_watches()
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(path: Path, address: str, namespace: str | None = None) -> None:
    """A kubeconfig whose context `here` is that address."""
    context = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "here", "context": context}],
        "current-context": "here",
    }
    path.write_text(json.dumps(content))


def job(name: str = "toy", servers: int = 2) -> dict[str, Any]:
    """A job as a user writes it."""
    return {
        "apiVersion": "tablebay.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "servers": {"replicas": servers},
            "workers": {
                "replicas": 2,
                "template": {"spec": {"containers": [{"name": "worker", "command": ["python", "train.py"]}]}},
            },
        },
    }


def condition(kind: str, value: str, reason: str = "", message: str = "") -> dict[str, str]:
    """One condition of a status."""
    return {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "lastTransitionTime": CREATED,
    }


def training(step: int) -> dict[str, Any]:
    """The status of a job that trains."""
    return {
        "conditions": [condition("Ready", "True", "Training")],
        "servers": {"readyText": "2/2"},
        "workers": {"readyText": "2/2"},
        "restarts": {"total": 1},
        "progress": {"step": step, "loss": 0.41, "auc": "0.79", "logloss": 0.4, "examplesPerSecond": 12345.6},
    }


COMPLETE = {
    **training(1200),
    "conditions": [condition("Ready", "False", "Completed"), condition("Complete", "True", "AllSucceeded")],
}
FAILED = {
    **training(900),
    "conditions": [
        condition("Ready", "False", "Failed"),
        condition("Failed", "True", "RestartsExceeded", "4 restarts,\nof 3 allowed"),
    ],
    "firstFailure": {
        "pod": "toy-worker-1-x",
        "container": "worker",
        "exitCode": 137,
        "reason": "OOMKilled",
        "message": "no\nmemory",
    },
}


def pod(
    name: str, role: str, index: int, *, label: str = "batch.kubernetes.io/job-completion-index", **more: Any
) -> dict[str, Any]:
    """A pod of the job toy; more: created, state, restarts."""
    state = more.get("state", {"running": {}})
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": more.get("created", CREATED),
            "labels": {"tablebay.dev/job": "toy", "tablebay.dev/role": role, label: str(index)},
        },
        "spec": {"containers": [{"name": "sidecar"}, {"name": role}]},
        "status": {
            "phase": more.get("phase", "Running"),
            "conditions": [{"type": "Ready", "status": "True" if "running" in state else "False"}],
            "containerStatuses": [{"name": role, "restartCount": more.get("restarts", 0), "state": state}],
        },
    }
