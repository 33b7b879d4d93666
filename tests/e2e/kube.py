"""kubectl and helm, as a person uses them, and waiting for what they show."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
    text = kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text.strip() else None


def items(kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
    """The objects of a kind."""
    arguments = ["-l", selector] if selector else []
    found: list[dict[str, Any]] = json.loads(kubectl("-n", namespace, "get", kind, "-o", "json", *arguments))[
        "items"
    ]
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
    kubectl(
        "apply",
        "-f",
        "-",
        input=json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": name,
                    "labels": {
                        "pod-security.kubernetes.io/enforce": "restricted",
                        "pod-security.kubernetes.io/warn": "restricted",
                    },
                },
            }
        ),
    )
