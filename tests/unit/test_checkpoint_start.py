"""From start to ready: who waits for whom, what a policy demands, what a restart finds."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_world import IDS, ITEM, JOB, USER, World, create, weights
from reference_checkpoint import ReferenceStore

from tablebay.client.errors import CheckpointFailed, CheckpointMismatch
from tablebay.client.routing import ShardMap
from tablebay.client.tables import TableSpec
from tablebay.ps_server.checkpoint.coordinator import Schedule
from tablebay.ps_server.durability import LATEST, NEVER, Durability, Settings

SERVERS = ["a:1", "b:1"]
MAP = ShardMap.even(2)


class Server:
    """One that is starting. tables: those that it was told of."""

    def __init__(self, root: Path, index: int, *, generation: int = 1, **settings: Any) -> None:
        self.store = ReferenceStore()
        self.index = index
        self.tables: list[str] = []
        self.durability = Durability(
            Settings(destination=str(root), schedule=Schedule(every_s=0.0), **{"first_s": 0.3, **settings}),
            servers=SERVERS,
            index=index,
            job=JOB,
            generation=generation,
            fenced=lambda: None,
            peers=World.cut,  # type: ignore[arg-type]
        )

    def _take(self, specs: Iterable[TableSpec]) -> None:
        self.tables += [spec.name for spec in specs]

    def restore(self) -> Server:
        self.durability.restore(self.store, MAP.shards_of(self.index), self._take)
        return self


def trained(root: Path) -> World:
    world = World(root)
    for key in range(1, 9):
        world.put("user", key, key, key)
    assert world.save() == ""
    world.end()
    return world


def test_others_wait_for_server_0_and_say_what_they_waited_for(tmp_path: Path) -> None:
    """A new job: server 0 makes checkpoint 0, and nobody else does."""
    late = Server(tmp_path, 1)
    with pytest.raises(CheckpointFailed, match=r"holds no checkpoint after 0\.3 s; server 0 makes the first"):
        late.restore()
    patient = Server(tmp_path, 1, first_s=20.0)
    thread = threading.Thread(target=patient.restore)
    thread.start()
    Server(tmp_path, 0).restore()
    thread.join(20)
    assert not thread.is_alive()
    assert patient.tables == []


def test_latest_brings_the_rows_back_and_required_wants_some(tmp_path: Path) -> None:
    """Each server those of its shards."""
    with pytest.raises(CheckpointFailed, match="holds no checkpoint, and one is required"):
        Server(tmp_path / "new", 0, restore_required=True).restore()
    world = trained(tmp_path / "d")
    for index in (0, 1):
        server = Server(tmp_path / "d", index, restore_from=LATEST, restore_required=True).restore()
        assert server.tables == ["user", "item"]
        assert server.store.content() == world.stores[index].content()
    assert server.durability.epoch == 2


def test_never_begins_anew_once_a_generation(tmp_path: Path) -> None:
    """Server 1 does not take the earlier generation's checkpoint for the first of this one."""
    trained(tmp_path)
    with pytest.raises(CheckpointFailed, match="server 0 makes the first"):
        Server(tmp_path, 1, generation=2, restore_from=NEVER).restore()
    assert Server(tmp_path, 0, generation=2, restore_from=NEVER).restore().tables == []
    assert Server(tmp_path, 1, generation=2, restore_from=NEVER).restore().tables == []
    again = Server(tmp_path, 0, generation=2, restore_from=NEVER).restore()
    assert again.tables == []
    assert again.durability._destination.numbers() == [0, 1, 2, 3]
    assert Server(tmp_path, 0, generation=3).restore().tables == []


def test_a_warm_start_reads_another_jobs_rows_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    """Once this job has one of its own, it is that one's rows that count."""
    trained(tmp_path / "source")
    settings = {"restore_from": str(tmp_path / "source")}
    server = Server(tmp_path / "d", 0, **settings).restore()
    assert server.tables == ["user", "item"]
    assert set(server.store.tables[IDS["user"]].rows) <= set(range(1, 9))
    with pytest.raises(CheckpointMismatch, match="wanted a directory of checkpoints"):
        (tmp_path / "empty").mkdir()
        Server(tmp_path / "d", 0, restore_from=str(tmp_path / "empty")).restore()
    world = World(tmp_path / "d")
    world.put("user", 100, 1, 1)
    assert world.save() == ""
    world.end()
    server = Server(tmp_path / "d", 0, **settings).restore()
    rows = {
        key
        for one in (server, Server(tmp_path / "d", 1).restore())
        for key in one.store.tables[IDS["user"]].rows
    }
    assert rows == {100}


def test_rows_of_another_checkpoint_come_while_serving(tmp_path: Path) -> None:
    """In a thread, asked for by a ticket; what became of it is said to each who asks."""
    from tablebay.client.proto import tablebay_pb2

    trained(tmp_path / "source")
    server = Server(tmp_path / "d", 0).restore()
    create(server.store, USER)
    create(server.store, ITEM)
    server.store.put(IDS["user"], 10_000, weights(1, 1))
    server.store.highest_step = lambda: 0  # type: ignore[attr-defined]
    server.durability.begin(server.store, MAP, lambda: [(USER, IDS["user"]), (ITEM, IDS["item"])])

    def ask(**fields: Any) -> tablebay_pb2.RestoreResponse:
        request = tablebay_pb2.RestoreRequest(source=str(tmp_path / "source"), optimizer_state=True, **fields)
        while True:
            answer = server.durability.restore_rows(request, server.store, MAP.shards_of(0), server._take)
            if answer.done:
                return answer

    answer = ask(ticket="1", tables=["user"])
    assert (answer.number, list(answer.tables)) == (1, ["user"])
    assert 10_000 not in server.store.tables[IDS["user"]].rows
    before = server.store.content()
    for _ in range(2):
        with pytest.raises(CheckpointFailed, match="no checkpoint 9"):
            ask(ticket="2", number=9)
    assert server.store.content() == before
