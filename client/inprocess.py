"""Servers in this process, without sockets, behind the transport's seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tablebay.client import errors
from tablebay.client.client import TIMEOUT_S, Client, client_over
from tablebay.client.transport import Answer
from tablebay.ps_server.service import Service


def local(servers: int = 2, *, timeout: float = TIMEOUT_S) -> Client:
    """A client of `servers` servers in this process; the rows go when it is closed."""
    return client_over(InProcessTransport(services(servers)), timeout=timeout)


def services(servers: int, **options: Any) -> list[Service]:
    """Servers of one job, in order. options: as Service takes them, the same for each."""
    return [Service(index=index, servers=servers, **options) for index in range(servers)]


class InProcessTransport:
    """Calls handled at once, in the caller's thread. Safe in threads."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = tuple(services)
        self._closed = False

    @property
    def addresses(self) -> Sequence[str]:
        """A name for each server, for messages."""
        return [f"in-process:{server}" for server in range(len(self._services))]

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Handle a request now; the timeout has no meaning."""
        if self._closed:
            return _Answer(errors.Closed(f"{method} to in-process:{server}: the servers have been closed"))
        try:
            return _Answer(self._services[server].handle(method, request))
        except errors.TablebayError as error:
            return _Answer(error)

    def rebuild(self) -> None:
        """Nothing: there are no connections."""

    def close(self) -> None:
        """Refuse every later call; the rows go with the last reference to this object."""
        self._closed = True


class _Answer:
    def __init__(self, answer: bytes | errors.TablebayError) -> None:
        self._answer = answer

    def result(self) -> bytes:
        if isinstance(self._answer, errors.TablebayError):
            raise self._answer
        return self._answer

    def cancel(self) -> object:
        return False
