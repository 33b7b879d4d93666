"""The first words between a client and its servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tablebay.client.client import client_over
from tablebay.client.environment import VERSION
from tablebay.client.errors import (
    BadRequest,
    CorruptMessage,
    Fenced,
    TablebayError,
    VersionMismatch,
    WrongShard,
)
from tablebay.client.inprocess import InProcessTransport, services
from tablebay.client.proto import tablebay_pb2
from tablebay.client.routing import ShardMap
from tablebay.ps_server.service import Service


class Changed:
    """A transport whose Hellos and their answers are changed on the way."""

    def __init__(
        self,
        servers: Sequence[Service],
        answer: Callable[[int, tablebay_pb2.HelloResponse], None] = lambda server, answer: None,
        request: Callable[[tablebay_pb2.HelloRequest], None] = lambda request: None,
    ) -> None:
        self.inner = InProcessTransport(servers)
        self.answer = answer
        self.request = request
        self.closed = False

    @property
    def addresses(self) -> Sequence[str]:
        return self.inner.addresses

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Any:
        if method != "Hello":
            return self.inner.call(server, method, request, timeout)
        hello = tablebay_pb2.HelloRequest.FromString(request)
        self.request(hello)
        called = self.inner.call(server, method, hello.SerializeToString(), timeout)
        return ChangedAnswer(called, lambda answer: self.answer(server, answer))

    def rebuild(self) -> None:
        self.inner.rebuild()

    def close(self) -> None:
        self.closed = True


class ChangedAnswer:
    """A Hello's answer, changed."""

    def __init__(self, called: Any, change: Callable[[tablebay_pb2.HelloResponse], None]) -> None:
        self.called = called
        self.change = change

    def result(self) -> bytes:
        answer = tablebay_pb2.HelloResponse.FromString(self.called.result())
        self.change(answer)
        return answer.SerializeToString()

    def cancel(self) -> bool:
        return False


def setting(field: str, value: Any, at: int | None = None) -> Callable[[int, Any], None]:
    """Sets one field of the answer of server `at`, or of all."""

    def change(server: int, answer: Any) -> None:
        if at is None or server == at:
            setattr(answer, field, value)

    return change


def test_all_servers_know_the_client_that_server_0_made() -> None:
    """One identity, whose next step is the lowest that any server lacks."""
    servers = services(3)
    seen: list[tuple[int, int, int]] = []
    transport = Changed(
        servers,
        request=lambda hello: seen.append((hello.client_high, hello.client_low, hello.incarnation)),
    )
    client = client_over(transport)
    assert seen[0] == (0, 0, 0)
    assert seen[1] == seen[2]
    assert seen[1] != (0, 0, 0)
    assert client.next_step == 0
    lower = Changed(services(3), answer=setting("next_step", 0, at=1))
    higher = lower.answer

    def later(server: int, answer: Any) -> None:
        answer.next_step, answer.cursor = 7, b"seven"
        higher(server, answer)
        if server == 1:
            answer.next_step, answer.cursor = 5, b"five"

    lower.answer = later
    client = client_over(lower, rank=3)
    assert (client.rank, client.next_step, client.cursor) == (3, 5, b"five")


def test_another_major_version_is_refused_with_both() -> None:
    """By the server that hears it and by the client that is answered; another minor version is not."""

    def newer(hello: tablebay_pb2.HelloRequest) -> None:
        hello.protocol_major = 2

    transport = Changed(services(1), request=newer)
    with pytest.raises(VersionMismatch, match=rf"2\.0.*{VERSION}.*1\.0.*{VERSION}"):
        client_over(transport)
    assert transport.closed
    transport = Changed(services(2), answer=setting("protocol_major", 2, at=1))
    with pytest.raises(VersionMismatch, match=r"server 1 at in-process:1 speaks protocol 2\.0.*client 1\.0"):
        client_over(transport)
    client_over(Changed(services(1), answer=setting("protocol_minor", 9)))


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        (
            "server_count",
            3,
            BadRequest,
            "server 1 at in-process:1 is one of 3 servers, and 2 addresses were given",
        ),
        ("server_index", 0, BadRequest, "server 1 at in-process:1 says that its index is 0"),
        ("job", "other", BadRequest, "server 1 at in-process:1 belongs to job 'other', server 0 to 'local'"),
    ],
)
def test_servers_that_do_not_belong_together_are_refused(
    field: str, value: Any, error: type[TablebayError], message: str
) -> None:
    """Each by what it answered."""
    transport = Changed(services(2), answer=setting(field, value, at=1))
    with pytest.raises(error, match=message):
        client_over(transport)
    assert transport.closed


def test_servers_must_agree_on_the_shard_map() -> None:
    """Another version, or owners that cannot be."""

    def older(server: int, answer: Any) -> None:
        if server == 1:
            answer.shard_map.version = 2

    with pytest.raises(WrongShard, match="server 1 at in-process:1 has shard map version 2, server 0 1"):
        client_over(Changed(services(2), answer=older))

    def impossible(server: int, answer: Any) -> None:
        answer.shard_map.owners = ShardMap.even(9).pack()

    with pytest.raises(BadRequest, match="a shard belongs to server 8, but there are 2 servers"):
        client_over(Changed(services(2), answer=impossible))


def test_a_damaged_answer_is_a_corrupt_message() -> None:
    """Named by method and address."""

    class Damaged(InProcessTransport):
        def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Any:
            called = super().call(server, method, request, timeout)
            return ChangedBytes(called.result() + b"\xff")

    class ChangedBytes:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def result(self) -> bytes:
            return self.content

        def cancel(self) -> bool:
            return False

    with pytest.raises(CorruptMessage, match="Hello to in-process:0 answered what cannot be read"):
        client_over(Damaged(services(1)))


def test_job_and_generation_must_be_the_servers_own() -> None:
    """A client of another job is refused, one of an older generation fenced."""
    servers = services(1, job="flights", generation=2)
    assert client_over(InProcessTransport(servers), job="flights", generation=2, rank=0).job == "flights"
    with pytest.raises(BadRequest, match="'other'.*'flights'"):
        client_over(InProcessTransport(servers), job="other")
    with pytest.raises(Fenced, match="generation 1"):
        client_over(InProcessTransport(servers), job="flights", generation=1, rank=0)
