"""A worker's /metrics over real sockets: when it is there, what it says, and that nothing else depends on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from free_ports import free_data_ports
from prometheus_client.parser import text_string_to_metric_families

import tablebay as tb
from tablebay.client.environment import METRICS_HOST, METRICS_PORT, RANK, SERVERS, WORKERS

HOST = "127.0.0.1"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def port(start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Where a worker with this process's environment, in a job of two servers, answers /metrics."""
    ports = free_data_ports(2)
    names = ",".join(f"{HOST}:{port}" for port in ports)
    servers = [
        start_server("--index", str(index), "--servers", names, ready=False, data_port=port)
        for index, port in enumerate(ports)
    ]
    for server in servers:
        server.wait_until_ready()
    with socket.socket() as found:
        found.bind((HOST, 0))
        free: int = found.getsockname()[1]
    monkeypatch.setenv(SERVERS, names)
    monkeypatch.setenv(METRICS_PORT, str(free))
    monkeypatch.setenv(METRICS_HOST, HOST)
    return free


def page(port: int) -> str:
    """What the worker answers."""
    with _OPENER.open(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def samples(text: str) -> dict[tuple[str, str], float]:
    """Values by name and by the values of the labels, in the order of their names."""
    return {
        (sample.name, ",".join(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def open_port(port: int) -> bool:
    """Whether something listens."""
    with socket.socket() as found:
        return found.connect_ex((HOST, port)) == 0


def work(client: tb.Client) -> None:
    """Three steps of one push, and a report."""
    user = client.table("user", dim=2)
    keys = np.arange(100, dtype=np.uint64)
    for _ in range(3):
        user.push(keys, user.pull(keys))
    client.report(loss=0.5, examples=300, **{'odd "name"': 1.0})


def test_a_worker_shows_what_it_did(port: int) -> None:
    """Each figure is that of the calls made, and promtool finds no fault in the text."""
    with tb.connect() as client:
        before = samples(page(port))
        work(client)
        text = page(port)
    after = samples(text)

    def grown(name: str, labels: str = "") -> float:
        return after[name, labels] - before.get((name, labels), 0.0)

    assert grown("tablebay_client_requests_total", "OK,Pull") == 6
    assert grown("tablebay_client_requests_total", "OK,Push") == 6
    assert grown("tablebay_client_requests_total", "OK,Report") == 1
    assert grown("tablebay_client_request_duration_seconds_count", "Pull") == 3
    assert grown("tablebay_client_request_duration_seconds_count", "Push") == 3
    assert 0 < grown("tablebay_client_request_duration_seconds_sum", "Pull") < 30
    assert grown("tablebay_client_retries_total") == 0
    assert grown("tablebay_train_steps_total") == 3
    assert grown("tablebay_train_examples_total") == 300
    assert after["tablebay_client_open_steps", ""] == 0
    assert after["tablebay_train_reported", "loss"] == 0.5
    assert after["tablebay_train_reported", 'odd "name"'] == 1.0
    assert after["tablebay_client_build_info", tb.__version__] == 1
    assert any(name.startswith("process_") for name, _ in after)
    promtool = shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_server_is_there_while_a_client_is(port: int) -> None:
    """The first client starts it, the last to close stops it, the next starts it again; counters go on."""
    assert not open_port(port)
    first = tb.connect()
    second = tb.connect()
    work(first)
    work(second)
    steps = samples(page(port))["tablebay_train_steps_total", ""]
    first.close()
    first.close()
    assert samples(page(port))["tablebay_train_steps_total", ""] == steps >= 6
    second.close()
    assert not open_port(port)
    with tb.connect():
        assert samples(page(port))["tablebay_train_steps_total", ""] == steps
    assert not open_port(port)


def test_a_client_with_an_address_is_none_of_a_worker(port: int) -> None:
    """Only connect() that reads the environment shows metrics."""
    with tb.connect(os.environ[SERVERS]) as client:
        work(client)
        assert not open_port(port)


def test_a_worker_that_waits_for_its_servers_is_seen(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While connect() cannot reach a server its failed requests are shown; then the port is given back."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        monkeypatch.setenv(SERVERS, f"{HOST}:{found.getsockname()[1]}")
        seen: list[float] = []

        def connect() -> None:
            with pytest.raises(tb.Unavailable):
                tb.connect(timeout=3.0)

        thread = threading.Thread(target=connect)
        thread.start()
        while thread.is_alive():
            if open_port(port):
                try:
                    found_now = samples(page(port))
                except OSError:
                    continue  # it stopped between the two
                seen.append(found_now.get(("tablebay_client_requests_total", "UNAVAILABLE,Hello"), 0.0))
            thread.join(0.05)
    assert max(seen) > 0
    assert not open_port(port)


def run(script: str, **variables: str) -> str:
    """What a Python process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_variable_prometheus_client_is_not_loaded(port: int) -> None:
    """connect() and calls load it only where metrics are asked for."""
    script = (
        "import sys, tablebay as tb\n"
        "with tb.connect() as client:\n"
        "    client.table('user', dim=1).pull([1])\n"
        "    client.report(examples=1)\n"
        "    print('prometheus_client' in sys.modules)\n"
    )
    assert run(script, **{METRICS_PORT: ""}) == "False\n"
    assert run(script, **{RANK: "0", WORKERS: "1"}) == "True\n"


def test_a_forked_child_serves_nothing_and_keeps_no_port(port: int) -> None:
    """While the child lives, the parent's port is closed when its client is, and can be used again."""
    script = (
        "import os, socket, sys, tablebay as tb\n"
        "client = tb.connect()\n"
        "ready, go = os.pipe(), os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.close(go[1])\n"
        "    os.write(ready[1], b'1')\n"
        "    os.read(go[0], 1)\n"
        "    client.close()\n"
        "    try:\n"
        "        tb.connect()\n"
        "    except tb.Forked:\n"
        "        os._exit(7)\n"
        "    os._exit(1)\n"
        "os.read(ready[0], 1)\n"
        f"address = ('{HOST}', {port})\n"
        "print(socket.socket().connect_ex(address) == 0)\n"
        "client.close()\n"
        "print(socket.socket().connect_ex(address) == 0)\n"
        "with tb.connect():\n"
        "    print(socket.socket().connect_ex(address) == 0)\n"
        "os.write(go[1], b'1')\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run(script) == "True\nFalse\nTrue\n7\n"
