"""TLS of the native core, against itself and Python's: who is spoken to, and what a torn or changed byte does."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certificates as made
import pytest
from cryptography.hazmat.primitives import serialization
from faults.http2_frames import PREFACE, settings
from unit.ports import MESSAGE_MAX, Port, World

from tablebay.client.tls import Folder
from tablebay.native import _core

OK, UNAVAILABLE = 0, 14


def echo(path: str, content: memoryview) -> bytes:
    """The request."""
    return bytes(content)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def port(world: World) -> Iterator[Port]:
    with contextlib.closing(Port(echo, world)) as port:
        yield port


def call(
    client: Any, content: bytes = b"rows", timeout_s: float = 20.0
) -> tuple[int, str, Any, bytes | None]:
    found: tuple[int, str, Any, bytes | None] = client.call("/a.Service/Do", content, timeout_s).result()
    return found


class Relay:
    """Between a client and a port: passes bytes on in pieces of any size, and may change one of them.

    change: which byte of those to the client is changed, counted from the first; None for none.
    """

    def __init__(self, to: int, seed: int, change: int | None = None) -> None:
        self._to, self._change = to, change
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.number = self._listener.getsockname()[1]
        self.changed = False
        self.passed = 0
        self._open: tuple[socket.socket, ...] = ()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, socket.create_connection(("127.0.0.1", self._to)) as server:
                    self._open = (client, server)
                    self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                for end in select.select([client, server], [], [])[0]:
                    piece = end.recv(self._chance.choice((1, 5, 100, 4000, 20_000, 300_000)))
                    if not piece:
                        return
                    if end is server:
                        piece = self._changed(piece)
                    (client if end is server else server).sendall(piece)

    def _changed(self, piece: bytes) -> bytes:
        at = -1 if self._change is None else self._change - self.passed
        self.passed += len(piece)
        if not 0 <= at < len(piece):
            return piece
        self.changed = True
        return piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]

    def close(self) -> None:
        """End it."""
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._listener.close()


def client_of(world: World, number: int, host: str = "127.0.0.1") -> Any:
    return _core.Http2Server(host, number, "test", MESSAGE_MAX, world.context(world.worker))


def test_the_system_has_an_openssl() -> None:
    """Where it had none every connection with TLS would be gRPC's library's, and nothing here be tested."""
    assert _core.tls_missing() == ""


def test_a_handler_is_told_who_calls(world: World, port: Port) -> None:
    """By the certificate that the caller showed, byte for byte; by Python's library as by the core's."""
    assert call(port.client())[3] == b"rows"
    assert port.peers == {(world.worker / "tls.crt").read_bytes()}
    caller = port.caller()
    caller.find(lambda kind, flags, stream, content: True)


@pytest.mark.parametrize("seed", range(6))
def test_records_may_come_torn_into_any_pieces(world: World, port: Port, seed: int) -> None:
    """Requests and answers of up to 3 MB, through one that passes on a byte or 300,000 at a time."""
    chance = random.Random(seed)
    with contextlib.closing(Relay(port.number, seed)) as relay:
        client = client_of(world, relay.number)
        for _ in range(6):
            content = chance.randbytes(chance.choice((0, 1, 16_379, 16_384, 100_000, 3_000_000)))
            code, text, _, answer = call(client, content)
            assert (code, answer == content) == (OK, True), f"seed {seed}: {len(content)} bytes: {text}"
        assert relay.passed > 1000


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_byte_ends_the_call_and_never_changes_a_row(world: World, port: Port, seed: int) -> None:
    """In the handshake, in a record's head, or in a row: what comes is what was sent, or UNAVAILABLE."""
    content = random.Random(seed).randbytes(200_000)
    change = random.Random(seed).randrange(3000 if seed % 2 else 200_000)
    with contextlib.closing(Relay(port.number, seed, change)) as relay:
        code, text, _, answer = call(client_of(world, relay.number), content, 5.0)
        assert relay.changed, f"seed {seed}: byte {change} of {relay.passed}"
        assert (code, answer) == (UNAVAILABLE, None), f"seed {seed}: byte {change}: {text}"
    assert call(port.client(), content)[3] == content


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_is_spoken_to_by_a_name_that_its_certificate_is_for(
    tmp_path: Path, world: World, host: str
) -> None:
    """An address or a host name; the certificate of another is not taken, nor is one that is for no name."""
    by = made.authority()
    theirs = made.write(tmp_path / "theirs", made.pair(by, made.peer("worker/0")), by)
    tls = Folder(theirs).read()
    mine = _core.TlsContext(
        server=False, key=tls.key, certificate=tls.certificate, authorities=tls.authorities
    )
    for who, names, wanted in (
        ("server/0", (host,), ""),
        ("server/0", ("ps-0.example", "10.0.0.7"), "mismatch"),
        ("worker/1", (), "unsuitable certificate purpose"),
    ):
        world.server = made.write(tmp_path / "other", made.pair(by, made.peer(who), names=names), by)
        with contextlib.closing(Port(echo, world)) as port:
            code, text, _, _ = call(_core.Http2Server(host, port.number, "test", MESSAGE_MAX, mine))
            assert code == (UNAVAILABLE if wanted else OK) and wanted in text, text


def test_who_speaks_something_else_is_refused_by_name(world: World, port: Port) -> None:
    """Plain HTTP/2 to a port with TLS, TLS to a plain one, and TLS with another protocol in it, from both ends."""
    code, text, _, _ = call(_core.Http2Server("127.0.0.1", port.number, "test", MESSAGE_MAX), timeout_s=5.0)
    assert code == UNAVAILABLE, text
    with contextlib.closing(Port(echo, None)) as plain:
        code, text, _, _ = call(client_of(world, plain.number), timeout_s=5.0)
        assert code == UNAVAILABLE and "TLS: wrong version number" in text
    for protocols in (["http/1.1"], ["grpc-exp"]):
        browser = world.pythons()
        browser.set_alpn_protocols(protocols)
        with pytest.raises(ssl.SSLError, match="(?i)no.application.protocol"), port.connect(browser):
            pass
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(world.server / "tls.crt", world.server / "tls.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=_shake_hands, args=(listener, context))
        answering.start()
        code, text, _, _ = call(client_of(world, listener.getsockname()[1]))
        assert code == UNAVAILABLE and "speaks no HTTP/2" in text
        answering.join(20)
    assert call(port.client())[0] == OK


def _shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    with (
        listener.accept()[0] as end,
        contextlib.suppress(OSError),
        context.wrap_socket(end, server_side=True) as tls,
    ):
        tls.recv(1)


def test_hands_that_are_not_shaken_are_waited_for_by_nobody(world: World, port: Port) -> None:
    """Twenty who connect and say nothing, or half of a greeting, hold no thread: calls are answered beside them. And a
    server that says nothing is given up."""
    with contextlib.ExitStack() as ends:
        for said in (b"", bytes.fromhex("16030100c8010000c40303") + bytes(50)):
            for _ in range(10):
                end = ends.enter_context(socket.create_connection(("127.0.0.1", port.number), timeout=10))
                end.sendall(said)
        for _ in range(10):
            began = time.monotonic()
            assert call(port.client())[0] == OK
            assert time.monotonic() - began < 2
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        code, text, _, _ = call(client_of(world, silent.getsockname()[1]), timeout_s=30.0)
        assert code == UNAVAILABLE and "does not answer" in text
        assert time.monotonic() - began < 15


def test_an_old_client_of_tls_1_2_is_served(world: World, port: Port) -> None:
    """With a cipher that HTTP/2 allows."""
    context = world.pythons()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with port.connect(context) as end:
        assert end.version() == "TLSv1.2"
        assert "GCM" in end.cipher()[0] or "CHACHA20" in end.cipher()[0]
        end.sendall(PREFACE + settings())
        assert end.recv(9)


def test_a_new_connection_is_shown_what_there_is_now(world: World, tmp_path: Path, port: Port) -> None:
    """One that was made before goes on."""
    before = port.connect(world.pythons())
    by = made.authority()
    world.server = made.write(tmp_path / "new", made.pair(by, made.peer("server/0")), by)
    with pytest.raises(ssl.SSLCertVerificationError), port.connect(world.pythons()):
        pass
    with before:
        before.sendall(PREFACE + settings())
        assert before.recv(9)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"key": b""}, "the key is no private key in PEM"),
        (
            {"key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
            "the key is no private key",
        ),
        ({"certificate": b"nothing"}, "the certificate is no certificate in PEM"),
        ({"authorities": b""}, "the authorities are no certificates in PEM"),
    ],
)
def test_what_is_no_certificate_is_said_to_be_none(world: World, wrong: dict[str, bytes], why: str) -> None:
    """And so are a key of another certificate, and one that wants a password, which nobody is asked for."""
    found = Folder(world.worker).read()
    right = {"key": found.key, "certificate": found.certificate, "authorities": found.authorities}
    with pytest.raises(_core.StatusError, match=why):
        _core.TlsContext(server=False, **{**right, **wrong})
    with pytest.raises(_core.StatusError, match="the key is not that of the certificate"):
        _core.TlsContext(server=False, **{**right, "key": Folder(world.server).read().key})
    key = serialization.load_pem_private_key(found.key, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    with pytest.raises(_core.StatusError, match="without a password"):
        _core.TlsContext(server=False, **{**right, "key": locked})
