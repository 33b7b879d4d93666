"""The HTTP port among slow, senseless and many clients."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from free_ports import free_ports
from prometheus_client import CollectorRegistry

from tablebay.ps_server.health import HttpServer
from tablebay.ps_server.metrics import registry
from tablebay.ps_server.service import Service


class Http:
    """An HTTP server on a free port."""

    def __init__(self, metrics: CollectorRegistry, ready: Callable[[], str | None]) -> None:
        self.port = free_ports(1)
        self.server = HttpServer("127.0.0.1", self.port, metrics, ready)
        self.server.start()

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
        """Status, type and body of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read()
        finally:
            connection.close()

    def raw(self, content: bytes) -> bytes:
        """What the port answers to bytes, until it closes the connection."""
        answer = b""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        with connection, contextlib.suppress(OSError):
            connection.sendall(content)
            while piece := connection.recv(4096):
                answer += piece
        return answer


@pytest.fixture
def reason() -> list[str | None]:
    """Why the server is not ready; None when it is."""
    return [None]


@pytest.fixture
def page(reason: list[str | None]) -> Iterator[Http]:
    """The pages of a service; in the end /healthz still answers."""
    found = Http(registry(Service().snapshot), lambda: reason[0])
    yield found
    assert found.get("/healthz")[0] == 200
    found.server.close()


def test_readiness_is_asked_each_time(page: Http, reason: list[str | None]) -> None:
    """503 with the reason until there is none."""
    reason[0] = "starting"
    assert page.get("/readyz")[::2] == (503, b"starting\n")
    assert page.get("/healthz")[::2] == (200, b"ok\n")
    reason[0] = None
    assert page.get("/readyz")[::2] == (200, b"ready\n")


def test_metrics_come_in_the_form_that_is_asked_for(page: Http) -> None:
    """OpenMetrics ends in # EOF."""
    status, kind, body = page.get("/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert b"# TYPE tablebay_requests_total counter" in body
    status, kind, body = page.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_head_request_has_no_body(page: Http) -> None:
    """And another method is none of ours."""
    assert page.get("/healthz", "HEAD")[::2] == (200, b"")
    assert page.get("/healthz", "POST")[0] == 501
    assert page.get("/../../etc/passwd")[0] == 404
    assert page.get("/healthz/")[0] == 404


@pytest.mark.parametrize(
    "content",
    [
        os.urandom(5000),
        b"GET " + b"x" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(100),
        b"\r\n" * 1000,
    ],
    ids=["random", "long line", "many headers", "long header", "version", "tls", "empty lines"],
)
def test_senseless_requests_are_ended(page: Http, content: bytes) -> None:
    """With a 4xx or 5xx or nothing, within the time that silence may last."""
    began = time.monotonic()
    answer = page.raw(content)
    assert time.monotonic() - began < 12
    assert b" 200 " not in answer


def test_a_silent_connection_is_closed_after_seconds(page: Http) -> None:
    """And one that says half a request."""
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(page.raw, (b"", b"GET /metr"))) == [b"", b""]
    assert 3 < time.monotonic() - began < 12


def test_hundreds_of_silent_connections_keep_nobody_out(page: Http) -> None:
    """The oldest ones make room; its threads stay few."""
    before = len(os.listdir("/proc/self/task"))
    with contextlib.ExitStack() as silent:
        for _ in range(500):
            silent.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=5)).sendall(
                b"GET"
            )
        for _ in range(20):
            began = time.monotonic()
            assert page.get("/readyz")[0] == 200
            assert time.monotonic() - began < 2
        assert len(os.listdir("/proc/self/task")) - before < 100


def test_many_at_once_are_all_answered(page: Http) -> None:
    """Fifty pages of metrics at the same time."""
    with ThreadPoolExecutor(50) as pool:
        found: list[Any] = list(pool.map(lambda _: page.get("/metrics")[0], range(50)))
    assert found == [200] * 50


def test_a_closed_server_frees_its_port(page: Http) -> None:
    """At once, for the next one."""
    other = Http(registry(Service().snapshot), lambda: None)
    other.server.close()
    again = HttpServer("127.0.0.1", other.port, registry(Service().snapshot), lambda: None)
    again.start()
    try:
        assert other.get("/metrics")[0] == 200
    finally:
        again.close()
