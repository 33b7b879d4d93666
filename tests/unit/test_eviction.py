"""Eviction where it is declared, swept by servers and by a table in this process, and counted."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

import tablebay as tb
from tablebay.client import strict_yaml
from tablebay.client.client import client_over
from tablebay.client.inprocess import InProcessTransport, services
from tablebay.client.job import parse_job
from tablebay.client.proto import tablebay_pb2
from tablebay.client.sweeper import Sweeper, sweep
from tablebay.client.tables import TableSpec, dump_tables, load_tables
from tablebay.native import _core
from tablebay.ps_server.metrics import registry

BEGAN = 1_000_000_000
KEYS = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_eviction_is_the_same_by_python_json_and_wire() -> None:
    """What is not said is not written, so that an older reader is none the wiser; numbers keep their types."""
    eviction = tb.Eviction(ttl_seconds=60, min_norm=0.5, grace_seconds=5, every_seconds=7)
    spec = TableSpec("t", 4, eviction=eviction)
    (found,) = load_tables(dump_tables([spec]))
    assert found == spec
    assert TableSpec.from_message(spec.message()) == spec
    assert '"eviction":{"ttlSeconds":60,"minNorm":0.5,"graceSeconds":5,"everySeconds":7}' in dump_tables(
        [spec]
    )
    assert "eviction" not in dump_tables([TableSpec("t", 4)])
    assert repr(eviction) == "Eviction(ttl_seconds=60, min_norm=0.5, grace_seconds=5, every_seconds=7)"
    assert repr(TableSpec.from_message(spec.message()).eviction) == repr(eviction)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {},
            "found no rule; wanted ttl_seconds, min_count, min_norm, max_rows, max_bytes, decay, min_score or",
        ),
        ({"ttl_seconds": -1}, "ttl_seconds is -1"),
        ({"ttl_seconds": 1.5}, "ttl_seconds is 1.5"),
        ({"min_count": 2}, "grace_seconds is 0, wanted more than 0"),
        ({"ttl_seconds": 2, "grace_seconds": 3}, "grace_seconds is 3"),
        ({"ttl_seconds": 2, "every_seconds": 0}, "every_seconds is 0"),
        ({"ttl_seconds": 2, "policy": "LFU"}, "policy is LFU, wanted max_rows or max_bytes"),
        ({"max_rows": 2, "policy": "Random"}, "policy is 'Random'"),
        ({"max_rows": 2, "grace_seconds": 3}, "grace_seconds is 3"),
        ({"max_bytes": -1}, "max_bytes is -1"),
        ({"min_score": 0.8}, "decay is 0.0, wanted more than 0, at most 1, with min_score"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"decay": 0.9, "click_weight": 2.0}, "found show_weight or click_weight, wanted min_score"),
        ({"ttl_seconds": 2, "decay_every_seconds": 60}, "decay_every_seconds is 60, wanted decay"),
        ({"ttl_seconds": 2, "events_kept": 2**30}, "events_kept is"),
        ({"max_weight": 2}, "max_weight"),
    ],
)
def test_an_eviction_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    """BadRequest by the field's name; a rule that is not there is an unknown field."""
    with pytest.raises(tb.BadRequest, match=words):
        tb.Eviction(**given)


def job(table: dict[str, Any], defaults: dict[str, Any] | None = None) -> Any:
    """A job file with one table."""
    spec = {
        "tables": [{"name": "t", "dim": 4, **table}],
        "servers": {"replicas": 1},
        "workers": {
            "replicas": 1,
            "template": {"spec": {"containers": [{"name": "worker", "image": "none", "command": ["true"]}]}},
        },
        **({"tableDefaults": defaults} if defaults else {}),
    }
    return parse_job(
        {
            "apiVersion": "tablebay.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "j"},
            "spec": spec,
        }
    )


def test_a_job_file_declares_it() -> None:
    """In the table, or in tableDefaults for all of them, whole; what cannot be is said by its path."""
    found = job({}, {"eviction": {"ttlSeconds": 3600}}).spec.tables[0]
    assert found.eviction == tb.Eviction(ttl_seconds=3600)
    found = job(
        {"eviction": {"minCount": 2, "graceSeconds": 60}}, {"eviction": {"ttlSeconds": 1}}
    ).spec.tables[0]
    assert found.eviction == tb.Eviction(min_count=2, grace_seconds=60)
    for eviction, words in (
        ({"maxWeight": 5}, r"tables\[0\]\.eviction\.maxWeight"),
        ({"ttlSeconds": 5, "policy": "LFU"}, "policy is LFU, wanted maxRows or maxBytes with it"),
        ({"minCount": 2}, "graceSeconds is 0, wanted more than 0 with minCount"),
        ({"ttlSeconds": "1h"}, r"tables\[0\]\.eviction\.ttlSeconds"),
    ):
        with pytest.raises(tb.JobInvalid, match=words):
            job({"eviction": eviction})
    with pytest.raises(tb.JobInvalid, match="dtype is int64 beside"):
        job({"dtype": "int64", "eviction": {"minNorm": 0.1, "graceSeconds": 1}})


def test_a_table_in_this_process_evicts() -> None:
    """`evict()` says how many rows left; without eviction it is refused."""
    table = tb.Table(2, name="t", eviction=tb.Eviction(ttl_seconds=10))
    table._store.set_now(BEGAN)
    table.pull(KEYS)
    table._store.set_now(BEGAN + 9)
    table.push(KEYS[:100], np.zeros((100, 2), np.float32))
    assert table.evict() == 0
    table._store.set_now(BEGAN + 10)
    assert table.evict() == 900
    assert table.contains(KEYS).tolist() == [True] * 100 + [False] * 900
    with pytest.raises(tb.BadRequest, match="table 'u' has no eviction"):
        tb.Table(2, name="u").evict()


def test_servers_evict_on_request_and_count_it() -> None:
    """A client's evict() goes to each server; /metrics has the rows by table and reason."""
    found = services(3)
    with client_over(InProcessTransport(found)) as client:
        table = client.table("t", dim=2, eviction=tb.Eviction(ttl_seconds=10, min_count=1, grace_seconds=5))
        for service in found:
            service._store.set_now(BEGAN)
        table.push(KEYS[:600], np.zeros((600, 2), np.float32))
        table.pull(KEYS)
        for service in found:
            service._store.set_now(BEGAN + 5)
        assert table.evict() == 400
        assert len(table) == 600
        for service in found:
            service._store.set_now(BEGAN + 10)
        assert table.evict() == 600
        with pytest.raises(tb.BadRequest, match="has no eviction"):
            client.table("u", dim=2).evict()
    total = {"ttl": 0.0, "count": 0.0}
    for service in found:
        page = generate_latest(registry(service.snapshot)).decode()
        for reason in total:
            (line,) = [
                line
                for line in page.splitlines()
                if f'evicted_rows_total{{reason="{reason}",table="t"}}' in line
            ]
            total[reason] += float(line.split()[-1])
        assert 'evicted_rows_total{reason="ttl",table="u"}' not in page
    assert total == {"ttl": 600, "count": 400}


def test_an_existing_table_must_agree() -> None:
    """TableMismatch names both evictions; without the argument it is opened as it is."""
    with tb.local(servers=1) as client:
        client.table("t", dim=2, eviction=tb.Eviction(ttl_seconds=10))
        with pytest.raises(
            tb.TableMismatch, match=r"eviction: found Eviction\(ttl_seconds=10\), wanted .*=20"
        ):
            client.table("t", eviction=tb.Eviction(ttl_seconds=20))


def test_a_server_that_does_not_know_eviction_is_told_from_one_that_does() -> None:
    """It leaves the field out of its answer, and the client says so rather than going on."""

    class Older(InProcessTransport):
        def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Any:
            if method == "CreateTable":
                message = tablebay_pb2.CreateTableRequest.FromString(request)
                message.spec.ClearField("eviction")
                request = message.SerializeToString()
            return super().call(server, method, request, timeout, wait)

    with (
        client_over(Older(services(1))) as client,
        pytest.raises(tb.TableMismatch, match=r"eviction: found None, wanted Eviction.*older version"),
    ):
        client.table("t", dim=2, eviction=tb.Eviction(ttl_seconds=10))


def store_of(rules: dict[str, float]) -> tuple[Any, int]:
    """A store with 1,000 rows of BEGAN."""
    store = _core.Store()
    table = store.create_table(
        "t", 1, "int64", "Add", {}, "Zeros", {}, 0, "Reject", "Create", 1, 1.0, 0, rules
    )
    store.set_now(BEGAN)
    store.push(table, KEYS, np.ones((1000, 1), np.int64))
    return store, table


def test_a_sweeper_sweeps_each_table_as_often_as_it_says() -> None:
    """First after one period; what it evicted is told, a sweep that found nothing is not."""
    store, table = store_of({"ttl_seconds": 10.0})
    clock, told = Clock(), []
    sweeper = Sweeper(store, clock=clock, told=lambda *heard: told.append(heard), thread=False)
    assert sweeper.sweep_due() is None
    sweeper.add("t", table, 30)
    store.set_now(BEGAN + 10)
    clock.now += 29
    assert sweeper.sweep_due() == 1.0
    assert store.table_info(table)["rows"] == 1000
    clock.now += 1
    assert sweeper.sweep_due() == 30.0
    assert told == [("t", 1000, None)]
    clock.now += 30
    assert sweeper.sweep_due() == 30.0
    assert told == [("t", 1000, None)]


def test_a_sweep_stops_where_it_is_told_to() -> None:
    """Between two turns; what is left is swept by another."""
    store, table = store_of({"ttl_seconds": 10.0})
    store.set_now(BEGAN + 10)
    assert sweep(store, table, lambda: False) == (0, 0)
    assert sweep(store, table) == (1000, 1000)


def until(true: Any, what: str) -> None:
    """Wait for another thread."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_rows_leave_in_the_background() -> None:
    """Without a call: of a table in this process, and of a server; the thread ends with what it sweeps."""
    table = tb.Table(2, name="t", eviction=tb.Eviction(ttl_seconds=1, every_seconds=1))
    table._store.set_now(BEGAN)
    table.pull(KEYS)
    (service,) = found = services(1)
    with client_over(InProcessTransport(found)) as client:
        remote = client.table("t", dim=2, eviction=tb.Eviction(ttl_seconds=1, every_seconds=1))
        service._store.set_now(BEGAN)
        remote.pull(KEYS)
        assert len(table) == len(remote) == 1000
        for store in (table._store, service._store):
            store.set_now(BEGAN + 1)
        until(lambda: len(table) == len(remote) == 0, "rows stay")


def test_the_thread_ends_with_the_table_that_it_sweeps() -> None:
    """A table that nobody has any more is not kept by it."""
    others = set(threading.enumerate())
    table = tb.Table(2, eviction=tb.Eviction(ttl_seconds=1))
    (thread,) = set(threading.enumerate()) - others
    gone = weakref.ref(table)
    del table
    gc.collect()
    assert gone() is None
    thread.join(30)
    assert not thread.is_alive()


def test_the_example_in_the_docs_is_a_job() -> None:
    """docs/eviction.md shows a table of a job file that loads."""
    page = (Path(__file__).parents[2] / "docs" / "eviction.md").read_text()
    shown = page.split("```yaml\n")[1].split("```")[0]
    (table,) = strict_yaml.parse(shown).value["tables"]
    assert job(table).spec.tables[0].eviction is not None
