"""Helm, 3 and 4: what it renders and refuses, and what the chart refuses of a cluster before it is installed there.

tests/e2e/cluster makes both Helms; another cluster's tests have `helm` alone, whichever it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from e2e.install import RELEASE, main
from e2e.kube import ROOT, get, items, kubectl, run, until

CHART = ROOT / "deploy" / "helm" / "tablebay"
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
DEFINITION = "trainingjobs.tablebay.dev"
OWN, OWNER, OWNERS_NAMESPACE = (
    "tablebay.dev/version",
    "meta.helm.sh/release-name",
    "meta.helm.sh/release-namespace",
)
# Annotations of the definition (None: it has none of that name), crds.install, and what is refused with which words.
DEFINITIONS: tuple[tuple[dict[str, str | None], str, str], ...] = (
    ({}, "true", ""),
    ({}, "false", ""),
    ({OWN: "0.0.1"}, "true", ""),
    ({OWN: "0.0.1"}, "false", f"{DEFINITION} is of version 0.0.1, older than this operator, {VERSION}"),
    ({OWN: None}, "false", f"{DEFINITION} is of version unknown, older than this operator, {VERSION}"),
    ({OWN: "99.0.0"}, "true", f"{DEFINITION} is of version 99.0.0, this chart of {VERSION}"),
    ({OWN: "99.0.0"}, "false", ""),
    ({OWNER: "other", OWNERS_NAMESPACE: "ads"}, "false", ""),
    ({OWNER: "other", OWNERS_NAMESPACE: "ads"}, "true", "it belongs to release other in namespace ads"),
    # The last: its message has the command that makes the definition the release's again.
    ({OWNER: None, OWNERS_NAMESPACE: None}, "true", "it belongs to no release"),
)

helms = pytest.mark.parametrize("helm", ["helm", pytest.param("helm4", marks=pytest.mark.own_cluster)])


def tried(helm: str, release: str, namespace: str, *values: str) -> str:
    """What Helm refuses of an installation that is tried on the cluster, which stays as it is; empty if nothing."""
    where = ("--namespace", namespace, "--dry-run=server")
    ended = run(
        helm, "upgrade", "--install", release, str(CHART), *where, *(f"--set={one}" for one in values)
    )
    return ended.stderr if ended.returncode else ""


def does(helm: str, *arguments: str) -> str:
    """What Helm prints when it succeeds, as it must."""
    ended = run(helm, *arguments, timeout=240)
    assert ended.returncode == 0, f"{helm} {arguments}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def follow(message: str, after: str) -> None:
    """Type the command that a message gives."""
    command = re.search(rf"{re.escape(after)}\s+(\S.*)", message)
    assert command is not None, message
    ended = run("bash", "-ec", "set -o pipefail; " + command[1].replace("CHART", str(CHART)))
    assert ended.returncode == 0, f"{command[1]}: {ended.stderr}"


@helms
def test_what_helm_renders_and_refuses(helm: str) -> None:
    """Lint, golden renderings and bad values, which Helm refuses with their path (tests/e2e/chart/check.py)."""
    check = [sys.executable, "-I", str(ROOT / "tests" / "e2e" / "chart" / "check.py")]
    ended = subprocess.run(check, env={**os.environ, "HELM": helm}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(
        r"^chart: [1-9]\d* renderings, [1-9]\d* bad values, 0 problems$", ended.stdout, re.MULTILINE
    )


@pytest.mark.deep
@helms
@pytest.mark.alone
def test_a_second_operator_is_refused(helm: str, system: str, namespace: str) -> None:
    """One release in a namespace, and one for the jobs of each; the message names the one that is there."""
    found = tried(helm, "second", system)
    assert f"Tablebay is already in namespace {system}, as release {RELEASE}." in found
    assert f"helm upgrade {RELEASE} CHART -n {system}" in found
    for values in ((), (f"watchNamespaces={{{namespace}}}", "crds.install=false")):
        found = tried(helm, "second", namespace, *values)
        assert (
            f"Release {RELEASE} in namespace {system} already runs the TrainingJobs of all namespaces"
            in found
        )

    # One that looks at nothing, for this namespace alone. No image: it never runs.
    values = f"preflight=false,crds.install=false,watchNamespaces={{{namespace}}},image.pullPolicy=Never,image.tag=none"
    does(helm, "install", "third", str(CHART), "--namespace", namespace, f"--set={values}")
    found = tried(helm, RELEASE, system, f"watchNamespaces={{{namespace}}}")
    assert f"Release third in namespace {namespace} already runs the TrainingJobs of {namespace}" in found
    does(helm, "uninstall", "third", "--namespace", namespace)
    assert not tried(helm, RELEASE, system, f"watchNamespaces={{{namespace}}}")


@pytest.mark.deep
@helms
@pytest.mark.alone
def test_a_definition_of_another_version_or_owner(helm: str, system: str) -> None:
    """Older, newer and foreign ones are refused where they would do harm; else they are taken."""
    crd: Any = json.loads(kubectl("get", "crd", DEFINITION, "-o", "json"))
    before = {name: crd["metadata"]["annotations"][name] for name in (OWN, OWNER, OWNERS_NAMESPACE)}
    try:
        for changes, install, wanted in DEFINITIONS:
            annotate({**before, **changes})
            found = tried(helm, RELEASE, system, f"crds.install={install}")
            assert wanted in found, f"{changes}, crds.install={install}: {found}"
            assert wanted or not found, f"{changes}, crds.install={install}: {found}"
        follow(found, "To take it over:")
        assert not tried(helm, RELEASE, system)
    finally:
        annotate(before)


def annotate(annotations: dict[str, str | None] | dict[str, str]) -> None:
    """Give the definition these annotations."""
    words = [f"{name}-" if value is None else f"{name}={value}" for name, value in annotations.items()]
    kubectl("annotate", "--overwrite", "crd", DEFINITION, *words)


def held_jobs() -> list[str]:
    """The jobs that a finalizer holds. Others go with the definition, should their namespaces be slow to end."""
    found = [one["metadata"] for one in json.loads(kubectl("get", "tj", "-A", "-o", "json"))["items"]]
    return [
        f"{one['namespace']}/{one['name']}: {one['finalizers']}" for one in found if one.get("finalizers")
    ]


@pytest.mark.deep
@pytest.mark.alone
@pytest.mark.own_cluster
def test_helm_4_and_a_missing_definition(system: str, scenario: dict[str, Any]) -> None:
    """Helm 4 uninstalls what Helm 3 has installed; then installs, upgrades and rolls back, and Helm 3 goes on.

    In between there is no definition. Without it crds.install=false is refused, and the messages say what to do.
    """
    where = ("--namespace", system)
    image, _, tag = os.environ["IMAGE"].rpartition(":")
    install = (RELEASE, str(CHART), *where, "--set", f"image.repository={image},image.tag={tag}")

    def operator() -> dict[str, Any]:
        found = get("deployment", f"{RELEASE}-operator", system)
        assert found is not None
        return {
            "team": found["spec"]["template"]["metadata"]["annotations"].get("team"),
            "ready": found.get("status", {}).get("readyReplicas"),
        }

    # Of the tests before: one with a finalizer would wait for an operator.
    until(lambda: not held_jobs(), lambda: f"{held_jobs()} are gone")
    try:
        does("helm4", "uninstall", RELEASE, *where, "--wait", "--timeout", "120s")
        assert not items("deployments", system)
        kubectl("delete", "crd", DEFINITION)
        for helm in ("helm", "helm4"):
            found = tried(helm, RELEASE, system, "crds.install=false")
            assert f"The cluster lacks the definition {DEFINITION}, and crds.install is false." in found
            assert not tried(helm, RELEASE, system)
        follow(found, "Apply it first:")
        assert not tried("helm4", RELEASE, system, "crds.install=false")
        follow(tried("helm4", RELEASE, system), "To take it over:")

        does("helm4", "install", *install)
        does("helm4", "upgrade", *install, "--set=podAnnotations.team=ads")
        assert operator()["team"] == "ads"
        does("helm4", "rollback", RELEASE, *where, "--wait", "--timeout", "180s")
        assert operator() == {"team": None, "ready": 2}
    finally:
        assert main() == 0
