"""kubectl drain of the node, in the middle of training."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e.jobs import Job, seconds_since
from e2e.kube import ROOT, items, kubectl, until
from e2e.test_durability import complete_and_exact, containers, durable

# The drain tries again every 5 s: training is to go on for longer, once the first server is back.
SLOW_S = 90


@contextmanager
def draining(node: str, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """kubectl drain, as an administrator types it; afterwards the node takes pods again."""
    command = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"]
    with said.open("wb") as output:
        drain = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        yield drain
    finally:
        drain.kill()
        drain.wait()
        kubectl("uncordon", node)


def pods_of_other_tests(own: str) -> list[str]:
    """Namespace and name of each."""
    pods = json.loads(kubectl("get", "pods", "--all-namespaces", "-o", "json"))["items"]
    about = [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in pods]
    return ["/".join(one) for one in about if one[0].startswith("e2e-") and one[0] != own]


def without_owner() -> list[str]:
    """The pods that nothing would make again."""
    pods = json.loads(kubectl("get", "pods", "--all-namespaces", "-o", "json"))["items"]
    return [pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("ownerReferences")]


def operators(system: str) -> dict[str, bool]:
    """The uid of each of the operator's pods that is to stay, and whether it is ready."""
    return {
        pod["metadata"]["uid"]: any(
            one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ())
        )
        for pod in items("pods", system, "app.kubernetes.io/component=operator")
        if "deletionTimestamp" not in pod["metadata"]
    }


@pytest.mark.alone
@pytest.mark.own_cluster
def test_a_drained_node(
    job: Callable[..., Job], namespace: str, system: str, tmp_path: Path, scenario: dict[str, Any]
) -> None:
    """The workers go at once, servers and operators one at a time; what goes comes back where there is room.

    There is one node, so nothing has room until it takes pods again; that stands for another node.
    """
    for other in {one.partition("/")[0] for one in pods_of_other_tests(namespace)}:
        # Their namespaces are ending already, which may take its time.
        kubectl("-n", other, "delete", "trainingjobs,pods", "--all", "--wait=false")
    until(
        lambda: not pods_of_other_tests(namespace), lambda: f"{pods_of_other_tests(namespace)} are gone", 180
    )
    flights = durable(job, lasts_s=SLOW_S)
    # A drain refuses a pod of nobody, such as the one that cleans up another test's volume.
    until(lambda: not without_owner(), lambda: f"{without_owner()} are gone", 60)
    scenario["drained_at_step"] = flights.in_the_middle()
    (node,) = (one["metadata"]["name"] for one in items("nodes", "default"))
    servers, workers, leaders = flights.uids("server"), flights.worker_pods(), operators(system)
    before = containers(flights)
    assert len(before) == len(workers) == len(leaders) == 2
    log = tmp_path / "drain.log"
    began = time.monotonic()
    with draining(node, log) as drain:

        def held() -> str:
            """The server that is left, once the drain has been refused it while the other one is away."""
            left = [name for name, uid in flights.uids("server").items() if servers[name] == uid]
            refused = f'error when evicting pods/"{left[0]}" -n "{namespace}"' if len(left) == 1 else ""
            return left[0] if refused and refused in log.read_text() else ""

        kept = until(held, lambda: f"one server is held: {log.read_text()}", 90)
        (gone,) = set(servers) - {kept}

        def replaced() -> bool:
            now = flights.worker_pods()
            return gone in flights.uids("server") and len(now) == 2 and not now & workers

        until(replaced, "pods are made in the place of those that went", 60)
        until(lambda: "unschedulable" in flights.ready_message(), flights.ready_message, 60)
        assert containers(flights) == {kept: before[kept]}
        until(lambda: sorted(operators(system).values()) == [False, True], "one operator waits, and one acts")
        again = flights.worker_pods()
        assert drain.poll() is None, log.read_text()

        kubectl("uncordon", node)
        until(lambda: drain.poll() is not None, lambda: f"the drain ends: {log.read_text()}", 150)
        assert drain.returncode == 0, log.read_text()

    def repaired() -> bool:
        now = flights.uids("server")
        return len(containers(flights)) == 2 and all(now[name] != uid for name, uid in servers.items())

    until(repaired, lambda: f"both servers came back: {flights.ready_message()}", 120, 0.3)
    scenario["drained_seconds"] = seconds_since(began)
    print(f"drained, and both servers repaired, in {scenario['drained_seconds']} s")
    assert not set(operators(system)) & set(leaders)
    complete_and_exact(flights, scenario)
    # Made while the first server was away, and there when the second one went.
    assert flights.worker_pods() == again
