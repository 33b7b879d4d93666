"""`tablebay doctor`: looks at this machine and at the cluster, and says what to do about what is amiss.

Nothing is written anywhere: a job is given to the API server as a dry run, which checks it and keeps nothing.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tablebay.client.errors import TablebayError, VersionMismatch

Verdict = Literal["ok", "unknown", "wrong"]
# A job whose newest spec the operator has not looked at for so long has no operator.
UNSEEN_S = 60.0
# Of so many jobs in trouble it is said what is amiss.
JOBS_MAX = 20
_NAME = "tablebay-doctor"
# Why Ready is False of a job that waits for somebody to do something.
_WAITS_FOR_SOMEBODY = {
    "InvalidSpec",
    "InvalidTemplate",
    "NameConflict",
    "ClaimUnusable",
    "CheckpointUnusable",
}


@dataclass(frozen=True)
class Finding:
    """What one check found. verdict: unknown where it could not be looked at, which is nobody's fault."""

    check: str
    verdict: Verdict
    text: str


def examine(*, namespace: str | None, context: str | None, cluster: bool) -> list[Finding]:
    """All checks: of this machine, and of the cluster unless it is not asked for."""
    found = [_guarded(name, look) for name, look in (("package", _package), ("table", _table))]
    return found + _cluster(namespace, context) if cluster else found


def show(findings: list[Finding], *, as_json: bool) -> int:
    """Print them; the exit code, 1 where something is wrong."""
    code = 1 if any(one.verdict == "wrong" for one in findings) else 0
    if as_json:
        print(json.dumps({"well": code == 0, "checks": [vars(one) for one in findings]}, indent=2))
        return code
    width = max(len(one.check) for one in findings)
    for one in findings:
        print(f"{one.check:<{width}}  {one.verdict:<7}  {one.text}")
    return code


def _guarded(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except TablebayError as error:
        return Finding(name, "wrong", str(error))
    except (ImportError, OSError) as error:
        return Finding(name, "wrong", f"{error}; install it again: pip install --force-reinstall tablebay")


def _package() -> str:
    from tablebay import __version__, native

    return f"tablebay {__version__} ({native.commit()}), Python {sys.version.split()[0]}, {native.instruction_set()}"


def _table() -> str:
    """A push and a pull through a server in this process."""
    import numpy as np

    from tablebay.client.inprocess import local
    from tablebay.client.optimizers import SGD

    with local(servers=2) as client:
        table = client.table(_NAME, dim=4, optimizer=SGD(learning_rate=1.0))
        keys = np.arange(64, dtype=np.uint64)
        before = table.pull(keys)
        table.push(keys, np.ones((64, 4), np.float32))
        if not np.array_equal(table.pull(keys), before - 1.0):
            raise VersionMismatch("a push did not do what it should to the rows; install tablebay again")
    return "64 rows pushed to and pulled from 2 servers in this process"


def _cluster(namespace: str | None, context: str | None) -> list[Finding]:
    from tablebay.client.cli import every_field
    from tablebay.client.jobs.api import Jobs
    from tablebay.client.jobs.errors import ChartMissing, ClusterError, JobExists, NoCluster, NotPermitted

    try:
        jobs = Jobs(namespace, context=context)
    except NoCluster as error:
        # Whoever names none may want none.
        return [Finding("cluster", "wrong" if context else "unknown", str(error))]
    try:
        known = jobs.list()
    except ChartMissing as error:
        return [Finding("cluster", "ok", jobs.address), Finding("chart", "wrong", str(error))]
    except NotPermitted as error:
        known = ()
        found = [Finding("cluster", "ok", jobs.address), Finding("jobs", "wrong", str(error))]
    except ClusterError as error:
        return [Finding("cluster", "wrong", str(error))]
    else:
        found = [
            Finding("cluster", "ok", jobs.address),
            Finding("jobs", "ok", f"{len(known)} in namespace {jobs.namespace}"),
        ]
    try:
        jobs.dry_run(every_field.job(_NAME))
    except NotPermitted as error:
        found.append(Finding("chart", "unknown", f"whether it is of this version: {error}"))
    except JobExists:
        found.append(Finding("chart", "ok", "knows every field that this version knows"))
    except ClusterError as error:
        hint = "bring the chart to this version with: helm upgrade tablebay deploy/helm/tablebay -n tablebay-system"
        found.append(Finding("chart", "wrong", f"{error}; {hint}"))
    else:
        found.append(Finding("chart", "ok", "knows every field that this version knows"))
    for text in [words for job in known if (words := _trouble(job.manifest))][:JOBS_MAX]:
        found.append(Finding("job", "wrong", text))
    unseen = [job.name for job in known if _unseen(job.manifest)]
    if unseen:
        names = ", ".join(unseen[:5])
        where = "kubectl get pods -A -l app.kubernetes.io/name=tablebay"
        text = f"has not looked at {names} for {UNSEEN_S:.0f} s; see: {where}"
        found.append(Finding("operator", "wrong", text))
    elif known:
        found.append(Finding("operator", "ok", "has looked at every job"))
    else:
        found.append(Finding("operator", "unknown", "there is no job by which to tell"))
    return found


def _trouble(manifest: Any) -> str:
    """What stands in the way of a job until somebody acts, in the operator's words; "" if nothing does."""
    for one in (manifest.get("status") or {}).get("conditions") or ():
        waits = one["type"] == "Ready" and one["status"] == "False" and one["reason"] in _WAITS_FOR_SOMEBODY
        if waits or (one["type"] == "ImagePullFailed" and one["status"] == "True"):
            return f"{manifest['metadata']['name']}: {one['reason']}: {one.get('message', '')}"
    return ""


def _unseen(manifest: Any) -> bool:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    if status.get("observedGeneration", 0) >= metadata.get("generation", 0):
        return False
    times = [entry.get("time") for entry in metadata.get("managedFields") or ()]
    newest = max([metadata.get("creationTimestamp", ""), *(time for time in times if time)])
    try:
        changed = datetime.datetime.fromisoformat(newest)
    except ValueError:
        return False
    return (datetime.datetime.now(datetime.UTC) - changed).total_seconds() > UNSEEN_S
