"""From what the operator puts in Secrets, by the program in each pod, to servers and workers that train.

The kubelet is played: it publishes the Secrets to the volume of a role, for each pod at a moment of its own."""

from __future__ import annotations

import asyncio
import base64
import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_data_ports
from integration.training import KEYS, TABLES, TwoWorkers
from unit.test_operator_certificates import SERVERS, SPREAD_S, WORKERS, Secrets, bytes_of
from unit.test_own_certificate import publish

import tablebay as tb
from tablebay.client.certificates import issue
from tablebay.client.control import Control
from tablebay.client.errors import PermissionDenied
from tablebay.client.peer import Peer
from tablebay.client.tls import Folder
from tablebay.operator import pod_tls
from tablebay.operator.authority import RENEW_ANNOTATION, ROTATE_ANNOTATION, read_authority

# Longer than it takes a pod's program and a process to look at their files.
LOOK_S = 4.0
PODS = [("server", 0), ("server", 1), ("worker", 0), ("worker", 1)]


class Pods:
    """The volumes of four pods, and the program in each."""

    def __init__(self, folder: Path, secrets: Secrets) -> None:
        self.folder, self.secrets = folder, secrets
        self.programs: list[subprocess.Popen[bytes]] = []

    def own(self, role: str, index: int) -> Path:
        """TABLEBAY_TLS_DIR of a pod."""
        return self.folder / f"{role}-{index}" / "shared" / "own"

    def publish(self, pods: list[tuple[str, int]] = PODS) -> None:
        """What kubelets do with the Secrets of now."""
        for role, index in pods:
            name = SERVERS if role == "server" else WORKERS
            texts = {key.replace(".", "_"): text for key, text in bytes_of(self.secrets.there[name]).items()}
            publish(self.folder / f"{role}-{index}" / "all", **texts)

    def start(self) -> None:
        """The first container of each pod; the others begin once it has written."""
        for role, index in PODS:
            (self.folder / f"{role}-{index}" / "shared").mkdir(parents=True)
        self.publish()
        command = [sys.executable, "-m", "tablebay.client.own_certificate"]
        for role, index in PODS:
            pairs, to = str(self.folder / f"{role}-{index}" / "all"), str(self.own(role, index))
            self.programs.append(
                subprocess.Popen([*command, "--pairs", pairs, "--index", str(index), "--to", to])
            )
        for role, index in PODS:
            assert subprocess.run([*command, "--to", str(self.own(role, index)), "--wait"]).returncode == 0

    def end(self) -> None:
        for program in self.programs:
            program.terminate()
        assert all(program.wait(30) == 0 for program in self.programs)


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pods]:
    """Of a job whose servers are all on this machine."""
    monkeypatch.setattr(pod_tls, "server_host_names", lambda job, index: ("localhost",))
    secrets = Secrets()
    # Behind, so that it may be set forward and what it makes is for now all the same.
    secrets.now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=20)
    assert secrets.look() == []
    found = Pods(tmp_path / "pods", secrets)
    found.start()
    yield found
    found.end()


@pytest.mark.deep
def test_a_job_trains_through_renewal_expiry_and_a_new_authority(
    pods: Pods, start_server: Callable[..., Any]
) -> None:
    """Two workers and two servers; every pair anew; worker 1's expired for a while; another authority in its three
    steps, with the pods one after the other. No call fails, none restarts, each push is applied once; the operator
    asks with a certificate of its own all the while, and may not pull."""
    ports = free_data_ports(2)
    addresses = ",".join(f"localhost:{port}" for port in ports)
    servers = [
        start_server(
            *("--tls-dir", str(pods.own("server", index)), "--tables", TABLES, "--index", str(index)),
            *("--servers", addresses),
            data_port=port,
            ready=False,
        )
        for index, port in enumerate(ports)
    ]
    for server in servers:
        server.wait_until_ready()
    training = TwoWorkers(addresses, [pods.own("worker", rank) for rank in range(2)])

    def taken_up() -> int:
        return sum(server.log.count("certificate.renewed") for server in servers)

    def operator_asks() -> None:
        source = asyncio.run(pods.secrets.certificates.source(pods.secrets.job))
        assert source is not None
        with Control(addresses.split(","), tls=source) as control:
            assert len(control.stats()) == 2
            with pytest.raises(PermissionDenied, match="DescribeTables is not for operators"):
                control.describe()

    secrets = pods.secrets
    training.go_on(1.0)
    operator_asks()

    secrets.wish(RENEW_ANNOTATION, "1")
    assert secrets.look() == []
    pods.publish()
    training.go_on(LOOK_S)
    assert taken_up() >= 2, "no server has met a new certificate"

    # Worker 1's alone, and nobody renews it for a while.
    kept = {name: dict(one) for name, one in secrets.there.items()}
    _expire(pods)
    last, moved, until = -1, time.monotonic(), time.monotonic() + 30
    while time.monotonic() - moved < 3.0:
        assert time.monotonic() < until, "worker 1 trains on with a certificate that has expired"
        if training.steps[1] != last:
            last, moved = training.steps[1], time.monotonic()
        time.sleep(0.05)
    assert not training.failures, training.failures
    assert training.steps[1] > 0
    secrets.there = kept
    pods.publish()
    training.go_on(LOOK_S)

    secrets.wish(ROTATE_ANNOTATION, "1")
    for _ in range(3):
        assert secrets.look() == []
        for pod in PODS:
            pods.publish([pod])
            training.go_on(1.0)
        training.go_on(LOOK_S)
        operator_asks()
        secrets.later(SPREAD_S + 1)
    assert len(secrets.trusted(WORKERS)) == 1
    training.end()
    with Control(addresses.split(","), tls=Folder(pods.own("worker", 0))) as control:
        assert sum(answer.counters["duplicates"] for answer in control.stats()) == 0
    with tb.connect(addresses, tls_dir=pods.own("worker", 0), timeout=10) as client:
        assert len(client.table("words", dim=4)) == len(KEYS)
    assert all(server.process.poll() is None for server in servers)


def _expire(pods: Pods) -> None:
    """Worker 1 gets a certificate by the same authority that has ended."""
    found = read_authority(pods.secrets.there["flights-authority"])
    assert found is not None
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=10)
    pair = issue(found.signer, Peer("ads", "u-1", "worker", 1), (), now, datetime.timedelta(seconds=1))
    body = {**pods.secrets.there[WORKERS], "data": dict(pods.secrets.there[WORKERS]["data"])}
    for name, text in (("1.key", pair.key), ("1.crt", pair.certificate)):
        body["data"][name] = base64.b64encode(text).decode()
    pods.secrets.there[WORKERS] = body
    pods.publish([("worker", 1)])
