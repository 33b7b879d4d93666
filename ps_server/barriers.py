"""Barriers: names that are released once enough clients have come. Held by server 0.

A released name stays released: a client whose answer was lost asks again, and a worker that was restarted
behind the barrier passes it. So a name is for one use; the SDK adds a number to a name that it uses again. Where
the server can come back, a release is written down before anybody hears of it: a worker that has passed and ended
cannot come to the barrier again for those who have not asked yet.

Most barriers wait for a number that their clients say. One of a job whose workers come and go waits for every rank
below the number that the job has now: who has left is waited for no more, and who has come is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tablebay.client.errors import BadRequest, ResourceExhausted
from tablebay.ps_server.members import RANKS_MAX, ClientId
from tablebay.ps_server.telemetry import Events

NAME_CHARACTERS_MAX = 256
BARRIERS_MAX = 65_536

_EVENTS = Events(__name__)


@dataclass
class _Barrier:
    """workers: how many must come; 0 for every rank that the job has."""

    workers: int
    arrived: set[ClientId] = field(default_factory=set)

    def come(self, expected: int) -> int:
        """How many of those that it waits for have come."""
        if self.workers:
            return len(self.arrived)
        return sum(1 for _, rank in self.arrived if rank < expected)


class Barriers:
    """Safe in threads; no call waits for a client.

    released: in earlier lives, by name, with the number that had come. write_down: a release, durably.
    """

    def __init__(
        self,
        barriers_max: int = BARRIERS_MAX,
        *,
        released: Mapping[str, int] | None = None,
        write_down: Callable[[str, int], None] = lambda name, workers: None,
    ) -> None:
        self._barriers_max = barriers_max
        self._write_down = write_down
        self._lock = threading.Lock()
        self._waiting: dict[str, _Barrier] = {}
        self._released = dict(released or {})
        self._expected = 0

    @property
    def expected(self) -> int:
        """How many workers the job has, if it was said; else 0."""
        return self._expected

    def expect(self, workers: int) -> None:
        """The job has so many workers from now on. Raises BadRequest."""
        if not 1 <= workers <= RANKS_MAX:
            raise BadRequest(f"SetWorkers: workers is {workers}, wanted 1 to {RANKS_MAX}")
        with self._lock:
            if workers == self._expected:
                return
            before, self._expected = self._expected, workers
            # Those who were waited for may be the ones who left.
            for name in [name for name, one in self._waiting.items() if not one.workers]:
                self._look(name)
        _EVENTS.info("workers.expected", workers=workers, before=before)

    def arrive(self, name: str, client: ClientId, workers: int, rank: int | None = None) -> tuple[bool, int]:
        """A client is at the barrier: whether it is released, and how many of those it waits for have come.

        workers: how many are to come; 0 for every rank that the job has, of a client with a rank. A rank counts
        once, whichever of its processes came. Raises BadRequest where clients disagree on `workers`.
        """
        if not 1 <= len(name) <= NAME_CHARACTERS_MAX:
            raise BadRequest(
                f"a barrier's name has {len(name)} characters, wanted 1 to {NAME_CHARACTERS_MAX}"
            )
        if not workers and rank is None:
            raise BadRequest(
                f"barrier '{name}': workers is 0 from a client without a rank, wanted at least 1"
            )
        with self._lock:
            if name in self._released:
                return True, self._released[name]
            barrier = self._waiting.get(name)
            if barrier is None:
                self._make_room()
                barrier = self._waiting[name] = _Barrier(workers)
            if barrier.workers != workers:
                raise BadRequest(
                    f"barrier '{name}': workers is {workers}, and {barrier.workers} to those who came before"
                )
            barrier.arrived.add(client)
            return self._look(name)

    def _look(self, name: str) -> tuple[bool, int]:
        """Release a barrier that waits for nobody any more."""
        barrier = self._waiting[name]
        arrived, wanted = barrier.come(self._expected), barrier.workers or self._expected
        # 0: this server does not know yet for whom to wait.
        if not wanted or arrived < wanted:
            return False, arrived
        self._write_down(name, arrived)
        del self._waiting[name]
        self._released[name] = arrived
        _EVENTS.info("barrier.released", barrier=name, workers=arrived)
        return True, arrived

    def _make_room(self) -> None:
        """Forget the name released longest ago. Raises ResourceExhausted where none is."""
        if len(self._waiting) + len(self._released) < self._barriers_max:
            return
        oldest = next(iter(self._released), None)
        if oldest is None:
            raise ResourceExhausted(f"{len(self._waiting)} barriers wait, which is the most there can be")
        del self._released[oldest]
