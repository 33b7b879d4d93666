"""What a server makes of the frames that a client sends: calls that came whole, and answers to all that is wrong."""

from __future__ import annotations

import struct

import pytest
from faults import http2_frames as http2
from faults.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    literal,
    message,
    request,
    request_head,
    settings,
)

from tablebay.native import _core

BEGIN = PREFACE + settings()
MESSAGE_MAX = 1 << 16
Frame = tuple[int, int, int, bytes]


def read(data: bytes, piece: int = 1 << 20) -> tuple[list[tuple[int, bytes, bytes]], list[Frame]]:
    """The calls, and the frames that are owed."""
    calls, owed = _core.read_http2_requests(data, piece, MESSAGE_MAX)
    frames = []
    while owed:
        size = int.from_bytes(owed[:3], "big")
        frames.append((*struct.unpack(">BBI", owed[3:9]), owed[9 : 9 + size]))
        owed = owed[9 + size :]
    return calls, frames


def refusal(data: bytes, stream: int = 1) -> tuple[int, str]:
    """What becomes of a stream: gRPC's code and text. It is no call."""
    calls, frames = read(BEGIN + data)
    assert calls == []
    own = b"".join(frame(kind, flags, 1, content) for kind, flags, of, content in frames if of == stream)
    code, text, kind, _ = _core.read_http2_answer(settings() + own, 1 << 20, MESSAGE_MAX)
    assert kind is None
    return code, text


def gone(data: bytes) -> str:
    """Why the connection is given up."""
    with pytest.raises(_core.StatusError) as raised:
        read(data)
    kind, text = raised.value.args
    assert kind == "Unavailable"
    return text.removeprefix("the client sent what is no HTTP/2: ")


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000, 1 << 20])
def test_calls_come_out_as_they_went_in_however_they_are_cut(piece: int) -> None:
    """Empty and large ones, in one frame and in many, padded, with trailers and with unknown frames between."""
    large = bytes(range(256)) * 200
    whole = message(large)
    data = BEGIN + request(b"", 1) + request(b"keys", 3, "/another/Method", grpc_timeout=b"5S")
    data += request_head(5) + frame(0x77, 0, 0, b"unknown")
    for at in range(0, len(whole), 1000):
        data += frame(DATA, PADDED, 5, b"\x05" + whole[at : at + 1000] + bytes(5))
    data += frame(HEADERS, END_HEADERS | END_STREAM, 5, literal("trailer", b"yes"))
    calls, frames = read(data, piece)
    assert calls == [
        (1, b"/a.Service/Do", b""),
        (3, b"/another/Method", b"keys"),
        (5, b"/a.Service/Do", large),
    ]
    assert [one[0] for one in frames] == [SETTINGS, WINDOW_UPDATE, SETTINGS]


def test_calls_that_come_in_turn_are_told_apart() -> None:
    """Frames of three streams, mixed."""
    parts = {stream: message(bytes([stream]) * 500) for stream in (1, 3, 5)}
    data = BEGIN + b"".join(request_head(stream) for stream in parts)
    for at in range(0, 505, 50):
        for stream, content in parts.items():
            data += frame(DATA, END_STREAM if at + 50 >= 505 else 0, stream, content[at : at + 50])
    calls, _ = read(data)
    assert calls == [(stream, b"/a.Service/Do", bytes([stream]) * 500) for stream in parts]


def test_a_reset_call_is_none_and_what_comes_of_it_is_passed_over() -> None:
    """Also where the client had sent more before it said so."""
    data = (
        BEGIN + request_head(1) + frame(DATA, 0, 1, message(b"x" * 100)[:50]) + frame(RESET, 0, 1, bytes(4))
    )
    data += frame(DATA, END_STREAM, 1, b"x" * 55) + request(b"next", 3)
    assert read(data)[0] == [(3, b"/a.Service/Do", b"next")]


def test_settings_and_pings_are_answered() -> None:
    """A PING with its own bytes; acknowledgements are not."""
    _, frames = read(
        BEGIN + frame(PING, 0, 0, b"12345678") + frame(PING, 1, 0, b"12345678") + frame(SETTINGS, 1)
    )
    assert frames[2:] == [(SETTINGS, 1, 0, b""), (PING, 1, 0, b"12345678")]


def test_a_block_may_go_on_in_other_frames() -> None:
    """Cut anywhere."""
    head = request_head(1)
    block = head[9:]
    for at in range(1, len(block)):
        data = frame(HEADERS, 0, 1, block[:at]) + frame(CONTINUATION, END_HEADERS, 1, block[at:])
        data += frame(DATA, END_STREAM, 1, message(b"keys"))
        assert read(BEGIN + data)[0] == [(1, b"/a.Service/Do", b"keys")], at


def test_what_is_no_request_of_grpc_has_a_status() -> None:
    """Each names what was found and what is wanted; the next call goes on."""
    assert refusal(request(b"keys", grpc_encoding=b"gzip")) == (
        12,
        "the request's encoding is 'gzip', wanted identity",
    )
    assert refusal(request(b"keys", grpc_timeout=b"soon"))[0] == 13
    code, text = refusal(request_head(1) + frame(DATA, END_STREAM, 1, message(b"keys", 1)))
    assert (code, text) == (12, "the request's message is compressed (flag 1), wanted identity")
    code, text = refusal(request_head(1) + frame(DATA, 0, 1, message(b"x" * (MESSAGE_MAX + 1))[:10]))
    assert (code, text) == (
        8,
        f"SERVER: Received message larger than max ({MESSAGE_MAX + 1} vs. {MESSAGE_MAX})",
    )
    assert refusal(request_head(1) + frame(DATA, END_STREAM, 1, message(b"a") + message(b"b")))[0] == 12
    assert refusal(request_head(1, end=True)) == (13, "the request ends within its message")
    assert refusal(request_head(1) + frame(DATA, END_STREAM, 1, message(b"keys")[:-1]))[0] == 13
    code, text = refusal(request_head(1, **{f"field{i}": b"x" * 100 for i in range(100)}))
    assert code == 8 and "metadata" in text and "at most 8192" in text
    assert refusal(request_head(1, content_type=b"text/html", end=True))[0] == 2


def test_as_many_large_messages_as_streams_may_be_under_way() -> None:
    """Each as large as is allowed, and all of them half there before the first is whole: a client may send so."""
    whole, half = message(bytes(MESSAGE_MAX)), MESSAGE_MAX // 2
    streams = range(1, 33, 2)
    data = BEGIN + b"".join(request_head(stream) + frame(DATA, 0, stream, whole[:half]) for stream in streams)
    data += b"".join(frame(DATA, END_STREAM, stream, whole[half:]) for stream in streams)
    assert [stream for stream, _, _ in read(data)[0]] == list(streams)


def test_streams_of_a_connection_are_bounded() -> None:
    """Sixteen here; the seventeenth is refused, so that the client sends it again."""
    _, frames = read(BEGIN + b"".join(request_head(1 + 2 * i) for i in range(17)))
    assert frames[3:] == [(RESET, 0, 33, struct.pack(">I", 7))]


@pytest.mark.parametrize("size", [70_000, 1_000_000])
@pytest.mark.parametrize("cut", [False, True])
def test_headers_that_are_too_large_end_what_they_begin_and_no_other_call(size: int, cut: bool) -> None:
    """The call before is answered; those after must go over another connection, which GOAWAY says."""
    block = request_head(3)[9:] + b"\x00\x01x\x7f" + _number(size - 127) + b"y" * size
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)] if cut else [block]
    large = b"".join(
        frame(
            CONTINUATION if i else HEADERS,
            (END_HEADERS if i + 1 == len(pieces) else 0) | (0 if i else END_STREAM),
            3,
            piece,
        )
        for i, piece in enumerate(pieces)
    )
    data = request_head(1) + large + request(b"after", 5) + frame(DATA, END_STREAM, 1, message(b"before"))
    calls, frames = read(BEGIN + data, 10_000)
    assert calls == [(1, b"/a.Service/Do", b"before")]
    kinds = [(kind, stream) for kind, _, stream, _ in frames[3:]]
    assert kinds == [(HEADERS, 3), (GOAWAY, 0), (RESET, 5)]


def _number(value: int) -> bytes:
    # What follows a prefix of ones (RFC 7541, 5.1).
    found = b""
    while value >= 128:
        found += bytes([0x80 | value & 0x7F])
        value >>= 7
    return found + bytes([value])


def test_what_is_no_http2_ends_the_connection() -> None:
    """Each is said by its name."""
    head = request_head(1)
    wrong = {
        "it does not begin as HTTP/2 does": b"GET / HTTP/1.1\r\n\r\n",
        "its first frame is no SETTINGS; is it a gRPC client?": PREFACE + head,
        "SETTINGS of a wrong form": PREFACE + frame(SETTINGS, 0, 0, b"12345"),
        "headers of stream 2, which no client begins": BEGIN + request_head(2),
        "headers of a wrong form": BEGIN + frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff\x00"),
        "a CONTINUATION of nothing": BEGIN + frame(CONTINUATION, END_HEADERS, 1, b""),
        "a frame between those of a header block": BEGIN
        + frame(HEADERS, 0, 1, b"")
        + frame(PING, 0, 0, bytes(8)),
        "DATA of stream 1, which is not open": BEGIN + frame(DATA, 0, 1, b""),
        "DATA behind the end of its stream": BEGIN
        + request_head(1)
        + frame(DATA, END_STREAM, 1, message(b""))
        + frame(DATA, 0, 1, b""),
        "a frame shorter than its padding": BEGIN + head + frame(DATA, PADDED, 1, b"\x05abc"),
        "a PING of a wrong form": BEGIN + frame(PING, 0, 0, b"1234"),
        "RST_STREAM of stream 3, which is not open": BEGIN + frame(RESET, 0, 3, bytes(4)),
        "a PUSH_PROMISE, which nobody asked for": BEGIN + frame(http2.PUSH_PROMISE, 0, 1, bytes(4)),
        "a window that grows by 0 bytes": BEGIN + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
        "a window of 4294967295 bytes": PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**32 - 1)),
        "frames of at most 1 bytes": PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)),
        "a frame of type 6 with 100000 bytes": BEGIN + frame(PING, 0, 0, bytes(100_000)),
    }
    for why, data in wrong.items():
        assert gone(data) == why
    with pytest.raises(_core.StatusError, match="headers cannot be read"):
        read(BEGIN + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff"))
