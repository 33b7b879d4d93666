"""How often one looks whether a checkpoint is written or read."""

from __future__ import annotations

from collections.abc import Iterator

POLL_FIRST_S = 0.01
POLL_LAST_S = 0.25
_SHARE = 1 / 16


def poll_waits() -> Iterator[float]:
    """Seconds from one look to the next, without end.

    Each is a sixteenth of what has been waited already, so that an end is seen that much late; at least 10 ms, at
    most 0.25 s.
    """
    waited = 0.0
    while True:
        wait = min(POLL_LAST_S, max(POLL_FIRST_S, waited * _SHARE))
        yield wait
        waited += wait
