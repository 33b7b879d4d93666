"""What a running operator listens at, and what each of it answers to somebody without credentials."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.api_server import write_kubeconfig
from unit.test_operator_cluster import Api, serving

TOKEN = "not-for-anybody-else"
LISTEN = "0A"


@pytest.fixture
def api() -> Iterator[Api]:
    """An API server of no jobs."""
    with serving() as found:
        yield found


@pytest.fixture
def operator(api: Api, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The operator as the chart starts it, and its port."""
    write_kubeconfig(tmp_path / "config", api.address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TABLEBAY_", "KUBE"))}
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-I",
                "-m",
                "tablebay.operator.main",
                "run",
                "--server-image",
                "registry/tablebay:1",
            ),
            *("--lease-namespace", "tablebay-system", "--http-port", str(port)),
        ],
        env={**kept, "KUBECONFIG": str(tmp_path / "config"), "SECRET": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "it does not answer"
            try:
                if ask(port, "GET", "/readyz")[0]:
                    break
            except OSError:
                time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def ask(port: int, method: str, path: str) -> tuple[int, str]:
    """Status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def listening(pid: int) -> set[tuple[str, str]]:
    """Kind and port of each socket of a process that waits for connections, or takes datagrams of anybody."""
    folder = Path(f"/proc/{pid}/fd")
    links = [os.readlink(one) for one in folder.iterdir() if one.is_symlink()]
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            local, peer, state, inode = fields[1], fields[2], fields[3], fields[9]
            open_to_all = state == LISTEN if kind.startswith("tcp") else int(peer.rpartition(":")[2], 16) == 0
            if inode in own and open_to_all:
                found.add((kind, str(int(local.rpartition(":")[2], 16))))
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        # Of a listening socket this flag is set.
        fields = line.split()
        if fields[6] in own and int(fields[3], 16) & 0x10000:
            found.add(("unix", fields[7] if len(fields) > 7 else ""))
    return found


def test_s10_the_operator_listens_at_one_port_that_changes_nothing(
    operator: tuple[subprocess.Popen[str], int], api: Api
) -> None:
    """/metrics and the two probes, to whoever asks; no other path or method is taken, and no answer has a secret."""
    process, port = operator
    deadline = time.monotonic() + 30
    while not any(path.endswith("/leases") for _, path, _ in api.requests):
        assert time.monotonic() < deadline, "it never leads"
        time.sleep(0.05)
    time.sleep(1.0)
    assert process.poll() is None
    found = listening(process.pid)
    # Of each kind of address that this machine has.
    assert ("tcp", str(port)) in found
    assert found <= {("tcp", str(port)), ("tcp6", str(port))}
    answers = {
        path: ask(port, "GET", path) for path in ("/metrics", "/healthz", "/readyz", "/", "/jobs", "/debug")
    }
    # It may not have all that it watches yet.
    assert answers.pop("/readyz")[0] in (200, 503)
    assert {path: status for path, (status, _) in answers.items()} == {
        "/metrics": 200,
        "/healthz": 200,
        "/": 404,
        "/jobs": 404,
        "/debug": 404,
    }
    assert "tablebay_operator_is_leader" in answers["/metrics"][1]
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/metrics", "/healthz", "/readyz"):
            assert ask(port, method, path)[0] == 405, f"{method} {path}"
    assert not [text for _, text in answers.values() if TOKEN in text or "token" in text.lower()]
