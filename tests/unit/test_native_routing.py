"""Where keys go: the hash, the shards, the plan of a call, and what is made of requests and answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.native import _core


def owners_of(servers: int) -> NDArray[np.uint16]:
    """Shards dealt out one by one."""
    return (np.arange(_core.SHARDS) % servers).astype(np.uint16)


def test_golden_hashes_and_shards() -> None:
    """Pinned: a change of the hash or of the shard rule would lose every checkpoint ever written."""
    keys = np.array([0, 1, 2, 42, 2**32, 2**63, 2**64 - 1], np.uint64)
    assert [format(h, "016x") for h in _core.hash_keys(keys)] == [
        "0000000000000000",
        "b456bcfc34c2cb2c",
        "3abf2a20650683e7",
        "810879608e4259cc",
        "ba3a9e160a5f1419",
        "8f780810af31a493",
        "64b5720b4b825f21",
    ]
    assert _core.shards_of(keys).tolist() == [h >> 54 for h in _core.hash_keys(keys).tolist()]


def test_keys_spread_evenly_over_shards() -> None:
    """Sequential keys fill the 1,024 shards as chance would: a chi-squared statistic near its mean."""
    counts = np.bincount(_core.shards_of(np.arange(1_024_000, dtype=np.uint64)), minlength=1024)
    statistic = float(((counts - 1000.0) ** 2 / 1000.0).sum())
    assert 800 < statistic < 1250


@pytest.mark.parametrize("servers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_plan_names_each_key_once_in_order_of_server_and_shard(seed: int, servers: int) -> None:
    """inverse leads back to every given key, and positions ascend by (server, shard)."""
    random = np.random.default_rng(seed)
    keys = random.integers(0, 700, int(random.integers(0, 3000)), dtype=np.uint64)
    plan = _core.Router(owners_of(servers), servers).plan(keys)
    where = f"seed {seed}"
    unique = plan.keys()
    assert plan.count == len(keys), where
    assert plan.unique == len(unique) == len(set(keys.tolist())), where
    assert np.array_equal(unique[plan.inverse()], keys), where
    shards = _core.shards_of(unique).astype(np.int64)
    places = (shards % servers) * 1024 + shards
    assert bool((np.diff(places) >= 0).all()), where


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_knows_the_keys_that_it_is_of(seed: int) -> None:
    """The same keys in the same order, repeats among them, in whichever array; one other, more or fewer are others."""
    random = np.random.default_rng(seed)
    keys = random.integers(0, 500, 1000, dtype=np.uint64)
    plan = _core.Router(owners_of(2), 2).plan(keys)
    assert plan.is_of(keys.copy()), f"seed {seed}"
    for at in (0, 999, int(random.integers(1000))):
        other = keys.copy()
        other[at] = keys[at] + 1 if random.integers(2) else 2**64 - 1
        assert not plan.is_of(other), f"seed {seed}, place {at}"
    assert not plan.is_of(keys[:-1]), f"seed {seed}"
    assert not plan.is_of(np.append(keys, keys[:1])), f"seed {seed}"
    assert not plan.is_of(np.sort(keys)), f"seed {seed}"


def test_intersect_says_which_planned_keys_are_among_others() -> None:
    """Each position once, ascending; keys outside the plan are passed over."""
    plan = _core.Router(owners_of(2), 2).plan(np.array([5, 6, 7, 5], np.uint64))
    common = plan.intersect(np.array([7, 99, 5, 7], np.uint64))
    assert sorted(plan.keys()[common].tolist()) == [5, 7]
    assert common.tolist() == sorted(common.tolist())
    assert plan.intersect(np.array([], np.uint64)).tolist() == []


@pytest.mark.parametrize("limit", [10**7, 6000])
@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_call_carries_sums_there_and_rows_back(seed: int, servers: int, limit: int) -> None:
    """Requests cut at shard borders hold each unique key once with the sum of its rows; answers come back in place."""
    random = np.random.default_rng(seed)
    where = f"seed {seed}, {servers} servers, limit {limit}"
    keys = random.integers(0, 2**64, 800, dtype=np.uint64)
    keys = random.choice(keys, 1500)
    rows = random.standard_normal((1500, 3)).astype(np.float32)
    router = _core.Router(owners_of(servers), servers)
    plan = router.plan(keys)
    out = np.empty((1500, 3), np.float32)
    call = _core.Call("Step", [(7, 3, 12, 0, plan, out)], [(9, 3, 12, 0, plan, rows)], limit)
    assert call.servers() == list(range(servers)), where
    sums: dict[int, NDArray[np.float32]] = {}
    for key, row in zip(keys.tolist(), rows, strict=True):
        sums[key] = row.copy() if key not in sums else sums[key] + row
    seen: dict[int, NDArray[np.float32]] = {}
    for server in range(servers):
        pieces = [
            call.request(server, piece, 1, 2, 3, 4, 5, 6, 5, b"cursor")
            for piece in range(call.pieces(server))
        ]
        assert (len(pieces) > 1) == (limit == 6000), where
        for number, piece in enumerate(pieces):
            assert len(piece) <= limit, where
            request = messages.StepRequest.FromString(piece)
            assert (request.piece, request.pieces) == (number, len(pieces)), where
            assert request.cursor == b"cursor", where
            assert (request.step, request.oldest_step, request.sender.incarnation) == (6, 5, 3), where
            pushed = np.frombuffer(request.pushes[0].keys, np.uint64)
            assert request.pulls[0].keys == request.pushes[0].keys, where
            assert bool((_core.shards_of(pushed) % servers == server).all()), where
            for part in (request.pushes[0], request.pulls[0]):
                assert part.crc32c == _core.crc32c(part.keys + part.rows), where
                assert part.flags & _core.UNIQUE, where
            for key, row in zip(
                pushed.tolist(), np.frombuffer(request.pushes[0].rows, np.float32).reshape(-1, 3), strict=True
            ):
                assert key not in seen, where
                seen[key] = row
            answer = messages.StepResponse(
                epoch=8, shard_map_version=4, step=6, applied_shards=2, duplicate_shards=1
            )
            answer.pulled.append((pushed[:, None] % 1000 + np.arange(3)).astype(np.float32).tobytes())
            assert call.accept(server, number, answer.SerializeToString()) == (8, 4, 2, 1, 0), where
    assert seen.keys() == sums.keys(), where
    assert all(np.array_equal(seen[key], sums[key]) for key in sums), where
    call.finish()
    assert np.array_equal(out, (keys[:, None] % 1000 + np.arange(3)).astype(np.float32)), where


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("kind", ["Pull", "Push"])
def test_a_large_share_is_cut_into_as_many_requests_as_are_wanted(kind: str, servers: int) -> None:
    """About equal ones, where each has a megabyte; a smaller share stays whole, and the message limit holds."""
    router = _core.Router(owners_of(servers), servers)

    def sizes(count: int, cut_into: int, limit: int = 10**8) -> list[list[int]]:
        keys = np.random.default_rng(count).integers(0, 2**64, count, dtype=np.uint64)
        plan = router.plan(keys)
        rows = np.zeros((count, 16), np.float32)
        parts = [(7, 16, 64, 0, plan, rows)]
        call = _core.Call(
            kind, parts if kind == "Pull" else [], parts if kind == "Push" else [], limit, cut_into
        )
        return [
            [
                len(call.request(server, piece, 1, 2, 3, 4, 5, 6, 5, b""))
                for piece in range(call.pieces(server))
            ]
            for server in range(servers)
        ]

    for whole, halves in zip(sizes(80_000 * servers, 1), sizes(80_000 * servers, 2), strict=True):
        assert len(whole) == 1
        assert len(halves) == 2
        assert 0.45 < halves[0] / sum(halves) < 0.55
    assert [len(of_server) for of_server in sizes(20_000 * servers, 2)] == [1] * servers
    for of_server in sizes(400_000 * servers, 1):
        assert len(of_server) == 4
        assert max(of_server) <= 8 << 20
    limited = sizes(80_000 * servers, 2, 1 << 20)
    assert all(len(of_server) > 4 and max(of_server) <= 1 << 20 for of_server in limited)


def test_what_one_shard_gets_stays_whole_up_to_the_message_limit() -> None:
    """Also where it is larger than what is cut otherwise."""
    keys = np.arange(4_000_000, dtype=np.uint64)
    keys = np.ascontiguousarray(keys[_core.shards_of(keys) == 77])
    plan = _core.Router(owners_of(1), 1).plan(keys)
    rows = np.zeros((len(keys), 1000), np.float32)
    push = [(7, 1000, 4000, 0, plan, rows)]
    for cut_into in (1, 2):
        call = _core.Call("Push", [], push, 10**8, cut_into)
        assert call.pieces(0) == 1
        assert len(call.request(0, 0, 1, 2, 3, 4, 5, 6, 5, b"")) > 8 << 20
    with pytest.raises(_core.StatusError, match="do not fit in a message of 8000000 bytes"):
        _core.Call("Push", [], push, 8_000_000)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("limit", [10**8, 100_000])
@pytest.mark.parametrize("dims", [(16,), (1,), (5, 64, 3)])
def test_what_is_kept_of_a_request_is_what_was_sent(dims: tuple[int, ...], limit: int, repeats: bool) -> None:
    """Copied while it is made: with and without repeats, of several tables, cut in pieces, and with any cursor."""
    random = np.random.default_rng(3)
    router = _core.Router(owners_of(2), 2)
    memory = _core.ReplayMemory(1 << 20)
    kept = []
    for cursor in (b"", b"cursor", bytes(1000)):
        pushes = []
        for number, dim in enumerate(dims):
            keys = random.integers(0, 2**64, 30_000 // dim + 1, dtype=np.uint64)
            keys = random.choice(keys, len(keys)) if repeats else np.unique(keys)
            rows = random.standard_normal((len(keys), dim)).astype(np.float32)
            pushes.append((number, dim, 4 * dim, 0, router.plan(keys), rows))
        call = _core.Call("Step", [], pushes, limit)
        for server in range(2):
            for piece in range(call.pieces(server)):
                keep = _core.KeptRequest(memory)
                sent = call.request(server, piece, 1, 2, 3, 4, 5, 6, 5, cursor, keep)
                assert sent == call.request(server, piece, 1, 2, 3, 4, 5, 6, 5, cursor)
                kept.append((sent, keep))
    assert all(bytes(keep) == sent and len(keep) == len(sent) for sent, keep in kept)


def test_an_answer_that_does_not_fit_its_request_is_corrupt() -> None:
    """Too few rows, no rows, or bytes that are no message: CorruptMessage, and nothing is gathered."""
    plan = _core.Router(owners_of(1), 1).plan(np.array([1, 2], np.uint64))
    out = np.zeros((2, 1), np.float32)
    for response in (
        messages.PullResponse(rows=b"1234").SerializeToString(),
        messages.PullResponse().SerializeToString(),
        b"\xff\xff",
    ):
        call = _core.Call("Pull", [(7, 1, 4, 0, plan, out)], [], 10**6)
        call.request(0, 0, 0, 0, 0, 0, 0, 0, 0, b"")
        with pytest.raises(_core.StatusError) as caught:
            call.accept(0, 0, response)
        assert caught.value.args[0] == "CorruptMessage"
    assert not out.any()


def test_a_shard_too_large_for_a_message_is_refused() -> None:
    """A call whose one shard does not fit says so, before anything is sent."""
    keys = np.arange(10**5, dtype=np.uint64)
    plan = _core.Router(owners_of(1), 1).plan(keys)
    out = np.zeros((len(keys), 64), np.float32)
    with pytest.raises(_core.StatusError, match="do not fit in a message of 5000 bytes"):
        _core.Call("Pull", [(7, 64, 256, 0, plan, out)], [], 5000)


def test_arrays_are_never_copied_or_cast_silently() -> None:
    """A wrong dtype, a strided or a read-only array is refused by the native functions themselves."""
    router = _core.Router(owners_of(1), 1)
    for keys in (np.zeros(4, np.int64), np.zeros(4, np.float64), np.zeros(8, np.uint64)[::2]):
        with pytest.raises(TypeError):
            router.plan(keys)
    plan = router.plan(np.array([1], np.uint64))
    read_only = np.zeros((1, 2), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(_core.StatusError, match="read-only"):
        _core.Call("Pull", [(7, 2, 8, 0, plan, read_only)], [], 10**6)
    with pytest.raises(_core.StatusError, match="float64"):
        _core.Call("Push", [], [(7, 2, 8, 0, plan, np.zeros((1, 2)))], 10**6)
    with pytest.raises(_core.StatusError, match="contiguous"):
        _core.Call("Push", [], [(7, 2, 8, 0, plan, np.zeros((1, 4), np.float32)[:, ::2])], 10**6)
