"""How often one looks whether a checkpoint is done."""

from __future__ import annotations

from tablebay.client.checkpoint.polling import POLL_FIRST_S, POLL_LAST_S, poll_waits


def test_what_takes_a_while_is_seen_to_end_a_sixteenth_late_at_most() -> None:
    """A look comes within a sixteenth of the time gone by, or 10 ms, and no later than 0.25 s after the last."""
    waited = 0.0
    seen = []
    for wait in poll_waits():
        assert wait == min(POLL_LAST_S, max(POLL_FIRST_S, waited / 16))
        waited += wait
        seen.append(waited)
        if waited > 60:
            break
    # Few enough that who asks is no burden.
    assert sum(at < 1 for at in seen) < 60
    assert len(seen) < 60 + 4 * 60
