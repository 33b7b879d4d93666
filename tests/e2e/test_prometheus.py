"""A real Prometheus that finds servers, workers and operator by their annotations, and what it knows of them."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.jobs import STEPS, Job
from e2e.kube import FLIGHTS, ROOT, items, kubectl, run, until

# It runs here, not in a pod, so the pods' addresses must be reachable from here.
pytestmark = pytest.mark.own_cluster

CONFIG = Path(__file__).with_name("prometheus.yaml")
PAGE = ROOT / "docs" / "metrics.md"
KINDS = ("server", "worker", "operator")

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get_text(url: str) -> str:
    """What a URL answers, asked without a proxy."""
    with _OPENER.open(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def documented(kind: str) -> dict[str, str]:
    """The type of each metric family that docs/metrics.md lists for a kind of process, by name."""
    found: dict[str, str] = {}
    part = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            part = line.removeprefix("## ").rstrip("s").lower()
        row = re.match(r"\| `(tablebay_\w+)` \| (\w+) \|", line)
        if row and part == kind:
            found[row[1]] = row[2]
    return found


def targets() -> list[dict[str, Any]]:
    """Every pod's ports, as Prometheus's own discovery of pods tells of them.

    Debian's Prometheus is built without that: it knows no kubernetes_sd_configs.
    """
    found = []
    for pod in json.loads(kubectl("get", "pods", "--all-namespaces", "-o", "json"))["items"]:
        meta, address = pod["metadata"], pod["status"].get("podIP")
        if not address:
            continue
        labels = {
            "__meta_kubernetes_namespace": meta["namespace"],
            "__meta_kubernetes_pod_name": meta["name"],
            "__meta_kubernetes_pod_ip": address,
            "__meta_kubernetes_pod_phase": pod["status"]["phase"],
        }
        for name, value in meta.get("annotations", {}).items():
            labels[f"__meta_kubernetes_pod_annotation_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}"] = value
        ports = [port for one in pod["spec"]["containers"] for port in one.get("ports", ())]
        addresses = [f"{address}:{port['containerPort']}" for port in ports] or [address]
        found.append({"targets": addresses, "labels": labels})
    return found


class _Discovery(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = json.dumps(targets()).encode()
        # Prometheus may have ended in the meantime.
        with contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Prometheus logs what goes wrong."""


@pytest.fixture
def discovery() -> Iterator[str]:
    """The URL at which the cluster's pods are told of, read anew each time."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Discovery) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class Prometheus:
    """One that runs, and what it answers."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._process = process
        self._log = log

    def ready(self) -> bool:
        """Whether it answers queries."""
        assert self._process.poll() is None, self._log.read_text()
        try:
            get_text(f"{self._url}/-/ready")
        except OSError:
            return False
        return True

    def pods(self, query: str) -> set[str]:
        """The pods that an instant query has samples of."""
        text = get_text(f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        answer: dict[str, Any] = json.loads(text)
        assert answer["status"] == "success", answer
        return {one["metric"].get("pod", "") for one in answer["data"]["result"]}


@pytest.fixture
def prometheus(tmp_path: Path, discovery: str) -> Iterator[Prometheus]:
    """Debian's Prometheus, which scrapes the pods that ask for it."""
    config = tmp_path / "prometheus.yaml"
    config.write_text(CONFIG.read_text().replace("url: DISCOVERY", f"url: {discovery}"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "prometheus.log"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        started = Prometheus(port, process, log)
        until(started.ready, "Prometheus is ready", 60)
        yield started
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def operators(system: str) -> dict[str, dict[str, Any]]:
    """The operator's pods by name."""
    found = items("pods", system, "app.kubernetes.io/component=operator")
    return {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}


def endpoint(pod: dict[str, Any]) -> str:
    """The text at the address that a pod's annotations give."""
    notes = pod["metadata"]["annotations"]
    address = f"{pod['status']['podIP']}:{notes['prometheus.io/port']}"
    return get_text(f"http://{address}{notes['prometheus.io/path']}")


def leader(pods: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The name of the operator's pod that leads, and the text of its endpoint."""

    def look() -> tuple[str, str] | None:
        for name, pod in pods.items():
            text = endpoint(pod)
            if "tablebay_operator_is_leader 1.0" in text:
                return name, text
        return None

    return until(look, "no replica of the operator leads", 60)


def test_a_prometheus_knows_every_metric(
    job: Callable[..., Job], prometheus: Prometheus, system: str, scenario: dict[str, Any]
) -> None:
    """While a job trains, a query for each documented family has samples of the pods of its kind and of no other.

    `promtool check metrics` finds no fault in the text of a server, a worker and the leading operator.
    """
    families = {kind: documented(kind) for kind in KINDS}
    for kind, listed in families.items():
        assert listed, f"docs/metrics.md lists no metric of a {kind}"
    # Rows that leave are counted of tables that have a rule for it.
    (table,) = yaml.safe_load(FLIGHTS.read_text())["spec"]["tables"]
    tables = [{**table, "eviction": {"ttlSeconds": 86_400}}]
    flights = job(durable=True, lasts_s=90, change={"tables": tables})
    flights.until_step(3)
    training = {kind: flights.pods(kind) for kind in ("server", "worker")}
    replicas = operators(system)
    leading, leaders_text = leader(replicas)
    namespaces = {"server": flights.namespace, "worker": flights.namespace, "operator": system}
    expected = {
        "server": {"flights-server-0", "flights-server-1"},
        "worker": set(training["worker"]),
        "operator": set(replicas),
    }
    assert len(expected["worker"]) == 2

    for kind, pods in expected.items():
        alive = f'up{{namespace="{namespaces[kind]}",pod=~"{"|".join(sorted(pods))}"}} == 1'
        until(lambda: prometheus.pods(alive) == pods, f"each {kind} is scraped", 60)  # noqa: B023 - called at once

    for kind, listed in families.items():
        # A replica of the operator that waits to lead has neither watches nor jobs.
        wanted = {leading} if kind == "operator" else expected[kind]
        for family, type in listed.items():
            name = f"{family}_count" if type == "histogram" else family
            query = f"{name}{{namespace=~'{flights.namespace}|{system}'}}"
            until(
                lambda: wanted <= prometheus.pods(query),  # noqa: B023 - called at once
                lambda: f"{kind} {family}: samples of {prometheus.pods(query)}, wanted of {wanted}",  # noqa: B023
                20,
            )
            assert prometheus.pods(query) <= expected[kind], f"{kind} {family}: samples of others"
    assert flights.step() < STEPS

    texts = {
        "server": endpoint(training["server"]["flights-server-0"]),
        "worker": endpoint(flights.worker(0)),
        "operator": leaders_text,
    }
    for kind, text in texts.items():
        checked = run("promtool", "check", "metrics", input=text)
        assert checked.returncode == 0, f"{kind}: {checked.stdout}{checked.stderr}"
    scenario["families"] = {kind: len(listed) for kind, listed in families.items()}
