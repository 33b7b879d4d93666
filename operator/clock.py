"""The API server's clock, as far as its answers tell: what it wrote is measured by it, whatever this machine's says."""

from __future__ import annotations

import datetime
from collections.abc import Callable

# An answer says whole seconds, and is on its way for a while.
TOLERANCE = datetime.timedelta(seconds=2)


def _local() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Clock:
    """This machine's clock, put right by the time that each answer of the API server bears. For any thread."""

    def __init__(self, local: Callable[[], datetime.datetime] = _local) -> None:
        self._local = local
        self._ahead = datetime.timedelta()

    def now(self) -> datetime.datetime:
        """The API server's time; before its first answer this machine's."""
        return self._local() + self._ahead

    def heard(self, at: datetime.datetime) -> None:
        """An answer of the API server bears this time."""
        if abs(at - self.now()) > TOLERANCE:
            self._ahead = at - self._local()
