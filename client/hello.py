"""The first words between a client and its servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tablebay.client import errors
from tablebay.client.control import Control
from tablebay.client.environment import PROTOCOL_MAJOR, PROTOCOL_MINOR, VERSION
from tablebay.client.proto import tablebay_pb2
from tablebay.client.retry import Deadline, Pace
from tablebay.client.routing import ShardMap


@dataclass(frozen=True)
class Identity:
    """Who a client is, as server 0 answered its Hello."""

    job: str
    rank: int | None
    client_high: int
    client_low: int
    incarnation: int


@dataclass(frozen=True)
class Greeting:
    """What Hello to all servers gave.

    durable: they make checkpoints. request: what the others were told. workers: how many there are of a job whose
    workers come and go; 0 of any other.
    """

    identity: Identity
    epochs: tuple[int, ...]
    next_step: int
    cursor: bytes
    shard_map: ShardMap
    message_bytes_max: int
    durable: bool
    request: tablebay_pb2.HelloRequest
    workers: int = 0


def rejoin_request(greeting: Greeting) -> tablebay_pb2.HelloRequest:
    """What a server that came back is told: who has been speaking all along."""
    request = tablebay_pb2.HelloRequest()
    request.CopyFrom(greeting.request)
    request.rejoin = True
    return request


def greet(
    control: Control,
    addresses: Sequence[str],
    *,
    job: str,
    generation: int,
    rank: int | None,
    deadline: Deadline,
    pace: Pace,
) -> Greeting:
    """Say Hello to server 0, which gives the client its identity, then to the others with that identity.

    Raises Unavailable when a server cannot be reached in time, Fenced when a newer process has the rank,
    VersionMismatch, WrongShard when shard maps differ, and BadRequest when the servers are not those of one
    job in their order.
    """
    request = tablebay_pb2.HelloRequest(
        job=job,
        generation=generation,
        rank=rank,
        nonce=pace.random.getrandbits(64),
        protocol_major=PROTOCOL_MAJOR,
        protocol_minor=PROTOCOL_MINOR,
        client_version=VERSION,
    )
    first = control.hello([0], request, deadline.remaining())[0]
    request.client_high = first.client_high
    request.client_low = first.client_low
    request.incarnation = first.incarnation
    answers = [first]
    _check(first, 0, first, addresses)
    if len(addresses) > 1:
        answers += control.hello(range(1, len(addresses)), request, deadline.remaining())
    for server, answer in enumerate(answers):
        _check(answer, server, first, addresses)
    # The lowest: a step that some server lacks is sent again, and those that have it say so.
    least = min(answers, key=lambda answer: answer.next_step)
    shard_map = first.shard_map
    return Greeting(
        identity=Identity(first.job, rank, first.client_high, first.client_low, first.incarnation),
        epochs=tuple(answer.epoch for answer in answers),
        next_step=least.next_step,
        cursor=least.cursor,
        shard_map=ShardMap.unpack(shard_map.version, shard_map.servers, shard_map.owners),
        message_bytes_max=min(answer.message_bytes_max for answer in answers),
        durable=all(answer.durable for answer in answers),
        request=request,
        workers=first.workers,
    )


def _check(
    answer: tablebay_pb2.HelloResponse,
    server: int,
    first: tablebay_pb2.HelloResponse,
    addresses: Sequence[str],
) -> None:
    where = f"server {server} at {addresses[server]}"
    if answer.protocol_major != PROTOCOL_MAJOR:
        raise errors.VersionMismatch(
            f"{where} speaks protocol {answer.protocol_major}.{answer.protocol_minor} (tablebay "
            f"{answer.server_version}), this client {PROTOCOL_MAJOR}.{PROTOCOL_MINOR} (tablebay {VERSION}); "
            "the first numbers must agree"
        )
    if answer.server_count != len(addresses):
        raise errors.BadRequest(
            f"{where} is one of {answer.server_count} servers, and {len(addresses)} addresses were given; "
            "wanted all of them in order, as host-{0..N}:port or separated by commas"
        )
    if answer.server_index != server:
        raise errors.BadRequest(
            f"{where} says that its index is {answer.server_index}; wanted the addresses in order"
        )
    if answer.job != first.job:
        raise errors.BadRequest(
            f"{where} belongs to job '{answer.job}', server 0 to '{first.job}'; wanted one job"
        )
    if answer.shard_map != first.shard_map:
        raise errors.WrongShard(
            f"{where} has shard map version {answer.shard_map.version}, server 0 {first.shard_map.version}"
        )
