"""What a client keeps to be sent again: how much that is, when it lets go of it, and in which memory."""

from __future__ import annotations

import os
import random
import threading

import pytest

from tablebay.client.replay import Kept, Replay
from tablebay.native import _core

PAGE = 2 << 20


def request(memory: _core.ReplayMemory, content: bytes) -> _core.KeptRequest:
    """One that is kept there."""
    found = _core.KeptRequest(memory)
    found.write(content)
    return found


def kept(replay: Replay, step: int, size: int = 100) -> Kept:
    """A step of one request."""
    return Kept(step, "Push", [request(replay.memory, bytes(size))])


def test_what_is_durable_counts_no_more() -> None:
    """Steps below the one that a server names are let go of, and nothing else is."""
    replay = Replay(1, 1000)
    for step in range(4):
        replay.keep(0, kept(replay, step))
    assert (replay.bytes, replay.half_full, replay.full) == (400, False, False)
    replay.durable(0, 3)
    assert replay.bytes == 100
    assert [one.step for one in replay.since(0, 0)] == [3]
    replay.keep(0, kept(replay, 4, size=450))
    assert (replay.half_full, replay.full) == (True, False)
    replay.keep(0, kept(replay, 5, size=450))
    assert replay.full
    assert [one.step for one in replay.since(0, 4)] == [4, 5]


def test_each_server_has_its_own() -> None:
    """A step is kept until the server that has it says that it is durable, and once."""
    replay = Replay(2, 1000)
    for server in range(2):
        replay.keep(server, kept(replay, 0))
    replay.keep(1, kept(replay, 0))
    assert replay.bytes == 200
    replay.durable(0, 1)
    assert replay.bytes == 100
    assert not replay.since(0, 0)
    assert [one.step for one in replay.since(1, 0)] == [0]
    assert [replay.durable_next(server) for server in range(2)] == [1, 0]
    replay.durable(0, 0)
    assert replay.durable_next(0) == 1
    replay.keep(0, kept(replay, 0))
    assert replay.bytes == 100, "a step that is durable already is not kept"


def test_memory_is_used_over_and_over() -> None:
    """Checkpoint after checkpoint a worker's pushes take the memory that the first ones took."""
    replay = Replay(1, 40 * PAGE)
    step = 0
    for round in range(20):
        for _ in range(10):
            replay.keep(0, kept(replay, step, size=3 * PAGE // 2 + 1))
            step += 1
        if round == 0:
            first = replay.memory.bytes
            assert 15 * PAGE <= first <= 17 * PAGE
        replay.durable(0, step)
    assert replay.bytes == 0
    assert replay.memory.bytes <= first + PAGE


def test_what_is_beyond_the_bound_goes_back_to_the_system() -> None:
    """Nothing is dropped for it; once it is durable there is no more than the bound, and one page being filled."""
    replay = Replay(1, 2 * PAGE)
    for step in range(6):
        replay.keep(0, kept(replay, step, size=PAGE))
    assert replay.memory.bytes == 6 * PAGE
    replay.durable(0, 6)
    assert replay.memory.bytes <= 3 * PAGE


def test_small_requests_share_pages() -> None:
    """A thousand of a hundred bytes are one page, and each comes back as it was."""
    memory = _core.ReplayMemory(PAGE)
    contents = [os.urandom(100) for _ in range(1000)]
    all_kept = [request(memory, content) for content in contents]
    assert memory.bytes == PAGE
    assert [bytes(one) for one in all_kept] == contents


def test_what_is_kept_is_what_was_written_whatever_comes_and_goes() -> None:
    """By a seed: requests of all sizes, over borders of pages, kept and let go of in any order."""
    seed = int(os.environ.get("TABLEBAY_SEED", "1"))
    chance = random.Random(seed)
    memory = _core.ReplayMemory(8 * PAGE)
    alive: list[tuple[bytes, _core.KeptRequest]] = []
    for _ in range(300):
        if alive and chance.random() < 0.5:
            content, one = alive.pop(chance.randrange(len(alive)))
            assert bytes(one) == content, f"REPRO: TABLEBAY_SEED={seed}"
        size = chance.choice([0, 1, 63, 64, 65, chance.randrange(4096), chance.randrange(3 * PAGE)])
        content = chance.randbytes(size)
        alive.append((content, request(memory, content)))
        if sum(len(kept) for kept, _ in alive) > 12 * PAGE:
            del alive[: len(alive) // 2]
    assert all(bytes(one) == content for content, one in alive), f"REPRO: TABLEBAY_SEED={seed}"


def test_a_request_may_be_written_anew() -> None:
    """It then has the new bytes alone, and keeps no memory for the old ones."""
    memory = _core.ReplayMemory(4 * PAGE)
    one = request(memory, b"a" * (3 * PAGE))
    one.write(b"b" * 10)
    assert bytes(one) == b"b" * 10
    others = [request(memory, bytes(PAGE)) for _ in range(3)]
    assert memory.bytes <= 4 * PAGE
    assert len(others) == 3


@pytest.mark.parametrize("threads", [4])
def test_threads_keep_side_by_side(threads: int) -> None:
    """Each finds what it wrote, whoever fills the rest of its pages."""
    memory = _core.ReplayMemory(4 * PAGE)
    wrong: list[int] = []

    def run(number: int) -> None:
        chance = random.Random(number)
        for _ in range(100):
            content = bytes([number]) * chance.randrange(200_000)
            one = request(memory, content)
            if bytes(one) != content:
                wrong.append(number)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong
