"""TLS between real processes: who is let in, who is not and with which status, and certificates that change."""

from __future__ import annotations

import socket
import ssl
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certificates as made
import grpc
import numpy as np
import psutil
import pytest
from free_ports import free_data_ports
from integration.training import TABLES, TwoWorkers
from rpcs import CONTROL, DATA, METHODS, of_rank_0

import tablebay as tb
from tablebay.client.cli import main
from tablebay.client.control import Control
from tablebay.client.environment import TRANSPORT, control_port, http_port
from tablebay.client.errors import BadRequest, PermissionDenied, Unavailable
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tls import Folder
from tablebay.native import _core
from tablebay.ps_server.access import ALLOWED

# Longer than it takes a process to look at its folder.
LOOK_S = 3.0


class World:
    """An authority, a folder for each process, and servers that trust it."""

    def __init__(self, folder: Path, start: Callable[..., Any]) -> None:
        self.folder, self._start = folder, start
        self.authority = made.authority()
        self.servers: list[Any] = []

    def give(self, name: str, **other: Any) -> Path:
        """A folder with the certificate of `worker/3` and its like."""
        found = made.pair(self.authority, made.peer(name), **other)
        return made.write(self.folder / name.replace("/", "-"), found, self.authority)

    def server(self, *options: str, index: int = 0, **other: Any) -> Any:
        folder = self.give(f"server/{index}")
        server = self._start(
            "--tls-dir", str(folder), "--tables", TABLES, "--index", str(index), *options, **other
        )
        self.servers.append(server)
        return server


@pytest.fixture
def world(tmp_path: Path, start_server: Callable[..., Any]) -> World:
    return World(tmp_path, start_server)


# A machine without OpenSSL, where the data port's TLS is gRPC's library's.
WITHOUT_OPENSSL = {"TABLEBAY_LIBSSL": "/nonexistent/libssl.so.3"}


@pytest.fixture(params=["native", "grpcio"])
def server(world: World, request: pytest.FixtureRequest) -> Any:
    """One whose data port is the native core's, and one whose is gRPC's library's."""
    found = world.server(**({} if request.param == "native" else WITHOUT_OPENSSL))
    assert ("data.tls_by_grpc" in found.log) == (request.param == "grpcio")
    return found


def credentials(folder: Path, *, show: bool = True) -> grpc.ChannelCredentials:
    found = Folder(folder).read()
    if not show:
        return grpc.ssl_channel_credentials(found.authorities)
    return grpc.ssl_channel_credentials(found.authorities, found.key, found.certificate)


def statuses(
    server: Any, shown: grpc.ChannelCredentials | None, requests: dict[str, bytes] | None = None
) -> dict[str, str]:
    """What each RPC of a server answers to one who shows these credentials, and to one who speaks in plain."""
    found = {}
    options = [("grpc.use_local_subchannel_pool", 1)]
    for names, service, port in (
        (DATA, "tablebay.v1.Data", server.data_port),
        (CONTROL, "tablebay.v1.Control", control_port(server.data_port)),
        (["Check"], "grpc.health.v1.Health", control_port(server.data_port)),
    ):
        address = f"127.0.0.1:{port}"
        channel = (
            grpc.insecure_channel(address, options=options)
            if shown is None
            else grpc.secure_channel(address, shown, options=options)
        )
        with channel:
            for name in names:
                request = (requests or {}).get(name, b"")
                try:
                    channel.unary_unary(f"/{service}/{name}")(request, timeout=10)
                    found[name] = "OK"
                except grpc.RpcError as error:
                    found[name] = error.code().name
    return found


def test_every_call_is_refused_without_a_certificate_of_the_jobs_authority(world: World, server: Any) -> None:
    """None, one that has expired, one of another authority, one that nobody else signed, and plain text: the handshake
    fails, so no call reaches the service and each ends with UNAVAILABLE."""
    good = world.give("worker/0")
    assert statuses(server, credentials(good))["Stats"] == "OK"
    other = made.authority()
    stranger = made.write(world.folder / "stranger", made.pair(other, made.peer("worker/0")), world.authority)
    alone = made.write(world.folder / "alone", other, world.authority)
    cases = {
        "none": credentials(good, show=False),
        "expired": credentials(world.give("worker/1", ended=True)),
        "another authority's": credentials(stranger),
        "its own": credentials(alone),
        "plain": None,
    }
    for case, shown in cases.items():
        assert set(statuses(server, shown).values()) == {"UNAVAILABLE"}, case
    assert statuses(server, credentials(good))["Stats"] == "OK", "the server has outlived them"


def test_every_call_of_another_jobs_pod_is_denied(world: World, server: Any) -> None:
    """Another uid, or another namespace, signed by the same authority all the same: PERMISSION_DENIED, health too."""
    for other in ({"job": "1111"}, {"namespace": "spam"}):
        who = made.peer("worker/0", **other)
        folder = made.write(world.folder / "other", made.pair(world.authority, who), world.authority)
        assert set(statuses(server, credentials(folder)).values()) == {"PERMISSION_DENIED"}, other


def test_every_call_is_unauthenticated_with_a_certificate_that_names_no_process(
    world: World, server: Any
) -> None:
    """An authority's own certificate may be right in all but that: no URI says who it is."""
    from cryptography import x509

    found = made.pair(world.authority, made.peer("worker/0"))
    assert b"spiffe" not in found.certificate and x509.load_pem_x509_certificate(found.certificate)
    nobody = made.pair(world.authority, _Nobody())  # type: ignore[arg-type]
    folder = made.write(world.folder / "nobody", nobody, world.authority)
    assert set(statuses(server, credentials(folder)).values()) == {"UNAUTHENTICATED"}


class _Nobody:
    uri, role, index, name = "https://example.com/", "worker", 0, "nobody"


def test_each_role_may_call_what_is_its_to_call(world: World, server: Any) -> None:
    """The matrix of RPC and role, over the wire: all that is not allowed is PERMISSION_DENIED, and nothing else is."""
    for role, allowed in ALLOWED.items():
        name = f"{role}/0" if role in ("server", "worker") else role
        folder = made.write(
            world.folder / "role",
            made.pair(world.authority, made.peer(name), names=made.LOCAL),
            world.authority,
        )
        # Drain is carried out where it is allowed; then others are refused as Unavailable, none as denied.
        found = statuses(server, credentials(folder))
        denied = {method for method in METHODS if found[method] == "PERMISSION_DENIED"}
        assert denied == set(METHODS) - allowed, role
        assert found["Check"] == "OK"
    assert ALLOWED["operator"] == {
        "Checkpoint",
        "Drain",
        "Hello",
        "Progress",
        "SetWorkers",
        "Stats",
        "UpdateTable",
    }


def test_every_call_for_another_rank_is_denied(world: World, server: Any) -> None:
    """Each RPC that says whose it is, with worker 1's certificate, in the name of rank 0 of the job."""
    content = of_rank_0("local")
    # The sender may be written twice, or behind other fields: the last one counts.
    tricks = {
        "Push": tablebay_pb2.PushRequest(sender=tablebay_pb2.Sender(client_low=1)).SerializeToString()
        + content["Push"],
        "Step": tablebay_pb2.StepRequest(step=1).SerializeToString() + content["Step"],
    }
    shown = credentials(world.give("worker/1"))
    for asked in (content, tricks):
        found = statuses(server, shown, asked)
        assert {found[name] for name in asked} == {"PERMISSION_DENIED"}
    own = statuses(server, credentials(world.give("worker/0")), content)
    assert "PERMISSION_DENIED" not in {own[name] for name in content}
    with pytest.raises(PermissionDenied, match="speaks for rank 0, and the certificate is of worker 1"):
        tb.connect(server.address, rank=0, tls_dir=world.give("worker/1"))


def test_a_server_of_another_name_is_not_spoken_to(world: World, server: Any) -> None:
    """Its certificate is for the names that it was made for; a worker's is for none, so no worker plays a server."""
    made.write(
        world.folder / "server-0",
        made.pair(world.authority, made.peer("server/0"), names=("elsewhere.example",)),
        world.authority,
    )
    with pytest.raises(Unavailable):
        tb.connect(server.address, tls_dir=world.give("worker/0"), timeout=2)


def test_tls_is_at_least_1_2(world: World, server: Any) -> None:
    """A client that speaks TLS 1.1 at most is refused at the handshake."""
    good = world.give("worker/0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(good / "ca.crt")
    context.load_cert_chain(good / "tls.crt", good / "tls.key")
    context.set_alpn_protocols(["h2"])
    for least, most, taken in (
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, False),
    ):
        with warnings.catch_warnings():
            # Of the old versions, which is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = least, most
        context.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection(("127.0.0.1", server.data_port), timeout=10) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
                    version = wrapped.version()
            except (ssl.SSLError, ConnectionError):
                version = None
        assert (version is not None) == taken, (least, version)


def test_a_server_listens_at_its_three_ports_alone(server: Any) -> None:
    """S10: no other door, and the one without certificates shows health and figures and takes nothing."""
    found = {
        connection.laddr.port
        for connection in psutil.Process(server.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found == {server.data_port, http_port(server.data_port), control_port(server.data_port)}
    for path in ("/", "/flags", "/debug", "/dump", "/pprof", "/vars"):
        assert server.get(path)[0] == 404


def test_a_server_says_which_file_is_wrong(
    world: World, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    """No folder, another process's certificate, a text that is no certificate, another's key, an authority that is
    none: one line, and exit code 1."""
    worker = world.give("worker/0")
    other = world.give("server/1")
    damaged = world.give("server/0")
    (damaged / "tls.crt").write_text("no certificate")
    mixed, lonely = (
        made.write(tmp_path / name, made.pair(world.authority, made.peer("server/0")), world.authority)
        for name in ("mixed", "lonely")
    )
    (mixed / "tls.key").write_bytes((worker / "tls.key").read_bytes())
    (lonely / "ca.crt").write_text("nobody")
    for folder, words in (
        (tmp_path / "nothing", "No such file or directory; wanted tls.key, tls.crt, ca.crt"),
        (worker, "is the certificate of worker 0, wanted server 0's"),
        (other, "is the certificate of server 1, wanted server 0's"),
        (damaged, "tls.crt: the certificate cannot be read"),
        (mixed, f"{mixed}: the key is not that of the certificate"),
        (lonely, f"{lonely}: the authorities are no certificates in PEM"),
    ):
        server = start_server("--tls-dir", str(folder), ready=False)
        assert server.process.wait(30) == 1
        assert words in server.log and "Traceback" not in server.log
    with pytest.raises(BadRequest, match="^certificates: the key is not that of the certificate$"):
        tb.connect("127.0.0.1:7070", tls_dir=mixed, timeout=5)


def test_the_command_makes_certificates_that_servers_and_clients_take(
    tmp_path: Path, start_server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of docs/local-runs.md: a server, a worker of its own rank alone, a client of any; keys for the user.

    A folder that is there, or a name that is none, is wrong usage, and nothing is made."""
    folder = tmp_path / "tls"
    assert main(["certificates", str(folder), "--server", "localhost,127.0.0.1", "--workers", "2"]) == 0
    made = [folder / name for name in ("server-0", "worker-0", "worker-1", "client")]
    assert capsys.readouterr().out.split() == [str(one) for one in made]
    assert all((one / "tls.key").stat().st_mode & 0o777 == 0o600 for one in made)
    assert sum(1 for one in folder.rglob("*.key")) == len(made), "no key of the authority"
    server = start_server("--tls-dir", str(made[0]))
    for name, rank in (("worker-1", 1), ("client", 0), ("client", None)):
        with tb.connect(server.address, rank=rank, tls_dir=folder / name) as client:
            assert client.table("words", dim=4).pull([1]).shape == (1, 4)
    with pytest.raises(PermissionDenied):
        tb.connect(server.address, rank=1, tls_dir=folder / "worker-0")
    for arguments in (
        [str(folder), "--server", "localhost"],
        [str(tmp_path / "new"), "--server", "localhost", "--job", "../x"],
        [str(tmp_path / "new"), "--server", "Größe"],
    ):
        assert main(["certificates", *arguments]) == 2
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("processors", "requests"), [(1, 1), (2, 2)])
def test_a_large_call_goes_in_halves_where_a_processor_is_idle(
    world: World, server: Any, processors: int, requests: int
) -> None:
    """With gRPC's library, a pull and a push of 60,000 rows of 64 bytes: the same rows either way, and the push is a
    step, applied once."""
    keys = np.random.default_rng(0).integers(0, 2**64, 60_000, dtype=np.uint64)
    gradients = np.ones((len(keys), 16), np.float32)
    folder = world.give("worker/0")
    _core.use_processors(processors)
    try:
        with tb.connect(
            f"127.0.0.1:{server.data_port}", tls_dir=folder, rank=0, transport="grpcio"
        ) as client:
            table = client.table("wide", dim=16, optimizer=tb.SGD(1.0), initializer=tb.Zeros())
            before = client.stats()[0].counters
            assert not table.pull(keys).any()
            table.push(keys, gradients)
            after = client.stats()[0].counters
            assert (table.pull(keys) == -1).all()
    finally:
        _core.use_processors(0)
    done = {
        name: after[name] - before[name]
        for name in ("pulls", "pushes", "keys_pulled", "keys_pushed", "duplicates")
    }
    assert done == {
        "pulls": requests,
        "pushes": requests,
        "keys_pulled": len(keys),
        "keys_pushed": len(keys),
        "duplicates": 0,
    }


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_certificates_and_authority_change_in_training_and_no_step_fails(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
) -> None:
    """Two servers and two workers train, and checkpoints are made, while every process is given a new certificate; then
    a new authority is trusted beside the old one, signs all certificates anew, and the old one is trusted no more.

    No call fails, no process restarts, and every push is applied once. After it the old certificates open nothing.
    transport: of both ends."""
    monkeypatch.setenv(TRANSPORT, transport)
    ports = free_data_ports(2)
    addresses = ",".join(f"localhost:{port}" for port in ports)
    checkpoints = tmp_path / "checkpoints"
    servers = [
        world.server(
            "--servers",
            addresses,
            "--checkpoint",
            str(checkpoints),
            index=index,
            data_port=port,
            ready=False,
            **({} if transport == "native" else WITHOUT_OPENSSL),
        )
        for index, port in enumerate(ports)
    ]
    for server in servers:
        server.wait_until_ready()
    names = ["server/0", "server/1", "worker/0", "worker/1"]
    old = world.give("worker/0")
    kept_key, kept = (old / "tls.key").read_bytes(), (old / "tls.crt").read_bytes()
    world.give("worker/1")
    training = TwoWorkers(addresses, [world.folder / f"worker-{rank}" for rank in range(2)])

    def give_all(by: Any, *trusted: Any) -> None:
        for name in names:
            made.write(world.folder / name.replace("/", "-"), made.pair(by, made.peer(name)), *trusted)
        training.go_on(LOOK_S)

    training.go_on(LOOK_S)
    first, second = world.authority, made.authority()
    give_all(first, first)
    give_all(first, first, second)
    give_all(second, first, second)
    give_all(second, second)
    with Control(addresses.split(","), tls=Folder(world.folder / "worker-0")) as control:
        assert control.checkpoint(begin=True).enabled
        deadline = time.monotonic() + 30
        while control.checkpoint().last.number < 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    training.go_on(LOOK_S)
    training.end()
    with Control(addresses.split(","), tls=Folder(world.folder / "worker-0")) as control:
        assert sum(answer.counters["duplicates"] for answer in control.stats()) == 0
    assert all(server.process.poll() is None for server in servers)
    assert all("certificate.renewed" in server.log for server in servers)
    stale = made.write(world.folder / "stale", made.Pair(kept_key, kept), second)
    assert set(statuses(servers[0], credentials(stale)).values()) == {"UNAVAILABLE"}
