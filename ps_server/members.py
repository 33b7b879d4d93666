"""Who speaks to the server: ranks, their incarnations, anonymous clients, and what Hello must show.

Server 0 decides who a client is: it draws an anonymous client's 128 bits, and gives a rank that says Hello
again the next incarnation. The client takes that answer to the other servers, which accept an incarnation
above the one they know, or the same one from the same Hello (its nonce); everybody else has been replaced,
and is fenced.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tablebay.client.environment import PROTOCOL_MAJOR, PROTOCOL_MINOR, VERSION
from tablebay.client.errors import (
    BadRequest,
    Fenced,
    ResourceExhausted,
    ServerLost,
    Unavailable,
    VersionMismatch,
)
from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.telemetry import Events

CLIENTS_MAX = 1024
# A rank is a number that a client chooses: without a bound it could fill the memory with clients.
RANKS_MAX = 65_536
IDLE_S = 3600.0

_EVENTS = Events(__name__)


class Clock(Protocol):
    """Seconds that only go forward, as time.monotonic."""

    def __call__(self) -> float:
        """Now."""


class Steps(Protocol):
    """What the members need of the rows' side: _core.Store."""

    def hello(
        self, client_high: int, client_low: int, incarnation: int, rank: int | None
    ) -> tuple[int, bytes, int]:
        """Know a client, or its newer incarnation.

        Its next step, the cursor kept with the one before, and the step below which all is durable.
        """

    def forget(self, client_high: int, client_low: int) -> None:
        """Forget a client and its steps."""


ClientId = tuple[int, int]


@dataclass
class Member:
    """A client that has said Hello. rank: None for an anonymous one. heard: by the clock."""

    client: ClientId
    rank: int | None
    incarnation: int
    nonce: int
    heard: float

    @property
    def name(self) -> str:
        """For messages."""
        return f"client {shown(self.client)}" if self.rank is None else f"rank {self.rank}"


@dataclass(frozen=True)
class Welcome:
    """What Hello answers of the client itself."""

    member: Member
    next_step: int
    cursor: bytes
    durable_next: int


def shown(client: ClientId) -> str:
    """A client's 128 bits as text."""
    return f"{client[0]:016x}{client[1]:016x}"


def ranked_high(job: str) -> int:
    """The upper half of the id of a job's ranked clients; the lower half is the rank.

    Every generation's: a job that is made anew goes on with the steps that its checkpoint has.
    """
    return int.from_bytes(hashlib.blake2b(job.encode()).digest()[:8], "little")


class Members:
    """Safe in threads.

    first_incarnation: what server 0 gives a rank that it does not know. It must be above what this server
        gave in earlier lives, or the other servers would fence the newer process.
    forgotten: told of each client that is forgotten.
    """

    def __init__(
        self,
        steps: Steps,
        *,
        job: str,
        generation: int,
        index: int,
        clock: Clock,
        randomness: random.Random,
        clients_max: int = CLIENTS_MAX,
        first_incarnation: int = 1,
        forgotten: Callable[[ClientId], None] = lambda client: None,
    ) -> None:
        self._steps = steps
        self._job = job
        self._generation = generation
        self._index = index
        self._clock = clock
        self._random = randomness
        self._clients_max = clients_max
        self._first_incarnation = first_incarnation
        self._forgotten = forgotten
        self._high = ranked_high(job)
        self._lock = threading.Lock()
        self._ranked: dict[ClientId, Member] = {}
        self._anonymous: dict[ClientId, Member] = {}

    def __len__(self) -> int:
        return len(self._ranked) + len(self._anonymous)

    def hello(self, request: tablebay_pb2.HelloRequest) -> Welcome:
        """Make a client known, or its newer incarnation.

        Raises VersionMismatch, BadRequest, Fenced, Unavailable (this server is of an older generation) and
        ResourceExhausted (too many clients).
        """
        self._check_protocol(request)
        self._check_job(request)
        self._check_order(request)
        ranked = request.HasField("rank")
        with self._lock:
            if request.rejoin:
                member, new = self._returning_member(request)
            else:
                member, new = self._ranked_member(request) if ranked else self._anonymous_member(request)
            # First the rows' side: from its return on, nothing of an older incarnation changes a row.
            next_step, cursor, durable_next = self._steps.hello(
                *member.client, member.incarnation, member.rank
            )
            (self._ranked if ranked else self._anonymous)[member.client] = member
        if new:
            _EVENTS.info(
                "client.greeted", client=member.name, incarnation=member.incarnation, next_step=next_step
            )
        return Welcome(member, next_step, cursor, durable_next)

    def check(self, client: ClientId, incarnation: int) -> Member:
        """The member that speaks. Raises ServerLost for an unknown one, Fenced for one that was replaced."""
        with self._lock:
            member = self._ranked.get(client) or self._anonymous.get(client)
            if member is None or incarnation > member.incarnation:
                raise ServerLost(
                    f"server {self._index} does not know client {shown(client)}, incarnation {incarnation}: "
                    "it was restarted since the client said Hello, or the client was idle for too long"
                )
            if incarnation < member.incarnation:
                raise Fenced(
                    f"{member.name}: incarnation {incarnation} speaks, and incarnation {member.incarnation} "
                    "is known: a newer process has taken its place"
                )
            member.heard = self._clock()
            return member

    def rank_of(self, client: ClientId) -> int | None:
        """The rank of a client that is known; None for any other."""
        member = self._ranked.get(client)
        return None if member is None else member.rank

    def hear(self, client: ClientId) -> None:
        """An anonymous client has spoken, so it is not idle. Cheap: it comes with every data call."""
        member = self._anonymous.get(client)
        if member is not None:
            member.heard = self._clock()

    # -- what Hello must show --

    def _check_protocol(self, request: tablebay_pb2.HelloRequest) -> None:
        if request.protocol_major != PROTOCOL_MAJOR:
            client = request.client_version[:40] or "unknown"
            raise VersionMismatch(
                f"the client speaks protocol {request.protocol_major}.{request.protocol_minor} (version "
                f"{client}), server {self._index} {PROTOCOL_MAJOR}.{PROTOCOL_MINOR} (version {VERSION}); the "
                "first numbers must be equal"
            )

    def _check_job(self, request: tablebay_pb2.HelloRequest) -> None:
        if not request.job:
            return
        if request.job != self._job:
            raise BadRequest(
                f"the client belongs to job '{request.job[:80]}', server {self._index} to job '{self._job}'; "
                "wanted the servers of its job"
            )
        if request.generation < self._generation:
            raise Fenced(
                f"the client belongs to generation {request.generation} of job '{self._job}', server "
                f"{self._index} to generation {self._generation}: the job was started anew without it"
            )
        if request.generation > self._generation:
            raise Unavailable(
                f"the client belongs to generation {request.generation} of job '{self._job}', server "
                f"{self._index} to generation {self._generation}, which is about to be replaced"
            )

    def _check_order(self, request: tablebay_pb2.HelloRequest) -> None:
        if self._index != 0 and not request.incarnation:
            raise BadRequest(
                "Hello came without an incarnation, and this server decides none, since its index is "
                f"{self._index}; wanted the addresses in order, and in Hello what server 0 answered, which "
                "is asked first"
            )
        given = request.incarnation or request.client_high or request.client_low
        if self._index == 0 and not request.rejoin and given:
            raise BadRequest(
                f"Hello to server 0 says client {shown((request.client_high, request.client_low))}, "
                f"incarnation {request.incarnation}; wanted 0 in these fields, which server 0 decides, and "
                "the addresses in order"
            )
        if request.rejoin and not request.incarnation:
            raise BadRequest("Hello says that it is not the client's first, and names no incarnation")

    # -- who it is --

    def _ranked_member(self, request: tablebay_pb2.HelloRequest) -> tuple[Member, bool]:
        client = (self._high, request.rank)
        found = (request.client_high, request.client_low)
        if self._index != 0 and found != client:
            raise BadRequest(
                f"rank {request.rank} says that its client id is {shown(found)}, and in job '{self._job}', "
                f"generation {self._generation}, it is {shown(client)}; wanted what server 0 answered"
            )
        known = self._ranked.get(client)
        if known is None:
            if len(self._ranked) >= RANKS_MAX:
                raise ResourceExhausted(f"{RANKS_MAX} ranks are known, which is the most there can be")
            incarnation = self._first_incarnation if self._index == 0 else request.incarnation
            return self._member(client, request, incarnation), True
        if self._index == 0:
            # The answer to this very Hello may have been lost: asked again, it is the same.
            if request.nonce and request.nonce == known.nonce:
                return self._member(client, request, known.incarnation), False
            return self._member(client, request, known.incarnation + 1), True
        return self._newer(known, request)

    def _anonymous_member(self, request: tablebay_pb2.HelloRequest) -> tuple[Member, bool]:
        if self._index == 0:
            known = self._greeted_by(request.nonce)
            if known is not None:
                return self._member(known.client, request, known.incarnation), False
            self._make_room()
            return self._member(self._draw(), request, 1), True
        client = (request.client_high, request.client_low)
        if client[0] == self._high or client == (0, 0):
            raise BadRequest(f"{shown(client)} is no anonymous client's id; wanted what server 0 answered")
        known = self._anonymous.get(client)
        if known is not None:
            return self._newer(known, request)
        self._make_room()
        return self._member(client, request, request.incarnation), True

    def _returning_member(self, request: tablebay_pb2.HelloRequest) -> tuple[Member, bool]:
        """A client that the servers know, perhaps all but this one, which was restarted."""
        client = (request.client_high, request.client_low)
        ranked = request.HasField("rank")
        if ranked != (client[0] == self._high) or (ranked and client[1] != request.rank) or client == (0, 0):
            raise BadRequest(
                f"{shown(client)} is not the client id of {'rank ' + str(request.rank) if ranked else 'a client'} "
                f"in job '{self._job}', generation {self._generation}; wanted what server 0 answered"
            )
        known = (self._ranked if ranked else self._anonymous).get(client)
        if known is not None:
            return self._newer(known, request)
        if ranked and len(self._ranked) >= RANKS_MAX:
            raise ResourceExhausted(f"{RANKS_MAX} ranks are known, which is the most there can be")
        if not ranked:
            self._make_room()
        return self._member(client, request, request.incarnation), True

    def _newer(self, known: Member, request: tablebay_pb2.HelloRequest) -> tuple[Member, bool]:
        same = request.incarnation == known.incarnation and request.nonce == known.nonce
        if not same and request.incarnation <= known.incarnation:
            raise Fenced(
                f"{known.name}: incarnation {request.incarnation} says Hello, and incarnation "
                f"{known.incarnation} is known to server {self._index}: a newer process has taken its place"
            )
        return self._member(known.client, request, request.incarnation), not same

    def _member(self, client: ClientId, request: tablebay_pb2.HelloRequest, incarnation: int) -> Member:
        rank = request.rank if request.HasField("rank") else None
        return Member(client, rank, incarnation, request.nonce, self._clock())

    def _greeted_by(self, nonce: int) -> Member | None:
        if not nonce:
            return None
        return next((member for member in self._anonymous.values() if member.nonce == nonce), None)

    def _draw(self) -> ClientId:
        while True:
            client = (self._random.getrandbits(64), self._random.getrandbits(64))
            if client[0] not in (0, self._high) and client not in self._anonymous:
                return client

    def _make_room(self) -> None:
        """Forget the anonymous client silent longest. Raises ResourceExhausted when none is idle."""
        if len(self._anonymous) < self._clients_max:
            return
        oldest = min(self._anonymous.values(), key=lambda member: member.heard, default=None)
        silent = 0.0 if oldest is None else self._clock() - oldest.heard
        if oldest is None or silent <= IDLE_S:
            raise ResourceExhausted(
                f"server {self._index} knows {len(self._anonymous)} anonymous clients, which is its limit "
                f"(clients_max), and none has been silent for {IDLE_S:g} s"
            )
        del self._anonymous[oldest.client]
        self._steps.forget(*oldest.client)
        self._forgotten(oldest.client)
        _EVENTS.info("client.forgotten", client=oldest.name, silent_seconds=round(silent))
