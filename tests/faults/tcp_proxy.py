"""A TCP proxy on loopback that can cut connections at the moment a server answers."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable

_CHUNK = 1 << 16


class CuttingProxy:
    """Forwards to 127.0.0.1:target. After `cut_answers(n, handled)` n answers are dropped with their connection.

    port: where it listens. cuts: what `handled` said at each cut so far.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.cuts: list[int] = []
        self._to_cut = 0
        self._handled: Callable[[], int] | None = None
        self._last = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_answers(self, count: int, handled: Callable[[], int]) -> None:
        """Drop the next `count` answers.

        handled: how many calls the server has handled, by its own word. What comes from the server before that
            has grown cannot be the answer (a connection's first frames, a ping), and passes.
        """
        last = handled()
        with self._lock:
            self._to_cut, self._handled, self._last = count, handled, last

    def close(self) -> None:
        """End every connection."""
        self._listener.close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, socket.create_connection(("127.0.0.1", self._target)) as far:
            self._open |= {near, far}
            with selectors.DefaultSelector() as selector:
                selector.register(near, selectors.EVENT_READ, far)
                selector.register(far, selectors.EVENT_READ, near)
                while True:
                    for key, _ in selector.select():
                        end = key.fileobj
                        assert isinstance(end, socket.socket)
                        data = end.recv(_CHUNK)
                        if not data:
                            return
                        # `data` is here already: if it is the answer, what it answers has been counted.
                        if end is far and self._takes_one():
                            return
                        key.data.sendall(data)

    def _takes_one(self) -> bool:
        with self._lock:
            if self._to_cut == 0 or self._handled is None:
                return False
            handled = self._handled()
            if handled <= self._last:
                return False
            self._to_cut -= 1
            self._last = handled
            self.cuts.append(handled)
            return True
