"""Cuts: what a store held at one moment, whatever is pushed while it is read out, and steps held up for it (G5, G6)."""

from __future__ import annotations

import random
import struct
import threading
import time
from typing import Any

import numpy as np
import pytest

from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.native import _core
from tests.unit.checkpoint_blocks import CLIENT, FOOTER, ROWS, int64_rows, parse, whole

RANKS = 3
HIGH = 77
ALL_SHARDS = list(range(1024))


def int64_store(ranks: int = 0) -> tuple[Any, int]:
    """A store with a table that adds up, and so many ranked clients."""
    store = _core.Store()
    table = store.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    for rank in range(ranks):
        store.hello(HIGH, rank, 1, rank)
    return store, table


def add(store: Any, table: int, keys: Any, amount: int = 1) -> None:
    """Add to each key's row."""
    keys = np.asarray(keys, np.uint64)
    store.push(table, keys, np.full((len(keys), 1), amount, np.int64))


def step(
    store: Any, table: int, rank: int, number: int, keys: Any, amount: int = 1, **fields: Any
) -> messages.PushResponse:
    """A ranked client's push."""
    keys = np.asarray(keys, np.uint64)
    request = messages.PushRequest(
        sender=messages.Sender(client_high=HIGH, client_low=rank, incarnation=1),
        step=number,
        oldest_step=number,
        part=messages.Part(
            table_id=table, dim=1, keys=keys.tobytes(), rows=np.full(len(keys), amount, np.int64).tobytes()
        ),
        **fields,
    )
    return messages.PushResponse.FromString(store.handle_push(request.SerializeToString()))


def cut_rows(cut: Any, table: int) -> tuple[dict[int, int], list[int]]:
    """Values by key and deleted keys of a cut's file."""
    layout = dict(cut.tables)[table]
    blocks = parse(whole(cut, table), layout[0])
    rows, deleted, _, size = cut.figures(table)
    assert (rows, deleted) == (len(blocks.rows), len(blocks.deleted))
    assert size > 0
    assert blocks.order == sorted(blocks.order, reverse=True), "deletions come before rows"
    return int64_rows(blocks, layout), blocks.deleted


def test_a_cut_is_of_one_moment() -> None:
    """G6: rows changed, made and deleted after it are in it as they were."""
    store, table = int64_store()
    add(store, table, range(10_000), 7)
    cut = store.take([], 0.0, True)
    add(store, table, range(5_000), 1)
    add(store, table, range(20_000, 21_000), 1)
    store.delete(table, np.arange(9_000, 10_000, dtype=np.uint64))
    store.assign(table, np.arange(6_000, 7_000, dtype=np.uint64), np.zeros((1_000, 1), np.int64))
    rows, deleted = cut_rows(cut, table)
    assert rows == dict.fromkeys(range(10_000), 7)
    assert deleted == []


def test_a_delta_is_what_changed_between_two_cuts() -> None:
    """Keys made or changed with their rows, and keys deleted; those made anew are both, the deletion first."""
    store, table = int64_store()
    add(store, table, range(100))
    full = store.take([], 0.0, False)
    assert full.full  # nothing was committed before
    cut_rows(full, table)
    add(store, table, range(10, 20))
    store.delete(table, np.array([50, 51, 99], np.uint64))
    add(store, table, [51], 5)
    full.commit()
    out = np.empty((1, 1), np.int64)
    store.pull(table, np.array([3], np.uint64), out, True)  # of a row that is there: changes nothing
    delta = store.take([], 0.0, False)
    assert not delta.full
    add(store, table, range(100))
    rows, deleted = cut_rows(delta, table)
    assert rows == {**dict.fromkeys(range(10, 20), 2), 51: 5}
    assert sorted(deleted) == [50, 51, 99]


def with_version(content: bytes, row_bytes: int, version: int) -> bytes:
    """The same file, each of its rows of one version."""
    made, crcs, at = b"", b"", 0
    while at < len(content):
        kind, count, size, _ = struct.unpack_from("<4I", content, at)
        payload = bytearray(content[at + 16 : at + 16 + size])
        for row in range(0, size if kind == ROWS else 0, row_bytes):
            struct.pack_into("<I", payload, row + 8, version)
        if kind == FOOTER:
            struct.pack_into("<I", payload, 24, _core.crc32c_portable(crcs))
        head = struct.pack("<3I", kind, count, size)
        crc = struct.pack("<I", _core.crc32c_portable(head + payload))
        made, crcs, at = made + head + crc + payload, crcs + crc, at + 16 + size
    return made


@pytest.mark.parametrize("begins", ["new", "loaded", "loaded as versions begin anew"])
@pytest.mark.parametrize("seed", range(4))
def test_deltas_after_random_calls_are_what_a_dictionary_says(begins: str, seed: int) -> None:
    """Rows that change in the last call before a cut, the first after it, in both or in none: each is met.

    A row's version tells whether it need be noted; after 2^32 changes versions begin anew."""
    chance = random.Random(seed)
    store, table = int64_store()
    values: dict[int, int] = {}
    add(store, table, range(3000), 1)
    values.update(dict.fromkeys(range(3000), 1))
    cut = store.take([], 0.0, True)
    content = whole(cut, table)
    cut.commit()
    if begins != "new":
        row_bytes = dict(cut.tables)[table][0]
        if begins != "loaded":
            content = with_version(content, row_bytes, 2**32 - 9)
        store = _core.Store()
        loader = store.load(ALL_SHARDS)
        loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
        for number, blocks in ((table, content), (None, whole(cut, None))):
            file = loader.begin(number, None, False)
            assert file.feed(blocks) == len(blocks)
        loader.finish()
    for turn in range(12):
        changed: set[int] = set()
        deleted: set[int] = set()
        for call in range(chance.randrange(4) if turn > 0 else 2):
            keys = chance.sample(range(4000), chance.choice((1, 30, 2000)))
            kind = chance.choice(("add", "add", "add", "assign", "delete")) if turn + call > 0 else "add"
            if kind == "add":
                add(store, table, keys, 3)
                values.update({key: values.get(key, 0) + 3 for key in keys})
            elif kind == "assign":
                store.assign(table, np.array(keys, np.uint64), np.full((len(keys), 1), 9, np.int64))
                values.update(dict.fromkeys(keys, 9))
            else:
                store.delete(table, np.array(keys, np.uint64))
                deleted |= {key for key in keys if values.pop(key, None) is not None}
            changed = (changed | set(keys)) & values.keys()
        delta = store.take([], 0.0, False)
        assert not delta.full
        rows, gone = cut_rows(delta, table)
        delta.commit()
        assert rows == {key: values[key] for key in changed}, f"seed {seed}, turn {turn}"
        assert set(gone) == deleted, f"seed {seed}, turn {turn}"


@pytest.mark.parametrize("ends", ["abandon", "taken again"])
def test_after_a_cut_that_was_given_up_the_next_is_full(ends: str) -> None:
    """What it took is not lost; it can neither be read on nor committed."""
    store, table = int64_store()
    add(store, table, range(10))
    first = store.take([], 0.0, True)
    cut_rows(first, table)
    first.commit()
    add(store, table, [1])
    second = store.take([], 0.0, False)
    if ends == "abandon":
        second.abandon()
    third = store.take([], 0.0, False)
    assert third.full
    for call in (lambda: second.read(table, bytearray(2 << 20)), second.commit):
        with pytest.raises(_core.StatusError) as error:
            call()
        assert error.value.args[0] == "CheckpointFailed"
    assert cut_rows(third, table)[0] == {**dict.fromkeys(range(10), 1), 1: 2}


@pytest.mark.parametrize("by", ["rows that change", "new rows"])
def test_g12_a_cut_gives_way_to_training_at_the_memory_limit(by: str) -> None:
    """Its rows kept are given back, and it says why it cannot go on; the next is full."""
    limit, rows, dim = 20 << 20, 60_000, 16
    store = _core.Store(memory_limit=limit)
    table = store.create_table("t", dim, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    store.hello(HIGH, 0, 1, 0)
    number = 0

    def push(first: int, count: int) -> None:
        nonlocal number
        for begin in range(first, first + count, 1000):
            keys = np.arange(begin, min(begin + 1000, first + count), dtype=np.uint64)
            part = messages.Part(
                table_id=table,
                dim=dim,
                keys=keys.tobytes(),
                rows=np.ones((len(keys), dim), np.int64).tobytes(),
            )
            store.handle_push(
                messages.PushRequest(
                    sender=messages.Sender(client_high=HIGH, client_low=0, incarnation=1),
                    step=number,
                    oldest_step=number,
                    part=part,
                ).SerializeToString()
            )
            number += 1

    push(0, rows)
    before = store.counters()["bytes"]
    cut = store.take([], 0.0, True)
    push(0, rows if by == "rows that change" else rows // 2)
    if by == "new rows":
        assert store.counters()["bytes"] > before + (1 << 20), "rows were kept"
        push(rows, 40_000)
    assert store.counters()["bytes"] <= 1.1 * limit
    with pytest.raises(_core.StatusError, match=f"memory limit of {limit} bytes") as error:
        cut.read(table, bytearray(2 << 20))
    assert error.value.args[0] == "CheckpointFailed"
    with pytest.raises(_core.StatusError, match="memory limit"):
        cut.commit()
    following = store.take([], 0.0, False)
    assert following.full
    values = cut_rows(following, table)[0]
    assert values == {
        key: 2 if key < (rows if by == "rows that change" else rows // 2) else 1 for key in values
    }


@pytest.mark.parametrize("seed", range(3))
def test_t7_g6_cuts_under_load_are_of_one_moment_and_their_sum_is_all(seed: int) -> None:
    """G6: each push adds 1 to all keys of one shard, in one lock's time; a cut never has half a push of a stripe.

    A full cut, then deltas, while threads push and delete: the chain gives the rows that the store has at the end.
    """
    store, table = int64_store()
    keys = np.arange(20_000, dtype=np.uint64)
    stripes = np.asarray(_core.shards_of(keys)) // 16
    groups = [keys[stripes == stripe] for stripe in range(64)]
    done = threading.Event()
    pushes = [0, 0]

    def push(worker: int) -> None:
        choose = random.Random(seed * 10 + worker)
        while not done.is_set():
            group = groups[choose.randrange(worker * 32, worker * 32 + 32)]
            if choose.random() < 0.1:
                store.delete(table, group)
            else:
                add(store, table, group)
            pushes[worker] += 1

    threads = [threading.Thread(target=push, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    chain: dict[int, int] = {}
    full = True
    for _ in range(8):
        cut = store.take([], 0.0, full)
        before = sum(pushes)
        while sum(pushes) < before + 20:
            time.sleep(0.001)  # much of it has changed before the first row is read
        rows, deleted = cut_rows(cut, table)
        if full:
            chain = rows
        else:
            for key in deleted:
                chain.pop(key, None)
            chain.update(rows)
        cut.commit()
        full = False
        for group in groups:
            found = {chain.get(int(key)) for key in group}
            assert len(found) == 1, f"seed {seed}: a stripe's rows are of several moments: {found}"
    done.set()
    for thread in threads:
        thread.join()
    cut = store.take([], 0.0, False)
    rows, deleted = cut_rows(cut, table)
    for key in deleted:
        chain.pop(key, None)
    chain.update(rows)
    out = np.empty((len(keys), 1), np.int64)
    store.pull(table, keys, out, False)
    there = np.asarray(store.contains(table, keys))
    assert chain == {int(key): int(value) for key, value in zip(keys[there], out[there, 0], strict=True)}, (
        seed
    )


def test_a_hold_keeps_new_steps_of_ranked_clients_out() -> None:
    """G6: until the cut; pulls, steps begun before, and other clients' pushes go on."""
    store, table = int64_store(2)
    store.hello(1, 1, 1)  # anonymous
    step(store, table, 0, 0, [1])
    begun = store.hold(30.0)
    assert sorted(begun) == [(HIGH, 0, 1), (HIGH, 1, 0)]
    came: list[str] = []

    def late() -> None:
        step(store, table, 0, 1, [1])
        came.append("late")

    thread = threading.Thread(target=late)
    thread.start()
    assert step(store, table, 0, 0, [1]).duplicate_shards == 1
    out = np.empty((1, 1), np.int64)
    store.pull(table, np.array([1], np.uint64), out, False)
    add(store, table, [2])
    time.sleep(0.2)
    assert came == []
    cut = store.take([(HIGH, 0, 1), (HIGH, 1, 0)], 1.0, True)
    thread.join(10)
    assert came == ["late"]
    assert cut.aligned
    assert 0.2 <= cut.pause_s < 30
    assert cut_rows(cut, table)[0] == {1: 1, 2: 1}
    assert sorted(cut.clients) == [(1, 1, None, 0, b""), (HIGH, 0, 0, 1, b""), (HIGH, 1, 1, 0, b"")]


def test_steps_that_other_servers_have_begun_are_let_through() -> None:
    """G6: those below the limits; the cut waits for them."""
    store, table = int64_store(1)
    store.hold(30.0)
    thread = threading.Thread(target=lambda: [step(store, table, 0, n, [n]) for n in range(3)])
    thread.start()
    cut = store.take([(HIGH, 0, 2)], 10.0, True)
    thread.join(10)
    assert cut.aligned
    assert cut_rows(cut, table)[0] == {0: 1, 1: 1}
    assert cut.clients == [(HIGH, 0, 0, 2, b"")]


def test_a_step_that_does_not_come_makes_the_cut_unaligned() -> None:
    """Its worker died in the middle: the cut is taken all the same, and says so."""
    store, _ = int64_store(1)
    store.hold(30.0)
    began = time.monotonic()
    cut = store.take([(HIGH, 0, 1)], 0.2, True)
    assert time.monotonic() - began < 5
    assert not cut.aligned


def test_a_hold_ends_by_itself() -> None:
    """Whatever becomes of who asked for it; a cut after that, with another step begun, is not aligned."""
    store, table = int64_store(1)
    store.hold(0.2)
    step(store, table, 0, 0, [1])
    assert not store.take([(HIGH, 0, 0)], 0.0, True).aligned


def test_a_commit_says_what_is_durable() -> None:
    """Answers name the step below which all is in a committed checkpoint of this server."""
    store, table = int64_store(1)
    assert step(store, table, 0, 0, [1]).durable_next == 0
    cut = store.take([(HIGH, 0, 1)], 1.0, True)
    whole(cut, table)
    assert step(store, table, 0, 1, [1]).durable_next == 0
    cut.commit()
    assert step(store, table, 0, 2, [1]).durable_next == 1
    assert store.hello(HIGH, 0, 1, 0) == (3, b"", 1)
    assert store.highest_step() == 3


def test_rows_and_steps_come_back_from_a_cut() -> None:
    """Rows, slots, counters, windows and cursors; a step sent again is a duplicate there too."""
    store = _core.Store()
    options = (
        "u",
        8,
        "float32",
        "Adam",
        {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8},
    )
    table = store.create_table(*options, "Normal", {"mean": 0.0, "stddev": 1.0}, 3, "Reject")
    other = store.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    store.hello(HIGH, 2, 4, 2)
    keys = np.arange(1000, dtype=np.uint64)
    store.push(table, keys, np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32))
    for number in range(70):
        request = messages.PushRequest(
            sender=messages.Sender(client_high=HIGH, client_low=2, incarnation=4),
            step=number,
            oldest_step=number,
            cursor=b"c%d" % number,
            part=messages.Part(
                table_id=other, dim=1, keys=keys[:9].tobytes(), rows=np.ones(9, np.int64).tobytes()
            ),
        )
        store.handle_push(request.SerializeToString())
    cut = store.take([(HIGH, 2, 70)], 1.0, True)
    files = {number: whole(cut, number) for number in (table, other, None)}

    loaded = _core.Store(epoch=9)
    loader = loaded.load(ALL_SHARDS)
    loader.create_table(*options, "Normal", {"mean": 0.0, "stddev": 1.0}, 3, "Reject")
    loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    for number, content in files.items():
        file = loader.begin(number, None, False)
        assert file.feed(content) == len(content)
        assert file.ended
        assert file.crc == cut.figures(number)[2]
    loader.finish()
    assert loader.rows == 1009
    found, wanted = np.empty((1000, 8), np.float32), np.empty((1000, 8), np.float32)
    loaded.pull(table, keys, found, False)
    store.pull(table, keys, wanted, False)
    assert found.tobytes() == wanted.tobytes()
    assert loaded.state(table, keys).tobytes() == store.state(table, keys).tobytes()
    assert loaded.hello(HIGH, 2, 4, 2) == (70, b"c69", 70)
    again = messages.PushResponse.FromString(loaded.handle_push(request.SerializeToString()))
    assert (again.applied_shards, again.duplicate_shards) == (0, len(set(_core.shards_of(keys[:9]).tolist())))
    assert loaded.counters()["duplicates_changed"] == 0
    # It goes on by deltas of what it was loaded from.
    loaded.push(table, keys[:5], np.ones((5, 8), np.float32))
    delta = loaded.take([], 0.0, False)
    assert not delta.full
    assert len(parse(whole(delta, table), dict(delta.tables)[table][0]).rows) == 5


def test_a_second_reader_finds_steps_as_the_format_says() -> None:
    """Written from docs/checkpoint-format.md."""
    store, table = int64_store(1)
    step(store, table, 0, 0, [5], cursor=b"here")
    cut = store.take([], 0.0, True)
    blocks = parse(whole(cut, None))
    assert blocks.order == [CLIENT]
    [client] = blocks.clients
    # id, incarnation and rank, window, number of cursors
    assert struct.unpack_from("<2Q2I2QI", client) == (HIGH, 0, 1, 0, 1, 1, 1)
    shard = _core.shards_of(np.array([5], np.uint64)).tolist()[0]
    rest = client[44:]
    assert rest[:16] == (0).to_bytes(8, "little") + (4).to_bytes(4, "little") + b"here"
    assert rest[16:24] == (1).to_bytes(4, "little") + shard.to_bytes(4, "little")
    assert rest[24:40] == (1).to_bytes(8, "little") * 2
    assert len(rest) == 40 + 128


@pytest.mark.parametrize("servers", [1, 3, 5])
def test_rows_of_two_servers_load_into_any_number(servers: int) -> None:
    """Each takes the rows and steps of its own shards; a step is whole where it was on both."""
    stores = [int64_store(1) for _ in range(2)]
    keys = np.arange(5000, dtype=np.uint64)
    shards = np.asarray(_core.shards_of(keys))
    for index, (store, table) in enumerate(stores):
        store.set_shard_map(np.repeat(np.array([0, 1], np.uint16), 512), index, 1)
        mine = keys[shards // 512 == index]
        step(store, table, 0, 0, mine, 3)
    table = stores[0][1]
    step(stores[0][0], table, 0, 1, keys[shards == 0], 3)  # whole on one of them alone
    cuts = [store.take([], 0.0, True) for store, _ in stores]
    files = [(whole(cut, table), whole(cut, None)) for cut in cuts]
    total: dict[int, int] = {}
    for server in range(servers):
        owned = [shard for shard in ALL_SHARDS if shard * servers // 1024 == server]
        loaded = _core.Store()
        loader = loaded.load(owned)
        loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
        for rows, steps in files:
            loader.begin(table, None, False).feed(rows)
            loader.begin(None, None, False).feed(steps)
        loader.finish()
        assert loaded.hello(HIGH, 0, 1, 0)[0] == 1
        cut = loaded.take([], 0.0, True)
        found, _ = cut_rows(cut, table)
        assert {int(shard) for shard in _core.shards_of(np.array(list(found), np.uint64))} <= set(owned)
        assert not total.keys() & found.keys()
        total |= found
    assert total == {int(key): 6 if shard == 0 else 3 for key, shard in zip(keys, shards, strict=True)}


def test_what_is_loaded_takes_its_place_all_at_once() -> None:
    """G8: in place of rows that are there, while others read; before that, none of it is seen."""
    source, table = int64_store()
    add(source, table, range(200_000), 5)
    content = whole(source.take([], 0.0, True), table)
    store, _ = int64_store()
    add(store, table, range(1000), 1)
    loader = store.load(ALL_SHARDS)
    loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    file = loader.begin(table, None, False)
    half = len(content) // 2
    taken = file.feed(content[:half])
    assert 0 < taken <= half
    assert store.counters()["rows"] == 1000
    with pytest.raises(_core.StatusError) as error:
        loader.finish()
    assert error.value.args[0] == "CheckpointInvalid"
    file.feed(content[taken:])
    loader.finish()
    out = np.empty((2, 1), np.int64)
    store.pull(table, np.array([0, 199_999], np.uint64), out, False)
    assert out[:, 0].tolist() == [5, 5]
    assert store.counters()["rows"] == 200_000
    assert store.must_be_full


@pytest.mark.parametrize("seed", range(4))
def test_damaged_blocks_are_refused_by_their_byte(seed: int) -> None:
    """G8: one byte changed anywhere, or cut off: CheckpointInvalid, or no end; never another row."""
    store, table = int64_store(1)
    step(store, table, 0, 0, range(300), cursor=b"x")
    cut = store.take([], 0.0, True)
    choose = random.Random(seed)
    for number in (table, None):
        content = whole(cut, number)
        for _ in range(200):
            at = choose.randrange(len(content))
            bad = bytearray(content)
            if choose.random() < 0.5:
                bad[at] ^= choose.randrange(1, 256)
            else:
                del bad[at:]
            loader = _core.Store().load(ALL_SHARDS)
            loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
            file = loader.begin(number, None, False, start=96)
            error = None
            try:
                file.feed(bytes(bad))
            except _core.StatusError as found:
                error = found
            if error is not None:
                assert error.args[0] == "CheckpointInvalid", f"seed {seed}"
                assert error.args[1].startswith("at byte "), f"seed {seed}"
            assert not file.ended, f"seed {seed}: byte {at}"
            with pytest.raises(_core.StatusError):
                loader.finish()


def test_a_file_that_lacks_a_block_is_refused() -> None:
    """G8: each block right by itself, and one taken out, or there twice: the footer is of others."""
    store, table = int64_store(2)
    add(store, table, range(200_000))
    step(store, table, 0, 0, [1])
    cut = store.take([], 0.0, True)
    for number in (table, None):
        content = whole(cut, number)
        _, _, size, _ = struct.unpack_from("<4I", content)
        first = content[: 16 + size]
        for bad in (content[len(first) :], first + content):
            loader = _core.Store().load(ALL_SHARDS)
            loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
            file = loader.begin(number, None, True, start=96)
            with pytest.raises(_core.StatusError) as error:
                file.feed(bad)
            assert error.value.args[0] == "CheckpointInvalid"
            assert "the footer says" in error.value.args[1]


def sealed(*payloads: bytes) -> bytes:
    """A file of steps with these clients."""
    content, crcs = b"", b""
    for kind, count, payload in [*((CLIENT, 1, one) for one in payloads), (FOOTER, 0, b"")]:
        body = payload if kind == CLIENT else struct.pack("<3Q2I", 0, 0, len(payloads), _core.crc32c(crcs), 0)
        head = struct.pack("<3I", kind, count, len(body))
        crc = struct.pack("<I", _core.crc32c(head + body))
        content += head + crc + body
        crcs += crc
    return content


def client_payload(low: int, cursor_bytes: int = 0, cursors: int = 0, shards: int = 0) -> bytes:
    """A client with the steps up to 63."""
    payload = struct.pack("<QQIIQQI", HIGH, low, 1, 0, 64, 2**64 - 1, cursors)
    payload += b"".join(
        struct.pack("<QI", step, cursor_bytes) + b"c" * cursor_bytes for step in range(cursors)
    )
    return (
        payload
        + struct.pack("<I", shards)
        + b"".join(struct.pack("<IQQ", shard, 64, 1) + bytes(128) for shard in range(shards))
    )


def test_a_cursor_longer_than_a_client_may_keep_is_refused() -> None:
    """Else two servers' blocks of one client, each a right one, could make one larger than a block may be."""
    longest = _core.Store().load(ALL_SHARDS)
    longest.begin(None, None, False).feed(sealed(client_payload(0, 1024, 64, 1024)))
    longest.finish()
    loader = _core.Store().load(ALL_SHARDS)
    with pytest.raises(_core.StatusError, match="a cursor of 1025 bytes, wanted at most 1024") as error:
        loader.begin(None, None, False).feed(sealed(client_payload(0, 1025, 64)))
    assert error.value.args[0] == "CheckpointInvalid"


def test_more_clients_than_memory_are_refused() -> None:
    """A client's 100 bytes in a file are 150 KB in memory: the limit is for them as well."""
    content = sealed(*(client_payload(low) for low in range(200)))
    loader = _core.Store(memory_limit=20 << 20).load(ALL_SHARDS)
    with pytest.raises(_core.StatusError, match="this server holds [0-9]+ of its limit of 20971520") as error:
        loader.begin(None, None, False).feed(content)
    assert error.value.args[0] == "ResourceExhausted"
    enough = _core.Store(memory_limit=40 << 20).load(ALL_SHARDS)
    enough.begin(None, None, False).feed(content)
    enough.finish()


def test_rows_of_another_layout_are_refused() -> None:
    """CheckpointMismatch says what differs; weights alone can be had."""
    source = _core.Store()
    adagrad = {"learning_rate": 0.1, "initial_accumulator": 0.1, "epsilon": 1e-8}
    table = source.create_table("t", 4, "float32", "Adagrad", adagrad, "Zeros", {}, 0, "Reject")
    keys = np.arange(100, dtype=np.uint64)
    source.push(table, keys, np.ones((100, 4), np.float32))
    cut = source.take([], 0.0, True)
    layout = dict(cut.tables)[table]
    content = whole(cut, table)
    store = _core.Store()
    loader = store.load(ALL_SHARDS)
    loader.create_table("t", 4, "float32", "SGD", {"learning_rate": 0.1}, "Zeros", {}, 0, "Reject")
    with pytest.raises(_core.StatusError) as error:
        loader.begin(table, layout, False)
    assert error.value.args[0] == "CheckpointMismatch"
    file = loader.begin(table, layout, False, weights_only=True)
    file.feed(content)
    loader.finish()
    found, wanted = np.empty((100, 4), np.float32), np.empty((100, 4), np.float32)
    store.pull(table, keys, found, False)
    source.pull(table, keys, wanted, False)
    assert found.tobytes() == wanted.tobytes()


def test_more_rows_than_memory_are_refused() -> None:
    """ResourceExhausted names the table and both numbers."""
    source, table = int64_store()
    add(source, table, range(100_000))
    content = whole(source.take([], 0.0, True), table)
    loader = _core.Store(memory_limit=1_000_000).load(ALL_SHARDS)
    loader.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    with pytest.raises(_core.StatusError) as error:
        loader.begin(table, None, False).feed(content)
    assert error.value.args[0] == "ResourceExhausted"
    assert "'t'" in error.value.args[1]
    assert "1000000" in error.value.args[1]
