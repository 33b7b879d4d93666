"""A TCP proxy on loopback that can cut connections at the moment a server answers."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

_CHUNK = 1 << 16


class CuttingProxy:
    """Forwards to 127.0.0.1:target. After `cut_answers(n)` the next n answers are dropped with their connection.

    port: where it listens. cut: how many answers have been dropped so far.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.cut = 0
        self._to_cut = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_answers(self, count: int) -> None:
        """Drop the next `count` answers of at least a message's size; pings and settings pass."""
        with self._lock:
            self._to_cut = count

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
                asked = False
                while True:
                    for key, _ in selector.select():
                        end = key.fileobj
                        assert isinstance(end, socket.socket)
                        data = end.recv(_CHUNK)
                        if not data:
                            return
                        if end is near:
                            asked = asked or len(data) > 200  # a request with keys and rows
                        elif asked and self._takes_one():
                            return
                        key.data.sendall(data)

    def _takes_one(self) -> bool:
        with self._lock:
            if self._to_cut == 0:
                return False
            self._to_cut -= 1
            self.cut += 1
            return True
