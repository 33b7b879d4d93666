"""What a worker counts of its clients, and how it is shown."""

from __future__ import annotations

import gc
import logging
import math
import socket
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tablebay.client import errors, metrics
from tablebay.client.client import Client, client_over
from tablebay.client.environment import METRICS_HOST, METRICS_PORT
from tablebay.client.inprocess import InProcessTransport, services
from tablebay.client.metrics import CountingTransport, Figures
from tablebay.client.transport import DATA_METHODS, Answer, Transport
from tablebay.ps_server import metrics as server_metrics


def samples(figures: Figures) -> dict[str, float]:
    """Every sample of Tablebay's own, by its name and labels as the text has them."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry(figures)).decode()):
        for sample in family.samples:
            if sample.name.startswith("tablebay_"):
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Counts:
    """As much of a session as is counted."""

    def __init__(self, retries: int, steps: int, open_steps: int) -> None:
        self.retries = retries
        self.steps_applied = steps
        self.open_steps = open_steps


class Scripted:
    """A transport whose answers are given."""

    addresses = ("server:7070",)

    def __init__(self, *answers: bytes | errors.TablebayError) -> None:
        self._answers = list(answers)
        self.closed = self.rebuilt = False

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        return Given(self._answers.pop(0))

    def rebuild(self) -> None:
        self.rebuilt = True

    def close(self) -> None:
        self.closed = True


class Failing(InProcessTransport):
    """Servers in this process whose data calls fail while there are errors to give; the last stays."""

    def __init__(self) -> None:
        super().__init__(services(1))
        self.errors: list[errors.TablebayError] = []

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        if method not in DATA_METHODS or not self.errors:
            return super().call(server, method, request, timeout, wait)
        return Given(self.errors.pop(0) if len(self.errors) > 1 else self.errors[0])


class Given:
    """An answer that is there."""

    def __init__(self, answer: bytes | errors.TablebayError) -> None:
        self._answer = answer

    def result(self) -> bytes:
        if isinstance(self._answer, errors.TablebayError):
            raise self._answer
        return self._answer

    def cancel(self) -> object:
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def counted(variables: dict[str, str]) -> Client:
    """A client over servers in this process, made as `tb.connect()` makes one with these variables."""

    def connect(transport: Callable[[int], Transport]) -> Client:
        return client_over(transport(0))

    return metrics.counting(lambda _: InProcessTransport(services(1)), connect, variables)


def test_buckets_are_those_of_the_servers() -> None:
    """A worker's times and a server's can be laid over each other."""
    assert metrics.BUCKETS == server_metrics.BUCKETS


def test_everything_is_there_before_anything_happened() -> None:
    """Counters begin at 0, so that a rate sees the first event; no name has been reported yet."""
    found = samples(Figures())
    for method in ("Pull", "Push", "Step"):
        assert found[f"tablebay_client_requests_total{{code=OK,method={method}}}"] == 0
        assert found[f"tablebay_client_request_duration_seconds_count{{method={method}}}"] == 0
    for name in ("client_retries_total", "client_open_steps", "train_steps_total", "train_examples_total"):
        assert found[f"tablebay_{name}"] == 0
    assert not any(name.startswith("tablebay_train_reported") for name in found)


def test_waits_fall_into_buckets() -> None:
    """Buckets are cumulative and hold their bound; what lies beyond all is in +Inf alone."""
    figures = Figures()
    for seconds in (1e-5, 5e-5, 0.003, 9.0):
        figures.waited("Pull", seconds)
    found = samples(figures)
    name = "tablebay_client_request_duration_seconds"
    assert found[f"{name}_bucket{{le=5e-05,method=Pull}}"] == 2
    assert found[f"{name}_bucket{{le=0.0025,method=Pull}}"] == 2
    assert found[f"{name}_bucket{{le=0.005,method=Pull}}"] == 3
    assert found[f"{name}_bucket{{le=2.5,method=Pull}}"] == 3
    assert found[f"{name}_bucket{{le=+Inf,method=Pull}}"] == found[f"{name}_count{{method=Pull}}"] == 4
    assert found[f"{name}_sum{{method=Pull}}"] == pytest.approx(9.00306)


def test_requests_are_counted_by_method_and_code_once_each() -> None:
    """An answer, an error and a cancellation are one each; cancelling what has been answered is nothing."""
    figures = Figures()
    inner = Scripted(b"yes", errors.Unavailable("away"), errors.Fenced("newer"), b"late")
    transport = CountingTransport(inner, figures)
    first = transport.call(0, "Pull", b"", 1.0)
    assert first.result() == b"yes"
    first.cancel()
    with pytest.raises(errors.Unavailable):
        transport.call(0, "Pull", b"", 1.0, True).result()
    with pytest.raises(errors.Fenced):
        transport.call(0, "Hello", b"", 1.0).result()
    transport.call(0, "Step", b"", 1.0).cancel()
    assert {key: number for key, number in figures.read().requests.items() if number} == {
        ("Pull", "OK"): 1,
        ("Pull", "UNAVAILABLE"): 1,
        ("Hello", "FAILED_PRECONDITION"): 1,
        ("Step", "CANCELLED"): 1,
    }
    transport.rebuild()
    transport.close()
    assert (inner.rebuilt, inner.closed, list(transport.addresses)) == (True, True, ["server:7070"])


def test_clients_are_summed_and_counters_never_fall() -> None:
    """What a client counted stays when it closes or is dropped; its open steps go with it."""
    figures = Figures()
    one, two = Counts(1, 10, 2), Counts(2, 20, 3)
    for session in (one, two):
        figures.join(session)  # type: ignore[arg-type]
    both = figures.read()
    assert (both.retries, both.steps, both.open_steps, figures.members) == (3, 30, 5, 2)
    one.steps_applied = 11
    figures.leave(one)  # type: ignore[arg-type]
    left = figures.read()
    assert (left.retries, left.steps, left.open_steps, figures.members) == (3, 31, 3, 1)
    del two, session
    gc.collect()
    none = figures.read()
    assert (none.retries, none.steps, none.open_steps, figures.members) == (3, 31, 0, 0)


def test_examples_add_up_and_other_names_keep_the_latest(caplog: pytest.LogCaptureFixture) -> None:
    """A counter takes only what makes it grow; of names the first 64 are kept, and the log says so once."""
    figures = Figures()
    for examples in (100.0, -5.0, math.nan, math.inf, 50.0):
        figures.reported({"examples": examples, "loss": examples})
    figures.reported({'a\n"b\\': math.nan})
    found = samples(figures)
    assert found["tablebay_train_examples_total"] == 150
    assert found["tablebay_train_reported{name=loss}"] == 50
    assert math.isnan(found['tablebay_train_reported{name=a\n"b\\}'])
    with caplog.at_level(logging.WARNING):
        figures.reported({f"n{number}": 1.0 for number in range(100)})
        figures.reported({"n99": 1.0, "loss": 0.25})
    reported = figures.read().reported
    assert (len(reported), reported["loss"]) == (64, 0.25)
    assert [record.getMessage() for record in caplog.records] == [
        "metrics: report() has given more than 64 names; 'n62' and others are not shown"
    ]


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_wrong_port_is_a_warning(port: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the variable, the value and what was wanted; the client works, uncounted."""
    with counted({METRICS_PORT: port}) as client:
        client.table("user", dim=1).pull([1])
    assert f"{METRICS_PORT} is '{port}', wanted a whole number from 1 to 65535" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "no such host", "a..b"])
def test_an_address_that_cannot_be_had_is_a_warning(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """A port in use, and a host that is none, are in the log; the client works, uncounted."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with counted({METRICS_PORT: str(port), METRICS_HOST: host}) as client:
            client.table("user", dim=1).pull([1])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{host}:{port} cannot be served on" in record.getMessage()
    assert "goes on without /metrics" in record.getMessage()


def test_a_client_that_could_not_connect_leaves_no_server() -> None:
    """The port is free again after connecting failed."""
    port = free_port()

    def connect(transport: Callable[[int], Transport]) -> Client:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            raise errors.Unavailable("no server")

    with pytest.raises(errors.Unavailable, match="no server"):
        metrics.counting(
            lambda _: InProcessTransport(services(1)),
            connect,
            {METRICS_PORT: str(port), METRICS_HOST: "127.0.0.1"},
        )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_steps_count_when_they_are_applied() -> None:
    """A push, an assign and a step block are one each; a refused push and a block given up are none."""
    port = free_port()
    with counted({METRICS_PORT: str(port), METRICS_HOST: "127.0.0.1"}) as client:
        figures = client._session.figures
        assert figures is not None
        before = figures.read()
        table = client.table("user", dim=1)
        rows = np.ones((1, 1), np.float32)
        table.push([1], rows)
        table.assign([1], rows)
        with client.step() as step:
            step.push({table: ([1], rows)})
        with pytest.raises(errors.NonFinite):
            table.push([1], rows * np.nan)
        with pytest.raises(ZeroDivisionError), client.step():
            raise ZeroDivisionError
        after = figures.read()
    assert after.steps - before.steps == 3
    assert after.open_steps == 0
    assert figures.read().steps == after.steps


@pytest.mark.parametrize(
    ("refusal", "steps"), [([], 2), ([errors.ResourceExhausted("full")], 1)], ids=["lost", "refused"]
)
def test_a_step_left_open_is_shown_until_it_is_settled(
    refusal: list[errors.TablebayError], steps: int
) -> None:
    """Attempts, retries and the open step count while the server is away; a refused step is never an applied one."""
    transport = Failing()
    figures = Figures()
    rows = np.ones((1, 1), np.float32)
    with client_over(CountingTransport(transport, figures), rank=0, timeout=0.3) as client:
        table = client.table("user", dim=1)
        client._session.figures = figures
        figures.join(client._session)
        transport.errors = [*refusal, errors.Unavailable("away")]
        with pytest.raises(errors.TablebayError, match="full" if refusal else "away"):
            table.push([1], rows)
        away = figures.read()
        transport.errors = []
        table.push([1], rows)
        back = figures.read()
    assert (away.open_steps, away.steps) == (1, 0)
    assert (back.open_steps, back.steps) == (0, steps)
    lost = sum(number for (_, code), number in away.requests.items() if code == "UNAVAILABLE")
    assert away.retries == back.retries == lost - 1 > 0
    assert sum(sum(waits.buckets) for waits in away.waits.values()) == 1 + len(refusal)
