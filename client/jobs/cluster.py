"""The connection to a cluster's API server, and what its refusals mean.

The kubernetes package reads the kubeconfig (certificates, tokens, plugins, proxies) and makes the connections.
Requests are plain HTTP through its pool, because its generated methods differ from version to version and cannot
keep a stream open without a time limit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tablebay.client.jobs.errors import (
    ChartMissing,
    ClusterError,
    ClusterUnreachable,
    JobExists,
    JobNotFound,
    JobRefused,
    NoCluster,
    NotPermitted,
)
from tablebay.client.jobs.model import mapping, words

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

# Together below 15 s: the longest that a command waits for an API server that is not there.
CONNECT_S, READ_S = 5.0, 9.0
ANSWER_BYTES_MAX = 256 * 1024 * 1024
GROUP, VERSION, PLURAL = "tablebay.dev", "v1alpha1", "trainingjobs"
RESOURCE = f"{PLURAL}.{GROUP}"
_POD_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_IN_A_POD = "KUBERNETES_SERVICE_HOST"
_INSTALL = "helm install tablebay deploy/helm/tablebay --namespace tablebay-system --create-namespace"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to ask: `verb` and `resource` as in a role's rules, which is also how a refusal names them."""

    verb: str
    resource: str
    path: str
    namespace: str | None = None
    name: str = ""
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        """The HTTP method of the verb."""
        return {"create": "POST", "delete": "DELETE", "patch": "PATCH"}.get(self.verb, "GET")


def job_request(verb: str, namespace: str | None, name: str = "", **more: Any) -> Request:
    """A request about jobs: of one namespace, or of all where it is None."""
    # What is created has its name in the body alone.
    path = _path(f"/apis/{GROUP}/{VERSION}", namespace, PLURAL, "" if verb == "create" else name)
    return Request(verb=verb, resource=RESOURCE, path=path, namespace=namespace, name=name, **more)


def core_request(verb: str, resource: str, namespace: str, name: str = "", **more: Any) -> Request:
    """A request about pods, their logs (`pods/log`) or events."""
    kind, _, part = resource.partition("/")
    path = _path("/api/v1", namespace, kind, name) + (f"/{part}" if part else "")
    return Request(verb=verb, resource=resource, path=path, namespace=namespace, name=name, **more)


class Cluster:
    """An API server and who asks it. Raises NoCluster when nothing says which."""

    def __init__(self, context: str | None = None) -> None:
        configuration, self.namespace = _configuration(context)
        self._configuration = configuration
        self.address = str(configuration.host)
        self._pool = _pool(configuration)

    def ask(self, request: Request) -> dict[str, Any]:
        """The answer to a request. Raises ClusterError."""
        import urllib3

        response = self._send(request, read_s=READ_S)
        try:
            content = response.read(ANSWER_BYTES_MAX, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from None
        finally:
            response.release_conn()
        answer = _json(content)
        if answer is None:
            raise ClusterError(
                f"what answers at {self.address} is no Kubernetes API server; see your kubeconfig"
            )
        return answer

    def stream(self, request: Request, *, read_s: float | None = None) -> Iterator[bytes]:
        """An answer's lines as they come, without end of line. Raises ClusterError.

        read_s: the longest that nothing may come.
        """
        import urllib3

        response = self._send(request, read_s=read_s)
        rest = b""
        try:
            for chunk in response.stream(2**16, decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
            if rest:
                yield rest
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def _send(self, request: Request, *, read_s: float | None) -> BaseHTTPResponse:
        import urllib3

        query = f"?{urlencode(request.query)}" if request.query else ""
        headers = {"Accept": "application/json", "User-Agent": "tablebay"}
        if request.body is not None:
            merges = request.verb == "patch"
            headers["Content-Type"] = "application/merge-patch+json" if merges else "application/json"
        for auth in self._configuration.auth_settings().values():
            headers[auth["key"]] = str(auth["value"]).strip()
        try:
            response = self._pool.request(
                request.method,
                self.address.rstrip("/") + request.path + query,
                headers=headers,
                body=json.dumps(request.body, allow_nan=False).encode() if request.body is not None else None,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            if 200 <= response.status <= 299:
                return response
            content = response.read(2**20, decode_content=True)
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
            raise self._unreachable(error) from None
        raise self._refusal(request, response.status, str(response.reason or ""), content)

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(f"cannot reach the API server at {self.address}: {_reason(error)}")

    def _refusal(self, request: Request, status: int, reason: str, content: bytes) -> ClusterError:
        """The error that an answer is."""
        answer = _json(content) or {}
        message = words(answer.get("message")) or words(content[:200].decode("utf-8", "replace"))
        where = f"namespace {request.namespace}" if request.namespace else "all namespaces"
        if status == 401:
            return NotPermitted(
                f"the API server at {self.address} does not accept these credentials (401): "
                "see the user in your kubeconfig, or log in again"
            )
        if status == 403:
            return NotPermitted(f"not permitted to {request.verb} {request.resource} in {where}: {message}")
        if status == 404:
            return self._not_found(request, answer, message, where)
        if status == 409 and answer.get("reason") == "AlreadyExists":
            return JobExists(f"{request.name}: exists already in {where}")
        if status in (400, 422):
            if request.resource == RESOURCE:
                return JobRefused(_problems(answer, message), source=request.name)
            return ClusterError(message)
        text = f"the API server at {self.address} answered {status} {reason}".rstrip()
        kind = ClusterUnreachable if status == 429 or status >= 500 else ClusterError
        return kind(f"{text}: {message}" if message else text)

    def _not_found(
        self, request: Request, answer: Mapping[str, Any], message: str, where: str
    ) -> ClusterError:
        details = mapping(answer, "details")
        if details.get("kind") == "namespaces":
            return ClusterError(f"{where} does not exist; make it with: kubectl create {where}")
        if request.resource != RESOURCE:
            return JobNotFound(message)
        if details.get("name"):
            return JobNotFound(f"no TrainingJob {request.name} in {where}; tablebay get -A lists all")
        return ChartMissing(
            f"the cluster at {self.address} knows no {RESOURCE}: the chart is not installed; "
            f"install it with: {_INSTALL}"
        )


def _path(base: str, namespace: str | None, kind: str, name: str) -> str:
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{base}{inside}/{kind}" + (f"/{quote(name, safe='')}" if name else "")


def _json(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _problems(answer: Mapping[str, Any], message: str) -> list[str]:
    causes = mapping(answer, "details").get("causes")
    found = [
        ": ".join(text for text in (words(one.get("field")), words(one.get("message"))) if text)
        for one in (causes if isinstance(causes, list) else [])
        if isinstance(one, Mapping)
    ]
    if not found and "unknown field" in message:
        message += " (the chart on the cluster is of another version than this tablebay)"
    return [text for text in dict.fromkeys(found) if text] or [message]


def _reason(error: Exception) -> str:
    """Why there was no answer, without the names of Python's objects."""
    from urllib3 import exceptions

    # NewConnectionError is a ConnectTimeoutError too, and NameResolutionError both.
    if isinstance(error, exceptions.NameResolutionError):
        return "its name is not known here"
    if isinstance(error, exceptions.ConnectTimeoutError) and not isinstance(
        error, exceptions.NewConnectionError
    ):
        return f"no connection within {CONNECT_S:.0f} s"
    if isinstance(error, exceptions.ReadTimeoutError):
        return "no answer in time"
    # Less the object that it happened to: "HTTPSConnection(host='h', port=1): Failed to establish ...".
    return words(re.sub(r"^\S*(<.*>|Connection(Pool)?\(.*?\)): ", "", str(error)) or error)


def _configuration(context: str | None) -> tuple[Any, str]:
    """The kubernetes package's configuration, and the namespace that is meant where none is named."""
    try:
        import kubernetes.client
        import kubernetes.config
    except ImportError:
        raise NoCluster(
            "jobs on a cluster need the kubernetes package; install it with: pip install 'tablebay[kubernetes]'"
        ) from None
    import yaml

    # Some versions of the package have types, and these not for all that is called here.
    config: Any = kubernetes.config
    given = os.environ.get("KUBECONFIG") or ""
    files = given or os.path.expanduser("~/.kube/config")
    found = [path for path in files.split(os.pathsep) if path and Path(path).expanduser().exists()]
    configuration = kubernetes.client.Configuration()
    try:
        if found:
            contexts, active = config.list_kube_config_contexts(config_file=files)
            chosen = next((one for one in contexts if one["name"] == context), None) if context else active
            if chosen is None:
                names = ", ".join(str(one["name"]) for one in contexts)
                raise NoCluster(f"no context {context} in {files}; wanted one of {names or 'none'}")
            config.load_kube_config(
                config_file=files,
                context=chosen["name"],
                client_configuration=configuration,
                persist_config=False,
            )
            return configuration, str(chosen["context"].get("namespace") or "default")
        if context is not None or given or _IN_A_POD not in os.environ:
            raise NoCluster(
                f"no kubeconfig: {files} does not exist; set KUBECONFIG to the file that says how to reach the cluster"
            )
        config.load_incluster_config(client_configuration=configuration)
        return configuration, Path(_POD_NAMESPACE_FILE).read_text(encoding="utf-8").strip() or "default"
    except NoCluster:
        raise
    except (
        config.ConfigException,
        yaml.YAMLError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        what = f"kubeconfig {files}" if found else "the pod's service account"
        raise NoCluster(f"{what}: {words(error)}") from None


def _pool(configuration: Any) -> PoolManager:
    import urllib3
    from kubernetes import client

    try:
        pool: PoolManager = client.ApiClient(configuration).rest_client.pool_manager
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise NoCluster(
            f"cannot use what the kubeconfig says of {configuration.host}: {words(error)}"
        ) from None
    return pool
