"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tablebay.client.local import ports

# No deadline: the machine's other work decides how long one example takes.
settings.register_profile("short", deadline=None, max_examples=50, print_blob=True)
settings.register_profile(
    "deep", deadline=None, max_examples=1000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deep" if os.environ.get("TABLEBAY_DEEP") == "1" else "short")

# A shell starts what runs in its background deaf to Ctrl-C, and children inherit that: there are tests of Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each of several processes that test side by side has ports of its own: else one takes the port of another's server
# while that is started again.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:
    _first, _end = ports.FIRST_PORT, ports._first_ephemeral_port()
    _size = (_end - _first) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    ports.FIRST_PORT = _first + _size * int(worker.removeprefix("gw"))
    ports._first_ephemeral_port = lambda: ports.FIRST_PORT + _size


@pytest.fixture(params=["native", "grpcio"])
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each of the transports over sockets (client/http2_transport.py)."""
    monkeypatch.setenv("TABLEBAY_TRANSPORT", request.param)
