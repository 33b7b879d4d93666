"""What is measured within the network of a cluster, with its KUBECONFIG; the figures go to a file as JSON.

The operator runs as a process beside the cluster with the arguments of the chart's container, not in a pod, so that no
image need be built; like the plain apply, it is the cluster's administrator.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tablebay.client.job import parse_job
from tablebay.operator import authority
from tablebay.operator.cluster import TRAINING_JOBS, Cluster, Manifest, Resource, resource_of
from tablebay.operator.manifests import Defaults, JobObject, children

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "tablebay"
SYSTEM = "tablebay-system"
JOBS, SERVERS, WORKERS = 200, 2, 4
IDLE_S = 60.0
NOWHERE = {"nodeSelector": {"tablebay.dev/nowhere": "true"}}

_WRITES = re.compile(
    r'^tablebay_operator_api_requests_total\{(.*verb="(\w+)".*)\} ([0-9.e+]+)$', re.MULTILINE
)
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    ended = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"kubectl {' '.join(arguments)}: {ended.stderr}")
    return ended.stdout


def chart(template: str) -> str:
    command = ["helm", "template", "tablebay", CHART, "--namespace", SYSTEM, "--kube-version", "1.34.0"]
    command += ["--show-only", template]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def training_job(number: int, namespace: str) -> Manifest:
    container = {"name": "worker", "image": "localhost/none:1", "command": ["true"]}
    return {
        "apiVersion": TRAINING_JOBS.api,
        "kind": TRAINING_JOBS.kind,
        "metadata": {"name": f"job-{number:03}", "namespace": namespace},
        "spec": {
            "tables": [{"name": "fields", "dim": 16, "optimizer": {"type": "Adagrad", "learningRate": 0.05}}],
            "servers": {"replicas": SERVERS, "template": {"spec": NOWHERE}},
            "workers": {"replicas": WORKERS, "template": {"spec": {**NOWHERE, "containers": [container]}}},
        },
    }


def objects(number: int, namespace: str, defaults: Defaults) -> list[Manifest]:
    """What the operator writes for a job, but that it belongs to nobody."""
    body = training_job(number, namespace)
    job = JobObject(
        namespace=namespace,
        name=body["metadata"]["name"],
        uid="00000000-0000-0000-0000-000000000000",
        generation=1,
        created="2026-01-01T00:00:00Z",
        deleting=False,
        spec=body["spec"],
        model=parse_job(body),
    )
    manifests = [*children(job, defaults), *secrets(job)]
    for manifest in manifests:
        del manifest["metadata"]["ownerReferences"]
    return manifests


def secrets(job: JobObject) -> list[Manifest]:
    """Of its certificates."""
    now = datetime.datetime.now(datetime.UTC)
    found = authority.new_authority(job, now)
    pairs = [authority.standing(job, one, found, None, "", now).content for one in authority.blocks(job)]
    return [authority.authority_secret(job, found), *(one for one in pairs if one is not None)]


class Operator:
    """The operator's process."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._port = int(option(arguments, "--http-port"))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "tablebay.operator.main", *arguments],
                stderr=output,
                env={**os.environ, "POD_NAMESPACE": SYSTEM, "TABLEBAY_LOG_FORMAT": "json"},
            )
        self._log = log

    def text(self, path: str) -> str:
        with _OPENER.open(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            found: str = answer.read().decode()
        return found

    def leads(self) -> bool:
        if self._process.poll() is not None:
            raise SystemExit(f"the operator has ended: {self._log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            return "is_leader 1.0" in self.text("/metrics") and self.text("/readyz") == "ok\n"
        return False

    def requests(self) -> dict[str, float]:
        """Requests to the API server by verb, resource and code, but for the lease's."""
        found = {labels: float(value) for labels, _, value in _WRITES.findall(self.text("/metrics"))}
        return {labels: value for labels, value in found.items() if 'resource="leases"' not in labels}

    def writes(self) -> float:
        reads = ('verb="get"', 'verb="list"', 'verb="watch"')
        found = self.requests().items()
        return sum(value for labels, value in found if not any(read in labels for read in reads))

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def until(look: Callable[[], bool], what: str, limit_s: float = 300.0) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {limit_s:g} s: {what}")
        time.sleep(0.2)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[None]:
    kubectl("create", "namespace", name)
    # Its first objects would come between ours.
    until(
        lambda: "default" in kubectl("-n", name, "get", "serviceaccount", "-o", "name"), "a service account"
    )
    yield
    kubectl("delete", "namespace", name, "--timeout=600s")


async def submitted(cluster: Cluster, bodies: list[Manifest], expected: dict[Resource, set[str]]) -> float:
    """Seconds from the first TrainingJob until every object of all of them exists."""
    space = bodies[0]["metadata"]["namespace"]
    began = time.perf_counter()
    await asyncio.gather(*(cluster.create(TRAINING_JOBS, space, body) for body in bodies))
    # All have to be there, so it does not matter which is asked for first.
    for resource, names in expected.items():
        while not names <= {name for _, name in await cluster.names(resource, space)}:
            if time.perf_counter() - began > 600:
                raise SystemExit(f"{resource.plural}: not all within 600 s")
            await asyncio.sleep(0.1)
    return time.perf_counter() - began


async def applied(cluster: Cluster, manifests: list[Manifest]) -> float:
    """Seconds of a plain server-side apply."""
    began = time.perf_counter()
    await asyncio.gather(*(cluster.apply(manifest) for manifest in manifests))
    return time.perf_counter() - began


class Bench:
    """The two sides."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder
        self._defaults = Defaults(
            option(arguments, "--server-image"), option(arguments, "--server-pull-policy")
        )
        self.found: dict[str, Any] = {
            "ours": [],
            "plain": [],
            "rss_mb": [],
            "idle_writes": [],
            "requests": [],
        }

    def ours(self, space: str, *, idle: bool) -> None:
        expected: dict[Resource, set[str]] = {}
        for number in range(JOBS):
            for manifest in objects(number, space, self._defaults):
                expected.setdefault(resource_of(manifest), set()).add(manifest["metadata"]["name"])
        with namespace(space):
            operator = Operator(self._arguments, self._folder / "operator.log")
            try:
                until(operator.leads, "the operator leads")
                time.sleep(3)
                bodies = [training_job(number, space) for number in range(JOBS)]
                cluster = Cluster(qps=100_000, burst=100_000)
                self.found["ours"].append(asyncio.run(submitted(cluster, bodies, expected)))
                self.found["requests"].append(operator.requests())
                if idle:
                    self.found["idle_writes"].append(self._idle(operator, space))
                self.found["rss_mb"].append(operator.peak_mb())
            finally:
                operator.end()

    def _idle(self, operator: Operator, space: str) -> float:
        def settled() -> bool:
            before = operator.writes()
            time.sleep(10)
            pods = kubectl("-n", space, "get", "pods", "-o", "name").count("\n")
            return pods == JOBS * SERVERS and operator.writes() == before

        until(settled, "the servers' pods are there and the operator says so")
        before = operator.writes()
        time.sleep(IDLE_S)
        return operator.writes() - before

    def plain(self, space: str) -> None:
        manifests = [one for number in range(JOBS) for one in objects(number, space, self._defaults)]
        with namespace(space):
            cluster = Cluster(
                threads=max(16, 2 * int(option(self._arguments, "--concurrency"))),
                qps=float(option(self._arguments, "--qps")),
                burst=int(option(self._arguments, "--burst")),
            )
            self.found["plain"].append(asyncio.run(applied(cluster, manifests)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--qps", help="in place of the chart's")
    parser.add_argument("--burst", help="in place of the chart's")
    parser.add_argument(
        "--idle", action="store_true", help="count the writes of a quiet minute, after the last pair"
    )
    options = parser.parse_args()
    deployment = yaml.safe_load(chart("templates/deployment.yaml"))
    arguments: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    for name, value in (("--qps", options.qps), ("--burst", options.burst)):
        if value is not None:
            arguments[arguments.index(name) + 1] = value
    kubectl("apply", "-f", "-", stdin=chart("templates/crd.yaml"))
    kubectl("wait", "--for=condition=Established", "crd/trainingjobs.tablebay.dev", "--timeout=60s")
    kubectl(
        "apply",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}),
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        for pair in range(options.pairs):
            idle = options.idle and pair == options.pairs - 1
            # The order changes each time, so that neither always has the fuller or the warmer API server.
            if pair % 2 == 0:
                bench.ours(f"ours-{pair}", idle=idle)
                bench.plain(f"plain-{pair}")
            else:
                bench.plain(f"plain-{pair}")
                bench.ours(f"ours-{pair}", idle=idle)
    options.result.write_text(json.dumps(bench.found, indent=2))


if __name__ == "__main__":
    main()
