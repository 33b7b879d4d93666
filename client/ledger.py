"""The step numbers of one client: which are open, and which comes next."""

from __future__ import annotations

import heapq
import threading

from tablebay.client.errors import DeadlineExceeded
from tablebay.client.retry import Deadline

# A server remembers a client's last 64 steps (native/include/tablebay/window.h): one further back counts as
# applied.
OPEN_STEPS_MAX = 64

# A waiter wakes by itself this often, so that a deadline by an injected clock is seen.
_WAKE_S = 0.05


class StepLedger:
    """Hands out step numbers. Safe in threads.

    A number is open from `take` until `complete`; one given back stays open, and is the next to be handed
    out, so that no number is left unused between used ones.
    """

    def __init__(self, first: int) -> None:
        self._changed = threading.Condition()
        self._next = first
        self._open: set[int] = set()
        self._given_back: list[int] = []

    def take(self, deadline: Deadline) -> int:
        """The next step number; waits while 64 steps are open. Raises DeadlineExceeded."""
        with self._changed:
            while True:
                if self._given_back:
                    return heapq.heappop(self._given_back)
                if self._next - self._oldest() < OPEN_STEPS_MAX:
                    break
                if deadline.passed():
                    raise DeadlineExceeded(
                        f"step {self._next} has not begun within {deadline.timeout_s:g} s: {len(self._open)} "
                        f"steps are open, the oldest is {self._oldest()}, wanted fewer than {OPEN_STEPS_MAX} "
                        "between the two"
                    )
                self._changed.wait(min(_WAKE_S, deadline.remaining()))
            step = self._next
            self._next += 1
            self._open.add(step)
            return step

    def complete(self, step: int) -> None:
        """The step has been applied by every server that it concerns, or refused for good."""
        with self._changed:
            self._open.remove(step)
            self._changed.notify_all()

    def give_back(self, step: int) -> None:
        """Nothing of the step was sent: its number is for the next push."""
        with self._changed:
            heapq.heappush(self._given_back, step)
            self._changed.notify_all()

    @property
    def oldest(self) -> int:
        """The lowest step that is not completed."""
        with self._changed:
            return self._oldest()

    @property
    def next(self) -> int:
        """The step that the next push will be."""
        with self._changed:
            return self._given_back[0] if self._given_back else self._next

    def _oldest(self) -> int:
        return min(self._open, default=self._next)
