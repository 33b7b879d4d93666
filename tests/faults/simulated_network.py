"""A network that delays, drops, doubles and reorders, in one thread and by a seed: the same seed, the same run.

It carries the real client's bytes to real services. Time is virtual: it goes on only while somebody waits.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tablebay.client import errors
from tablebay.client.retry import Pace
from tablebay.client.transport import Answer
from tablebay.ps_server.service import Service


@dataclass(frozen=True)
class Faults:
    """How often each thing happens to a message, 0 to 1; delay: the longest, in virtual seconds."""

    drop_request: float = 0.0
    drop_answer: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0


@dataclass
class Network:
    """Servers, and the messages on their way to them. struck: how often each fault has happened."""

    services: Sequence[Service]
    faults: Faults
    seed: int
    now: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def pace(self) -> Pace:
        """The clock, sleep and randomness of a client in this network."""
        return Pace(clock=lambda: self.now, sleep=self.sleep, random=random.Random(self.random.random()))

    def sleep(self, seconds: float) -> None:
        """Let the network work meanwhile."""
        self.run_until(self.now + seconds)

    def after(self, delay: float, what: Callable[[], None]) -> None:
        """Do something in so many virtual seconds."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, what))

    def step(self, until: float) -> bool:
        """The next event, if there is one by then."""
        if not self._events or self._events[0][0] > until:
            self.now = max(self.now, until)
            return False
        at, _, what = heapq.heappop(self._events)
        self.now = max(self.now, at)
        what()
        return True

    def run_until(self, until: float) -> None:
        """Everything that happens by then."""
        while self.step(until):
            pass

    def settle(self) -> None:
        """Everything still on its way, however late."""
        while self._events:
            self.step(self._events[0][0])

    def strikes(self, fault: str, chance: float) -> bool:
        """Whether a fault happens now; counted."""
        if self.random.random() >= chance:
            return False
        self.struck[fault] += 1
        return True

    def delay(self) -> float:
        """How long one message takes."""
        return self.random.uniform(0.0, self.faults.delay)


class SimulatedTransport:
    """A client's way into the network. Faults strike data calls; control calls only take time."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def addresses(self) -> Sequence[str]:
        """Names for messages."""
        return [f"simulated:{server}" for server in range(len(self._network.services))]

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Send; copies of the request may arrive, each handled, the first answer to come back counting."""
        network = self._network
        pending = _Pending(network, network.now + timeout, f"{method} to simulated:{server}")
        data = method in ("Pull", "Push", "Step")
        copies = 2 if data and network.strikes("duplicate", network.faults.duplicate) else 1
        for _ in range(copies):
            if data and network.strikes("drop_request", network.faults.drop_request):
                continue
            network.after(network.delay(), lambda: self._arrive(server, method, request, pending, data))
        return pending

    def _arrive(self, server: int, method: str, request: bytes, pending: _Pending, data: bool) -> None:
        network = self._network
        answer: bytes | errors.TablebayError
        try:
            answer = network.services[server].handle(method, request)
        except errors.TablebayError as error:
            answer = error
        if data and network.strikes("drop_answer", network.faults.drop_answer):
            return
        network.after(network.delay(), lambda: pending.settle(answer))

    def rebuild(self) -> None:
        """There are no connections."""

    def close(self) -> None:
        """Messages on their way still arrive."""


class _Pending:
    def __init__(self, network: Network, deadline: float, what: str) -> None:
        self._network = network
        self._deadline = deadline
        self._what = what
        self._answer: bytes | errors.TablebayError | None = None

    def settle(self, answer: bytes | errors.TablebayError) -> None:
        if self._answer is None:
            self._answer = answer

    def result(self) -> bytes:
        # A client gives up on one attempt well before its whole deadline, as a broken connection would tell it.
        end = min(self._deadline, self._network.now + 1.0)
        while self._answer is None and self._network.step(end):
            pass
        if self._answer is None:
            raise errors.Unavailable(f"{self._what}: no answer")
        if isinstance(self._answer, errors.TablebayError):
            raise self._answer
        return self._answer

    def cancel(self) -> object:
        return False
