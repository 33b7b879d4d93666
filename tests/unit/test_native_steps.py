"""Requests as the wire has them: exactly once, all or nothing, fenced; what cannot be read is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.native import _core

CLIENT = (11, 22)


def make(**options: Any) -> tuple[Any, int]:
    """A store that knows CLIENT, with an int64 table of dim 1 that adds up."""
    store = _core.Store(**options)
    table = store.create_table("t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    assert store.hello(*CLIENT, 1) == (0, b"", 0)
    return store, table


def sender(incarnation: int = 1, **fields: int) -> messages.Sender:
    """CLIENT."""
    return messages.Sender(client_high=CLIENT[0], client_low=CLIENT[1], incarnation=incarnation, **fields)


def part(table: int, keys: Any, rows: Any = None, flags: int = 0, dim: int = 1) -> messages.Part:
    """A part with int64 rows."""
    return messages.Part(
        table_id=table,
        dim=dim,
        flags=flags,
        keys=np.asarray(keys, np.uint64).tobytes(),
        rows=b"" if rows is None else np.asarray(rows, np.int64).tobytes(),
    )


def push(
    store: Any,
    table: int,
    step: int,
    keys: Any,
    rows: Any,
    *,
    oldest: int | None = None,
    incarnation: int = 1,
    cursor: bytes = b"",
    piece: int = 0,
    pieces: int = 1,
) -> messages.PushResponse:
    """One push."""
    request = messages.PushRequest(
        sender=sender(incarnation),
        step=step,
        oldest_step=step if oldest is None else oldest,
        part=part(table, keys, rows),
        cursor=cursor,
        piece=piece,
        pieces=pieces,
    )
    return messages.PushResponse.FromString(store.handle_push(request.SerializeToString()))


def values(store: Any, table: int, keys: Any) -> list[int]:
    """What the keys' rows are; 0 for a key without one."""
    out = np.empty((len(keys), 1), np.int64)
    store.pull(table, np.asarray(keys, np.uint64), out, False)
    flat: NDArray[np.int64] = out[:, 0]
    return flat.tolist()


def test_a_step_sent_again_is_a_duplicate() -> None:
    """G1: the second time nothing is applied, and the answer says on how many shards."""
    store, table = make()
    first = push(store, table, 0, [1, 2, 3], [10, 20, 30])
    again = push(store, table, 0, [1, 2, 3], [10, 20, 30])
    assert first.applied_shards > 0
    assert first.duplicate_shards == 0
    assert (again.applied_shards, again.duplicate_shards) == (0, first.applied_shards)
    assert values(store, table, [1, 2, 3]) == [10, 20, 30]
    counters = store.counters()
    assert (counters["pushes_applied"], counters["duplicates"], counters["duplicates_changed"]) == (1, 1, 0)


def test_a_step_is_applied_on_the_shards_that_lack_it() -> None:
    """G1: sent again with more keys, it is applied where it was not, once; a changed content is counted."""
    store, table = make()
    keys = np.arange(3000, dtype=np.uint64)
    shards = _core.shards_of(keys)
    had = shards % 2 == 0
    push(store, table, 5, keys[had], np.ones(int(had.sum())))
    answer = push(store, table, 5, keys, np.full(len(keys), 7))
    assert answer.applied_shards == len(set(shards[~had].tolist()))
    assert answer.duplicate_shards == len(set(shards[had].tolist()))
    assert values(store, table, keys[had]) == [1] * int(had.sum())
    assert values(store, table, keys[~had]) == [7] * int((~had).sum())
    assert store.counters()["duplicates_changed"] == answer.duplicate_shards


@pytest.mark.parametrize("seed", range(8))
def test_steps_out_of_order_and_repeated_are_each_applied_once(seed: int) -> None:
    """G1: any order within the window, any number of repeats: each step counts once."""
    random = np.random.default_rng(seed)
    store, table = make()
    steps = 200
    waiting = list(range(steps))
    open_steps: list[int] = []
    done: set[int] = set()
    sent: list[int] = []
    while len(done) < steps:
        oldest = min(open_steps + waiting[:1]) if waiting or open_steps else 0
        while waiting and waiting[0] - oldest < 64 and len(open_steps) < 20:
            open_steps.append(waiting.pop(0))
        step = int(random.choice(open_steps))
        recent = [s for s in sent if s > step - 60]
        if recent and random.random() < 0.4:
            again = int(random.choice(recent))
            push(store, table, again, [3, 4], [again + 1, 1], oldest=min(oldest, again))
        push(store, table, step, [3, 4], [step + 1, 1], oldest=oldest)
        sent.append(step)
        if random.random() < 0.8:
            open_steps.remove(step)
            done.add(step)
    assert values(store, table, [3, 4]) == [steps * (steps + 1) // 2, steps], f"seed {seed}"


def test_a_step_outside_the_window_is_refused_and_moves_nothing() -> None:
    """OUT_OF_RANGE at 64 past the oldest open step; 2^63 and more are no steps; the window stays where it was."""
    store, table = make()
    with pytest.raises(_core.StatusError) as caught:
        push(store, table, 64, [1], [1], oldest=0)
    assert caught.value.args[0] == "OutOfRange"
    for step in (2**63, 2**64 - 1):
        with pytest.raises(_core.StatusError) as caught:
            push(store, table, step, [1], [1])
        assert caught.value.args[0] == "BadRequest"
    assert push(store, table, 63, [1], [1], oldest=0).applied_shards == 1
    assert push(store, table, 0, [1], [1], oldest=0).applied_shards == 1
    assert values(store, table, [1]) == [2]


def test_hello_says_where_to_go_on() -> None:
    """next_step is the lowest step not applied whole, with the cursor kept with the step before it."""
    store, table = make()
    push(store, table, 0, [1], [1], cursor=b"after 0")
    push(store, table, 1, [1], [1], cursor=b"after 1")
    push(store, table, 3, [1], [1], oldest=2, cursor=b"after 3")
    assert store.hello(*CLIENT, 2) == (2, b"after 1", 0)
    push(store, table, 2, [1], [1], incarnation=2, cursor=b"after 2")
    assert store.hello(*CLIENT, 3) == (4, b"after 3", 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 1, 2, 1, 0), (2, 0, 0, 1)])
def test_a_step_in_several_requests_counts_when_each_has_come(order: tuple[int, ...]) -> None:
    """In any order, and some of them again; until then the step is open for Hello, though shards have it."""
    store, table = make()
    push(store, table, 0, [9], [1])
    for piece in order[:-1]:
        push(store, table, 1, [piece], [1], piece=piece, pieces=3, cursor=b"whole")
        assert store.hello(*CLIENT, 1)[:2] == (1, b""), order
    push(store, table, 1, [order[-1]], [1], piece=order[-1], pieces=3, cursor=b"whole")
    assert store.hello(*CLIENT, 1)[:2] == (2, b"whole"), order
    assert values(store, table, [0, 1, 2]) == [1, 1, 1]


def test_g1_a_successor_that_cuts_the_step_otherwise_completes_it() -> None:
    """What its predecessor's requests had is in the shards' windows, and does not count as its own."""
    store, table = make()
    push(store, table, 0, [1], [1], piece=0, pieces=2)
    assert store.hello(*CLIENT, 2)[0] == 0
    push(store, table, 0, [2], [1], piece=1, pieces=2, incarnation=2)
    assert store.hello(*CLIENT, 2)[0] == 0
    push(store, table, 0, [1, 3], [1, 1], piece=0, pieces=2, incarnation=2)
    assert store.hello(*CLIENT, 2)[0] == 1
    assert values(store, table, [1, 2, 3]) == [1, 1, 1]


@pytest.mark.parametrize(("piece", "pieces"), [(1, 0), (2, 2), (0, 65), (2**32 - 1, 2)])
def test_a_piece_that_a_step_cannot_have_is_refused(piece: int, pieces: int) -> None:
    """Before anything of it is applied."""
    store, table = make()
    with pytest.raises(_core.StatusError, match=f"piece {piece} of {max(1, pieces)} of a step"):
        push(store, table, 0, [1], [1], piece=piece, pieces=pieces)
    assert values(store, table, [1]) == [0]


def test_an_older_incarnation_is_fenced() -> None:
    """G9: after a newer Hello the older process changes nothing, not even a mark."""
    store, table = make()
    push(store, table, 0, [1], [1])
    store.hello(*CLIENT, 2)
    with pytest.raises(_core.StatusError) as caught:
        push(store, table, 1, [1], [100])
    assert caught.value.args[0] == "Fenced"
    with pytest.raises(_core.StatusError) as caught:
        push(store, table, 1, [], [])
    assert caught.value.args[0] == "Fenced"
    with pytest.raises(_core.StatusError) as caught:
        store.hello(*CLIENT, 1)
    assert caught.value.args[0] == "Fenced"
    assert values(store, table, [1]) == [1]
    assert push(store, table, 1, [1], [5], incarnation=2).applied_shards == 1


def test_a_client_that_never_said_hello_is_told_so() -> None:
    """A push without a sender is a bad request; one of an unknown client says that the server was restarted."""
    store, table = make()
    request = messages.PushRequest(part=part(table, [1], [1]))
    with pytest.raises(_core.StatusError, match="Hello") as caught:
        store.handle_push(request.SerializeToString())
    assert caught.value.args[0] == "BadRequest"
    request.sender.CopyFrom(messages.Sender(client_high=1, client_low=2, incarnation=1))
    with pytest.raises(_core.StatusError) as caught:
        store.handle_push(request.SerializeToString())
    assert caught.value.args[0] == "ServerLost"


def test_another_epoch_or_shard_map_is_told() -> None:
    """A request of another epoch gets ServerLost with both; of another map version, WrongShard."""
    store, table = make(epoch=77)
    request = messages.PullRequest(sender=sender(epoch=76), part=part(table, [1]))
    with pytest.raises(_core.StatusError, match="77") as caught:
        store.handle_pull(request.SerializeToString())
    assert caught.value.args[0] == "ServerLost"
    request.sender.epoch, request.sender.shard_map_version = 77, 9
    with pytest.raises(_core.StatusError, match="version 1") as caught:
        store.handle_pull(request.SerializeToString())
    assert caught.value.args[0] == "WrongShard"
    owners = np.zeros(_core.SHARDS, np.uint16)
    owners[_core.shards_of(np.array([1], np.uint64))[0]] = 3
    store.set_shard_map(owners, 0, 9)
    with pytest.raises(_core.StatusError, match="is not this server's") as caught:
        store.handle_pull(request.SerializeToString())
    assert caught.value.args[0] == "WrongShard"


def step_request(table: int, **fields: Any) -> messages.StepRequest:
    """Of CLIENT."""
    return messages.StepRequest(sender=sender(), **fields)


def test_a_step_pushes_then_pulls_over_several_tables() -> None:
    """One request changes both tables, and its pulls see it."""
    store, table = make()
    other = store.create_table("u", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject")
    request = step_request(
        table,
        pushes=[part(table, [1], [5]), part(other, [1], [6])],
        pulls=[part(other, [1, 2]), part(table, [1])],
    )
    answer = messages.StepResponse.FromString(store.handle_step(request.SerializeToString()))
    assert [np.frombuffer(rows, np.int64).tolist() for rows in answer.pulled] == [[6, 0], [5]]


def test_a_request_with_one_bad_part_changes_nothing() -> None:
    """G2: a push is checked whole before its first row changes."""
    store, table = make()
    other = store.create_table("u", 2, "float32", "Add", {}, "Zeros", {}, 0, "Reject")
    bad = messages.Part(
        table_id=other,
        dim=2,
        keys=np.array([1], np.uint64).tobytes(),
        rows=np.array([1, np.nan], "f4").tobytes(),
    )
    request = step_request(table, pushes=[part(table, [1], [5]), bad])
    with pytest.raises(_core.StatusError) as caught:
        store.handle_step(request.SerializeToString())
    assert caught.value.args[0] == "NonFinite"
    assert store.counters()["rows"] == 0
    assert store.hello(*CLIENT, 1)[0] == 0


def test_one_table_is_pushed_to_once_a_step() -> None:
    """Two pushes to one table in a request are refused by the table's name."""
    store, table = make()
    request = step_request(table, pushes=[part(table, [1], [5]), part(table, [2], [5])])
    with pytest.raises(_core.StatusError, match="'t' is pushed to twice"):
        store.handle_step(request.SerializeToString())


def test_keys_that_repeat_on_the_wire_are_summed_by_the_server() -> None:
    """A client of another language need not merge repeats itself; deletes and assignments take them too."""
    store, table = make()
    push(store, table, 0, [5, 6, 5, 5], [1, 10, 2, 4])
    assert values(store, table, [5, 6]) == [7, 10]
    assign = step_request(table, step=1, pushes=[part(table, [5, 5], [100, 200], _core.ASSIGN)])
    store.handle_step(assign.SerializeToString())
    assert values(store, table, [5]) == [200]
    delete = step_request(table, step=2, pushes=[part(table, [5, 5], None, _core.DELETE)])
    store.handle_step(delete.SerializeToString())
    assert values(store, table, [5, 6]) == [0, 10]
    assert store.table_info(table)["rows"] == 1


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"table_id": 99}, "NotRegistered", "00000063"),
        ({"dim": 2}, "BadRequest", "dim 2"),
        ({"flags": 64}, "BadRequest", "flags 64"),
        ({"flags": _core.ASSIGN | _core.DELETE}, "BadRequest", "flags 12"),
        ({"keys": b"1234567"}, "BadRequest", "7 bytes of keys"),
        ({"rows": b"12345678" * 3}, "BadRequest", "24 bytes of rows for 1 keys"),
        ({"counts": b"1"}, "BadRequest", "counts"),
        ({"crc32c": 1}, "CorruptMessage", "CRC-32C"),
    ],
)
def test_a_part_that_cannot_be_is_refused(change: dict[str, Any], kind: str, words: str) -> None:
    """The error says the table, what was found and what was wanted; the step stays open."""
    store, table = make()
    good = part(table, [1], [1])
    for name, value in change.items():
        setattr(good, name, value)
    request = messages.PushRequest(sender=sender(), part=good)
    with pytest.raises(_core.StatusError) as caught:
        store.handle_push(request.SerializeToString())
    assert caught.value.args[0] == kind
    assert words in caught.value.args[1]
    assert store.counters()["rows"] == 0
    assert store.counters()["refused"] == 1


def test_limits_of_a_call_are_answered_before_memory_is_taken() -> None:
    """Too many keys, or an answer past the message limit, is ResourceExhausted; no row is made."""
    store = _core.Store(keys_max=10, message_bytes_max=4096)
    table = store.create_table("t", 1000, "float32", "Add", {}, "Zeros", {}, 0, "Reject")
    for keys in (range(11), range(2)):
        request = messages.PullRequest(part=part(table, list(keys), dim=1000))
        with pytest.raises(_core.StatusError) as caught:
            store.handle_pull(request.SerializeToString())
        assert caught.value.args[0] == "ResourceExhausted"
    assert store.counters()["rows"] == 0


def test_a_checksum_that_fits_is_accepted() -> None:
    """crc32c covers the keys, then the rows."""
    store, table = make()
    good = part(table, [1, 2], [3, 4])
    good.crc32c = _core.crc32c(good.keys + good.rows)
    store.handle_push(messages.PushRequest(sender=sender(), part=good).SerializeToString())
    assert values(store, table, [1, 2]) == [3, 4]


def test_fields_in_another_order_and_unknown_ones_are_read() -> None:
    """Any legal protobuf encoding is understood, as a generated reader would."""
    store, table = make()
    body = part(table, [1], [9]).SerializeToString()
    unknown = b"\x78\x01" + b"\x82\x01\x03abc" + b"\x89\x01" + b"8" * 8 + b"\x95\x01" + b"4444"
    message = (
        b"\x32"
        + bytes([len(body) + len(unknown)])
        + unknown
        + body
        + unknown
        + messages.PushRequest(sender=sender()).SerializeToString()
    )
    store.handle_push(message)
    assert values(store, table, [1]) == [9]


def kind_of_refusal(handle: Any, request: bytes) -> str | None:
    """The kind of error that a request gets, if it gets one."""
    try:
        handle(request)
    except _core.StatusError as error:
        return str(error.args[0])
    return None


@pytest.mark.parametrize("method", ["handle_pull", "handle_push", "handle_step"])
def test_bytes_that_are_no_message_are_refused(method: str) -> None:
    """Truncated, overlong and random bytes get BadRequest; the store goes on."""
    store, table = make()
    random = np.random.default_rng(5)
    request = messages.StepRequest(
        sender=sender(), step=1, oldest_step=1, cursor=b"c", pushes=[part(table, [1], [1])]
    )
    whole = request.SerializeToString()
    samples = [whole[:cut] for cut in range(1, len(whole))]
    samples += [random.bytes(int(n)) for n in random.integers(1, 200, 300)]
    samples += [
        b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a length of 2^63
        b"\x09" + b"\xff" * 3,  # a fixed64 cut off
        b"\x0b\x0c",  # a group
        b"\xff" * 11,  # an overlong varint
        b"\x00",  # field 0
        b"\x32\x0a\x2a\xff\xff\xff\xff\x0f" + b"x" * 3,  # keys that end past their part
    ]
    said = [kind_of_refusal(getattr(store, method), sample) for sample in samples]
    assert set(said) <= {None, "BadRequest", "NotRegistered", "ServerLost", "OutOfRange"}, "seed 5"
    assert said.count("BadRequest") > len(samples) / 2, "seed 5"
    assert push(store, table, 60, [1], [1]).applied_shards == 1


def test_the_native_reader_agrees_with_the_generated_one() -> None:
    """An answer written natively is what protobuf reads: epoch, map version, step, rows."""
    store, table = make(epoch=123)
    store.set_shard_map(np.zeros(_core.SHARDS, np.uint16), 0, 4)
    push(store, table, 0, [1], [-5])
    pulled = messages.PullResponse.FromString(
        store.handle_pull(messages.PullRequest(part=part(table, [1])).SerializeToString())
    )
    assert (pulled.epoch, pulled.shard_map_version) == (123, 4)
    assert np.frombuffer(pulled.rows, np.int64).tolist() == [-5]
    flags = _core.READ_ONLY | _core.CONTAINS
    found = messages.PullResponse.FromString(
        store.handle_pull(messages.PullRequest(part=part(table, [1, 2], flags=flags)).SerializeToString())
    )
    assert found.rows == b"\x01\x00"
