"""A real server process: its start, its logs, its signals, its death."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from free_ports import free_data_ports
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tablebay.client.client import connect
from tablebay.client.environment import VERSION
from tablebay.client.errors import ServerLost, Unavailable
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tables import SGD, Zeros
from tablebay.ps_server.grpc_server import GrpcServer
from tablebay.ps_server.service import DATA_METHODS, Service

START = Callable[..., Any]
TABLES = (
    '[{"name": "user", "dim": 2, "optimizer": {"type": "SGD", "learningRate": 1.0},'
    ' "initializer": {"type": "Zeros"}}]'
)


def log_lines(server: Any) -> list[dict[str, Any]]:
    """Every line of the log, which must be JSON."""
    return [json.loads(line) for line in server.log.splitlines()]


def test_a_server_starts_serves_and_ends(start_server: START) -> None:
    """From the first line of its log to exit code 0; with the tables of its job, and every line with who it is."""
    server = start_server("--job", "flights", TABLEBAY_TABLES=TABLES)
    with connect(server.address) as client:
        user = client.table("user")
        user.push([1, 2], np.ones((2, 2), np.float32))
        assert user.pull([1, 2, 3]).tolist() == [[-1, -1], [-1, -1], [0, 0]]
    assert server.end() == 0
    lines = log_lines(server)
    assert [line["event"] for line in lines] == [
        "table.created",
        "server.ready",
        "client.greeted",
        "server.draining",
        "server.drained",
    ]
    epoch = lines[0]["epoch"]
    for line in lines:
        assert (line["job"], line["role"], line["index"], line["epoch"]) == ("flights", "server", 0, epoch)
    assert lines[1]["data_port"] == server.data_port
    assert (lines[-1]["reason"], lines[-1]["pushes_applied"], lines[-1]["rows"]) == ("SIGTERM", 1, 3)


def test_health_checks_follow_the_servers_life(start_server: START) -> None:
    """gRPC health for the server and for both services, on the control port; not serving once it drains."""
    server = start_server()
    health = health_pb2_grpc.HealthStub(server.channel(control=True))
    for name in ("", "tablebay.v1.Data", "tablebay.v1.Control"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert server.get("/healthz") == (200, "ok\n")
    assert server.get("/readyz") == (200, "ready\n")
    server.call("Drain", b"")
    assert server.get("/healthz") == (200, "ok\n")
    assert server.get("/readyz") == (503, "draining\n")
    with pytest.raises(grpc.RpcError) as refused:
        server.call("Pull", b"")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert tablebay_pb2.StatsResponse.FromString(server.call("Stats", b"")).version == VERSION


def test_watching_the_health_holds_no_thread(start_server: START) -> None:
    """More watches than the control port has threads for its calls."""
    server = start_server()
    health = health_pb2_grpc.HealthStub(server.channel(control=True))
    watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(40)]
    assert all(next(watch).status == health_pb2.HealthCheckResponse.SERVING for watch in watches)
    assert server.call("Stats", b"", timeout=5)
    for watch in watches:
        watch.cancel()


def test_reflection_describes_every_method(start_server: START) -> None:
    """What a tool such as grpcurl needs to call without the .proto."""
    stub = reflection_pb2_grpc.ServerReflectionStub(start_server().channel(control=True))

    def ask(**fields: str) -> Any:
        (answer,) = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**fields)]), timeout=5
        )
        return answer

    services = {service.name for service in ask(list_services="").list_services_response.service}
    assert {"tablebay.v1.Data", "tablebay.v1.Control", "grpc.health.v1.Health"} <= services
    (file,) = ask(file_containing_symbol="tablebay.v1.Data").file_descriptor_response.file_descriptor_proto
    assert file == tablebay_pb2.DESCRIPTOR.serialized_pb


def test_the_metrics_page_counts_what_was_done(start_server: START) -> None:
    """In the text form of Prometheus, and in OpenMetrics for whoever asks for it."""
    server = start_server(TABLEBAY_TABLES=TABLES)
    with connect(server.address) as client:
        client.table("user").push([1, 2], np.ones((2, 2), np.float32))
        client.table("user").pull([1, 2, 3], create=False)
    with pytest.raises(grpc.RpcError):
        server.call("Pull", b"\xff")
    status, text = server.get("/metrics")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert samples['tablebay_requests_total{code="OK",method="Push"}'] == "1.0"
    assert samples['tablebay_requests_total{code="INVALID_ARGUMENT",method="Pull"}'] == "1.0"
    assert samples['tablebay_requests_in_flight{method="Pull"}'] == "0.0"
    assert samples['tablebay_request_duration_seconds_count{method="Push"}'] == "1.0"
    assert samples['tablebay_lookup_keys_total{result="missing"}'] == "1.0"
    assert samples['tablebay_push_keys_total{result="applied"}'] == "2.0"
    assert samples['tablebay_table_rows{table="user"}'] == "2.0"
    assert float(samples["tablebay_memory_limit_bytes"]) > 0
    assert any(name.startswith('tablebay_build_info{commit="') for name in samples)
    assert server.get("/metrics?x=1")[0] == 200
    assert server.get("/other")[0] == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_ends_a_server_and_a_second_one_does_no_harm(
    start_server: START, number: signal.Signals
) -> None:
    """Exit code 0, without a traceback."""
    server = start_server("--log-format", "text")
    for _ in range(5):
        server.process.send_signal(number)
    assert server.process.wait(20) == 0
    assert f"server.drained reason={number.name}" in server.log
    assert "Traceback" not in server.log


def test_a_signal_during_the_start_ends_the_server_too(start_server: START) -> None:
    """At whatever moment it comes."""
    for delay in (0.1, 0.3, 0.5, 0.7, 0.9):
        server = start_server(ready=False)
        time.sleep(delay)
        assert server.end(within_s=20) in (0, -signal.SIGTERM)


class Slow(Service):
    """A service whose pulls take as long as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()
        self._data["Pull"] = self._wait

    def _wait(self, request: bytes) -> bytes:
        # As the core counts the pulls that it handles.
        pull = DATA_METHODS.index("Pull")
        self._store.figures.begin(pull, len(request))
        self.began.release()
        went_on = self.go_on.wait(30)
        self._store.figures.end(pull, 0.0, "OK", 0)
        assert went_on
        return b"answered"


def slow_server(port: int, **options: Any) -> tuple[Slow, GrpcServer]:
    """Both, started."""
    service = Slow()
    options = {"requests_max": 64, "message_bytes_max": 1 << 20, **options}
    server = GrpcServer(service, host="127.0.0.1", data_port=port, **options)
    server.start()
    return service, server


def pull(port: int) -> Any:
    """A pull under way on a connection of its own, and the connection."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
    return channel, channel.unary_unary("/tablebay.v1.Data/Pull").future(b"", timeout=30)


def test_draining_refuses_new_calls_and_lets_those_under_way_finish() -> None:
    """The one that had begun is answered; the next is UNAVAILABLE, also on a new connection."""
    (data_port,) = free_data_ports(1)
    service, server = slow_server(data_port)
    first, under_way = pull(data_port)
    assert service.began.acquire(timeout=10)
    ended: list[bool] = []
    service.drain()
    server.drain()
    stopping = threading.Thread(target=lambda: ended.append(server.stop(20.0)))
    stopping.start()
    for connection in (None, first):
        channel = connection or grpc.insecure_channel(f"127.0.0.1:{data_port}")
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/tablebay.v1.Data/Pull")(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not ended
    service.go_on.set()
    assert under_way.result() == b"answered"
    stopping.join(10)
    assert ended == [True]
    first.close()


def test_the_grace_period_is_the_longest_wait() -> None:
    """A call that does not end in time is cut off, and stop() says that not all were done."""
    (data_port,) = free_data_ports(1)
    service, server = slow_server(data_port)
    channel, under_way = pull(data_port)
    assert service.began.acquire(timeout=10)
    began = time.monotonic()
    assert server.stop(0.5) is False
    assert 0.4 < time.monotonic() - began < 10
    with pytest.raises(grpc.RpcError):
        under_way.result()
    service.go_on.set()
    channel.close()


def test_a_port_that_is_taken_is_named(start_server: START) -> None:
    """Exit code 1, one line with which of the three ports and why; nothing is left behind."""
    for offset, name in enumerate(("data port", "HTTP port", "control port")):
        (data_port,) = free_data_ports(1)
        with socket.create_server(("127.0.0.1", data_port + offset)):
            server = start_server(ready=False, data_port=data_port)
            assert server.process.wait(30) == 1
        message = server.log.splitlines()
        assert len(message) == 1, server.log
        assert message[0] == (
            f"tablebay-server: {name} 127.0.0.1:{server.data_port + offset}: Address already in use"
        )


def test_two_servers_never_share_a_port(start_server: START) -> None:
    """The second one fails at once, and the first goes on."""
    first = start_server()
    second = start_server(ready=False, data_port=first.data_port)
    assert second.process.wait(30) == 1
    assert "Address already in use" in second.log
    assert first.call("Stats", b"")


def test_a_server_dies_with_the_process_that_started_it(start_server: START) -> None:
    """With --exit-with-parent, however that process ends: here by SIGKILL."""
    server = start_server()
    server.end()
    command = [sys.executable, "-m", "tablebay.ps_server.main", "--data-port", str(server.data_port)]
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({[*command, '--exit-with-parent']!r}, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        _wait_for(lambda: server.get("/readyz")[0] == 200)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    _wait_for(lambda: not _is_alive(child))


def _is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come about within 30 s")


def test_a_killed_and_restarted_server_is_server_lost_to_an_old_client(start_server: START) -> None:
    """Its push is never applied to rows that began anew; a new client begins anew with them."""
    server = start_server(TABLEBAY_TABLES=TABLES)
    client = connect(server.address, timeout=20.0)
    user = client.table("user")
    user.push([1], np.ones((1, 2), np.float32))
    server.end(signal.SIGKILL)
    with pytest.raises(Unavailable):
        connect(server.address, timeout=0.5)
    again = start_server(data_port=server.data_port, TABLEBAY_TABLES=TABLES)
    with pytest.raises(ServerLost, match=r"was restarted: its epoch was \d+ and is \d+"):
        user.push([1], np.ones((1, 2), np.float32))
    with pytest.raises(ServerLost):
        user.pull([1])
    with connect(again.address) as fresh:
        assert fresh.table("user").pull([1]).tolist() == [[0, 0]]
        assert fresh.stats()[0].counters["pushes_applied"] == 0


def test_a_restarted_server_0_does_not_lock_ranks_out(start_server: START) -> None:
    """Its new incarnations are above the old ones, so that the server that lived on takes the newer process."""
    first, second = start_server(ready=False), start_server(ready=False)
    for server in (first, second):
        server.end(signal.SIGKILL)
    pattern = f"{first.address},{second.address}"

    def start(index: int) -> Any:
        port = (first, second)[index].data_port
        return start_server("--servers", pattern, "--index", str(index), data_port=port)

    zero, _ = start(0), start(1)
    connect(pattern, rank=0, workers=1).close()
    zero.end(signal.SIGKILL)
    # They grow by the second.
    time.sleep(1.1)
    start(0)
    with connect(pattern, rank=0, workers=1) as client:
        table = client.table("user", dim=2, optimizer=SGD(1.0), initializer=Zeros())
        table.push(np.arange(100), np.ones((100, 2), np.float32))
        assert (table.pull(np.arange(100)) == -1).all()


def test_a_server_needs_no_terminal_and_no_standard_input(start_server: START) -> None:
    """As in a pod: logs are JSON unless told otherwise, text when told so."""
    server = start_server()
    server.wait_until_logged("server.ready")
    assert log_lines(server)[0]["event"] == "server.ready"
    start_server(TABLEBAY_LOG_FORMAT="text", TABLEBAY_LOG_LEVEL="info").wait_until_logged(
        " INFO server.ready "
    )
    assert start_server(TABLEBAY_LOG_LEVEL="error").log == ""


def test_help_and_version_say_what_they_should() -> None:
    """On standard output, with exit code 0; every option of the help can be given as a variable but two."""
    command = [sys.executable, "-m", "tablebay.ps_server.main"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    assert (version.returncode, version.stdout.strip()) == (0, f"tablebay {VERSION}")
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert text.returncode == 0
    assert "--memory-limit-bytes" in text.stdout
