"""Becomes a command that ends when the process that started it ends.

Run as a file: `python -I -S launch.py PARENT_PID COMMAND [ARGUMENT ...]`. A `preexec_fn` would do the same in
the child of a process with threads, where it can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# What a shell answers for a command that is not there, or cannot be run.
NOT_FOUND, NOT_RUNNABLE = 127, 126


def main(parent: int, command: list[str]) -> int:
    """Replace this process by `command`; the exit code where that fails."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(
            f"cannot ask for a signal at the parent's end: {os.strerror(ctypes.get_errno())}", file=sys.stderr
        )
        return NOT_RUNNABLE
    if os.getppid() != parent:
        # It ended before the request above, so no signal will come.
        return NOT_RUNNABLE
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        print(f"cannot start {command[0]!r}: no such command", file=sys.stderr)
        return NOT_FOUND
    except (OSError, ValueError) as error:
        print(f"cannot start {command[0]!r}: {error}", file=sys.stderr)
        return NOT_RUNNABLE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
