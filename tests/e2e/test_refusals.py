"""Broken job files, given to a real API server: broken/README.md says what each must be told."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.jobs import Job
from e2e.kube import ROOT, get, items, kubectl, make_namespace, run

FILES = sorted((Path(__file__).parent / "broken").rglob("*.yaml"))


def said(file: Path, name: str) -> str:
    """The text of a line `# name: text` at the file's head."""
    for line in file.read_text().splitlines()[:4]:
        if line.startswith(f"# {name}: "):
            return line.removeprefix(f"# {name}: ").strip()
    return ""


REFUSED = [file for file in FILES if said(file, "wants")]


def test_there_are_files_of_every_row() -> None:
    """Rows 1 to 14, 16 and 17 of the list of bad inputs each have a file; 15 and 18 to 20 have tests of their own."""
    assert len(FILES) >= 20
    assert {file.name[:2] for file in FILES} >= {f"{row:02}" for row in (*range(1, 15), 16, 17)}


@pytest.fixture(scope="module")
def empty() -> Iterator[str]:
    """A namespace in which nothing is ever made."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    make_namespace(name)
    yield name
    assert not items("trainingjobs,statefulsets,jobs,services,pods", name)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def existing() -> Iterator[Callable[[str], str]]:
    """The namespace of the job of a file, which was applied once, for all that would change it."""
    names: dict[str, str] = {}

    def applied(file: str) -> str:
        if file not in names:
            names[file] = f"e2e-{uuid.uuid4().hex[:8]}"
            make_namespace(names[file])
            kubectl("-n", names[file], "apply", "-f", str(ROOT / file))
        return names[file]

    yield applied
    for name in names.values():
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize(
    "file", [file for file in REFUSED if not said(file, "after")], ids=lambda file: file.stem
)
def test_a_broken_file_is_refused(file: Path, empty: str) -> None:
    """kubectl apply fails with the message of its row, and nothing is made."""
    ended = run("kubectl", "-n", empty, "apply", "-f", str(file))
    assert ended.returncode != 0, f"accepted: {ended.stdout}"
    assert said(file, "wants") in ended.stderr
    name = yaml.safe_load(file.read_text())["metadata"]["name"]
    assert get("trainingjob", name, empty) is None


# In one process: they share the job.
@pytest.mark.xdist_group("changes")
@pytest.mark.parametrize(
    "file", [file for file in REFUSED if said(file, "after")], ids=lambda file: file.stem
)
def test_a_broken_change_is_refused(file: Path, existing: Callable[[str], str]) -> None:
    """The change of a job that exists fails with the message of its row, and the job is as it was."""
    namespace = existing(said(file, "after"))
    before = [one["spec"] for one in items("trainingjobs", namespace)]
    ended = run("kubectl", "-n", namespace, "apply", "-f", str(file))
    assert ended.returncode != 0, f"accepted: {ended.stdout}"
    assert said(file, "wants") in ended.stderr
    assert [one["spec"] for one in items("trainingjobs", namespace)] == before


@pytest.mark.parametrize(
    "file", [file for file in FILES if said(file, "condition")], ids=lambda file: file.stem
)
def test_what_the_schema_cannot_see_is_a_condition(file: Path, namespace: str) -> None:
    """Ready is False for that reason, with the message of its row, and no child is made."""
    reason, _, message = said(file, "condition").partition(": ")
    kubectl("-n", namespace, "apply", "-f", str(file))
    name = yaml.safe_load(file.read_text())["metadata"]["name"]
    found: dict[str, Any] = Job(namespace, name).until_reason(reason, 30)
    assert found["status"] == "False"
    assert message in found["message"]
    assert not items("statefulsets,jobs,services,pods", namespace)


def test_a_spec_above_64_kib_is_a_condition(namespace: str) -> None:
    """No bound of the schema sees the whole of a template; the operator does, before anything is made."""
    long = {"name": "LONG", "value": "x" * 70_000}
    (container,) = _containers()["containers"]
    spec = {"containers": [{**container, "env": [long]}]}
    flights = Job.apply(namespace, change={"workers": {"template": {"spec": spec}}})
    found = flights.until_reason("InvalidSpec", 30)
    assert re.fullmatch(r"spec: found 70[0-9]{3} bytes of JSON, wanted at most 65536", found["message"])
    assert not items("statefulsets,jobs,services,pods", namespace)


def test_what_only_the_api_server_knows_is_a_condition(namespace: str) -> None:
    """A template that Kubernetes itself refuses is told in its words, and nothing is made."""
    spec = {"nodeSelector": {"a": 1}}
    flights = Job.apply(namespace, change={"workers": {"template": {"spec": {**_containers(), **spec}}}})
    found = flights.until_reason("InvalidTemplate", 30)
    assert "nodeSelector" in found["message"]
    assert not items("statefulsets,jobs,services,pods", namespace)


def test_a_name_that_is_taken_is_a_condition(namespace: str) -> None:
    """A service of somebody else with a child's name is left alone, and the job waits until it is gone."""
    kubectl("-n", namespace, "create", "service", "clusterip", "flights-servers", "--tcp=80")
    flights = Job.apply(namespace)
    found = flights.until_reason("NameConflict", 30)
    assert "Service flights-servers" in found["message"]
    assert not items("statefulsets,jobs,pods", namespace)
    kubectl("-n", namespace, "delete", "service", "flights-servers")
    flights.until_condition("Complete")


def _containers() -> dict[str, Any]:
    return {"containers": [{"name": "worker", "command": ["python", "-m", "tablebay.examples.flights"]}]}
