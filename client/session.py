"""One client's conversation with all servers: who it is, what it has sent, and what is not settled yet.

Exactly once rests on four rules kept here. A step's requests are encoded once, and sent again as they are
until every server has answered. A step whose fate is unknown (deadline, interruption) stays open, and is sent
again before any later push. A step number is used again only if nothing of it was ever sent. What a server has
applied is kept until a checkpoint of it holds that, and sent again, in order, when the server comes back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from google.protobuf.message import DecodeError

from tablebay.client import errors
from tablebay.client.control import Control
from tablebay.client.handover import Handover
from tablebay.client.hello import Greeting, rejoin_request
from tablebay.client.latency import LatencyHistogram
from tablebay.client.ledger import StepLedger
from tablebay.client.native import native
from tablebay.client.proto import tablebay_pb2
from tablebay.client.replay import BYTES_MAX, Kept, Replay
from tablebay.client.retry import Deadline, Pace
from tablebay.client.transport import Answer, Transport, background
from tablebay.native import _core

if TYPE_CHECKING:
    from tablebay.client.metrics import Figures
    from tablebay.client.prefetch import Prefetch

# (table_id, dim, row_bytes, flags, Plan, array), as _core.Call takes them; of a push shows and clicks may follow.
Part = tuple[int, int, int, int, "_core.Plan", Any]
PushPart = Part | tuple[int, int, int, int, "_core.Plan", Any, Any]

CURSOR_BYTES_MAX = 1024
_EPOCH_QUESTION_S = 1.0
# How often a client whose buffer fills asks for a checkpoint, and whether one is there.
_EARLY_EVERY_S = 1.0
_DURABLE_EVERY_S = 0.05


_Result = TypeVar("_Result")


class Outgoing:
    """What one call asks of one server: some requests, which may be under way side by side.

    pieces: how many. encode: makes one of them for an epoch of the server when it is wanted, so that the server
        works on one while the next is made. It reads the caller's arrays, so it must have run for all when the
        caller has them back.
    epoch: that the requests name. memory: where a push's requests are kept as well, or None.
    accept: keeps an answer to request number `piece`; the server's epoch, and the step below which all is
        durable. step: of a push, else None.
    """

    def __init__(
        self,
        server: int,
        method: str,
        pieces: int,
        encode: Callable[[int, int, _core.KeptRequest | None], bytes],
        accept: Callable[[int, int, bytes], tuple[int, int]],
        step: int | None,
        memory: _core.ReplayMemory | None,
    ):
        self.server = server
        self.method = method
        self.step = step
        self.epoch = 0
        self._encode = encode
        self._accept = accept
        self._memory = memory
        self._requests: list[bytes | None] = [None] * pieces
        self._kept: dict[int, _core.KeptRequest] = {}
        self._answered: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether each request has been answered."""
        return len(self._answered) == len(self._requests)

    @property
    def due(self) -> list[int]:
        """Requests without an answer."""
        return [piece for piece in range(len(self._requests)) if piece not in self._answered]

    def request(self, piece: int, epoch: int) -> bytes:
        """Made once, and the same for ever but for the server's epoch in it."""
        if self.epoch != epoch:
            # What an earlier life has of a push is sent again with the rest.
            self.begin_again()
            self._requests = [one and readdressed(one, epoch) for one in self._requests]
            self.epoch = epoch
        request = self._requests[piece]
        if request is None:
            keep = None if self._memory is None else _core.KeptRequest(self._memory)
            request = self._requests[piece] = self._encode(epoch, piece, keep)
            if keep is not None:
                self._kept[piece] = keep
        return request

    def encode(self, epoch: int) -> None:
        """Make all requests that were not made yet."""
        for piece in range(len(self._requests)):
            self.request(piece, epoch)

    def accept(self, piece: int, response: bytes, epoch: int) -> tuple[int, int]:
        """Keep an answer to a request, if a server of that epoch gave it.

        Returns the server's epoch, and the step below which all is durable. Raises CorruptMessage.
        """
        found, durable_next = self._accept(self.server, piece, response)
        if found == epoch:
            self._answered.add(piece)
        return found, durable_next

    def begin_again(self) -> None:
        """The server that answered some of a push's requests is gone: it is sent whole to its successor."""
        if self.step is not None and not self.done:
            self._answered.clear()

    def kept(self) -> Kept:
        """Of a push that the server has applied."""
        assert self.step is not None
        return Kept(self.step, self.method, [self._kept[piece] for piece in range(len(self._requests))])


class Sent(NamedTuple):
    """A request that is under way."""

    out: Outgoing
    piece: int
    answer: Answer


@dataclass(eq=False)
class Letter:
    """A step under way: its requests, and the keys that it may change.

    refused: what is left of it is empty.
    """

    step: int
    parts: Sequence[PushPart]
    outgoing: list[Outgoing]
    refused: bool = False


class Session:
    """Safe in threads; not to be used in a process forked from its own.

    timeout: seconds for one call with all its retries. replay_bytes: of what no checkpoint holds yet. halves: whether
    large calls go as two requests to each server, where processors are idle: one is worked on, or encrypted, while the
    other is on its way.
    """

    def __init__(
        self,
        transport: Transport,
        control: Control,
        greeting: Greeting,
        timeout: float,
        pace: Pace,
        replay_bytes: int = BYTES_MAX,
        halves: bool = False,
    ) -> None:
        self.transport = transport
        self.control = control
        self.identity = greeting.identity
        self.cursor = greeting.cursor
        self.timeout = timeout
        self.pace = pace
        self.ledger = StepLedger(greeting.next_step)
        self.router = _core.Router(greeting.shard_map.owners, greeting.shard_map.servers)
        self.message_bytes_max = greeting.message_bytes_max
        self.pull_latency = LatencyHistogram()
        self.steps_applied = 0
        # Set where the process has metrics (client/metrics.py).
        self.figures: Figures | None = None
        self.on_close: Callable[[Session], None] | None = None
        self._halves = halves
        self._shard_map_version = greeting.shard_map.version
        self._greeting = greeting
        self._epochs = list(greeting.epochs)
        # None where the servers make no checkpoints: one that is lost is lost.
        self.replay = Replay(len(greeting.epochs), replay_bytes) if greeting.durable else None
        # What a server that comes back may lack, beside steps.
        self.tables: dict[str, tablebay_pb2.TableSpec] = {}
        # Raised each time that server 0 came back: what it was told of progress it has no more.
        self.lives = 0
        self._rejoining = threading.Lock()
        self._accepting = threading.Lock()
        self._early_at = 0.0
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._closed = False
        self._dead: errors.TablebayError | None = None
        self._retries = 0
        self._unsettled: deque[Letter] = deque()
        # Pushes that may be changing rows now, for the prefetches that overlap them.
        self._pushing: list[Letter] = []
        self._prefetches: weakref.WeakSet[Prefetch] = weakref.WeakSet()
        self._handover = Handover()

    @property
    def _memory(self) -> _core.ReplayMemory | None:
        return None if self.replay is None else self.replay.memory

    # -- whether it may be used --

    def check(self) -> None:
        """Raises Forked, Closed, or what made this client useless (Fenced, ServerLost)."""
        if os.getpid() != self._process:
            raise errors.Forked(
                f"this client was made in process {self._process} and is used in process {os.getpid()}, "
                "which was forked from it: its connections cannot be shared. Start processes with 'spawn' "
                "(multiprocessing.get_context('spawn')), and connect in each"
            )
        if self._closed:
            raise errors.Closed("this client has been closed; make another with tb.connect()")
        if self._dead is not None:
            raise type(self._dead)(str(self._dead))

    @property
    def retries(self) -> int:
        """Requests sent again so far."""
        return self._retries + self.control.retries

    @property
    def open_steps(self) -> int:
        """Steps sent and not settled."""
        return len(self._pushing)

    def deadline(self, timeout: float | None = None) -> Deadline:
        """One for a call that begins now."""
        return self.pace.deadline(self.timeout if timeout is None else timeout)

    # -- pulls --

    def pull(self, parts: Sequence[Part], deadline: Deadline) -> None:
        """Fill the parts' arrays."""
        self.settle()
        call, outgoing = self.pull_requests(parts)
        self.deliver(outgoing, deadline)
        native(call.finish)

    def pull_requests(self, parts: Sequence[Part]) -> tuple[_core.Call, list[Outgoing]]:
        """A pull, not yet sent: call.finish() is due once every answer has been accepted."""
        method = "Pull" if len(parts) == 1 else "Step"
        call = self._call(method, list(parts), [])
        return call, self._outgoing(call, method, call.servers())

    def _call(self, method: str, pulls: list[Part], pushes: list[PushPart]) -> _core.Call:
        cut_into = 2 if self._halves and _core.idle_processors() > 0 else 1
        call: _core.Call = native(_core.Call, method, pulls, pushes, self.message_bytes_max, cut_into)
        return call

    # -- pushes --

    def push(self, parts: Sequence[PushPart], cursor: bytes = b"") -> None:
        """Push in a step of its own."""
        self.check()
        deadline = self.deadline()
        self.flush(deadline)
        self.make_room(deadline)
        self.push_step(parts, cursor, self.ledger.take(deadline), deadline)

    def push_later(self, parts: Callable[[], Sequence[PushPart]], cursor: bytes = b"") -> None:
        """Push in a step of its own while the caller goes on; what `parts` returns is asked for in another thread.

        One push is under way at a time: this waits for the one before, and raises what became of it, before it takes
        a step. Any other call of this client waits for it too (`settle`).
        """
        self.check()
        self.settle()
        step = self.ledger.take(self.deadline())

        def push() -> None:
            deadline = self.deadline()
            try:
                found = parts()
                self.flush(deadline)
                self.make_room(deadline)
            except BaseException:
                self.ledger.give_back(step)
                raise
            self.push_step(found, cursor, step, deadline)

        self._handover.begin(push)

    def settle(self) -> None:
        """Wait for a push that was handed over. Raises what became of it, once."""
        self._handover.wait(self.deadline)

    def push_step(self, parts: Sequence[PushPart], cursor: bytes, step: int, deadline: Deadline) -> None:
        """Push as step `step`, which has been taken; on return every server has applied it.

        If nothing was sent the number is given back. If the step's fate is unknown it stays open: `flush`
        sends it again. If it was refused it is closed, so that no later step waits for it.
        """
        try:
            letter = self._write(parts, cursor, step)
        except BaseException:
            self.ledger.give_back(step)
            raise
        self._announce(letter)
        self._send(letter, deadline)

    def make_room(self, deadline: Deadline) -> None:
        """Wait until a push may be kept. Raises DeadlineExceeded when no checkpoint came in time."""
        replay = self.replay
        if replay is None or not replay.half_full:
            return
        self._ask_early()
        while replay.full:
            if deadline.passed():
                raise errors.DeadlineExceeded(
                    f"{replay.bytes} bytes of pushes are in no checkpoint yet, and {replay.bytes_max} may be "
                    f"(replay_bytes); no checkpoint was made within {deadline.timeout_s:g} s, and the push "
                    "has not begun"
                )
            self.pace.sleep(min(_DURABLE_EVERY_S, deadline.remaining()))
            self._ask_early()
            self.learn_durable(deadline)

    def learn_durable(self, deadline: Deadline) -> None:
        """Ask each server which steps a checkpoint has. One that came back is given the others again."""
        if self.replay is None:
            return
        for server in range(len(self._epochs)):
            try:
                answer = self._say_hello(server, deadline)
                if answer.epoch == self._epochs[server]:
                    self.replay.durable(server, answer.durable_next)
                else:
                    self._rejoin(server, self._epochs[server], "it has another epoch", deadline)
            except errors.Unavailable:
                continue

    def _ask_early(self) -> None:
        now = self.pace.clock()
        if now < self._early_at:
            return
        self._early_at = now + _EARLY_EVERY_S
        # Asked for, not waited for: answers will say what is durable.
        with contextlib.suppress(errors.Unavailable):
            self.control.checkpoint(begin=True, timeout=_EPOCH_QUESTION_S)

    def flush(self, deadline: Deadline) -> None:
        """Send again what earlier pushes left open. Raises what became of that: nothing else has begun."""
        self.settle()
        if not self._unsettled:
            return
        # One thread sends them; the others wait for it, since their own pushes come after.
        if not self._flushing.acquire(timeout=deadline.remaining()):
            raise errors.DeadlineExceeded(
                f"steps {self.unsettled}, which earlier pushes left open, were not settled within "
                f"{deadline.timeout_s:g} s, and the call that follows them has not begun"
            )
        try:
            while True:
                with self._lock:
                    if not self._unsettled:
                        return
                    letter = self._unsettled[0]
                try:
                    self._send(letter, deadline)
                except errors.TablebayError as error:
                    raise type(error)(
                        "the call has not begun, since an earlier push left its step open, which goes first: "
                        f"{error}"
                    ) from None
        finally:
            self._flushing.release()

    @property
    def unsettled(self) -> list[int]:
        """The steps that pushes left open."""
        with self._lock:
            return sorted(letter.step for letter in self._unsettled)

    def _write(self, parts: Sequence[PushPart], cursor: bytes, step: int) -> Letter:
        oldest_step = self.ledger.oldest
        everyone = range(len(self._epochs))
        ranked = self.identity.rank is not None
        if not parts:
            return Letter(
                step, parts, [self._empty(s, step, oldest_step, cursor) for s in everyone] if ranked else []
            )
        method = "Push" if len(parts) == 1 else "Step"
        call = self._call(method, [], list(parts))
        # A ranked client's step goes to every server, empty where it has no keys: so each knows how far the
        # client is.
        servers = everyone if ranked else call.servers()
        outgoing = self._outgoing(call, method, servers, step=step, oldest_step=oldest_step, cursor=cursor)
        return Letter(step, parts, outgoing)

    def _send(self, letter: Letter, deadline: Deadline) -> None:
        try:
            self.deliver(letter.outgoing, deadline)
        except (errors.Fenced, errors.ServerLost):
            self._settled(letter)
            raise
        except (errors.Unavailable, errors.CorruptMessage) as error:
            self._keep(letter)
            raise type(error)(
                f"step {letter.step} may or may not be applied; it stays open, and the next push sends it "
                f"again first: {error}"
            ) from None
        except errors.TablebayError:
            self._close_refused(letter, deadline)
            raise
        except BaseException:
            self._keep(letter)
            raise
        self._settled(letter, applied=not letter.refused)

    def _close_refused(self, letter: Letter, deadline: Deadline) -> None:
        """A server refused the step for good. Other shards may have it, so its number is not used again."""
        if self.identity.rank is None:
            self._settled(letter)
            return
        # Every server must know the step, or a restarted worker would begin with it again: the rest of it is
        # empty.
        oldest_step = self.ledger.oldest
        letter.refused = True
        letter.outgoing = [
            self._empty(out.server, letter.step, oldest_step, b"") for out in letter.outgoing if not out.done
        ]
        try:
            self.deliver(letter.outgoing, deadline)
        except (errors.Fenced, errors.ServerLost):
            self._settled(letter)
        except BaseException as error:
            self._keep(letter)
            if not isinstance(error, errors.TablebayError):
                raise
        else:
            self._settled(letter)

    def _keep(self, letter: Letter) -> None:
        for out in letter.outgoing:
            # Made now: the caller may change its gradients from here on.
            out.encode(self._epochs[out.server])
        with self._lock:
            if letter not in self._unsettled:
                self._unsettled.append(letter)

    def _settled(self, letter: Letter, applied: bool = False) -> None:
        self.ledger.complete(letter.step)
        with self._lock:
            self.steps_applied += applied
            self._pushing.remove(letter)
            if letter in self._unsettled:
                self._unsettled.remove(letter)

    def _empty(self, server: int, step: int, oldest_step: int, cursor: bytes) -> Outgoing:
        def encode(epoch: int, piece: int, keep: _core.KeptRequest | None) -> bytes:
            request = tablebay_pb2.StepRequest(
                sender=tablebay_pb2.Sender(
                    client_high=self.identity.client_high,
                    client_low=self.identity.client_low,
                    incarnation=self.identity.incarnation,
                    shard_map_version=self._shard_map_version,
                    epoch=epoch,
                ),
                step=step,
                oldest_step=oldest_step,
                cursor=cursor,
            )
            content: bytes = request.SerializeToString()
            if keep is not None:
                keep.write(content)
            return content

        return Outgoing(server, "Step", 1, encode, _accept_step, step, self._memory)

    def _outgoing(
        self,
        call: _core.Call,
        method: str,
        servers: Iterable[int],
        *,
        step: int | None = None,
        oldest_step: int = 0,
        cursor: bytes = b"",
    ) -> list[Outgoing]:
        """Of a push where it has a step, else of a pull."""

        def accept(server: int, piece: int, response: bytes) -> tuple[int, int]:
            found = native(call.accept, server, piece, response)
            return found[0], found[4]

        who = self.identity

        def encode(server: int, epoch: int, piece: int, keep: _core.KeptRequest | None) -> bytes:
            request: bytes = call.request(
                server,
                piece,
                who.client_high,
                who.client_low,
                who.incarnation,
                self._shard_map_version,
                epoch,
                step or 0,
                oldest_step,
                cursor,
                keep,
            )
            return request

        memory = self._memory if step is not None else None

        return [
            Outgoing(server, method, call.pieces(server), partial(encode, server), accept, step, memory)
            for server in servers
        ]

    # -- the exchange --

    def send_first(self, outgoing: Sequence[Outgoing], deadline: Deadline, wait: bool = False) -> list[Sent]:
        """Send each request that has no answer. wait: the answers are waited for next."""
        transport = self.transport if wait else background(self.transport)
        due = [(out, piece) for out in outgoing for piece in out.due]
        sent = []
        for number, (out, piece) in enumerate(due, 1):
            request = out.request(piece, self._epochs[out.server])
            last = wait and number == len(due)
            # Asked anew each time: sending to a server may have taken a while.
            answer = transport.call(out.server, out.method, request, deadline.remaining(), last)
            sent.append(Sent(out, piece, answer))
        return sent

    def deliver(
        self,
        outgoing: Sequence[Outgoing],
        deadline: Deadline,
        under_way: list[Sent] | None = None,
    ) -> None:
        """Send every request, to all servers at once, and again while one is unavailable and time is left.

        under_way: what `send_first` began.
        """
        if self.figures is None or not outgoing:
            self._deliver(outgoing, deadline, under_way)
            return
        began = self.pace.clock()
        try:
            self._deliver(outgoing, deadline, under_way)
        finally:
            self.figures.waited(outgoing[0].method, self.pace.clock() - began)

    def _deliver(
        self,
        outgoing: Sequence[Outgoing],
        deadline: Deadline,
        under_way: list[Sent] | None,
    ) -> None:
        attempt = 0
        before: errors.Unavailable | None = None
        while True:
            sent = self.send_first(outgoing, deadline, wait=True) if under_way is None else under_way
            under_way = None
            if not sent:
                return
            cause = self._collect(sent, deadline)
            if cause is None:
                attempt = 0
                continue
            if not deadline.pause(attempt):
                # An attempt that the deadline cut short says less than the one before it.
                text = f"{cause}; before that: {before}" if before is not None else str(cause)
                raise type(cause)(f"{text} (sent {attempt + 1} times, in all {deadline.timeout_s:g} s)")
            if not isinstance(cause, errors.DeadlineExceeded):
                before = cause
            attempt += 1
            with self._lock:
                self._retries += 1

    def _collect(self, sent: Sequence[Sent], deadline: Deadline) -> errors.Unavailable | None:
        """Take every answer. Returns the error of one that may be had by sending again; raises any other."""
        again: errors.Unavailable | None = None
        refused: errors.TablebayError | None = None
        lost: list[tuple[Outgoing, str]] = []
        try:
            for out, piece, answer in sent:
                try:
                    said = self._accept(out, piece, answer.result())
                    if said is not None:
                        lost.append((out, said))
                except errors.Unavailable as error:
                    # The first cause is told, not the deadline that the last attempt then ran into.
                    if again is None or isinstance(again, errors.DeadlineExceeded):
                        again = error
                except errors.ServerLost as error:
                    lost.append((out, str(error)))
                except errors.Fenced as error:
                    self._die(errors.Fenced(f"{error}; this client sends nothing any more"))
                except errors.TablebayError as error:
                    refused = refused or error
            for out, said in lost:
                try:
                    out.begin_again()
                    self._rejoin(out.server, out.epoch, said, deadline)
                except errors.Unavailable as error:
                    again = again or error
        except BaseException:
            for one in sent:
                one.answer.cancel()
            raise
        if refused is not None:
            raise refused
        return again

    def _accept(self, out: Outgoing, piece: int, response: bytes) -> str | None:
        """Keep an answer, and the push that it answers; what is wrong with one of another life of its server."""
        # Together, so that a server that comes back is either sent this step by _rejoin, or by its caller.
        with self._accepting:
            epoch = self._epochs[out.server]
            found, durable_next = out.accept(piece, response, epoch)
            if found == epoch and out.done and out.step is not None and self.replay is not None:
                self.replay.keep(out.server, out.kept())
        if found < epoch:
            raise errors.Unavailable(
                f"server {out.server}: an answer of its life {found}, and life {epoch} is known: it was replaced"
            )
        if found > epoch:
            return f"it answered with epoch {found}"
        if self.replay is not None:
            self.replay.durable(out.server, durable_next)
        return None

    # -- a server that comes back --

    def _rejoin(self, server: int, epoch: int, said: str, deadline: Deadline) -> None:
        """Give the successor of a server's life `epoch` what no checkpoint had, and go on with it.

        Raises Unavailable when there is none yet, ServerLost when one lacks what this client has no more.
        """
        if self.replay is None:
            self._lost(server, None, said)
        if not self._rejoining.acquire(timeout=deadline.remaining()):
            raise errors.Unavailable(f"server {server} came back, and was not given its steps in time")
        try:
            if self._epochs[server] != epoch:
                return
            answer = self._say_hello(server, deadline)
            if answer.epoch == epoch:
                self._lost(server, epoch, said)
            if answer.epoch < epoch:
                raise errors.Unavailable(
                    f"server {server}: its life {answer.epoch} answers, and life {epoch} is known"
                )
            if answer.durable_next < self.replay.durable_next(server):
                self._die(
                    errors.ServerLost(
                        f"server {server} at {self.transport.addresses[server]} came back with the steps below "
                        f"{answer.durable_next} of this client, and had said that it would keep those below "
                        f"{self.replay.durable_next(server)}: the steps between are lost"
                    )
                )
            for spec in list(self.tables.values()):
                self.control.create_table_on(server, spec, deadline.remaining())
            self._send_again(server, answer.epoch, answer.durable_next, deadline)
        finally:
            self._rejoining.release()
        if server == 0:
            self.lives += 1

    def _rejoin_when_there(self, server: int, epoch: int, said: str, deadline: Deadline) -> None:
        """`_rejoin`, again while there is no successor, and where that one is lost in its turn."""
        attempt = 0
        while True:
            try:
                self._rejoin(server, epoch, said, deadline)
                return
            except errors.Unavailable:
                if not deadline.pause(attempt):
                    raise
                attempt += 1

    def _say_hello(self, server: int, deadline: Deadline) -> tablebay_pb2.HelloResponse:
        try:
            request = rejoin_request(self._greeting)
            answer = self.control.hello([server], request, min(deadline.remaining(), self.timeout))[0]
        except errors.Fenced as error:
            self._die(errors.Fenced(f"{error}; this client sends nothing any more"))
        if answer.shard_map.version != self._shard_map_version:
            raise errors.WrongShard(
                f"server {server} came back with shard map {answer.shard_map.version}, this client knows "
                f"{self._shard_map_version}"
            )
        return answer

    def _send_again(self, server: int, epoch: int, first: int, deadline: Deadline) -> None:
        assert self.replay is not None
        sent: set[int] = set()
        while True:
            due = [kept for kept in self.replay.since(server, first) if kept.step not in sent]
            if not due:
                with self._accepting:
                    if all(kept.step in sent for kept in self.replay.since(server, first)):
                        self._epochs[server] = epoch
                        return
                continue
            for kept in due:
                self._send_kept(server, epoch, kept, deadline)
                sent.add(kept.step)

    def _send_kept(self, server: int, epoch: int, kept: Kept, deadline: Deadline) -> None:
        for request in kept.requests:
            content = readdressed(bytes(request), epoch)
            attempt = 0
            while True:
                answer = self.transport.call(server, kept.method, content, deadline.remaining(), True)
                try:
                    found, _ = _accept_sent(kept.method, server, answer.result())
                    break
                except (errors.Unavailable, errors.CorruptMessage) as error:
                    if not deadline.pause(attempt):
                        raise errors.Unavailable(
                            f"server {server} came back, and was sent step {kept.step} again {attempt + 1} times: "
                            f"{error}"
                        ) from None
                    attempt += 1
                except errors.ServerLost as error:
                    raise errors.Unavailable(f"server {server} was lost once more: {error}") from None
            if found != epoch:
                raise errors.Unavailable(f"server {server} was lost once more: its epoch is {found}")
            with self._lock:
                self._retries += 1

    def _lost(self, server: int, epoch: int | None, said: str) -> NoReturn:
        if self._dead is not None:
            self.check()
        address = self.transport.addresses[server]
        if epoch is None:
            try:
                epoch = self.control.server_stats(server, _EPOCH_QUESTION_S).epoch
            except errors.TablebayError:
                epoch = None
        known = self._epochs[server]
        if epoch == known:
            happened = f"server {server} at {address} does not know this client any more (epoch {known})"
        else:
            now = "another one" if epoch is None else str(epoch)
            happened = f"server {server} at {address} was restarted: its epoch was {known} and is {now}"
        lost = "its steps cannot be told apart" if epoch == known else "without checkpoints its rows are lost"
        text = f"{happened}; {lost}"
        self._die(errors.ServerLost(f"{text} ({said})" if said else text))

    def _die(self, error: errors.TablebayError) -> NoReturn:
        self._dead = error
        raise type(error)(str(error))

    # -- control calls --

    def speak(self, call: Callable[[Control], _Result]) -> _Result:
        """A control call, when this client may speak; an error that says otherwise is its last.

        Where server 0 came back without knowing this client, it is told first.
        """
        self.check()
        self.settle()
        deadline = self.deadline()
        while True:
            epoch = self._epochs[0]
            try:
                return call(self.control)
            except errors.Fenced as error:
                self._die(error)
            except errors.ServerLost as error:
                if self.replay is None:
                    self._die(error)
                self._rejoin_when_there(0, epoch, str(error), deadline)

    def stats(self) -> list[tablebay_pb2.StatsResponse]:
        """Each server's tables and counters. Raises ServerLost where one is not the server greeted."""
        while True:
            answers = self.speak(lambda control: control.stats(self.timeout))
            changed = [s for s, answer in enumerate(answers) if answer.epoch != self._epochs[s]]
            if not changed:
                return answers
            for server in changed:
                said = f"its epoch is {answers[server].epoch}"
                self._rejoin_when_there(server, self._epochs[server], said, self.deadline())

    # -- prefetches --

    def register(self, prefetch: Prefetch) -> list[Sequence[PushPart]]:
        """From now on tell a prefetch of each push; returns the pushes under way."""
        with self._lock:
            self._prefetches.add(prefetch)
            return [letter.parts for letter in self._pushing]

    def unregister(self, prefetch: Prefetch) -> None:
        """Tell a prefetch no more."""
        with self._lock:
            self._prefetches.discard(prefetch)

    @property
    def prefetches(self) -> int:
        """How many have not given their result."""
        with self._lock:
            return len(self._prefetches)

    def _announce(self, letter: Letter) -> None:
        with self._lock:
            self._pushing.append(letter)
            overlapping = list(self._prefetches)
        for prefetch in overlapping:
            prefetch.note(letter.parts)

    # -- the end --

    def close(self, flush: bool, finish: Callable[[Session], None] = lambda session: None) -> None:
        """Close the connections; before it, with `flush`, deliver open steps and do what `finish` does.

        Raises Unavailable when open steps could not be delivered, and what `finish` raises.
        """
        if os.getpid() != self._process:
            # The parent's connections are not this process's to close.
            return
        if self._closed:
            return
        try:
            if flush and self._dead is None:
                self.flush(self.deadline())
                finish(self)
        finally:
            self._closed = True
            self._handover.close()
            self.transport.close()
            if self.on_close is not None:
                self.on_close(self)


def readdressed(request: bytes, epoch: int) -> bytes:
    """A request as it was, for another life of its server."""
    again: bytes = native(_core.readdress, request, epoch)
    return again


def _accept_step(server: int, piece: int, response: bytes) -> tuple[int, int]:
    return _accept_sent("Step", server, response)


def _accept_sent(method: str, server: int, response: bytes) -> tuple[int, int]:
    """The epoch and durable_next of an answer to a push without pulls. Raises CorruptMessage."""
    kind = tablebay_pb2.PushResponse if method == "Push" else tablebay_pb2.StepResponse
    try:
        answer = kind.FromString(response)
    except DecodeError as error:
        raise errors.CorruptMessage(f"server {server} answered what cannot be read: {error}") from None
    return int(answer.epoch), int(answer.durable_next)
