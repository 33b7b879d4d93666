"""Shows and clicks: counted with pushes, fading by the day, the score by which rows leave; against a dictionary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.client import client_over
from tablebay.client.inprocess import InProcessTransport, services
from tablebay.client.job import parse_job
from tablebay.client.proto import tablebay_pb2
from tablebay.client.tables import TableSpec
from tablebay.native import _core
from tests.unit.checkpoint_blocks import parse, whole

BEGAN = 1_000_000_000
DIM = 2
RULES = tb.Eviction(decay=0.5, min_score=1.0, max_unseen_days=3)
PLACES = ("in this process", "on servers")


@pytest.fixture(params=PLACES)
def table(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A table that counts shows, here or on three servers."""
    options: dict[str, Any] = {"optimizer": tb.SGD(1.0), "initializer": tb.Zeros(), "eviction": RULES}
    if request.param == PLACES[0]:
        yield tb.Table(DIM, name="t", **options)
        return
    with client_over(InProcessTransport(services(3))) as client:
        yield client.table("t", DIM, **options)


class Counted:
    """What the definition has of a row."""

    def __init__(self) -> None:
        self.shows = self.clicks = 0.0
        self.unseen = 0


def test_random_pushes_and_days_count_what_a_dictionary_says(table: Any) -> None:
    """Shows and clicks of repeats are summed; days fade all rows; those leave that a day left with too low a score."""
    seed = 5
    choose = np.random.default_rng(seed)
    rows: dict[int, Counted] = {}
    epoch, left, reasons = 0, 0, set()
    everyone = np.arange(500, dtype=np.uint64)
    for _ in range(60):
        keys = choose.integers(0, 500, int(choose.integers(1, 80))).astype(np.uint64)
        what = choose.integers(0, 6)
        if what < 2:
            counts = choose.integers(0, 5, (len(keys), 2)).astype(np.float32)
            table.push(keys, np.ones((len(keys), DIM), np.float32), counts)
            for key, (shows, clicks) in zip(keys.tolist(), counts.tolist(), strict=True):
                row = rows.setdefault(key, Counted())
                row.shows, row.clicks, row.unseen = row.shows + shows, row.clicks + clicks, 0
        elif what == 2:
            table.push(keys, np.ones((len(keys), DIM), np.float32))
            for key in set(keys.tolist()):
                row = rows.setdefault(key, Counted())
                row.shows, row.unseen = row.shows + 1, 0
        elif what == 3:
            table.assign(keys, np.ones((len(keys), DIM), np.float32))
            for key in set(keys.tolist()):
                rows.setdefault(key, Counted()).unseen = 0
        elif what == 4:
            days = int(choose.integers(1, 3)) if epoch else 1
            epoch += days
            assert table.decay(epoch)
            assert not table.decay(epoch), "a call that is made again changes nothing"
            assert not table.decay(max(1, epoch - 1))
            for row in rows.values():
                row.shows, row.clicks = row.shows * 0.5**days, row.clicks * 0.5**days
                row.unseen += days
        else:
            gone = {
                key: "unseen" if row.unseen > 3 else "score"
                for key, row in rows.items()
                if row.unseen > 3 or (row.unseen and (row.shows - row.clicks) * 0.1 + row.clicks < 1)
            }
            assert table.evict() == len(gone), f"seed {seed}"
            left += len(gone)
            reasons |= set(gone.values())
            for key in gone:
                del rows[key]
            assert len(table) == len(rows), f"seed {seed}"
        wanted = [
            [rows[key].shows, rows[key].clicks] if key in rows else [0.0, 0.0] for key in everyone.tolist()
        ]
        np.testing.assert_allclose(table.shows(everyone), wanted, rtol=1e-6, err_msg=f"seed {seed}")
        assert table.contains(everyone).tolist() == [key in rows for key in everyone.tolist()], f"seed {seed}"
    assert left > 100
    assert reasons == {"unseen", "score"}
    assert set(table.evictions().reasons) == reasons


def test_cvm_columns_are_those_that_are_said(table: Any) -> None:
    """Rows, then shows and ln(clicks + 1) - ln(shows + 1), in the keys' shape; zeros for a key without a row."""
    keys = np.array([[1, 2], [2, 3]], np.uint64)
    table.push(
        np.array([1, 2], np.uint64),
        np.full((2, DIM), -1.0, np.float32),
        np.array([[10.0, 3.0], [2.0, 0.0]], np.float32),
    )
    found = table.pull_cvm(keys, create=False)
    assert found.shape == (2, 2, DIM + 2)
    one = [1.0, 1.0, 10.0, math.log(4) - math.log(11)]
    two = [1.0, 1.0, 2.0, math.log(1) - math.log(3)]
    np.testing.assert_allclose(found, [[one, two], [two, [0.0] * 4]], rtol=1e-6)
    assert len(table) == 2, "create=False makes no row"
    table.decay(7)
    np.testing.assert_allclose(table.pull_cvm(keys)[0, 0, 2:], [5.0, math.log(2.5) - math.log(6)], rtol=1e-6)


def test_a_new_row_does_not_leave_before_a_day_has_ended(table: Any) -> None:
    """However low its score: it is judged by days that ended since it was seen."""
    keys = np.arange(100, dtype=np.uint64)
    table.decay(10)
    table.push(keys, np.zeros((100, DIM), np.float32))
    assert table.evict() == 0
    table.decay(11)
    table.push(keys[:40], np.zeros((40, DIM), np.float32), np.full((40, 2), 9.0, np.float32))
    assert table.evict() == 60


def test_what_cannot_be_is_refused(table: Any) -> None:
    """Counts of another shape, type or sign; a table that counts none; an epoch that is none."""
    keys, rows = np.arange(3, dtype=np.uint64), np.zeros((3, DIM), np.float32)
    for counts, error, words in (
        (np.zeros((3, 3), np.float32), tb.BadRequest, r"counts: .*\(3, 3\).*\(3, 2\)"),
        (np.zeros((3, 2), np.int64), tb.BadType, "counts: .*int64"),
        (np.full((3, 2), -1.0, np.float32), tb.BadRequest, r"counts at position 0 are \[-1.0, -1.0\]"),
        (np.full((3, 2), np.nan, np.float32), tb.BadRequest, "counts at position 0"),
    ):
        with pytest.raises(error, match=words):
            table.push(keys, rows, counts)
    assert len(table) == 0
    for epoch, kind in (
        (0, tb.BadRequest),
        (2**31 + 1, tb.BadRequest),
        (1.5, tb.BadType),
        (True, tb.BadType),
    ):
        with pytest.raises(kind, match="epoch"):
            table.decay(epoch)
    plain = tb.Table(DIM, name="u", eviction=tb.Eviction(ttl_seconds=9))
    for call in (
        lambda: plain.push(keys, rows, np.ones((3, 2), np.float32)),
        lambda: plain.shows(keys),
        lambda: plain.pull_cvm(keys),
        lambda: plain.decay(3),
    ):
        with pytest.raises(tb.BadRequest, match="table 'u' counts no shows and clicks"):
            call()
    with pytest.raises(tb.BadRequest, match="dtype is int64, wanted float32 with CVM columns"):
        tb.Table(DIM, name="w", dtype="int64", eviction=tb.Eviction(decay=0.9)).pull_cvm(keys)
    clocked = tb.Table(DIM, name="v", eviction=tb.Eviction(decay=0.9, decay_every_seconds=60))
    with pytest.raises(tb.BadRequest, match="its days end by the clock, every 60 s"):
        clocked.decay(3)


def test_the_core_refuses_counts_that_are_wrong() -> None:
    """From whatever client: too few, below 0, with an assignment, for a table that counts none."""
    store = _core.Store()
    spec = TableSpec("t", DIM, eviction=tb.Eviction(decay=0.9))
    with pytest.raises(_core.StatusError, match="NotRegistered"):
        store.push(
            store.create_table(*spec.arguments()), np.zeros(1, np.uint64), np.zeros((1, DIM), np.float32)
        )
    store = _core.Store()
    for companion in spec.companions():
        store.create_table(*companion.arguments())
    table = store.create_table(*spec.arguments())
    keys, rows = np.arange(2, dtype=np.uint64), np.zeros((2, DIM), np.float32)
    for counts, words in (
        (np.zeros((1, 2), np.float32), "8 bytes of counts for 2 keys, wanted 8 for each"),
        (np.array([[1.0, 1.0], [0.0, -2.0]], np.float32), "position 1 has 0 shows and -2 clicks"),
        (np.array([[1.0, np.inf], [0.0, 0.0]], np.float32), "position 0 has 1 shows and inf clicks"),
    ):
        with pytest.raises(_core.StatusError, match=words):
            store.push(table, keys, rows, False, counts)
    assert store.table_info(table)["rows"] == 0
    with pytest.raises(_core.StatusError, match="decay is 0, wanted more than 0"):
        _core.Store().create_table(*spec.arguments()[:-1], {"min_score": 0.8})


def test_counts_and_days_are_in_the_checkpoint_of_their_rows() -> None:
    """Saved in the middle and loaded elsewhere, pushes, days and sweeps go on as if never interrupted, bit for bit."""
    seed = 9
    spec = TableSpec("t", DIM, optimizer=tb.SGD(1.0), initializer=tb.Zeros(), eviction=RULES)
    (days_spec,) = spec.companions()

    def made() -> tuple[Any, int, int]:
        store = _core.Store()
        return store, store.create_table(*days_spec.arguments()), store.create_table(*spec.arguments())

    def go_on(store: Any, table: int, first: int, last: int) -> None:
        for step in range(first, last):
            choose = np.random.default_rng(seed * 1000 + step)
            keys = choose.integers(0, 300, 40).astype(np.uint64)
            counts = choose.random((40, 2)).astype(np.float32)
            store.push(table, keys, np.ones((40, DIM), np.float32), False, counts)
            if step % 4 == 3:
                store.decay(table, 100 + step // 4)
                for stripe in range(64):
                    store.evict(table, stripe, 0.0)

    alone, days, table = made()
    go_on(alone, table, 0, 40)
    first, _, _ = made()
    go_on(first, table, 0, 21)
    cut = first.take([], 0.0, True)
    files = {one: whole(cut, one) for one in (days, table)}
    second = _core.Store(epoch=2)
    loader = second.load(list(range(1024)))
    for one in (days_spec, spec):
        loader.create_table(*one.arguments())
    for one, content in files.items():
        loader.begin(one, None, False).feed(content)
    loader.finish()
    go_on(second, table, 21, 40)
    keys = np.arange(300, dtype=np.uint64)
    for read in (lambda store: store.shows(table, keys), lambda store: store.contains(table, keys)):
        assert np.asarray(read(alone)).tobytes() == np.asarray(read(second)).tobytes(), f"seed {seed}"
    assert alone.table_info(table)["evicted"]["score"] > 20


def test_a_row_lies_in_a_file_as_the_format_says() -> None:
    """Behind the weights: shows and clicks, float32, and the day until which they have faded, u32."""
    spec = TableSpec("t", DIM, optimizer=tb.SGD(1.0), initializer=tb.Zeros(), eviction=tb.Eviction(decay=0.5))
    store = _core.Store()
    for companion in spec.companions():
        store.create_table(*companion.arguments())
    table = store.create_table(*spec.arguments())
    store.decay(table, 20)
    store.decay(table, 22)
    store.push(
        table,
        np.array([7], np.uint64),
        np.array([[-1.0, -2.0]], np.float32),
        False,
        np.array([[3.0, 1.0]], np.float32),
    )
    cut = store.take([], 0.0, True)
    layout = dict(cut.tables)[table]
    (row,) = parse(whole(cut, table), layout[0]).rows
    assert layout[0] == len(row) == 32
    assert np.frombuffer(row[:8], "<u8")[0] == 7
    assert np.frombuffer(row[12:28], "<f4").tolist() == [1.0, 2.0, 3.0, 1.0]
    assert np.frombuffer(row[28:32], "<u4")[0] == 4, (
        "three days have ended: one by the first epoch, two by the next"
    )
    days = _core.table_id("t--days")
    rows = np.empty((1024, 2), np.int64)
    store.pull(days, _core.shard_keys(), rows, False)
    assert (rows == [22, 3]).all()
    assert sorted(_core.shards_of(_core.shard_keys()).tolist()) == list(range(1024))


def test_another_clients_messages_carry_counts() -> None:
    """As the .proto says: keys may repeat, the checksum goes over counts, one sent again is not counted again."""
    spec = TableSpec("t", DIM, optimizer=tb.SGD(1.0), initializer=tb.Zeros(), eviction=tb.Eviction(decay=0.5))
    store = _core.Store()
    for companion in spec.companions():
        store.create_table(*companion.arguments())
    table = store.create_table(*spec.arguments())
    store.hello(1, 2, 1)
    keys = np.array([7, 8, 7], "<u8").tobytes()
    rows = np.zeros((3, DIM), "<f4").tobytes()
    counts = np.array([[1, 0], [5, 2], [2, 1]], "<f4").tobytes()
    request = tablebay_pb2.PushRequest(
        sender=tablebay_pb2.Sender(client_high=1, client_low=2, incarnation=1),
        part=tablebay_pb2.Part(
            table_id=table,
            dim=DIM,
            keys=keys,
            rows=rows,
            counts=counts,
            crc32c=_core.crc32c(keys + rows + counts),
        ),
    )
    for applied in (True, False):
        answer = tablebay_pb2.PushResponse.FromString(store.handle_push(request.SerializeToString()))
        assert bool(answer.applied_shards) is applied
        pull = tablebay_pb2.PullRequest(
            part=tablebay_pb2.Part(table_id=table, dim=DIM, flags=_core.SHOWS, keys=keys)
        )
        shows = tablebay_pb2.PullResponse.FromString(store.handle_pull(pull.SerializeToString())).rows
        assert np.frombuffer(shows, "<f4").tolist() == [3.0, 1.0, 5.0, 2.0, 3.0, 1.0]
    assert store.counters()["duplicates_changed"] == 0
    request.part.counts = counts[:-1] + b"\x00"
    with pytest.raises(_core.StatusError, match="CorruptMessage"):
        store.handle_push(request.SerializeToString())
    request.part.crc32c = _core.crc32c(keys + rows + request.part.counts)
    store.handle_push(request.SerializeToString())
    assert store.counters()["duplicates_changed"] > 0, "sent again with other counts"


def test_epochs_in_any_order_end_each_day_once() -> None:
    """Whoever pushes them, and however late: what counts is the highest that has come; two servers' days agree."""
    seed = 1
    spec = TableSpec("t", DIM, eviction=tb.Eviction(decay=0.5))
    days = []
    for order in range(2):
        store = _core.Store()
        for companion in spec.companions():
            store.create_table(*companion.arguments())
        table = store.create_table(*spec.arguments())
        store.decay(table, 100)
        key = np.array([3], np.uint64)
        store.push(table, key, np.zeros((1, DIM), np.float32), False, np.array([[64.0, 64.0]], np.float32))
        for epoch in np.random.default_rng(seed + order).permutation(6).tolist() * 2:
            rows = np.zeros((1024, 2), np.int64)
            rows[:, 0] = 100 + epoch
            store.push(_core.table_id("t--days"), _core.shard_keys(), rows)
        assert store.shows(table, key).tolist() == [[2.0, 2.0]], f"seed {seed + order}"
        out = np.empty((1024, 2), np.int64)
        store.pull(_core.table_id("t--days"), _core.shard_keys(), out, False)
        days.append(out.tobytes())
    assert days[0] == days[1]


def test_days_end_by_the_clock() -> None:
    """With decay_every_seconds a sweeper ends them before it sweeps, as many as have passed."""
    from tablebay.client.sweeper import Sweeper

    spec = TableSpec("t", DIM, eviction=tb.Eviction(decay=0.5, decay_every_seconds=100, every_seconds=30))
    store = _core.Store()
    for companion in spec.companions():
        store.create_table(*companion.arguments())
    table = store.create_table(*spec.arguments())
    store.set_now(BEGAN)
    now = [0.0]
    sweeper = Sweeper(store, clock=lambda: now[0], thread=False)
    sweeper.add("t", table, 30, 100)
    keys = np.arange(4, dtype=np.uint64)
    now[0] += 30
    sweeper.sweep_due()
    store.push(table, keys, np.zeros((4, DIM), np.float32), False, np.full((4, 2), 8.0, np.float32))
    for seconds, shows in ((99, 8.0), (100, 4.0), (199, 4.0), (400, 0.5)):
        store.set_now(BEGAN + seconds)
        now[0] += 30
        sweeper.sweep_due()
        assert (store.shows(table, keys) == shows).all(), seconds


def test_a_step_carries_counts_and_the_job_file_has_the_names() -> None:
    """`step.push({table: (keys, gradients, counts)})`; camelCase in YAML, snake_case in Python and on the wire."""
    keys, rows = np.array([4, 4, 9], np.uint64), np.zeros((3, DIM), np.float32)
    with client_over(InProcessTransport(services(2))) as client:
        table = client.table("t", DIM, eviction=RULES)
        with client.step() as step:
            step.push({table: (keys, rows, np.array([[1, 0], [2, 1], [5, 5]], np.float32))})
        assert table.shows(np.array([4, 9, 1], np.uint64)).tolist() == [[3.0, 1.0], [5.0, 5.0], [0.0, 0.0]]
        assert client.table("t").spec.eviction == RULES
        future = client.prefetch({table: keys})
        table.push(keys[1:], rows[1:] - 1, np.ones((2, 2), np.float32))
        (pulled,) = future.result()
        np.testing.assert_array_equal(
            pulled, table.pull(keys), err_msg="what was pushed with counts is in it"
        )
    spec = TableSpec(
        "t", DIM, eviction=tb.Eviction(decay=1.0, min_score=2.0, show_weight=0.2, click_weight=3.0)
    )
    assert TableSpec.from_message(spec.message()) == spec
    found = parse_job(
        {
            "apiVersion": "tablebay.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "j"},
            "spec": {
                "tables": [
                    {
                        "name": "t",
                        "dim": 4,
                        "eviction": {
                            "decay": 0.98,
                            "minScore": 0.8,
                            "showWeight": 0.2,
                            "clickWeight": 2.0,
                            "maxUnseenDays": 30,
                            "decayEverySeconds": 86400,
                        },
                    }
                ],
                "servers": {"replicas": 1},
                "workers": {
                    "replicas": 1,
                    "template": {
                        "spec": {"containers": [{"name": "worker", "image": "none", "command": ["true"]}]}
                    },
                },
            },
        }
    )
    assert found.spec.tables[0].eviction == tb.Eviction(
        decay=0.98,
        min_score=0.8,
        show_weight=0.2,
        click_weight=2.0,
        max_unseen_days=30,
        decay_every_seconds=86400,
    )
    assert "decayEverySeconds" in (Path(__file__).parents[2] / "docs" / "eviction.md").read_text()
