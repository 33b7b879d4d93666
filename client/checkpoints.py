"""What a client asks of its job's checkpoints: one now, its own state, where to go on, rows of another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from tablebay.client import errors
from tablebay.client.checkpoint.polling import poll_waits
from tablebay.client.native import native
from tablebay.client.proto import tablebay_pb2
from tablebay.client.retry import Deadline
from tablebay.client.session import Session
from tablebay.native import _core

Batch = TypeVar("Batch")

STATE_NAME_MAX = 128
_PART_BYTES = 4 * 1024 * 1024
# Beyond what a server lets an attempt take: it says so itself.
_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    kind: "Full", or "Delta" for what has changed since the one before. seconds: to make it.
    pause_seconds: for which pushes were held up at most. bytes, rows: written.
    """

    number: int
    kind: str
    seconds: float
    pause_seconds: float
    bytes: int
    rows: int


@dataclass(frozen=True)
class Restored:
    """What was read: the checkpoint's number, rows over all servers, this job's names of the tables."""

    number: int
    rows: int
    tables: tuple[str, ...]


def make(session: Session, state: Mapping[str, bytes], *, full: bool, timeout: float | None) -> Checkpoint:
    """As Client.checkpoint."""
    _check_state(state)
    session.check()
    deadline = session.deadline(_TIMEOUT_S if timeout is None else timeout)
    session.flush(session.deadline())
    who = session.identity
    first_after = session.ledger.next
    while True:
        sending = _send_state(session, state, deadline) if state else ""
        begun = session.speak(
            lambda control, sending=sending: control.checkpoint(  # type: ignore[misc]
                begin=True, full=full, client=(who.client_high, who.client_low), state=sending
            )
        )
        if not begun.enabled:
            raise errors.BadRequest(
                "checkpoint: the servers have no destination; give the job file a `checkpoint`, or the servers "
                "--checkpoint"
            )
        found = _await(session, begun, deadline)
        # Else server 0 came back meanwhile, and knows nothing of the attempt.
        if found is not None and _holds_all(session, first_after, deadline):
            return found


def keep_all(session: Session) -> None:
    """Return once a checkpoint has all that this client has pushed; where servers make none, at once.

    Raises Unavailable when there was none within the client's timeout; ServerLost, Fenced.
    """
    if session.replay is None or not session.replay.bytes:
        return
    deadline = session.deadline()
    attempt = 0
    while True:
        try:
            make(session, {}, full=False, timeout=deadline.remaining())
            return
        except (errors.CheckpointFailed, errors.Unavailable) as error:
            if not deadline.pause(attempt):
                raise errors.Unavailable(
                    f"{session.replay.bytes} bytes of this client's pushes are in no checkpoint yet: a server that is "
                    f"lost from now on comes back without them; no checkpoint was made within "
                    f"{deadline.timeout_s:g} s: {error}"
                ) from None
            attempt += 1


def _holds_all(session: Session, first_after: int, deadline: Deadline) -> bool:
    """Whether checkpoints have this client's steps below one. A server that has come back unnoticed had not all."""
    if session.replay is None:
        return True
    session.learn_durable(deadline)
    return session.replay.durable_below(first_after)


def _await(session: Session, begun: tablebay_pb2.CheckpointResponse, deadline: Deadline) -> Checkpoint | None:
    waits = poll_waits()
    while True:
        answer = session.speak(lambda control: control.checkpoint())
        if answer.epoch != begun.epoch:
            return None
        if answer.HasField("last") and answer.last.ticket >= begun.ticket:
            last = answer.last
            return Checkpoint(last.number, last.kind, last.seconds, last.pause_seconds, last.bytes, last.rows)
        if answer.ended >= begun.ticket:
            raise errors.CheckpointFailed(f"the checkpoint was given up: {answer.last_error}")
        if deadline.passed():
            raise errors.DeadlineExceeded(
                f"the checkpoint was not complete within {deadline.timeout_s:g} s; it goes on"
            )
        session.pace.sleep(min(next(waits), deadline.remaining()))


def _check_state(state: Mapping[str, bytes]) -> None:
    for name, content in state.items():
        if not isinstance(name, str) or not 1 <= len(name) <= STATE_NAME_MAX or not name.isprintable():
            raise errors.BadRequest(
                f"state: found the name {name!r:.200}, wanted 1 to {STATE_NAME_MAX} printable characters"
            )
        if not isinstance(content, bytes):
            raise errors.BadType(f"state: '{name}': found {type(content).__name__}, wanted bytes")


def _send_state(session: Session, state: Mapping[str, bytes], deadline: Deadline) -> str:
    """Send all entries in parts; the name under which server 0 keeps them until the checkpoint."""
    who = session.identity
    sending = f"{session.pace.random.getrandbits(64):016x}"
    for name, content in state.items():
        # An empty entry is one part too.
        for offset in range(0, max(1, len(content)), _PART_BYTES):
            if deadline.passed():
                raise errors.DeadlineExceeded(
                    f"state: '{name}' was not sent within {deadline.timeout_s:g} s; no checkpoint has begun"
                )
            part = content[offset : offset + _PART_BYTES]
            request = tablebay_pb2.PutStateRequest(
                client_high=who.client_high,
                client_low=who.client_low,
                incarnation=who.incarnation,
                state=sending,
                name=name,
                offset=offset,
                data=part,
                crc32c=native(_core.crc32c, part),
                step=session.ledger.next,
            )
            session.speak(lambda control, request=request: control.put_state(request))  # type: ignore[misc]
    return sending


def read_state(session: Session) -> dict[str, bytes]:
    """As Client.state."""
    if session.identity.rank is None:
        raise errors.BadRequest("state: this client has no rank; a state belongs to one")
    listed = session.speak(
        lambda control: control.get_state(tablebay_pb2.GetStateRequest(rank=session.identity.rank))
    )
    return {entry.name: _read_entry(session, entry) for entry in listed.entries}


def _read_entry(session: Session, entry: tablebay_pb2.StateEntry) -> bytes:
    content = bytearray()
    while len(content) < entry.bytes:
        request = tablebay_pb2.GetStateRequest(
            rank=session.identity.rank, name=entry.name, offset=len(content), bytes_max=_PART_BYTES
        )
        answer = session.speak(lambda control, request=request: control.get_state(request))  # type: ignore[misc]
        if not answer.data or native(_core.crc32c, answer.data) != answer.crc32c:
            raise errors.CorruptMessage(
                f"state: '{entry.name}': {len(answer.data)} bytes at {len(content)} that are not what was sent"
            )
        content += answer.data
    return bytes(content)


def resume(session: Session, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """As Client.resume."""
    session.check()
    first = session.ledger.next
    if isinstance(batches, Sequence):
        rest: Iterator[Batch] = (batches[number] for number in range(first, len(batches)))
    else:
        rest = islice(batches, first, None)
    for number, batch in enumerate(rest, first):
        found = session.ledger.next
        if found != number:
            raise errors.BadRequest(
                f"resume: batch {number} is next, and the next step is {found}; wanted one step for each batch"
            )
        yield number, batch


def restore(
    session: Session,
    source: str,
    *,
    number: int | None,
    tables: Sequence[str],
    rename: Mapping[str, str],
    optimizer_state: bool,
    timeout: float | None,
) -> Restored:
    """As Client.restore."""
    session.check()
    deadline = session.deadline(_TIMEOUT_S if timeout is None else timeout)
    session.flush(session.deadline())
    request = tablebay_pb2.RestoreRequest(
        ticket=f"{session.pace.random.getrandbits(64):016x}",
        source=source,
        tables=tables,
        rename=rename,
        optimizer_state=optimizer_state,
        number=number,
    )
    waits = poll_waits()
    while True:
        answers = session.speak(lambda control: control.restore(request))
        if all(answer.done for answer in answers):
            return Restored(
                answers[0].number, sum(answer.rows for answer in answers), tuple(answers[0].tables)
            )
        if deadline.passed():
            raise errors.DeadlineExceeded(f"restore: not done within {deadline.timeout_s:g} s; it goes on")
        session.pace.sleep(min(next(waits), deadline.remaining()))
