"""The core's own HTTP/2 against servers that say what a test wants: every end of a call is one error, and in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import http2_frames as http2
from faults.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    ScriptedServer,
    answer,
    frame,
    literal,
    message,
    trailers,
)

from tablebay.client import environment, errors, http2_transport
from tablebay.client.http2_transport import Http2Transport
from tablebay.client.transport import GrpcTransport
from tablebay.native import _core

Start = Callable[..., tuple[Http2Transport, ScriptedServer]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers, each with a transport to it, and ends both."""
    started: list[tuple[Http2Transport, ScriptedServer]] = []

    def start(script: Callable[[Peer, int], None], **options: Any) -> tuple[Http2Transport, ScriptedServer]:
        server = ScriptedServer(script)
        started.append((Http2Transport([server.address], **options), server))
        return started[-1]

    yield start
    for transport, server in started:
        transport.close()
        server.close()
        assert server.problems == []


def pull(transport: Http2Transport, request: bytes = b"keys", timeout: float = 10.0) -> bytes:
    return transport.call(0, "Pull", request, timeout, True).result()


def saying(*words: bytes) -> Callable[[Peer, int], None]:
    """Answers each request with the same bytes, for stream 1."""

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        while True:
            peer.request()
            for one in words:
                peer.send(one)

    return script


def test_calls_go_over_one_connection_one_after_the_other(start: Start) -> None:
    """Requests come as they were sent, on streams 1, 3, 5; so do answers of any size."""
    seen: list[tuple[int, bytes]] = []

    def script(peer: Peer, number: int) -> None:
        peer.greet(initial_window=2**24)
        peer.send(frame(WINDOW_UPDATE, 0, 0, (2**24).to_bytes(4, "big")))
        while True:
            stream, content = peer.request()
            seen.append((stream, content))
            peer.send(answer(content * 3, stream))

    transport, server = start(script)
    requests = [b"", b"keys", bytes(range(256)) * 4096]
    assert [pull(transport, request) for request in requests] == [request * 3 for request in requests]
    assert seen == list(zip((1, 3, 5), requests, strict=True))
    assert server.connections == 1


def test_a_request_waits_for_room_and_keeps_to_the_servers_frames(start: Start) -> None:
    """Windows of 10 bytes, later negative, then enough: no more than allowed is ever sent."""
    room = 10
    sent: list[int] = []

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        # Until it has read SETTINGS a client may send 65,535 bytes; with the first answer it has.
        stream, _ = peer.request()
        peer.send(http2.settings(initial_window=room) + answer(b"", stream))
        left, content = room, b""
        while True:
            kind, flags, stream, payload = peer.frame()
            if kind != DATA:
                continue
            left -= len(payload)
            content += payload
            sent.append(len(payload))
            assert left >= 0
            if flags & END_STREAM:
                peer.send(answer(content[5:], stream))
                return
            if left == 0:
                # A window made smaller is owed before anything may be sent.
                peer.send(http2.settings(initial_window=0))
                more = 7 if len(content) < 200 else 100_000
                peer.send(frame(WINDOW_UPDATE, 0, stream, (more + room).to_bytes(4, "big")))
                peer.send(http2.settings(initial_window=room))
                left = more + room

    transport, _ = start(script)
    request = bytes(range(250)) * 200
    assert pull(transport) == b""
    assert pull(transport, request) == request
    assert sent[0] == 10
    assert max(sent) <= 16384


def test_what_a_server_asks_is_answered(start: Start) -> None:
    """PING with its own bytes, SETTINGS with an acknowledgement, also in the middle of an answer."""
    kinds: list[tuple[int, int]] = []
    done = threading.Event()

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        stream, content = peer.request()
        whole = message(content * 1000)
        peer.send(frame(HEADERS, END_HEADERS, stream, http2.HEAD))
        peer.send(frame(DATA, 0, stream, whole[:7]) + frame(PING, 0, 0, b"12345678") + http2.settings())
        while not peer.acks:
            kind, flags, _, _ = peer.frame()
            kinds.append((kind, flags))
        peer.send(frame(DATA, 0, stream, whole[7:]) + frame(200, 255, 9, b"of no meaning"))
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers(0)))
        done.wait(5.0)

    transport, _ = start(script)
    assert pull(transport, b"abc") == b"abc" * 1000
    done.set()
    assert (PING, 1) in kinds
    assert (SETTINGS, 1) in kinds


def test_an_error_has_the_class_and_words_that_grpcs_library_would_give(start: Start) -> None:
    """By the server's own name for it, else by its code; the text unescaped, and what the call was."""
    cases: list[tuple[bytes, type[errors.TablebayError], str]] = [
        (trailers(3, b"rows are%3A%20%C3%A9", tablebay_error=b"NonFinite"), errors.NonFinite, "rows are: é"),
        (trailers(5, b"no %such%2"), errors.NotRegistered, "no %such%2"),
        (trailers(8, b"full"), errors.ResourceExhausted, "full"),
        (trailers(8, b"Concurrent RPC limit exceeded!"), errors.Unavailable, "Concurrent"),
        (trailers(14, b"later"), errors.Unavailable, "later"),
        (trailers(1), errors.Unavailable, ""),
        (trailers(4), errors.DeadlineExceeded, ""),
        (trailers(12), errors.Unimplemented, ""),
        (trailers(13, b"a fault"), errors.TablebayError, "INTERNAL: a fault"),
        (trailers(77), errors.TablebayError, "UNKNOWN"),
        (literal("x", b"y"), errors.TablebayError, "no status"),
    ]
    for block, kind, text in cases:
        transport, server = start(saying(frame(HEADERS, END_HEADERS | END_STREAM, 1, http2.HEAD + block)))
        with pytest.raises(kind) as caught:
            pull(transport)
        assert type(caught.value) is kind
        assert text in str(caught.value)
        assert f"Pull to server 0 at {server.address}" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (frame(RESET, 0, 1, (7).to_bytes(4, "big")), errors.Unavailable, "reset the stream with error 7"),
        (frame(RESET, 0, 1, (8).to_bytes(4, "big")), errors.Unavailable, "reset"),
        (frame(RESET, 0, 1, (2).to_bytes(4, "big")), errors.TablebayError, "INTERNAL"),
        (frame(GOAWAY, 0, 0, bytes(8) + b"bye"), errors.Unavailable, "bye"),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x8d"), errors.Unimplemented, "HTTP status 404"),
        (
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x08\x03503"),
            errors.Unavailable,
            "HTTP status 503",
        ),
        (
            frame(HEADERS, END_HEADERS, 1, http2.HEAD) + frame(DATA, END_STREAM, 1, message(b"abc")[:6]),
            errors.TablebayError,
            "UNKNOWN: the server's answer has no status",
        ),
        (
            frame(HEADERS, END_HEADERS, 1, http2.HEAD)
            + frame(DATA, 0, 1, message(b"abc")[:6])
            + frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers(0)),
            errors.TablebayError,
            "ends within its message",
        ),
        (
            frame(HEADERS, END_HEADERS, 1, http2.HEAD) + frame(DATA, 0, 1, message(b"abc", flag=1)),
            errors.TablebayError,
            "compressed",
        ),
        (
            frame(HEADERS, END_HEADERS, 1, http2.HEAD + literal("grpc-encoding", b"gzip")),
            errors.TablebayError,
            "'gzip', wanted identity",
        ),
        (
            frame(HEADERS, END_HEADERS, 1, http2.HEAD)
            + frame(DATA, 0, 1, message(b"")[:1] + b"\x7f\xff\xff\xff"),
            errors.ResourceExhausted,
            "larger than max",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errors.Unavailable, "no HTTP/2"),
        (frame(DATA, 0, 1, b"abc"), errors.Unavailable, "DATA before headers"),
        (frame(DATA, 0, 3, b"abc"), errors.Unavailable, "stream 3"),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), errors.Unavailable, "cannot be read"),
        (frame(http2.PUSH_PROMISE, 4, 1, bytes(4)), errors.Unavailable, "PUSH_PROMISE"),
        (b"\xff\xff\xff\x01\x04\x00\x00\x00\x01", errors.Unavailable, "16777215 bytes"),
    ],
)
def test_every_wrong_word_ends_the_call_at_once(
    start: Start, words: bytes, kind: type[errors.TablebayError], text: str
) -> None:
    """With an error that says what came."""
    transport, _ = start(saying(words))
    began = time.monotonic()
    with pytest.raises(kind, match=text) as caught:
        pull(transport)
    assert type(caught.value) is kind
    assert time.monotonic() - began < 5.0


def test_a_connection_that_ends_in_the_middle_of_an_answer_is_unavailable(start: Start) -> None:
    """Also when the answer has begun, and when nothing was said at all."""

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        stream, _ = peer.request()
        if number == 0:
            peer.send(
                frame(HEADERS, END_HEADERS, stream, http2.HEAD) + frame(DATA, 0, stream, message(b"abc")[:6])
            )

    transport, _ = start(script)
    for _ in range(2):
        with pytest.raises(errors.Unavailable, match="closed the connection|Connection reset"):
            pull(transport)


def test_a_server_that_answers_before_it_has_all_is_heard(start: Start) -> None:
    """A refusal, while the request still waits for room; the connection serves no other call."""

    def script(peer: Peer, number: int) -> None:
        peer.greet(initial_window=100)
        while peer.frame()[0] != DATA:
            pass
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, http2.HEAD + trailers(8, b"too large")))
        while True:
            peer.frame()

    transport, server = start(script)
    for number in (1, 2):
        with pytest.raises(errors.ResourceExhausted, match="too large"):
            pull(transport, bytes(1 << 20))
        assert server.connections == number


def test_a_connection_that_was_closed_while_idle_is_not_used(start: Start) -> None:
    """By its end, and by GOAWAY: the call goes over a new one, and does not fail."""

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        stream, content = peer.request()
        peer.send(answer(content, stream))
        if number == 1:
            peer.send(frame(GOAWAY, 0, 0, (stream).to_bytes(4, "big") + bytes(4)))
            peer.request()

    transport, server = start(script)
    for number in range(4):
        assert pull(transport, b"%d" % number) == b"%d" % number
        time.sleep(0.1)
    assert server.connections == 4


def test_a_server_that_says_nothing_is_deadline_exceeded(start: Start) -> None:
    """After the timeout, neither before it nor much later; also while the request waits for room."""
    transport, _ = start(lambda peer, number: time.sleep(5.0))
    for request in (b"keys", bytes(1 << 20)):
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded, match="Deadline Exceeded"):
            pull(transport, request, 0.3)
        assert 0.25 < time.monotonic() - began < 1.5


@pytest.mark.parametrize("how", ["cancel", "close", "rebuild"])
def test_a_waiting_call_wakes(start: Start, how: str) -> None:
    """By cancel(), close() and rebuild() of another thread: Unavailable, at once."""
    transport, server = start(saying())
    call = transport.call(0, "Pull", b"keys", 30.0, True)
    act = {"cancel": call.cancel, "close": transport.close, "rebuild": transport.rebuild}[how]
    timer = threading.Timer(0.2, act)
    timer.start()
    began = time.monotonic()
    with pytest.raises(errors.Unavailable):
        call.result()
    assert 0.15 < time.monotonic() - began < 2.0
    timer.join()
    if how == "close":
        with pytest.raises(errors.Closed):
            pull(transport)
    else:
        with pytest.raises(errors.DeadlineExceeded):
            pull(transport, timeout=0.1)
        assert server.connections == 2


def test_calls_at_once_have_connections_of_their_own(start: Start) -> None:
    """Eight threads, 50 calls each, answers that are their own requests; no more connections than threads."""

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        while True:
            stream, content = peer.request()
            peer.send(answer(content, stream))

    transport, server = start(script)
    wrong: list[bytes] = []

    def run(thread: int) -> None:
        for number in range(50):
            request = b"%d.%d" % (thread, number) * 100
            if pull(transport, request) != request:
                wrong.append(request)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= server.connections <= 8


def test_a_call_that_is_dropped_takes_its_connection_with_it(start: Start) -> None:
    """Its answer would be taken for the next call's."""

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        while True:
            stream, content = peer.request()
            time.sleep(0.1)
            peer.send(answer(content, stream))

    transport, _ = start(script)
    transport.call(0, "Pull", b"one", 5.0, True)
    assert pull(transport, b"two") == b"two"


def test_a_request_above_the_limit_is_not_sent(start: Start) -> None:
    """As gRPC's library says it, with both sizes."""
    transport, server = start(saying(), message_bytes_max=1000)
    with pytest.raises(errors.ResourceExhausted, match=r"Sent message larger than max \(1001 vs. 1000\)"):
        pull(transport, bytes(1001))
    assert server.connections == 0


def test_nobody_there_is_unavailable_with_the_systems_words() -> None:
    """At once for a port without a server, with the host's name for a name that DNS does not know."""
    server = ScriptedServer(saying())
    server.close()
    time.sleep(0.1)
    for address, text in (
        (server.address, "failed to connect"),
        ("no-such-host.invalid:7070", "DNS resolution"),
    ):
        transport = Http2Transport([address])
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded), match=f"{address}.*"):
            pull(transport, timeout=2.0)
        with pytest.raises(errors.Unavailable) as caught:
            pull(transport, timeout=10.0)
        assert text in str(caught.value)
        transport.close()


def test_ipv6_and_names_are_reached() -> None:
    """localhost, which may stand for several addresses, of which one has a server; and an address in brackets."""

    def script(peer: Peer, number: int) -> None:
        peer.greet()
        stream, content = peer.request()
        peer.send(answer(content, stream))

    four = ScriptedServer(script)
    transport = Http2Transport([four.address.replace("127.0.0.1", "localhost")])
    assert pull(transport, b"four") == b"four"
    transport.close()
    four.close()
    try:
        six = ScriptedServer(script, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = _core.Http2Server("::1", int(six.address.rpartition(":")[2]), "test", 1000)
    assert server.call("/service/Method", b"six", 5.0).result() == (0, "", None, b"six")
    six.close()


def test_the_transport_is_chosen_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument goes first; with TLS the core's own wants OpenSSL; another word is refused by its name."""
    monkeypatch.delenv(environment.TRANSPORT, raising=False)
    assert http2_transport.chosen(None, secure=False) == "native"
    assert http2_transport.chosen(None, secure=True) == "native"
    assert http2_transport.chosen("grpcio", secure=False) == "grpcio"
    with monkeypatch.context() as without:
        without.setattr(_core, "tls_missing", lambda: "no OpenSSL 3 on this machine")
        assert http2_transport.chosen(None, secure=True) == "grpcio"
        assert http2_transport.chosen(None, secure=False) == "native"
        with pytest.raises(errors.BadRequest, match="wanted 'grpcio' with tls_dir: no OpenSSL 3"):
            http2_transport.chosen("native", secure=True)
    with pytest.raises(errors.BadRequest, match="transport is 'quic', wanted 'native' or 'grpcio'"):
        http2_transport.chosen("quic", secure=False)
    monkeypatch.setenv(environment.TRANSPORT, "grpcio")
    assert http2_transport.chosen(None, secure=False) == "grpcio"
    assert http2_transport.chosen(None, secure=True) == "grpcio"
    assert http2_transport.chosen("native", secure=False) == "native"
    monkeypatch.setenv(environment.TRANSPORT, "tcp")
    with pytest.raises(errors.BadRequest, match="TABLEBAY_TRANSPORT is 'tcp'"):
        http2_transport.chosen(None, secure=False)
    assert isinstance(http2_transport.make(["localhost:7070"], "grpcio", 1000), GrpcTransport)


# -- header blocks


def read(*blocks: bytes, data: bytes = b"", piece: int = 1 << 16) -> Any:
    """What a call makes of header blocks, data between the first and the last."""
    parts = [frame(HEADERS, END_HEADERS, 1, blocks[0])] if len(blocks) > 1 else []
    parts.append(frame(DATA, 0, 1, data) if data else b"")
    parts.append(frame(HEADERS, END_HEADERS | END_STREAM, 1, blocks[-1]))
    return _core.read_http2_answer(http2.settings() + b"".join(parts), piece, 1 << 20)


def test_huffman_strings_are_those_of_the_standard() -> None:
    """Examples of RFC 7541, appendix C.4 and C.6, as a call's message."""
    for coded, plain in (
        ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
        ("a8eb10649cbf", "no-cache"),
        ("25a849e95bb8e8b4bf", "custom-value"),
        ("aec3771a4b", "private"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        (
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ),
    ):
        value = bytes.fromhex(coded)
        block = (
            b"\x88"
            + literal("grpc-status", b"5")
            + b"\x00\x0cgrpc-message"
            + bytes([0x80 | len(value)])
            + value
        )
        assert read(block) == (5, plain, None, None)


@pytest.mark.parametrize("coded", ["ff" * 4, "1fff", "00", "f1e3c2e5f23a6ba0ab90f4"])
def test_wrong_huffman_strings_are_refused(coded: str) -> None:
    """The end's code inside, and padding that is too long or no ones; a cut one has other bits for padding."""
    value = bytes.fromhex(coded)
    block = b"\x88" + b"\x00\x0cgrpc-message" + bytes([0x80 | len(value)]) + value
    with pytest.raises(_core.StatusError, match="Huffman"):
        read(block)


def test_the_dynamic_table_is_kept_and_bounded() -> None:
    """Later blocks name earlier fields; a size change empties it; a larger one than allowed is refused."""
    keep = b"\x40\x0bgrpc-status\x015" + b"\x40\x0cgrpc-message\x04gone"
    # 62 is the newest, the message; 63 the status.
    assert read(b"\x88" + keep, b"\xbe\xbf", data=message(b"")) == (5, "gone", None, None)
    with pytest.raises(_core.StatusError, match="past the table"):
        read(b"\x88" + keep, b"\x20\xbe\xbf")
    with pytest.raises(_core.StatusError, match="larger table"):
        read(b"\x3f\xe2\x1f\x88" + keep)
    # A field larger than the table empties it.
    with pytest.raises(_core.StatusError, match="past the table"):
        read(b"\x88" + keep + b"\x40\x01x\x7f\x81\x21" + bytes(4352), b"\xbe")


def test_small_blocks_that_become_large_ones_are_refused() -> None:
    """A field of 4 kB, named again and again by one byte each."""
    field = b"\x40\x01x\x7f\x81\x1e" + bytes(0x7F + 0xF01)
    with pytest.raises(_core.StatusError, match="too large"):
        read(b"\x88" + field + b"\xbe" * 1000)


def test_frames_with_padding_priority_and_continuation_are_read() -> None:
    """Of a message that comes in any pieces."""
    block = http2.HEAD
    content = bytes(range(256)) * 300
    whole = message(content)
    words = (
        http2.settings()
        + frame(http2.PRIORITY, 0, 1, bytes(5))
        + frame(HEADERS, http2.PADDED | http2.WITH_PRIORITY, 1, b"\x03" + bytes(5) + block[:4] + bytes(3))
        + frame(http2.CONTINUATION, 0, 1, block[4:10])
        + frame(http2.CONTINUATION, END_HEADERS, 1, block[10:])
        + frame(DATA, http2.PADDED, 1, b"\x05" + whole[:3] + bytes(5))
        + frame(DATA, http2.PADDED, 1, b"\x00")
        + frame(DATA, 0, 1, whole[3:40_000])
        + frame(DATA, http2.PADDED, 1, b"\xff" + whole[40_000:] + bytes(255))
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers(0))
    )
    for piece in (1, 7, 100, 16_384, 1 << 20):
        assert _core.read_http2_answer(words, piece, 1 << 20) == (0, "", None, content)
    for end in range(len(words) - 1000, len(words)):
        assert _core.read_http2_answer(words[:end], 1 << 16, 1 << 20) is None
