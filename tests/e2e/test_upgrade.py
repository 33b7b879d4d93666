"""helm upgrade from the commit before to this one, and helm rollback, in the middle of training."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.install import RELEASE, main
from e2e.jobs import Job, seconds_since
from e2e.kube import ROOT, get, items, kubectl, run, until
from e2e.test_durability import complete_and_exact, durable

CHART = Path("deploy") / "helm" / "tablebay"
BEFORE = "localhost/tablebay:before"
OLDER = "0.0.9"


def unpacked(folder: Path) -> str:
    """Put the operator and the chart of the commit before into a folder; which commit that is.

    A clone may have one commit alone. Then they are this commit's own, which another version tells apart.
    """
    found = subprocess.run(
        ["git", "rev-parse", "--quiet", "--verify", "HEAD~1^{tree}"], capture_output=True, cwd=ROOT
    )
    if found.returncode == 0:
        archive = ["git", "archive", "HEAD~1", "operator", "client", str(CHART)]
        packed = subprocess.run(archive, capture_output=True, check=True, cwd=ROOT)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
        said = subprocess.run(
            ["git", "log", "-1", "--format=commit %h, %s", "HEAD~1"], capture_output=True, text=True, cwd=ROOT
        )
        return said.stdout.strip()
    for part in ("operator", "client", CHART):
        shutil.copytree(ROOT / part, folder / part)
    about = folder / CHART / "Chart.yaml"
    lines = about.read_text().splitlines()
    assert [line for line in lines if line.startswith("version: ")]
    about.write_text(
        "\n".join(f"version: {OLDER}" if line.startswith("version: ") else line for line in lines)
    )
    return f"this commit's own chart as version {OLDER}: the clone has no commit before it"


@pytest.fixture
def before(tmp_path: Path, scenario: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Path:
    """The chart of the commit before. BEFORE is its operator: this commit's image with that one's Python."""
    scenario["previous"] = unpacked(tmp_path)
    with capsys.disabled():
        print(f"\nthe upgrade begins at {scenario['previous']}")
    cluster, saved = os.environ["E2E_CLUSTER"], tmp_path / "image.tar"
    subprocess.run([cluster, "variant", BEFORE, str(tmp_path), str(saved)], check=True)
    subprocess.run([cluster, "load", str(saved)], check=True)
    return tmp_path / CHART


def helm(verb: str, system: str, *arguments: str) -> None:
    """Run Helm, which must succeed and leave operators that are ready."""
    where = ("--namespace", system, "--wait", "--timeout", "180s")
    ended = run("helm", verb, RELEASE, *arguments, *where, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def acts(job: Job, system: str, image: str) -> None:
    """Wait until an operator of an image leads, and has put back what is taken from the job."""

    def leads() -> bool:
        lease = get("lease", f"{RELEASE}-operator", system) or {"spec": {}}
        # Its pod's name, and something that no other process has.
        holder = lease["spec"].get("holderIdentity", "").rpartition("_")[0]
        found = {pod["metadata"]["name"]: pod for pod in items("pods", system)}
        pod = found.get(holder)
        if pod is None or "deletionTimestamp" in pod["metadata"]:
            return False
        return bool(pod["spec"]["containers"][0]["image"] == image)

    until(leads, f"an operator of {image} leads", 90)
    kubectl("-n", job.namespace, "delete", "poddisruptionbudget", "flights-servers")
    until(lambda: get("pdb", "flights-servers", job.namespace), f"an operator of {image} acts", 60)


def pods(job: Job) -> dict[str, Any]:
    """All that would be another thing of each pod, if something had touched it."""
    return {
        name: {
            "uid": pod["metadata"]["uid"],
            "spec": pod["spec"],
            "lives": sorted(
                (one["name"], one.get("containerID", ""), one["restartCount"])
                for kind in ("initContainerStatuses", "containerStatuses")
                for one in pod["status"].get(kind, ())
            ),
        }
        for role in ("server", "worker")
        for name, pod in job.pods(role).items()
    }


def templates(job: Job) -> dict[str, Any]:
    """Of the servers' set and the workers' Job: which object it is, and what its next pod would be."""
    found = {}
    for kind, name in (("statefulset", "flights-server"), ("job", "flights-worker")):
        body = get(kind, name, job.namespace)
        assert body is not None, f"no {kind} {name}"
        found[kind] = {"uid": body["metadata"]["uid"], "template": body["spec"]["template"]}
    return found


def images(template: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The image and the pull policy of each container."""
    pod = template["spec"]
    return {
        one["name"]: (one["image"], one["imagePullPolicy"])
        for one in (*pod.get("initContainers", ()), *pod["containers"])
    }


@pytest.mark.alone
@pytest.mark.after
@pytest.mark.own_cluster
def test_an_upgrade_and_a_rollback_touch_no_pod(
    job: Callable[..., Job], system: str, before: Path, scenario: dict[str, Any]
) -> None:
    """To this commit's chart, with another image and pull policy for new jobs, and back: each pod is as it was."""
    image, _, tag = os.environ["IMAGE"].rpartition(":")
    older = f"image.repository={image},image.tag=before,serverImage.tag={tag}"
    newer = f"image.tag={tag},serverImage.tag=of-new-jobs,serverImage.pullPolicy=Never,preflight=true"
    try:
        # The definition there may be of a later version, since this commit is installed.
        helm("upgrade", system, str(before), f"--set={older},preflight=false")
        flights = durable(job, lasts_s=100)
        step = flights.in_the_middle()
        acts(flights, system, BEFORE)
        found, made = pods(flights), templates(flights)
        assert len(found) == 4

        began = time.monotonic()
        helm("upgrade", system, str(ROOT / CHART), "--reset-then-reuse-values", f"--set={newer}")
        acts(flights, system, os.environ["IMAGE"])
        scenario["upgraded_seconds"] = seconds_since(began)
        assert pods(flights) == found
        now = templates(flights)
        assert now["job"] == made["job"]
        # A newer operator may want another template of servers, which comes to a pod that has ended. What is the
        # chart's to say is as it was.
        assert now["statefulset"]["uid"] == made["statefulset"]["uid"]
        assert images(now["statefulset"]["template"]) == images(made["statefulset"]["template"])
        step = scenario["upgraded_at_step"] = flights.in_the_middle(after=step)

        began = time.monotonic()
        helm("rollback", system)
        acts(flights, system, BEFORE)
        scenario["rolled_back_seconds"] = seconds_since(began)
        assert pods(flights) == found
        assert templates(flights) == made
        scenario["rolled_back_at_step"] = flights.in_the_middle(after=step)
        complete_and_exact(flights, scenario)
        assert flights.worker_pods() == {pod["uid"] for name, pod in found.items() if "-worker-" in name}
    finally:
        assert main() == 0
