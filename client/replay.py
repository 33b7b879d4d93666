"""What servers have applied and no checkpoint holds yet: kept to be sent again to a server that comes back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tablebay.native import _core

BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True)
class Kept:
    """One step's requests to one server, as they were sent."""

    step: int
    method: str
    requests: Sequence[_core.KeptRequest]

    @property
    def bytes(self) -> int:
        """Of all requests."""
        return sum(map(len, self.requests))


class Replay:
    """Steps by server, each until that server says that a committed checkpoint has it. Safe in threads.

    bytes_max: what `full` and `half_full` are about; a step under way is kept all the same, so that nothing
        that was sent is ever dropped.

    memory: where requests are kept. What need not be kept any more leaves it to those that come, and little goes
        back to the system before the end: it clears each page that it gives out, and a virtual machine's host finds
        it first, which would cost more than the push.
    """

    def __init__(self, servers: int, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.memory = _core.ReplayMemory(bytes_max)
        self._lock = threading.Lock()
        self._kept: list[dict[int, Kept]] = [{} for _ in range(servers)]
        self._durable = [0] * servers
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return self._bytes

    @property
    def half_full(self) -> bool:
        """Time to ask for a checkpoint."""
        return 2 * self._bytes >= self.bytes_max

    @property
    def full(self) -> bool:
        """The next step must wait."""
        return self._bytes >= self.bytes_max

    def keep(self, server: int, kept: Kept) -> None:
        """The server has applied the step."""
        with self._lock:
            known = self._kept[server].get(kept.step)
            if kept.step < self._durable[server] or known is not None:
                return
            self._kept[server][kept.step] = kept
            self._bytes += kept.bytes

    def durable(self, server: int, next_step: int) -> None:
        """A committed checkpoint of the server has every step below `next_step`: they are dropped."""
        if next_step <= self._durable[server]:
            return
        with self._lock:
            self._durable[server] = max(self._durable[server], next_step)
            mine = self._kept[server]
            for step in [step for step in mine if step < next_step]:
                self._bytes -= mine.pop(step).bytes

    def durable_next(self, server: int) -> int:
        """The highest that `durable` was told."""
        return self._durable[server]

    def durable_below(self, step: int) -> bool:
        """Whether nothing from before a step is kept for any server."""
        with self._lock:
            return all(kept >= step for mine in self._kept for kept in mine)

    def since(self, server: int, step: int) -> list[Kept]:
        """What is kept for a server from a step on, in order."""
        with self._lock:
            return [kept for _, kept in sorted(self._kept[server].items()) if kept.step >= step]
