"""What servers have applied and no checkpoint holds yet: kept to be sent again to a server that comes back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True)
class Kept:
    """One step's requests to one server, as they were sent."""

    step: int
    method: str
    requests: Sequence[bytes]

    @property
    def bytes(self) -> int:
        """Of all requests."""
        return sum(map(len, self.requests))


class Replay:
    """Steps by server, each until that server says that a committed checkpoint has it. Safe in threads.

    bytes_max: what `full` and `half_full` are about; a step under way is kept all the same, so that nothing
        that was sent is ever dropped.

    What need not be kept any more is let go of a step at a time, as others are kept: so their memory goes from the
    one to the other. Let go of all at once it would go back to the system, which clears each page that it gives
    out again, and that took a fifth of a push.
    """

    def __init__(self, servers: int, bytes_max: int = BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: list[dict[int, Kept]] = [{} for _ in range(servers)]
        self._durable = [0] * servers
        self._bytes = 0
        self._spent: list[deque[Kept]] = [deque() for _ in range(servers)]

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
            spent, let_go = self._spent[server], 0
            while spent and let_go < kept.bytes:
                let_go += spent.popleft().bytes

    def durable(self, server: int, next_step: int) -> None:
        """A committed checkpoint of the server has every step below `next_step`: they are dropped."""
        if next_step <= self._durable[server]:
            return
        with self._lock:
            self._durable[server] = max(self._durable[server], next_step)
            mine = self._kept[server]
            # Those of the checkpoint before for which there was no use are not held any longer.
            spent = self._spent[server] = deque(mine.pop(step) for step in sorted(mine) if step < next_step)
            self._bytes -= sum(kept.bytes for kept in spent)

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
