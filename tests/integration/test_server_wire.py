"""Bad input over real gRPC: each gets its status, nothing is applied, and the server lives on."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from free_ports import free_data_ports

import tablebay as tb
from tablebay.client.environment import control_port
from tablebay.client.proto import tablebay_pb2
from tablebay.native import _core

KEYS_MAX = 1000
MESSAGE_BYTES_MAX = 1 << 20
TABLES = (
    '[{"name": "user", "dim": 2, "optimizer": {"type": "SGD", "learningRate": 1.0}, "initializer": {"type": "Zeros"}},'
    ' {"name": "wide", "dim": 65536}]'
)
USER, WIDE = _core.table_id("user"), _core.table_id("wide")
Code = grpc.StatusCode


class Wire:
    """A client of plain messages, which may be as wrong as they like."""

    def __init__(self, server: Any) -> None:
        self.server = server
        answer = tablebay_pb2.HelloResponse.FromString(
            server.call("Hello", tablebay_pb2.HelloRequest(protocol_major=1).SerializeToString())
        )
        self.who = {
            "client_high": answer.client_high,
            "client_low": answer.client_low,
            "incarnation": answer.incarnation,
        }
        self.epoch = answer.epoch

    def part(self, keys: list[int], rows: list[float] | None = None, **fields: Any) -> tablebay_pb2.Part:
        content = {} if rows is None else {"rows": struct.pack(f"<{len(rows)}f", *rows)}
        packed = struct.pack(f"<{len(keys)}Q", *keys)
        return tablebay_pb2.Part(**{"table_id": USER, "dim": 2, "keys": packed, **content, **fields})

    def push(self, part: tablebay_pb2.Part, **fields: Any) -> tablebay_pb2.PushResponse:
        sender = tablebay_pb2.Sender(**{**self.who, **fields.pop("sender", {})})
        request = tablebay_pb2.PushRequest(sender=sender, part=part, **fields)
        return tablebay_pb2.PushResponse.FromString(self.server.call("Push", request.SerializeToString()))

    def pull(self, part: tablebay_pb2.Part, **options: Any) -> bytes:
        request = tablebay_pb2.PullRequest(part=part).SerializeToString()
        return tablebay_pb2.PullResponse.FromString(self.server.call("Pull", request, **options)).rows

    def rows(self, keys: list[int]) -> Any:
        """Rows of the table `user`, none of which is made."""
        found = np.frombuffer(self.pull(self.part(keys, flags=2)), np.float32)
        return found.reshape(len(keys), 2).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of the server's log."""
    return tmp_path_factory.mktemp("wire")


@pytest.fixture(scope="module")
def shared(folder: Any, new_server: Callable[..., Any]) -> Iterator[Any]:
    """One server for all tests here: what one test sends must not hurt the next."""
    limits = ("--keys-max", str(KEYS_MAX), "--message-bytes-max", str(MESSAGE_BYTES_MAX))
    server = new_server(folder, *limits, TABLEBAY_TABLES=TABLES).wait_until_ready()
    yield server
    assert server.end() == 0, server.log
    assert "request.failed" not in server.log
    server.close()


@pytest.fixture
def wire(shared: Any) -> Iterator[Wire]:
    """A fresh client; in the end the server still serves, and the row 7 that nobody may touch is as it was."""
    client = Wire(shared)
    yield client
    assert client.rows([7]) == [[0.0, 0.0]]


def refused(
    code: grpc.StatusCode, kind: str | None, call: Callable[..., Any], *args: Any, **options: Any
) -> str:
    """The text of the refusal, which must have this code and name this class of error."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **options)
    error: Any = raised.value
    assert error.code() == code, error.details()
    assert dict(error.trailing_metadata() or ()).get("tablebay-error") == kind
    return str(error.details())


# -- messages --


@pytest.mark.parametrize("method", ["Pull", "Push", "Step"])
def test_random_bytes_are_refused(wire: Wire, method: str) -> None:
    """As a message that is none; never a fault of the server."""
    for seed in range(200):
        chance = random.Random(seed)
        request = chance.randbytes(chance.randint(1, 300))
        with pytest.raises(grpc.RpcError) as raised:
            wire.server.call(method, request)
        assert raised.value.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), f"seed {seed}: {raised.value}"


def test_a_message_cut_short_anywhere_is_refused_or_asks_for_less(wire: Wire) -> None:
    """Every prefix of a good push: nothing but the whole of it is applied."""
    sender = tablebay_pb2.Sender(**wire.who)
    whole = tablebay_pb2.PushRequest(sender=sender, part=wire.part([1, 2], [1, 1, 1, 1])).SerializeToString()
    for length in range(len(whole)):
        with pytest.raises(grpc.RpcError) as raised:
            wire.server.call("Push", whole[:length])
        assert raised.value.code() == Code.INVALID_ARGUMENT, length
    assert wire.rows([1, 2]) == [[0.0, 0.0], [0.0, 0.0]]
    wire.server.call("Push", whole)
    assert wire.rows([1, 2]) == [[-1.0, -1.0], [-1.0, -1.0]]


def test_a_message_over_the_limit_is_resource_exhausted(wire: Wire) -> None:
    """Either way: a request by its size, an answer before it is made."""
    too_large = bytes(MESSAGE_BYTES_MAX + 1)
    assert "larger than max" in refused(Code.RESOURCE_EXHAUSTED, None, wire.server.call, "Push", too_large)
    wanted = wire.part(list(range(5)), table_id=WIDE, dim=65536, flags=2)
    text = refused(Code.RESOURCE_EXHAUSTED, "ResourceExhausted", wire.pull, wanted)
    assert "the answer has 1310720 bytes, wanted at most 1048576" in text
    assert len(wire.pull(wire.part([1, 2, 3], table_id=WIDE, dim=65536, flags=2))) == 3 * 4 * 65536


@pytest.mark.parametrize("length", [2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_an_absurd_length_is_refused_before_anything_is_reserved(wire: Wire, length: int) -> None:
    """Ten bytes that promise two gigabytes and more."""
    number = length
    varint = bytearray()
    while number > 127:
        varint.append(number & 127 | 128)
        number >>= 7
    varint.append(number)
    request = b"\x3a" + bytes(varint) + b"0123456789"
    refused(Code.INVALID_ARGUMENT, "BadRequest", wire.server.call, "Pull", request)


def test_more_keys_than_a_call_may_have_are_resource_exhausted(wire: Wire) -> None:
    """With the number found and the number wanted; no row is made for any of them."""
    text = refused(
        Code.RESOURCE_EXHAUSTED, "ResourceExhausted", wire.pull, wire.part(list(range(KEYS_MAX + 1)))
    )
    assert text == "table 'user': 1001 keys in one call, wanted at most 1000"
    assert len(wire.pull(wire.part(list(range(KEYS_MAX)), flags=2))) == KEYS_MAX * 8


def test_a_compressed_message_is_refused(wire: Wire) -> None:
    """However small it is: what it becomes is not known before it is unpacked."""
    for size in (1000, 50_000_000):
        options = {"compression": grpc.Compression.Gzip}
        refused(Code.UNIMPLEMENTED, None, wire.server.call, "Pull", bytes(size), **options)


def test_metadata_over_8_kib_is_refused(wire: Wire) -> None:
    """A megabyte, or a little too much; a few kilobytes are none of our business."""
    for size in (1_000_000, 10_000):
        refused(Code.RESOURCE_EXHAUSTED, None, wire.server.call, "Pull", b"", metadata=(("x", "y" * size),))
    assert wire.pull(wire.part([1], flags=2), metadata=(("x", "y" * 4000),))


def test_an_error_text_is_never_too_long_for_its_metadata(wire: Wire) -> None:
    """Though the client wrote a part of it, in characters that take nine bytes each on the wire."""
    for name in ("x" * 100_000, "\u00fc" * 100_000, "\U0001f600" * 100_000):
        request = tablebay_pb2.CreateTableRequest(spec=tablebay_pb2.TableSpec(name=name, dim=1))
        text = refused(
            Code.INVALID_ARGUMENT, "BadRequest", wire.server.call, "CreateTable", request.SerializeToString()
        )
        assert text.startswith("TableSpec: name is ")


# -- parts --


def test_a_wrong_checksum_is_data_loss_and_is_not_applied(wire: Wire) -> None:
    """A right one is."""
    part = wire.part([3], [1, 1])
    crc = _core.crc32c(part.keys + part.rows)
    part.crc32c = crc ^ 1
    text = refused(Code.DATA_LOSS, "CorruptMessage", wire.push, part)
    assert f"{crc:08x}" in text
    assert wire.rows([3]) == [[0.0, 0.0]]
    part.crc32c = crc
    wire.push(part)
    assert wire.rows([3]) == [[-1.0, -1.0]]


@pytest.mark.parametrize(
    ("fields", "code", "kind", "said"),
    [
        ({"table_id": 12345}, Code.NOT_FOUND, "NotRegistered", "2 tables: its tables are user, wide"),
        ({"dim": 3}, Code.INVALID_ARGUMENT, "BadRequest", "the message says dim 3, the table has dim 2"),
        (
            {"keys": b"1234567"},
            Code.INVALID_ARGUMENT,
            "BadRequest",
            "7 bytes of keys, wanted a multiple of 8",
        ),
        ({"rows": b"1234"}, Code.INVALID_ARGUMENT, "BadRequest", "4 bytes of rows for 1 keys, wanted 8"),
        ({"counts": b"1"}, Code.INVALID_ARGUMENT, "BadRequest", "counts no shows and clicks"),
        ({"flags": 2**31}, Code.INVALID_ARGUMENT, "BadRequest", "flags 2147483648 are not those of a push"),
        ({"flags": 16}, Code.INVALID_ARGUMENT, "BadRequest", "flags 16 are not those of a push"),
        (
            {"rows": struct.pack("<2f", float("nan"), 1)},
            Code.INVALID_ARGUMENT,
            "NonFinite",
            "key 7 (position 0)",
        ),
        (
            {"rows": struct.pack("<2f", 1, float("-inf"))},
            Code.INVALID_ARGUMENT,
            "NonFinite",
            "wanted finite numbers",
        ),
    ],
)
def test_a_wrong_part_is_refused_by_what_is_wrong_with_it(
    wire: Wire, fields: dict[str, Any], code: grpc.StatusCode, kind: str, said: str
) -> None:
    """Table, found and wanted are in the text."""
    part = wire.part([7], [1, 1])
    part.MergeFrom(tablebay_pb2.Part(**fields))
    assert said in refused(code, kind, wire.push, part)


# -- steps, senders --


def test_a_step_beyond_all_sense_moves_no_window(wire: Wire) -> None:
    """2^64 - 1 and 2^63 are refused; the steps after them are applied as if they had never come."""
    for step in (2**64 - 1, 2**63):
        refused(
            Code.INVALID_ARGUMENT,
            "BadRequest",
            wire.push,
            wire.part([7], [1, 1]),
            step=step,
            oldest_step=step,
        )
    text = refused(Code.OUT_OF_RANGE, "OutOfRange", wire.push, wire.part([7], [1, 1]), step=64, oldest_step=0)
    assert "wanted less than 64" in text
    assert wire.push(wire.part([10], [1, 1]), step=0).applied_shards == 1
    assert wire.push(wire.part([10], [1, 1]), step=0).duplicate_shards == 1
    assert wire.rows([10]) == [[-1.0, -1.0]]


@pytest.mark.parametrize(
    ("sender", "kind"),
    [
        ({"client_low": 1}, "ServerLost"),
        ({"client_high": 0, "client_low": 0}, "ServerLost"),
        ({"incarnation": 0}, "Fenced"),
        ({"epoch": 5}, "ServerLost"),
        ({"shard_map_version": 99}, "WrongShard"),
    ],
)
def test_a_sender_that_is_not_current_is_failed_precondition(
    wire: Wire, sender: dict[str, int], kind: str
) -> None:
    """An unknown client, an older process, another life of the server, another shard map."""
    refused(Code.FAILED_PRECONDITION, kind, wire.push, wire.part([7], [1, 1]), sender=sender)
    current = {"epoch": wire.epoch, "shard_map_version": 1}
    assert wire.push(wire.part([11], [0, 0]), sender=current).applied_shards == 1


def test_a_push_that_says_no_sender_is_refused(wire: Wire) -> None:
    """A pull may leave it out."""
    request = tablebay_pb2.PushRequest(part=wire.part([7], [1, 1])).SerializeToString()
    refused(Code.INVALID_ARGUMENT, "BadRequest", wire.server.call, "Push", request)


# -- methods, deadlines --


def test_a_method_that_is_not_there_is_unimplemented(wire: Wire) -> None:
    """Reserved ones with their own words, unknown ones with gRPC's; a control method is none of the data port."""
    for method in ("Clock", "Export", "MoveShards", "SubscribeDeltas"):
        text = refused(Code.UNIMPLEMENTED, "Unimplemented", wire.server.call, method, b"")
        assert text.startswith(f"{method} is reserved and not implemented")
    refused(Code.UNIMPLEMENTED, None, wire.server.call, "Nonsense", b"")
    hello = wire.server.channel(control=False).unary_unary("/tablebay.v1.Control/Hello")
    refused(Code.UNIMPLEMENTED, None, hello, b"", timeout=5)


@pytest.mark.parametrize("timeout", [0.0, 1e-6, 1e-3, None])
def test_any_deadline_is_taken(wire: Wire, timeout: float | None) -> None:
    """None, or one that has passed already: an answer, or DEADLINE_EXCEEDED."""
    for _ in range(20):
        try:
            code = Code.OK if wire.pull(wire.part([1], flags=2), timeout=timeout) else None
        except grpc.RpcError as error:
            code = error.code()
        assert code == Code.OK or (timeout is not None and code == Code.DEADLINE_EXCEEDED)


def test_a_call_with_no_message_or_two_is_refused(wire: Wire) -> None:
    """A unary call has one."""
    for messages in ([], [b"", b""]):
        call = wire.server.channel(control=False).stream_unary("/tablebay.v1.Data/Pull")
        with pytest.raises(grpc.RpcError) as raised:
            call(iter(messages), timeout=10)
        assert raised.value.code() in (Code.UNIMPLEMENTED, Code.INTERNAL, Code.INVALID_ARGUMENT)


# -- connections --


def raw(port: int, content: bytes) -> bytes:
    """What a port answers to bytes, until it closes or is silent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        try:
            connection.sendall(content)
            while len(answer) < 1 << 16:
                piece = connection.recv(4096)
                if not piece:
                    break
                answer += piece
        except OSError:
            pass
    return answer


def test_bytes_that_are_no_http2_do_no_harm(wire: Wire) -> None:
    """Random ones, HTTP/1, TLS, a wrong frame: on both gRPC ports."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    contents = [
        os.urandom(2000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(512),
        preface + settings + b"\xff\xff\xff\x01\x25\x00\x00\x00\x01" + os.urandom(100),
        preface + settings + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ]
    for port in (wire.server.data_port, control_port(wire.server.data_port)):
        for content in contents:
            raw(port, content)
    assert wire.rows([7]) == [[0.0, 0.0]]


def test_a_flood_of_pings_ends_that_connection_only(wire: Wire) -> None:
    """Ten thousand in a row: GOAWAY to the sender, and everybody else is answered."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"12345678"
    answer = raw(wire.server.data_port, preface + ping * 10_000)
    assert b"too_many_pings" in answer or answer.count(b"12345678") < 10_000
    assert wire.rows([7]) == [[0.0, 0.0]]


def test_many_idle_connections_leave_room_for_honest_ones(wire: Wire) -> None:
    """A thousand that say nothing; a new client connects and is answered."""
    address = f"127.0.0.1:{wire.server.data_port}"
    with contextlib.ExitStack() as idle:
        for _ in range(1000):
            idle.enter_context(socket.create_connection(("127.0.0.1", wire.server.data_port), timeout=5))
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = tablebay_pb2.PullRequest(part=wire.part([7], flags=2)).SerializeToString()
            for _ in range(20):
                began = time.monotonic()
                channel.unary_unary("/tablebay.v1.Data/Pull")(request, timeout=5)
                assert time.monotonic() - began < 2


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# Types and flags of HTTP/2's frames.
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """One frame of HTTP/2."""
    return len(content).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + content


def headers_of_a_call(method: str, stream: int) -> bytes:
    """The frame that begins a call; each header a literal, without table or Huffman code (RFC 7541, 6.2.2)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/tablebay.v1.Data/{method}",
        ":authority": "127.0.0.1",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def frames_until(
    connection: socket.socket, last: Callable[[int, int, int], bool]
) -> list[tuple[int, int, int]]:
    """(type, flags, stream) of the frames that come, to the one that is `last`, or the connection's end."""
    found: list[tuple[int, int, int]] = []
    with connection.makefile("rb") as stream:
        while not (found and last(*found[-1])):
            head = stream.read(9)
            if len(head) < 9:
                break
            stream.read(int.from_bytes(head[:3], "big"))
            found.append(struct.unpack(">BBI", head[3:]))
    return found


@contextlib.contextmanager
def others_are_served(wire: Wire) -> Iterator[None]:
    """Meanwhile and afterwards an honest client's pulls and control calls are answered, by the same process.

    It is one of the SDK: gRPC may cancel anybody's calls while thousands wait to be looked at, and such a call is sent
    again.
    """
    pid, end = wire.server.process.pid, threading.Event()
    failures: list[BaseException] = []
    served = 0

    def serve() -> None:
        nonlocal served
        began = time.monotonic()
        assert table.pull([7], create=False).tolist() == [[0.0, 0.0]]
        assert client.stats()[0].epoch == wire.epoch
        assert time.monotonic() - began < 5
        served += 1

    def go_on() -> None:
        try:
            while not end.is_set():
                serve()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    with tb.connect(wire.server.address, timeout=10) as client:
        table = client.table("user")
        other = threading.Thread(target=go_on)
        other.start()
        try:
            yield
        finally:
            end.set()
            other.join()
        if failures:
            raise failures[0]
        assert served > 0
        serve()
    assert wire.server.process.poll() is None
    assert wire.server.process.pid == pid


@pytest.mark.parametrize("flag", [0, 1, 7, 255])
def test_a_message_with_a_wrong_compression_flag_is_not_applied(wire: Wire, flag: int) -> None:
    """The first byte of a gRPC message is 0; with any other the call ends and no row changes, with 0 it is applied."""
    key = 1000 + flag
    sender = tablebay_pb2.Sender(**wire.who)
    push = tablebay_pb2.PushRequest(sender=sender, part=wire.part([key], [1, 1])).SerializeToString()
    message = bytes([flag]) + struct.pack(">I", len(push)) + push
    content = PREFACE + headers_of_a_call("Push", 1) + frame(DATA, END_STREAM, 1, message)

    def ends_the_call(kind: int, flags: int, stream: int) -> bool:
        return kind == GOAWAY or (
            stream == 1 and (kind == RST_STREAM or (kind == HEADERS and bool(flags & END_STREAM)))
        )

    with (
        others_are_served(wire),
        socket.create_connection(("127.0.0.1", wire.server.data_port), timeout=10) as connection,
    ):
        connection.sendall(content)
        answer = frames_until(connection, ends_the_call)
        assert answer and ends_the_call(*answer[-1]), answer
        # An answer to what was applied has a message.
        assert any(kind == DATA and stream == 1 for kind, _, stream in answer) == (flag == 0), answer
    assert wire.rows([key]) == ([[-1.0, -1.0]] if flag == 0 else [[0.0, 0.0]])


def test_calls_reset_as_soon_as_they_begin_stop_nobody(wire: Wire) -> None:
    """HTTP/2's rapid reset: on each of 8 connections 500 calls, begun and cancelled at once."""
    calls = b"".join(
        headers_of_a_call("Pull", stream) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 1001, 2)
    )
    with others_are_served(wire), contextlib.ExitStack() as open_connections:
        for _ in range(8):
            connection = socket.create_connection(("127.0.0.1", wire.server.data_port), timeout=10)
            open_connections.enter_context(connection)
            # The server may have had enough before the end.
            with contextlib.suppress(ConnectionError, TimeoutError):
                connection.sendall(PREFACE + calls)
        time.sleep(1.0)


def test_idle_http2_connections_stop_nobody(wire: Wire) -> None:
    """200 that have said their settings, and say no more: they stay, and others are served beside them."""
    with others_are_served(wire), contextlib.ExitStack() as idle:
        connections = []
        for _ in range(200):
            connection = socket.create_connection(("127.0.0.1", wire.server.data_port), timeout=10)
            connections.append(idle.enter_context(connection))
            connection.sendall(PREFACE)
        for connection in connections:
            answer = frames_until(connection, lambda kind, flags, stream: kind == SETTINGS)
            assert answer and answer[-1][0] == SETTINGS, answer
        time.sleep(1.0)
        for connection in connections:
            # Not closed: there may be more to read, but no end.
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert connection.recv(4096) != b""


def test_calls_that_never_send_their_message_stop_nobody(wire: Wire) -> None:
    """Hundreds of calls begun and left, more than the port has workers: each waits without holding one."""
    address = f"127.0.0.1:{wire.server.data_port}"
    end = threading.Event()

    def never() -> Iterator[bytes]:
        end.wait(60)
        yield b""

    channels = [
        grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(3)
    ]
    try:
        begin = [channel.stream_unary("/tablebay.v1.Data/Pull") for channel in channels for _ in range(50)]
        calls = [one.future(never()) for one in begin]
        time.sleep(0.5)
        for _ in range(20):
            began = time.monotonic()
            assert wire.rows([7]) == [[0.0, 0.0]]
            assert time.monotonic() - began < 2
        assert not any(call.done() for call in calls)
    finally:
        end.set()
        for channel in channels:
            channel.close()


def test_a_barrier_that_is_not_released_stops_nobody(wire: Wire) -> None:
    """It is asked again and again, and no call of it waits: pulls and other control calls go on."""
    end = threading.Event()

    def ask() -> None:
        request = tablebay_pb2.BarrierRequest(name="never", workers=2, **wire.who).SerializeToString()
        while not end.is_set():
            answer = tablebay_pb2.BarrierResponse.FromString(wire.server.call("Barrier", request))
            assert (answer.released, answer.arrived) == (False, 1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            began = time.monotonic()
            assert wire.rows([7]) == [[0.0, 0.0]]
            assert wire.server.call("Stats", b"")
            assert time.monotonic() - began < 5
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_more_calls_than_the_bound_are_resource_exhausted(start_server: Callable[..., Any]) -> None:
    """On the control port: at once, instead of a queue without end; when the others are done there is room again.

    On the data port a call counts from when it is whole: test_native_http2_port.py.
    """
    server = start_server("--requests-max", "4")
    end = threading.Event()

    def never() -> Iterator[bytes]:
        end.wait(60)
        yield b""

    calls = [
        server.channel(control=True).stream_unary("/tablebay.v1.Control/Stats").future(never())
        for _ in range(4)
    ]
    deadline = time.monotonic() + 10
    codes = set()
    while time.monotonic() < deadline and Code.RESOURCE_EXHAUSTED not in codes:
        try:
            server.call("Stats", b"")
        except grpc.RpcError as error:
            codes.add(error.code())
    assert codes == {Code.RESOURCE_EXHAUSTED}
    assert "a PullRequest has one part" in refused(
        Code.INVALID_ARGUMENT, "BadRequest", server.call, "Pull", b""
    )
    end.set()
    for call in calls:
        call.exception()
    assert server.call("Stats", b"")


def test_the_memory_limit_is_resource_exhausted_and_leaves_the_server_whole(
    start_server: Callable[..., Any],
) -> None:
    """A push, or a pull that makes rows, over the limit changes nothing; what makes no row goes on."""
    server = start_server("--memory-limit-bytes", "4000000", TABLEBAY_TABLES=TABLES)
    wire = Wire(server)
    wire.push(wire.part([1], [1, 1]))
    rows = tablebay_pb2.StatsResponse.FromString(server.call("Stats", b"")).counters["rows"]
    many = list(range(200_000))
    text = refused(Code.RESOURCE_EXHAUSTED, "ResourceExhausted", wire.pull, wire.part(many))
    assert "limit" in text
    gradients = tablebay_pb2.Part(
        table_id=USER, dim=2, keys=np.arange(200_000, dtype=np.uint64).tobytes(), rows=bytes(200_000 * 8)
    )
    refused(Code.RESOURCE_EXHAUSTED, "ResourceExhausted", wire.push, gradients, step=1)
    assert len(wire.pull(wire.part(many, flags=2))) == 200_000 * 8
    assert tablebay_pb2.StatsResponse.FromString(server.call("Stats", b"")).counters["rows"] == rows
    assert wire.rows([1]) == [[-1.0, -1.0]]


def test_a_fault_of_the_server_is_internal_without_a_traceback() -> None:
    """The client learns that there was one and where to look, never how the code looks."""
    from tablebay.ps_server.grpc_server import GrpcServer
    from tablebay.ps_server.service import Service

    class Faulty(Service):
        def handle(self, method: str, request: bytes) -> bytes:
            if method == "Stats":
                return bytearray(b"no bytes")  # type: ignore[return-value]
            raise ZeroDivisionError("secret of the code")

    (data_port,) = free_data_ports(1)
    server = GrpcServer(
        Faulty(), host="127.0.0.1", data_port=data_port, message_bytes_max=1 << 20, requests_max=8
    )
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{data_port}") as channel:
        call = channel.unary_unary("/tablebay.v1.Data/Pull")
        text = refused(Code.INTERNAL, "TablebayError", call, b"", timeout=5)
    assert text == "Pull: a fault in the server; its log says more"
    with grpc.insecure_channel(f"127.0.0.1:{control_port(data_port)}") as channel:
        began = time.monotonic()
        refused(
            Code.INTERNAL, "TablebayError", channel.unary_unary("/tablebay.v1.Control/Stats"), b"", timeout=20
        )
        assert time.monotonic() - began < 10, (
            "what is not bytes must be refused here: gRPC would never answer"
        )
    server.stop(0)
