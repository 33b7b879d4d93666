"""A server from its ports to its end."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import NoReturn

from tablebay.client.environment import NO_CHECKPOINT_EXIT, VERSION, control_port, http_port
from tablebay.client.tls import Folder
from tablebay.ps_server import telemetry
from tablebay.ps_server.checkpoint.coordinator import Schedule
from tablebay.ps_server.config import Config
from tablebay.ps_server.durability import Durability, Settings
from tablebay.ps_server.grpc_server import CannotListen, GrpcServer
from tablebay.ps_server.health import HttpServer
from tablebay.ps_server.metrics import registry
from tablebay.ps_server.secure import Security
from tablebay.ps_server.service import Service

DONE, FAILED = 0, 1
_LOOK_EVERY_S = 10.0
_DRAINED_EVERY_S = 0.01
_FENCED = "fenced"
_RESTORED = "restored"

_EVENTS = telemetry.Events(__name__)


def serve(config: Config, epoch: int, told_to_end: queue.SimpleQueue[str]) -> int:
    """Serve until `told_to_end` has a word: DONE, or FAILED where calls were cut off.

    NO_CHECKPOINT_EXIT: another life of this server has taken over.
    Raises CannotListen naming the port, CheckpointInvalid, CheckpointMismatch or CheckpointFailed where no
    checkpoint can be used, and another TablebayError where the job's tables cannot be made, or the certificates are
    not this server's.
    """
    security = _security(config)
    start = _Start(config, epoch, told_to_end)
    reason = start.wait()
    if reason is not None:
        # Nothing was answered yet, and whatever files it was about to write may be cut off anywhere. What it waits
        # for, a disk or another server, may never come, so it is not waited for.
        _EVENTS.info("server.drained", reason=reason, ready=False)
        _exit(DONE)
    service, durability = start.made()
    readiness = _Readiness(service)
    http = _http_server(config, service, readiness)
    try:
        ports = GrpcServer(
            service,
            host=config.host,
            data_port=config.data_port,
            message_bytes_max=config.message_bytes_max,
            requests_max=config.requests_max,
            security=security,
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
            tls=security is not None,
            version=VERSION,
        )
        if durability is not None:
            durability.start()
        reason = _wait(service, told_to_end)
        if reason == _FENCED:
            return NO_CHECKPOINT_EXIT
        return _end(service, ports, config.grace_s, reason, durability)
    finally:
        http.close()


class _Start:
    """Makes a server's rows and service in a thread, so that a signal is seen whatever that waits for."""

    def __init__(self, config: Config, epoch: int, told_to_end: queue.SimpleQueue[str]) -> None:
        self._config, self._epoch, self._told = config, epoch, told_to_end
        self._made: tuple[Service, Durability | None] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="start", daemon=True).start()

    def wait(self) -> str | None:
        """Until it is done: None; or until a signal has come: its name."""
        word = self._told.get()
        return None if word == _RESTORED else word

    def made(self) -> tuple[Service, Durability | None]:
        """After `wait`. Raises what became of it."""
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def _run(self) -> None:
        try:
            durability = _durability(self._config, self._told)
            if durability is not None:
                telemetry.add_context(epoch=durability.epoch)
            self._made = _service(self._config, self._epoch, durability), durability
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._error = error
        self._told.put(_RESTORED)


def _security(config: Config) -> Security | None:
    if not config.tls_dir:
        return None
    return Security(Folder(config.tls_dir), job=config.job, index=config.index)


def _service(config: Config, epoch: int, durability: Durability | None) -> Service:
    return Service(
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
        threads=config.threads,
        durability=durability,
    )


def _durability(config: Config, told_to_end: queue.SimpleQueue[str]) -> Durability | None:
    if config.checkpoint is None:
        return None
    found = config.checkpoint
    settings = Settings(
        destination=found.destination,
        schedule=Schedule(
            every_s=found.every_s,
            every_steps=found.every_steps,
            timeout_s=found.timeout_s,
            retain_last=found.retain_last,
        ),
        full_every=found.full_every,
        restore_from=found.restore_from,
        restore_required=found.restore_required,
    )
    return Durability(
        settings,
        servers=config.servers,
        index=config.index,
        job=config.job,
        generation=config.generation,
        fenced=lambda: told_to_end.put(_FENCED),
        tls=Folder(config.tls_dir) if config.tls_dir else None,
    )


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


def _end(
    service: Service, ports: GrpcServer, grace_s: float, reason: str, durability: Durability | None
) -> int:
    began = time.monotonic()
    service.drain()
    ports.drain()
    kept = True
    if durability is not None:
        while service.in_flight and time.monotonic() - began < grace_s:
            time.sleep(_DRAINED_EVERY_S)
        kept = durability.last(grace_s - (time.monotonic() - began))
        durability.close()
    done = ports.stop(max(0.0, grace_s - (time.monotonic() - began)))
    counters = service.counters
    _EVENTS.info(
        "server.drained",
        reason=reason,
        seconds=round(time.monotonic() - began, 3),
        unfinished=service.in_flight,
        all_in_checkpoint=durability is not None and kept,
        pulls=counters["pulls"],
        pushes_applied=counters["pushes_applied"],
        duplicates=counters["duplicates"],
        rows=counters["rows"],
    )
    if not done:
        _exit(FAILED)
    return DONE


def _exit(code: int) -> NoReturn:
    """At once: the interpreter would wait for threads, past the time that was given."""
    logging.shutdown()
    os._exit(code)
