"""A port of the native core over sockets: threads that answer, calls that take long, clients that do wrong."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import http2_frames as http2
from faults.http2_frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    request,
    request_head,
    settings,
)
from unit.ports import MESSAGE_MAX, Handler, Port, World

from tablebay.native import _core

Start = Callable[..., Port]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(params=["plain", "tls"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts ports, and ends them: plain, and with TLS."""
    secure = request.getfixturevalue("world") if request.param == "tls" else None
    yield from starter(secure)


@pytest.fixture
def start_plain() -> Iterator[Start]:
    """The same, without TLS alone."""
    yield from starter(None)


def starter(world: World | None) -> Iterator[Start]:
    started: list[Port] = []

    def start(handler: Handler, **limits: int) -> Port:
        started.append(Port(handler, world, **limits))
        return started[-1]

    yield start
    for port in started:
        port.close()


def echo(path: str, content: memoryview) -> bytes:
    """The path, and the request."""
    return path.encode() + b" " + bytes(content)


def said(frames: bytes) -> tuple[int, str, str | None, bytes | None]:
    """What a client makes of an answer's frames."""
    found: tuple[int, str, str | None, bytes | None] = _core.read_http2_answer(
        settings() + frames, 1 << 20, MESSAGE_MAX
    )
    return found


class Held:
    """A handler whose calls wait until the test lets them go; `waiting` counts those that have begun."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, path: str, content: memoryview) -> bytes:
        if path.endswith("/Wait"):
            self.waiting.release()
            assert self.go_on.wait(30)
        return echo(path, content)

    def await_one(self) -> None:
        """Until one more has begun."""
        assert self.waiting.acquire(timeout=20)


def test_many_clients_at_once_each_get_their_own_answers(start: Start) -> None:
    """Eight threads, requests from nothing to a megabyte, over connections that are used again and again."""
    port = start(echo, calls_max=64)
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        client = port.client()
        try:
            for _ in range(40):
                content = chance.randbytes(chance.choice((0, 1, 100, 5000, 70_000, 1_000_000)))
                code, _, _, answer = client.call(f"/a.Service/Of{seed}", content, 30.0).result()
                assert code == 0
                assert answer == f"/a.Service/Of{seed} ".encode() + content, f"seed {seed}"
        except BaseException as problem:  # noqa: BLE001 - the test looks
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_call_that_takes_long_is_in_nobodys_way(start: Start) -> None:
    """On the same connection too: those after it are answered before it, and a PING meanwhile."""
    held = Held()
    port = start(held)
    caller = port.caller()
    caller.send(request(b"first", 1, "/a.Service/Wait"))
    held.await_one()
    caller.send(request(b"second", 3) + request(b"third", 5) + frame(PING, 0, 0, b"are you?"))
    assert said(caller.ended(3))[3] == b"/a.Service/Do second"
    caller.find(lambda kind, flags, stream, content: kind == PING and flags == 1 and content == b"are you?")
    assert said(caller.ended(5))[3] == b"/a.Service/Do third"
    assert not any(one[2] == 1 for one in caller.frames)
    held.go_on.set()
    assert said(caller.ended(1))[3] == b"/a.Service/Wait first"


def test_an_answer_keeps_to_the_clients_windows_and_frames(start: Start) -> None:
    """A stream's window of 10 bytes, then what the client adds: never more, in frames of at most 16 KiB."""
    port = start(lambda path, content: bytes(content) * 1000)
    caller = port.caller(initial_window=10)
    caller.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)) + request(b"x" * 100, 1))
    allowed, got = 10, 0
    while got < 5 + 100_000:
        _, _, _, content = caller.until(lambda kind, flags, stream, content: kind == DATA)
        got += len(content)
        assert len(content) <= 16_384
        assert got <= allowed
        if got == allowed:
            more = 7 if got < 100 else 50_000
            allowed += more
            caller.send(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", more)))
    assert said(caller.ended(1)) == (0, "", None, b"x" * 100_000)


def test_a_client_without_room_holds_up_no_other_stream(start: Start) -> None:
    """The answer that waits for its stream's window goes on when it has one; another passes it."""
    port = start(lambda path, content: bytes(content) * 1000)
    caller = port.caller(initial_window=0)
    caller.send(request(b"x" * 50, 1))
    time.sleep(0.1)
    caller.send(request(b"", 3))
    caller.send(frame(WINDOW_UPDATE, 0, 3, struct.pack(">I", 100)))
    assert said(caller.ended(3)) == (0, "", None, b"")
    caller.send(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 60_000)))
    assert said(caller.ended(1)) == (0, "", None, b"x" * 50_000)


def test_a_call_that_its_client_gave_up_is_not_answered(start: Start) -> None:
    """Its connection goes on."""
    held = Held()
    port = start(held)
    caller = port.caller()
    caller.send(request(b"", 1, "/a.Service/Wait"))
    held.await_one()
    caller.send(frame(RESET, 0, 1, struct.pack(">I", 8)) + request(b"next", 3))
    caller.ended(3)
    held.go_on.set()
    caller.send(request(b"after", 5))
    assert said(caller.ended(5))[3] == b"/a.Service/Do after"
    assert not any(one[2] == 1 for one in caller.frames)


def test_a_call_whose_time_is_over_is_not_begun(start: Start) -> None:
    """A nanosecond is; the handler hears of none."""
    heard: list[str] = []

    def handler(path: str, content: memoryview) -> bytes:
        heard.append(path)
        return b""

    caller = start(handler).caller()
    caller.send(request(b"", 1, "/a.Service/Late", grpc_timeout=b"1n"))
    assert said(caller.ended(1))[:2] == (4, "Deadline Exceeded")
    caller.send(request(b"", 3, "/a.Service/Early", grpc_timeout=b"1H"))
    assert said(caller.ended(3))[0] == 0
    assert heard == ["/a.Service/Early"]


def test_more_calls_than_the_bound_are_refused_at_once(start: Start) -> None:
    """From one connection or many; when the others are done there is room again."""
    held = Held()
    port = start(held, calls_max=3)
    callers = [port.caller() for _ in range(2)]
    callers[0].send(request(b"", 1, "/a.Service/Wait") + request(b"", 3, "/a.Service/Wait"))
    callers[1].send(request(b"", 1, "/a.Service/Wait"))
    for _ in range(3):
        held.await_one()
    for caller in callers:
        caller.send(request(b"", 7))
        assert said(caller.ended(7))[:2] == (8, "Concurrent RPC limit exceeded!")
    held.go_on.set()
    callers[0].ended(1)
    callers[1].ended(1)
    callers[0].ended(3)
    deadline = time.monotonic() + 20
    stream = 9
    while True:
        # Its answer may be there a moment before its place is.
        callers[0].send(request(b"", stream))
        if said(callers[0].ended(stream))[0] == 0:
            break
        assert time.monotonic() < deadline
        stream += 2


def test_a_handlers_refusals_and_faults_become_statuses(start: Start) -> None:
    """A code with its text and class, in any characters; an exception says nothing of the code."""

    def handler(path: str, content: memoryview) -> Any:
        if path == "/a.Service/Fault":
            raise ZeroDivisionError("secret")
        return 3, "no 100% good: \u00fc\n", "BadRequest"

    client = start(handler).client()
    assert client.call("/a.Service/Do", b"", 5.0).result() == (
        3,
        "no 100% good: \u00fc\n",
        "BadRequest",
        None,
    )
    assert client.call("/a.Service/Fault", b"", 5.0).result() == (13, "a fault in the server", None, None)


def test_an_answer_above_the_limit_is_refused(start: Start) -> None:
    """By the port, before its first byte."""
    port = start(lambda path, content: bytes(len(content) + 1), message_bytes_max=1000)
    client = port.client()
    assert client.call("/a.Service/Do", bytes(999), 5.0).result()[0] == 0
    code, text, _, _ = client.call("/a.Service/Do", bytes(1000), 5.0).result()
    assert (code, text) == (8, "SERVER: Sent message larger than max (1001 vs. 1000)")


def test_stopping_waits_for_calls_under_way_and_takes_no_others(start: Start) -> None:
    """GOAWAY says so; a stream that comes after it is refused, and so is a connection."""
    held = Held()
    port = start(held)
    caller = port.caller()
    caller.send(request(b"under way", 1, "/a.Service/Wait"))
    held.await_one()
    ended: list[bool] = []
    stopping = threading.Thread(target=lambda: ended.append(port.stop(20.0)))
    stopping.start()
    caller.find(lambda kind, flags, stream, content: kind == GOAWAY)
    caller.send(request(b"late", 3))
    assert caller.find(lambda kind, flags, stream, content: stream == 3)[0] == RESET
    with (
        pytest.raises(ConnectionError),
        port.connect() as late,
    ):
        late.sendall(PREFACE + settings())
        if late.recv(1) == b"":
            raise ConnectionError
    assert stopping.is_alive()
    held.go_on.set()
    assert said(caller.ended(1))[3] == b"/a.Service/Wait under way"
    stopping.join(20)
    assert ended == [True]
    with pytest.raises((EOFError, OSError)):
        caller.until(lambda kind, flags, stream, content: False)


def test_stopping_does_not_wait_past_its_time(start: Start) -> None:
    """It says that something was not done."""
    held = Held()
    port = start(held)
    caller = port.caller()
    caller.send(request(b"", 1, "/a.Service/Wait"))
    held.await_one()
    began = time.monotonic()
    assert port.stop(0.2) is False
    assert time.monotonic() - began < 5
    held.go_on.set()


def test_connections_beyond_the_bound_are_closed(start: Start) -> None:
    """Those that are there stay."""
    port = start(echo, connections_max=2)
    callers = [port.caller() for _ in range(2)]
    for caller in callers:
        caller.until(lambda kind, flags, stream, content: kind == SETTINGS)
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError), port.connect() as third:
        with contextlib.suppress(ConnectionError):
            third.sendall(PREFACE + settings())
        assert third.recv(1) == b""
    callers[0].send(request(b"", 1))
    assert said(callers[0].ended(1))[0] == 0


def test_what_is_no_http2_is_cut_off(start_plain: Start) -> None:
    """A browser, or TLS."""
    port = start_plain(echo)
    for words in (
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303") + bytes(100),
    ):
        heard = b""
        with socket.create_connection(("127.0.0.1", port.number), timeout=10) as end:
            end.sendall(words)
            # A reset is an end as well; a connection that stays would time out.
            with contextlib.suppress(ConnectionError):
                while some := end.recv(1000):
                    heard += some
        # Settings and a window, as everybody gets them, and no answer.
        kinds = [heard[at + 3] for at in (0, 33) if at < len(heard)]
        assert len(heard) in (0, 46) and kinds in ([], [SETTINGS, WINDOW_UPDATE]), heard
    assert port.client().call("/a.Service/Do", b"", 5.0).result()[0] == 0


def test_who_asks_and_takes_no_answers_is_cut_off(start: Start) -> None:
    """PINGs without end, whose answers fill what the system keeps of them, and then 256 KiB."""
    port = start(echo)
    with port.connect() as end:
        end.sendall(PREFACE + settings())
        pings = frame(PING, 0, 0, bytes(8)) * 10_000
        # Far more than the buffers of both ends hold.
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            for _ in range(1000):
                end.sendall(pings)
    assert port.client().call("/a.Service/Do", b"", 5.0).result()[0] == 0


def test_a_flood_on_one_connection_leaves_the_others_their_turn(start_plain: Start) -> None:
    """A client that sends settings without end, and takes the answers: calls beside it are answered in time."""
    port = start_plain(echo, calls_max=4)
    end = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        with socket.create_connection(("127.0.0.1", port.number), timeout=10) as flooder:
            flooder.sendall(PREFACE + settings())
            many = settings() * 5000
            reader = threading.Thread(target=lambda: _drain(flooder))
            reader.start()
            while not end.is_set():
                flooder.sendall(many)
                sent += 1
            flooder.shutdown(socket.SHUT_RDWR)
            reader.join()

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        client = port.client()
        # On a busy machine the flood begins late, and fifty calls may be over before it has.
        calls = 0
        while calls < 50 or sent < 2:
            began = time.monotonic()
            assert client.call("/a.Service/Do", b"", 10.0).result()[0] == 0
            assert time.monotonic() - began < 5
            assert flooder.is_alive()
            calls += 1
    finally:
        end.set()
        flooder.join()


def _drain(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while end.recv(1 << 16):
            pass


def test_requests_that_come_all_at_once_are_all_answered(start: Start) -> None:
    """More of them than are read at once: no other byte comes that would wake who reads.

    What is left of them when one read ends is in the socket, or taken from it already: that is chance, so often."""
    port = start(lambda path, content: hashlib.sha256(content).digest(), calls_max=64)
    caller = port.caller()
    chance = random.Random(1)
    stream = 1
    for turn in range(100):
        contents = {stream + 2 * i: chance.randbytes(chance.randrange(20_000, 40_000)) for i in range(4)}
        caller.send(b"".join(request(content, of) for of, content in contents.items()))
        for of, content in contents.items():
            assert said(caller.ended(of))[3] == hashlib.sha256(content).digest(), f"turn {turn}"
        stream += 2 * len(contents)


def test_slow_senders_hold_no_thread(start: Start) -> None:
    """More of them than threads may be, each with half a request: others are answered at once, and they in the end."""
    # (A call's place is free a moment after its answer is there.)
    port = start(echo, calls_max=6)
    slow = [port.caller() for _ in range(20)]
    whole = request(b"slowly", 1)
    for caller in slow:
        caller.send(whole[:-3])
    client = port.client()
    for _ in range(20):
        began = time.monotonic()
        assert client.call("/a.Service/Do", b"", 5.0).result()[0] == 0
        assert time.monotonic() - began < 2
    for caller in slow:
        for byte in whole[-3:]:
            caller.send(bytes([byte]))
        assert said(caller.ended(1))[3] == b"/a.Service/Do slowly"


def test_headers_that_are_too_large_are_answered_and_end_the_connection_later(start: Start) -> None:
    """As a stream's error, beside a call under way, which is answered."""
    held = Held()
    port = start(held)
    caller = port.caller()
    caller.send(request(b"", 1, "/a.Service/Wait"))
    held.await_one()
    block = request_head(3)[9:] + b"\x00\x01x\x7f" + b"\x81\x88\x7a" + b"y" * 2_000_000
    caller.send(frame(http2.HEADERS, http2.END_HEADERS | END_STREAM, 3, block[:1_900_000]))
    code, text, _, _ = said(caller.ended(3))
    assert code == 8 and "metadata" in text
    caller.find(lambda kind, flags, stream, content: kind == GOAWAY)
    held.go_on.set()
    assert said(caller.ended(1))[0] == 0


def test_a_request_is_given_as_it_came_and_not_longer(start: Start) -> None:
    """The view that the handler got is of no use afterwards, rather than another request's bytes."""
    kept: list[memoryview] = []

    def handler(path: str, content: memoryview) -> bytes:
        kept.append(content)
        return bytes(content)

    client = start(handler).client()
    assert client.call("/a.Service/Do", b"mine", 5.0).result()[3] == b"mine"
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])
