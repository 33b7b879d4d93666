"""One client's conversation with all servers: who it is, what it has sent, and what is not settled yet.

Exactly once rests on three rules kept here. A step's requests are encoded once, and sent again as they are
until every server has answered. A step whose fate is unknown (deadline, interruption) stays open, and is sent
again before any later push. A step number is used again only if nothing of it was ever sent.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from google.protobuf.message import DecodeError

from tablebay.client import errors
from tablebay.client.control import Control
from tablebay.client.latency import LatencyHistogram
from tablebay.client.ledger import StepLedger
from tablebay.client.native import native
from tablebay.client.proto import tablebay_pb2
from tablebay.client.retry import Deadline, Pace
from tablebay.client.routing import ShardMap
from tablebay.client.transport import Answer, Transport
from tablebay.native import _core

if TYPE_CHECKING:
    from tablebay.client.metrics import Figures
    from tablebay.client.prefetch import Prefetch

# (table_id, dim, row_bytes, flags, Plan, array), as _core.Call takes them.
Part = tuple[int, int, int, int, "_core.Plan", Any]

CURSOR_BYTES_MAX = 1024
_EPOCH_QUESTION_S = 1.0


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
    """What Hello to all servers gave."""

    identity: Identity
    epochs: tuple[int, ...]
    next_step: int
    cursor: bytes
    shard_map: ShardMap
    message_bytes_max: int


class Outgoing:
    """The requests of one call to one server, sent in order: the last tells it that a push is whole.

    encode: makes the requests when the first is wanted, so that one server's are under way while the next's
        are made. It reads the caller's arrays, so it must have run when the caller has them back.
    """

    def __init__(
        self,
        server: int,
        method: str,
        encode: Callable[[], Sequence[bytes]],
        accept: Callable[[int, int, bytes], int],
    ):
        self.server = server
        self.method = method
        self.answered = 0
        self.done = False
        self._encode = encode
        self._accept = accept
        self._requests: Sequence[bytes] | None = None

    @property
    def requests(self) -> Sequence[bytes]:
        """Made once, and the same for ever."""
        if self._requests is None:
            self._requests = self._encode()
        return self._requests

    def accept(self, response: bytes) -> int:
        """Keep an answer to the request last sent; returns the server's epoch. Raises CorruptMessage."""
        epoch = self._accept(self.server, self.answered, response)
        self.answered += 1
        self.done = self.answered == len(self.requests)
        return epoch


@dataclass(eq=False)
class Letter:
    """A step under way: its requests, and the keys that it may change.

    refused: what is left of it is empty.
    """

    step: int
    parts: Sequence[Part]
    outgoing: list[Outgoing]
    refused: bool = False


class Session:
    """Safe in threads; not to be used in a process forked from its own.

    timeout: seconds for one call with all its retries.
    """

    def __init__(
        self, transport: Transport, control: Control, greeting: Greeting, timeout: float, pace: Pace
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
        self._shard_map_version = greeting.shard_map.version
        self._epochs = greeting.epochs
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
        call, outgoing = self.pull_requests(parts)
        self.deliver(outgoing, deadline)
        native(call.finish)

    def pull_requests(self, parts: Sequence[Part]) -> tuple[_core.Call, list[Outgoing]]:
        """A pull, not yet sent: call.finish() is due once every answer has been accepted."""
        method = "Pull" if len(parts) == 1 else "Step"
        call: _core.Call = native(_core.Call, method, list(parts), [], self.message_bytes_max)
        return call, self._outgoing(call, method, call.servers(), step=0, oldest_step=0, cursor=b"")

    # -- pushes --

    def push(self, parts: Sequence[Part], cursor: bytes = b"") -> None:
        """Push in a step of its own."""
        self.check()
        deadline = self.deadline()
        self.flush(deadline)
        self.push_step(parts, cursor, self.ledger.take(deadline), deadline)

    def push_step(self, parts: Sequence[Part], cursor: bytes, step: int, deadline: Deadline) -> None:
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

    def flush(self, deadline: Deadline) -> None:
        """Send again what earlier pushes left open. Raises what became of that: nothing else has begun."""
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

    def _write(self, parts: Sequence[Part], cursor: bytes, step: int) -> Letter:
        oldest_step = self.ledger.oldest
        everyone = range(len(self._epochs))
        ranked = self.identity.rank is not None
        if not parts:
            return Letter(
                step, parts, [self._empty(s, step, oldest_step, cursor) for s in everyone] if ranked else []
            )
        method = "Push" if len(parts) == 1 else "Step"
        call: _core.Call = native(_core.Call, method, [], list(parts), self.message_bytes_max)
        # A ranked client's step goes to every server, empty where it has no keys: so each knows how far the
        # client is.
        servers = everyone if ranked else call.servers()
        return Letter(step, parts, self._outgoing(call, method, servers, step, oldest_step, cursor))

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
            _ = out.requests  # made now: the caller may change its gradients from here on
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
        request = tablebay_pb2.StepRequest(
            sender=tablebay_pb2.Sender(
                client_high=self.identity.client_high,
                client_low=self.identity.client_low,
                incarnation=self.identity.incarnation,
                shard_map_version=self._shard_map_version,
                epoch=self._epochs[server],
            ),
            step=step,
            oldest_step=oldest_step,
            cursor=cursor,
        )

        def accept(server: int, piece: int, response: bytes) -> int:
            try:
                return int(tablebay_pb2.StepResponse.FromString(response).epoch)
            except DecodeError as error:
                raise errors.CorruptMessage(
                    f"server {server} answered what cannot be read: {error}"
                ) from None

        return Outgoing(server, "Step", lambda: [request.SerializeToString()], accept)

    def _outgoing(
        self,
        call: _core.Call,
        method: str,
        servers: Iterable[int],
        step: int,
        oldest_step: int,
        cursor: bytes,
    ) -> list[Outgoing]:
        def accept(server: int, piece: int, response: bytes) -> int:
            epoch: int = native(call.accept, server, piece, response)[0]
            return epoch

        who = self.identity

        def encode(server: int) -> list[bytes]:
            return call.requests(
                server,
                who.client_high,
                who.client_low,
                who.incarnation,
                self._shard_map_version,
                self._epochs[server],
                step,
                oldest_step,
                cursor,
            )

        return [Outgoing(server, method, partial(encode, server), accept) for server in servers]

    # -- the exchange --

    def send_first(
        self, outgoing: Sequence[Outgoing], deadline: Deadline, wait: bool = False
    ) -> list[tuple[Outgoing, Answer]]:
        """Send the next request of each. wait: the last of them is waited for."""
        remaining = deadline.remaining()
        due = [out for out in outgoing if not out.done]
        answers = []
        for out in due:
            request = out.requests[out.answered]
            last = wait and out is due[-1]
            answers.append((out, self.transport.call(out.server, out.method, request, remaining, last)))
        return answers

    def deliver(
        self,
        outgoing: Sequence[Outgoing],
        deadline: Deadline,
        under_way: list[tuple[Outgoing, Answer]] | None = None,
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
        under_way: list[tuple[Outgoing, Answer]] | None,
    ) -> None:
        attempt = 0
        before: errors.Unavailable | None = None
        while True:
            answers = self.send_first(outgoing, deadline, wait=True) if under_way is None else under_way
            under_way = None
            if not answers:
                return
            cause = self._collect(answers)
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

    def _collect(self, answers: list[tuple[Outgoing, Answer]]) -> errors.Unavailable | None:
        """Take every answer. Returns the error of one that may be had by sending again; raises any other."""
        again: errors.Unavailable | None = None
        refused: errors.TablebayError | None = None
        try:
            for out, answer in answers:
                try:
                    epoch = out.accept(answer.result())
                    if epoch != self._epochs[out.server]:
                        self._lost(out.server, epoch, "")
                except errors.Unavailable as error:
                    # The first cause is told, not the deadline that the last attempt then ran into.
                    if again is None or isinstance(again, errors.DeadlineExceeded):
                        again = error
                except errors.ServerLost as error:
                    self._lost(out.server, None, str(error))
                except errors.Fenced as error:
                    self._die(errors.Fenced(f"{error}; this client sends nothing any more"))
                except errors.TablebayError as error:
                    refused = refused or error
        except BaseException:
            for _, answer in answers:
                answer.cancel()
            raise
        if refused is not None:
            raise refused
        return again

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
        text = f"{happened}; without checkpoints the rows that it held are lost"
        self._die(errors.ServerLost(f"{text} ({said})" if said else text))

    def _die(self, error: errors.TablebayError) -> NoReturn:
        self._dead = error
        raise type(error)(str(error))

    # -- control calls --

    @contextmanager
    def speaking(self) -> Iterator[Control]:
        """The control calls, when this client may speak; one that says otherwise is its last."""
        self.check()
        try:
            yield self.control
        except (errors.Fenced, errors.ServerLost) as error:
            if self._dead is None:
                self._die(error)
            raise

    def stats(self) -> list[tablebay_pb2.StatsResponse]:
        """Each server's tables and counters. Raises ServerLost where one is not the server greeted."""
        with self.speaking() as control:
            answers = control.stats(self.timeout)
        for server, answer in enumerate(answers):
            if answer.epoch != self._epochs[server]:
                self._lost(server, answer.epoch, "")
        return answers

    # -- prefetches --

    def register(self, prefetch: Prefetch) -> list[Sequence[Part]]:
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

    def close(self, flush: bool) -> None:
        """Close the connections. Raises Unavailable when open steps could not be delivered."""
        if os.getpid() != self._process:
            # The parent's connections are not this process's to close.
            return
        if self._closed:
            return
        try:
            if flush and self._dead is None:
                self.flush(self.deadline())
        finally:
            self._closed = True
            self.transport.close()
            if self.on_close is not None:
                self.on_close(self)
