"""Ends process groups whose runner died without a chance to do so itself.

Run as a file: `python -I -S warden.py`, with a pipe from the runner as standard input. The runner writes
`+GROUP` when it starts a process group and `-GROUP` when that is gone; at the end of the input every group
left is killed. The death signal of launch.py reaches the processes that the runner started; this reaches
their children too.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Read until the runner closes the pipe or dies; then kill what is left."""
    for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It leaves last, when the pipe says so.
        signal.signal(interruption, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
