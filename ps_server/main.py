"""tablebay-server: one server process, from its arguments to its end."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tablebay.client.environment import VERSION, control_port, http_port
from tablebay.client.errors import TablebayError
from tablebay.ps_server import telemetry
from tablebay.ps_server.config import USAGE_EXIT, BadSetting, Config, read_config
from tablebay.ps_server.grpc_server import CannotListen, GrpcServer
from tablebay.ps_server.health import HttpServer
from tablebay.ps_server.metrics import registry
from tablebay.ps_server.service import Service

PROGRAM = "tablebay-server"
_DONE, _FAILED = 0, 1
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 10.0
_FILES = 16_384

_EVENTS = telemetry.Events("tablebay.ps_server.main")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. The exit code: 0 ended as told, 1 failed, 2 wrong usage."""
    try:
        config = read_config(sys.argv[1:] if argv is None else argv, program=PROGRAM)
    except BadSetting as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return USAGE_EXIT
    if config.exit_with_parent:
        _exit_with_parent()
    _allow_connections()
    # The core's own lines are no log lines of ours, and any client can cause them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    epoch = time.time_ns()
    telemetry.configure(
        level=config.log_level,
        style=config.log_format,
        context={"job": config.job, "role": "server", "index": config.index, "epoch": epoch},
    )
    with _signals() as told_to_end:
        try:
            return _serve(config, epoch, told_to_end)
        except (CannotListen, TablebayError) as error:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
            return _FAILED


def _serve(config: Config, epoch: int, told_to_end: queue.SimpleQueue[str]) -> int:
    service = Service(
        index=config.index,
        servers=len(config.servers),
        job=config.job,
        generation=config.generation,
        epoch=epoch,
        tables=config.tables,
        message_bytes_max=config.message_bytes_max,
        memory_limit=config.memory_limit_bytes,
        keys_max=config.keys_max,
        clients_max=config.clients_max,
    )
    readiness = _Readiness(service)
    http = _http_server(config, service, readiness)
    try:
        ports = GrpcServer(
            service,
            host=config.host,
            data_port=config.data_port,
            message_bytes_max=config.message_bytes_max,
            threads=config.threads,
            requests_max=config.requests_max,
        )
        ports.start()
        readiness.started = True
        http.start()
        _EVENTS.info(
            "server.ready",
            host=config.host,
            data_port=config.data_port,
            http_port=http_port(config.data_port),
            control_port=control_port(config.data_port),
            servers=len(config.servers),
            tables=len(config.tables),
            memory_limit_bytes=config.memory_limit_bytes,
            version=VERSION,
        )
        reason = _wait(service, told_to_end)
        return _end(service, ports, config.grace_s, reason)
    finally:
        http.close()


class _Readiness:
    """Whether this server takes data calls, for /readyz."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.started = False

    def __call__(self) -> str | None:
        """Why not, or None."""
        if not self.started:
            return "starting"
        return "draining" if self._service.draining else None


def _http_server(config: Config, service: Service, readiness: _Readiness) -> HttpServer:
    port = http_port(config.data_port)
    try:
        return HttpServer(config.host, port, registry(service.snapshot), readiness)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise CannotListen(f"HTTP port {config.host}:{port}: {reason}") from None


def _wait(service: Service, told_to_end: queue.SimpleQueue[str]) -> str:
    """Until a signal comes; its name. Now and then look at what only the core has noticed."""
    changed = 0
    while True:
        try:
            return told_to_end.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            now = service.counters["duplicates_changed"]
            if now > changed:
                _EVENTS.warning(
                    "steps.changed", shards=now - changed, wanted="a step sent again with the same content"
                )
                changed = now


def _end(service: Service, ports: GrpcServer, grace_s: float, reason: str) -> int:
    began = time.monotonic()
    service.drain()
    ports.drain()
    done = ports.stop(grace_s)
    counters = service.counters
    _EVENTS.info(
        "server.drained",
        reason=reason,
        seconds=round(time.monotonic() - began, 3),
        unfinished=service.in_flight,
        pulls=counters["pulls"],
        pushes_applied=counters["pushes_applied"],
        duplicates=counters["duplicates"],
        rows=counters["rows"],
    )
    if done:
        return _DONE
    # The interpreter would wait for their threads, past the time that was given.
    logging.shutdown()
    os._exit(_FAILED)


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[str]]:
    """The names of SIGTERM and SIGINT as they come. A second one changes nothing: the end has begun."""
    # put() of a SimpleQueue may interrupt its own get(), which no Event's set() may.
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def tell(number: int, frame: FrameType | None) -> None:
        told.put(signal.Signals(number).name)

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_connections() -> None:
    """As many open files as this process may have: the usual limit is below what both ports may hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exit_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before the request, so no signal will come.
        os._exit(_FAILED)


if __name__ == "__main__":
    sys.exit(main())
