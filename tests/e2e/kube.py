"""kubectl and helm, as a person uses them; looking at objects without them; and waiting for what is to be seen.

Tests look at objects all the time, several of them side by side. A connection that stays costs a hundredth of the
processor time that a start of kubectl does, which the cluster on the same machine needs.
"""

from __future__ import annotations

import functools
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from kubernetes import client, config

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = ROOT / "examples" / "flights" / "job.yaml"

_Found = TypeVar("_Found")


def run(*command: str, input: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit status."""
    return subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def kubectl(*arguments: str, input: str | None = None, timeout: float = 120) -> str:
    """What kubectl prints. Fails with what it says when it fails."""
    ended = run("kubectl", *arguments, input=input, timeout=timeout)
    assert ended.returncode == 0, f"kubectl {' '.join(arguments)}: {ended.stderr}"
    return ended.stdout


def get(kind: str, name: str, namespace: str) -> dict[str, Any] | None:
    """An object, or None."""
    return _read(f"{_path(kind, namespace)}/{name}")


def items(kinds: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
    """The objects of a kind, or of several, with a comma between them."""
    found = []
    for kind in kinds.split(","):
        query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
        listed = _read(_path(kind, namespace), query)
        assert listed is not None, f"the cluster has no {kind}"
        about = {"apiVersion": listed["apiVersion"], "kind": listed["kind"].removesuffix("List")}
        found += [{**about, **one} for one in listed["items"]]
    return found


@functools.cache
def _api() -> Any:
    config.load_kube_config()
    return client.ApiClient()


def _read(path: str, query: str = "", accept: str = "application/json") -> Any:
    """What the API server answers; None where there is nothing."""
    about = _api().configuration
    headers = {"Accept": accept} | {one["key"]: one["value"] for one in about.auth_settings().values()}
    answer = _api().rest_client.pool_manager.request(
        "GET", about.host + path + query, headers=headers, timeout=60
    )
    if answer.status == 404:
        return None
    assert answer.status == 200, f"GET {path}: {answer.status}: {answer.data.decode()}"
    return json.loads(answer.data)


def _path(kind: str, namespace: str) -> str:
    """Where the objects of a kind are, by one of its names."""
    found = _kinds().get(kind)
    if found is None:
        # A definition may have come since.
        _kinds.cache_clear()
        found = _kinds().get(kind)
    assert found is not None, f"the cluster has no kind {kind}"
    root, plural, namespaced = found
    return f"{root}/namespaces/{namespace}/{plural}" if namespaced else f"{root}/{plural}"


@functools.cache
def _kinds() -> dict[str, tuple[str, str, bool]]:
    """Of each kind, by its singular, plural and short names: its group's path, its plural, whether it is namespaced."""
    found: dict[str, tuple[str, str, bool]] = {}
    for root in ("/api", "/apis"):
        aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        for group in _read(root, accept=aggregated)["items"]:
            name = group["metadata"].get("name")
            # The version that the server prefers comes first.
            version = group["versions"][0]
            path = f"/apis/{name}/{version['version']}" if name else f"/api/{version['version']}"
            for one in version.get("resources", ()):
                plural, singular = one["resource"], one.get("singularResource", "")
                for known in (plural, singular, *one.get("shortNames", ())):
                    found.setdefault(known, (path, plural, one["scope"] == "Namespaced"))
    return found


def until(look: Callable[[], _Found | None], what: str, seconds: float = 120, every: float = 0.5) -> _Found:
    """What `look` finds as soon as it finds something; fails with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what() if callable(what) else what}"
        time.sleep(every)


def condition(job: dict[str, Any], type: str) -> dict[str, Any]:
    """A condition of a TrainingJob, or an empty dict."""
    for one in job.get("status", {}).get("conditions", ()):
        if one["type"] == type:
            found: dict[str, Any] = one
            return found
    return {}


def holds(job: dict[str, Any], type: str) -> bool:
    """Whether a condition is True."""
    return condition(job, type).get("status") == "True"


def make_namespace(name: str) -> None:
    """A namespace in which only pods of the restricted standard may run."""
    labels = {f"pod-security.kubernetes.io/{how}": "restricted" for how in ("enforce", "warn")}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("apply", "-f", "-", input=json.dumps(body))
