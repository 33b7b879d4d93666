"""tablebay-server: one server process, from its arguments to its exit code. Help comes without loading gRPC."""

from __future__ import annotations

import ctypes
import os
import queue
import resource
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from tablebay.client.environment import NO_CHECKPOINT_EXIT
from tablebay.client.errors import CheckpointFailed, CheckpointInvalid, CheckpointMismatch, TablebayError
from tablebay.ps_server import telemetry
from tablebay.ps_server.config import USAGE_EXIT, BadSetting, read_config

PROGRAM = "tablebay-server"
_FAILED = 1
_PR_SET_PDEATHSIG = 1
_FILES = 16_384


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, in the main thread of a process that ends with it.

    The exit code: 0 ended as told, 1 failed, 2 wrong usage, 3 no checkpoint that can be used, or another life of
    this server has taken over.
    """
    try:
        config = read_config(sys.argv[1:] if argv is None else argv, program=PROGRAM)
    except BadSetting as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return USAGE_EXIT
    if config.exit_with_parent:
        _exit_with_parent()
    _allow_connections()
    epoch = time.time_ns()
    telemetry.configure(
        level=config.log_level,
        style=config.log_format,
        context={"job": config.job, "role": "server", "index": config.index, "epoch": epoch},
    )
    told_to_end = _signals()
    # Read when gRPC is imported: its own lines are no log lines of ours, and any client can cause them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from tablebay.ps_server.grpc_server import CannotListen
        from tablebay.ps_server.process import serve
    except ImportError as error:
        # A native part that is missing, or of another version, says what to do.
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return _FAILED
    try:
        return serve(config, epoch, told_to_end)
    except (CannotListen, TablebayError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        unusable = isinstance(error, CheckpointFailed | CheckpointInvalid | CheckpointMismatch)
        return NO_CHECKPOINT_EXIT if unusable else _FAILED


def _signals() -> queue.SimpleQueue[str]:
    """The names of SIGTERM and SIGINT as they come, until the process is gone: a second one changes nothing."""
    # put() of a SimpleQueue may interrupt its own get(), which no Event's set() may.
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def tell(number: int, frame: FrameType | None) -> None:
        told.put(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    return told


def _allow_connections() -> None:
    """As many open files as this process may have: the usual limit is below what both ports may hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exit_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before the request, so no signal will come.
        os._exit(_FAILED)


if __name__ == "__main__":
    sys.exit(main())
