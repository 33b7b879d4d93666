"""A limit: the bytes of keys and rows over loopback TCP, to a process that has no table."""

from __future__ import annotations

from driver import serve
from limit_tcp_table import LimitTcpTable


class LimitLoopback(LimitTcpTable):
    """What comes back is whatever lay there."""

    checked, bare = False, True

    def version(self) -> str:
        return "limit: the same bytes over loopback TCP"

    def fill(self, first: int, last: int) -> None:
        pass


if __name__ == "__main__":
    serve(LimitLoopback)
