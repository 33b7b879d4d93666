"""What each account may do, against golden lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e.jobs import SMALL, Job
from e2e.kube import kubectl, run, until

GOLDEN = Path(__file__).parent / "golden"


def rights(account: str, namespace: str) -> str:
    """What `kubectl auth can-i --list` says of a service account, without what everybody may do."""
    namespace_of, _, name = account.partition(":")
    listed = kubectl(
        "auth", "can-i", "--list", "-n", namespace, f"--as=system:serviceaccount:{namespace_of}:{name}"
    )
    lines = [line.split() for line in listed.splitlines()[1:]]
    own = [line for line in lines if not line[0].startswith(("[/", "self", "[]"))]
    return "".join(sorted(f"{' '.join(line)}\n" for line in own))


def test_the_operator_may_do_what_it_needs(system: str) -> None:
    """In any namespace and in its own the list is the golden one: no wildcard, no list of secrets, no pod to make."""
    pods = kubectl(
        *("-n", system, "get", "pods", "-l", "app.kubernetes.io/component=operator"),
        *("-o", "jsonpath={.items[0].spec.serviceAccountName}"),
    )
    assert rights(f"{system}:{pods}", "default") == (GOLDEN / "operator-rights.txt").read_text()
    assert rights(f"{system}:{pods}", system) == (GOLDEN / "operator-own-rights.txt").read_text()


def test_servers_and_workers_may_do_nothing(job: Callable[..., Job], scenario: dict[str, Any]) -> None:
    """Their account has no right, and its token is not in their pods."""
    flights = job(lasts_s=60, change=SMALL)
    account = f"{flights.namespace}:flights-tablebay"
    for role in ("server", "worker"):
        pod = until(lambda: next(iter(flights.pods(role).values()), None), "its pods")  # noqa: B023 - called at once
        assert f"{flights.namespace}:{pod['spec']['serviceAccountName']}" == account
        mounts = [one for container in pod["spec"]["containers"] for one in container.get("volumeMounts", ())]
        assert not [one["mountPath"] for one in mounts if "serviceaccount" in one["mountPath"]]
    assert rights(account, flights.namespace) == ""
    answer = run(
        *("kubectl", "auth", "can-i", "get", "pods", "-n", flights.namespace),
        f"--as=system:serviceaccount:{account}",
    )
    assert answer.stdout.strip() == "no"
