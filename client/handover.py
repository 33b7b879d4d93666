"""A push that goes on while its caller computes: one at a time, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from tablebay.client.errors import DeadlineExceeded
from tablebay.client.retry import Deadline

# A waiter wakes by itself this often, so that a deadline by an injected clock is seen.
_WAKE_S = 0.05


class Handover:
    """Safe in threads. What went wrong with a push is raised once, to whoever waits for it next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._inside = threading.local()
        self._under_way: Future[None] | None = None

    def begin(self, push: Callable[[], None]) -> None:
        """Start a push. REQUIRES that `wait` has returned, and that no other thread hands over meanwhile."""
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "tablebay-push")
            self._under_way = self._thread.submit(self._run, push)

    def wait(self, deadline: Callable[[], Deadline]) -> None:
        """Return once nothing is under way. Raises DeadlineExceeded, and what the push raised.

        deadline: made only where there is something to wait for. The push itself waits for nothing here.
        """
        under_way = self._under_way
        if under_way is None or getattr(self._inside, "now", False):
            return
        until = deadline()
        while True:
            try:
                under_way.exception(min(_WAKE_S, until.remaining()))
                break
            except TimeoutError:
                if until.passed():
                    raise DeadlineExceeded(
                        f"a push that was handed over was not settled within {until.timeout_s:g} s, and the call "
                        "that follows it has not begun"
                    ) from None
        with self._lock:
            mine = self._under_way is under_way
            if mine:
                self._under_way = None
        if mine:
            under_way.result()

    def close(self) -> None:
        """Start nothing any more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _run(self, push: Callable[[], None]) -> None:
        self._inside.now = True
        try:
            push()
        finally:
            self._inside.now = False
