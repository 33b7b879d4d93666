"""Frames of HTTP/2 as a server sends them, right or wrong, and a server whose every word a test says."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 0x20
INITIAL_WINDOW, MAX_FRAME = 4, 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """SETTINGS by name: initial_window, max_frame."""
    names = {"initial_window": INITIAL_WINDOW, "max_frame": MAX_FRAME}
    pairs = [struct.pack(">HI", names[name], value) for name, value in values.items()]
    return frame(SETTINGS, payload=b"".join(pairs))


def literal(name: str, value: bytes) -> bytes:
    """A field that no table keeps; both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value


HEAD = b"\x88" + literal("content-type", b"application/grpc")


def trailers(status: int, message: bytes = b"", **more: bytes) -> bytes:
    """A block with a call's status. more: other fields, `_` for `-` in their names."""
    block = literal("grpc-status", str(status).encode())
    if message:
        block += literal("grpc-message", message)
    return block + b"".join(literal(name.replace("_", "-"), value) for name, value in more.items())


def message(content: bytes, flag: int = 0) -> bytes:
    """As gRPC frames it."""
    return struct.pack(">BI", flag, len(content)) + content


def answer(content: bytes, stream: int = 1) -> bytes:
    """A whole answer that is OK."""
    return (
        frame(HEADERS, END_HEADERS, stream, HEAD)
        + frame(DATA, 0, stream, message(content))
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers(0))
    )


class Peer:
    """A server's end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._file = end.makefile("rb")
        self.acks: list[bytes] = []

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._end.sendall(data)

    def greet(self, **values: int) -> None:
        """Take the preface; say SETTINGS."""
        assert self._read(len(PREFACE)) == PREFACE
        self.send(settings(**values))

    def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: kind, flags, stream, payload. Raises EOFError."""
        head = self._read(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self._read(size)
        if kind == PING and flags & ACK:
            self.acks.append(payload)
        return kind, flags, stream, payload

    def request(self) -> tuple[int, bytes]:
        """The next request: its stream, and all of its DATA."""
        content = b""
        while True:
            kind, flags, stream, payload = self.frame()
            if kind == DATA:
                content += payload
                if flags & END_STREAM:
                    return stream, content[5:]

    def _read(self, size: int) -> bytes:
        found = self._file.read(size)
        if len(found) < size:
            raise EOFError
        return found


class ScriptedServer:
    """Runs `script` for each connection, in turn with its number; closes a connection when its script ends."""

    def __init__(self, script: Callable[[Peer, int], None], host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._script = script
        self._ends: list[socket.socket] = []
        self.connections = 0
        self.problems: list[BaseException] = []
        name = f"[{host}]" if ":" in host else host
        self.address = f"{name}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End every connection."""
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                self._ends.append(end)
                number, self.connections = self.connections, self.connections + 1
                threading.Thread(target=self._run, args=(end, number), daemon=True).start()

    def _run(self, end: socket.socket, number: int) -> None:
        try:
            with end:
                self._script(Peer(end), number)
        except (EOFError, OSError):
            pass
        except BaseException as error:  # noqa: BLE001 - a test looks
            self.problems.append(error)


def request_head(stream: int, path: str = "/a.Service/Do", *, end: bool = False, **more: bytes) -> bytes:
    """HEADERS of a call. more: other fields, `_` for `-` in their names."""
    block = b"\x83\x86" + literal(":path", path.encode()) + literal(":authority", b"here")
    block += literal("te", b"trailers") + literal(
        "content-type", more.pop("content_type", b"application/grpc")
    )
    block += b"".join(literal(name.replace("_", "-"), value) for name, value in more.items())
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def request(content: bytes, stream: int = 1, path: str = "/a.Service/Do", **more: bytes) -> bytes:
    """A whole call."""
    return request_head(stream, path, **more) + frame(DATA, END_STREAM, stream, message(content))


class Caller:
    """A client's end of a connection, all of whose frames a test says. tls: what it shows; None is plain."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, **values: int) -> None:
        self._end = socket.create_connection(("127.0.0.1", port), timeout=20)
        if tls is not None:
            self._end = tls.wrap_socket(self._end, server_hostname="127.0.0.1")
        self._file = self._end.makefile("rb")
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.send(PREFACE + settings(**values))

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._end.sendall(data)

    def find(self, wanted: Callable[[int, int, int, bytes], bool]) -> tuple[int, int, int, bytes]:
        """A frame that is wanted: one that has come, or the next one. Raises EOFError at the connection's end."""
        return next((one for one in self.frames if wanted(*one)), None) or self.until(wanted)

    def until(self, wanted: Callable[[int, int, int, bytes], bool]) -> tuple[int, int, int, bytes]:
        """Read to a frame that is wanted. Raises EOFError at the connection's end."""
        while True:
            head = self._file.read(9)
            if len(head) < 9:
                raise EOFError
            size = int.from_bytes(head[:3], "big")
            one = (*struct.unpack(">BBI", head[3:]), self._file.read(size))
            self.frames.append(one)
            if wanted(*one):
                return one

    def ended(self, stream: int) -> bytes:
        """Read to the end of a stream; its frames, as of stream 1."""
        self.find(lambda kind, flags, of, _: of == stream and (kind == RESET or bool(flags & END_STREAM)))
        return b"".join(
            frame(kind, flags, 1, content) for kind, flags, of, content in self.frames if of == stream
        )

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._end.close()
