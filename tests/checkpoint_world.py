"""A job's servers around one destination, with the product's coordinator and participants and reference stores."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from reference_checkpoint import Client, ReferenceStore, shard_of

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.restore import Restored, restore_newest
from tablebay.client.checkpoint.storage import LocalStorage, System
from tablebay.client.proto import tablebay_pb2
from tablebay.client.routing import ShardMap
from tablebay.client.tables import SGD, Adagrad, TableSpec, Zeros
from tablebay.native import _core
from tablebay.ps_server.checkpoint.coordinator import Coordinator, Schedule
from tablebay.ps_server.checkpoint.participant import Participant
from tablebay.ps_server.checkpoint.save import CutFiles, write_cut

JOB = "toy"
USER = TableSpec(name="user", dim=2, optimizer=Adagrad(0.05), initializer=Zeros())
ITEM = TableSpec(name="item", dim=3, optimizer=SGD(0.1), initializer=Zeros())
IDS = {spec.name: _core.table_id(spec.name) for spec in (USER, ITEM)}


def weights(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def create(store: Any, spec: TableSpec) -> int:
    return store.create_table(
        spec.name,
        spec.dim,
        spec.dtype,
        spec.optimizer.type,
        spec.optimizer.parameters(),
        spec.initializer.type,
        spec.initializer.parameters(),
        spec.seed,
        spec.non_finite,
    )


class World:
    """One life of all servers. Its restores are done when it is made.

    errors: of attempts, as the coordinator says them. fenced: whether another life took over.
    """

    def __init__(
        self,
        root: Path,
        *,
        servers: int = 2,
        system: System | None = None,
        generation: int = 1,
        anew: bool = False,
        full_every: int = 3,
        retain_last: int = 100,
    ) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.servers = servers
        self.map = ShardMap.even(servers)
        self.fenced = False
        storage = LocalStorage(root, system)
        self.destination = Destination(storage, job=JOB)
        self.epochs = [self.destination.take_epoch(index) for index in range(servers)]
        claimed = self.destination.claim(
            epoch=self.epochs[0], servers=servers, job=JOB, generation=generation, anew=anew
        )
        self.stores = [ReferenceStore() for _ in range(servers)]
        self.restored = [self.restore(index) for index in range(servers)]
        if not self.restored[0].specs:
            for store in self.stores:
                create(store, USER)
                create(store, ITEM)
        self.participants = [
            Participant(
                self.stores[index],
                index=index,
                epoch=self.epochs[index],
                owners=self.map.shards_of(index),
                write=self._writer(index),
                full_every=full_every,
                chain=self.restored[index].chain,
            )
            for index in range(servers)
        ]
        self.coordinator = Coordinator(
            self.destination,
            self,
            epoch=self.epochs[0],
            servers=servers,
            job=JOB,
            generation=generation,
            schedule=Schedule(every_s=0.0, retain_last=retain_last),
            newest=self.restored[0].manifest,
            number=claimed,
            steps=lambda: 0,
            fenced=self._fence,
        )
        threading.Thread(target=self.coordinator.run, daemon=True).start()

    def _fence(self) -> None:
        self.fenced = True

    def restore(self, index: int, store: Any = None) -> Restored:
        return restore_newest(
            self.stores[index] if store is None else store,
            self.destination,
            index=index,
            servers=self.servers,
            owners=self.map.shards_of(index),
            job=JOB,
        )

    def _writer(self, index: int) -> Any:
        def write(cut: Any, number: int, attempt: str, parent: int | None) -> CutFiles:
            return write_cut(
                cut,
                self.destination,
                attempt,
                number=number,
                index=index,
                epoch=self.epochs[index],
                parent=parent,
                specs=[(USER, IDS["user"]), (ITEM, IDS["item"])],
            )

        return write

    def cut(self, request: tablebay_pb2.CutRequest, timeout_s: float) -> list[tablebay_pb2.CutResponse]:
        """As Peers."""
        return [one.handle(request) for one in self.participants]

    def begin_at_coordinator(self, timeout_s: float) -> None:
        raise AssertionError("not called here")

    # -- what tests do --

    def put(self, name: str, key: int, *values: float) -> None:
        store = self.stores[int(self.map.owners[shard_of(key)])]
        store.put(IDS[name], key, weights(*values), version=store.pushes + 1, slots=weights(0.5, 0.25))

    def delete(self, name: str, key: int) -> None:
        self.stores[int(self.map.owners[shard_of(key)])].delete(IDS[name], key)

    def push(self, client: Client) -> None:
        for store in self.stores:
            store.clients[(client.high, client.low)] = client

    def save(self, *, full: bool = False, state: Any = None) -> str:
        """Have a checkpoint made; why it was not, or ""."""
        rank = None if state is None else 0
        ticket = self.coordinator.ask(full=full, state=state, rank=rank)
        assert self.coordinator.wait(ticket, 60)
        standing = self.coordinator.describe()
        return standing.last_error if standing.last_error_ticket == ticket else ""

    def contents(self) -> list[Any]:
        return [store.content() for store in self.stores]

    def end(self) -> None:
        self.coordinator.end()


def read_all(
    root: Path, servers: int = 2, owners: ShardMap | None = None
) -> tuple[list[Any], list[Restored]]:
    """What each of so many servers would restore: contents, and what was said. Nothing is written."""
    destination = Destination.open_source(str(root))
    shards = ShardMap.even(servers) if owners is None else owners
    contents, restored = [], []
    for index in range(servers):
        store = ReferenceStore()
        restored.append(
            restore_newest(
                store, destination, index=index, servers=servers, owners=shards.shards_of(index), job=JOB
            )
        )
        contents.append(store.content())
    return contents, restored
