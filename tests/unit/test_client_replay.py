"""What a client keeps to be sent again: how much that is, and when it lets go of it."""

from __future__ import annotations

import weakref
from typing import Any

from tablebay.client.replay import Kept, Replay


class Message(bytes):
    """One whose end can be seen."""


def kept(step: int, alive: list[Any], size: int = 100) -> Kept:
    """A step of one request."""

    class Watched(Kept):
        pass

    found = Watched(step, "Push", [Message(size)])
    alive.append(weakref.ref(found))
    return found


def living(alive: list[Any]) -> int:
    """How many of them are still held."""
    return sum(one() is not None for one in alive)


def test_what_is_durable_counts_no_more_and_goes_as_others_come() -> None:
    """One for one of the same size; what was not needed until the next checkpoint goes then."""
    replay = Replay(1, 1000)
    alive: list[Any] = []
    for step in range(4):
        replay.keep(0, kept(step, alive))
    assert (replay.bytes, replay.half_full, replay.full) == (400, False, False)
    replay.durable(0, 3)
    assert replay.bytes == 100
    assert [one.step for one in replay.since(0, 0)] == [3]
    assert living(alive) == 4
    replay.keep(0, kept(4, alive))
    replay.keep(0, kept(5, alive))
    assert living(alive) == 4
    replay.durable(0, 6)
    assert replay.bytes == 0
    assert living(alive) == 3, "the one left of the first checkpoint is gone"
    replay.keep(0, kept(6, alive, size=1000))
    assert living(alive) == 1
    assert replay.full


def test_each_server_has_its_own() -> None:
    """A step is kept until the server that has it says that it is durable, and once."""
    replay = Replay(2, 1000)
    alive: list[Any] = []
    for server in range(2):
        replay.keep(server, kept(0, alive))
    replay.keep(1, kept(0, alive))
    assert replay.bytes == 200
    replay.durable(0, 1)
    assert replay.bytes == 100
    assert not replay.since(0, 0)
    assert [one.step for one in replay.since(1, 0)] == [0]
    assert [replay.durable_next(server) for server in range(2)] == [1, 0]
    replay.durable(0, 0)
    assert replay.durable_next(0) == 1
    replay.keep(0, kept(0, alive))
    assert replay.bytes == 100, "a step that is durable already is not kept"
