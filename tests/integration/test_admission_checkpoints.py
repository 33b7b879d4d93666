"""Admission and schedules on real servers, through a checkpoint and another number of servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from faults.servers import Servers

import tablebay as tb

NEVER = ("--checkpoint-every-seconds", "3600")
DIM = 4
KEYS = np.arange(400, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
SEED = 6


def tables(client: Any) -> tuple[Any, Any]:
    """One that admits at the third push, with a schedule and a row-wise slot, and one that begins with no state."""
    optimizer = tb.RowwiseAdagrad(0.1, clip_norm=1.0, schedule="Cosine", schedule_steps=30, warmup_steps=5)
    users = client.table("users", dim=DIM, optimizer=optimizer, initializer=tb.Xavier(), admit_at=3)
    items = client.table("items", dim=DIM, optimizer=tb.FTRL(l1=0.1), push_missing="Drop")
    return users, items


def train(client: Any, first: int, last: int) -> None:
    """Steps, each a function of its number."""
    users, items = tables(client)
    for number in range(first, last):
        random = np.random.default_rng([SEED, number])
        keys = random.choice(KEYS, 60, replace=False)
        with client.step() as step:
            assert step.number == number
            step.pull({users: keys, items: keys[:20]})
            gradients = random.normal(size=(60, DIM)).astype(np.float32)
            step.push({users: (keys, gradients), items: (keys[10:40], gradients[:30])})


def content(client: Any) -> list[bytes]:
    """Rows and state of both, and the counts."""
    users, items = tables(client)
    found = [client.table("users--sightings").pull(KEYS, create=False).tobytes()]
    for table in (users, items):
        state = table.optimizer_state(KEYS)
        found += [table.pull(KEYS, create=False).tobytes(), table.contains(KEYS).tobytes()]
        found += [state[name].tobytes() for name in sorted(state)]
    return found


def test_counts_and_schedules_go_on_after_a_restart_on_more_servers(tmp_path: Path) -> None:
    """Two servers end after step 12 and three go on from their checkpoint: what one uninterrupted run has."""
    with tb.local(servers=1) as client:
        train(client, 0, 24)
        wanted = content(client)
        assert 0 < len(tables(client)[0]) < len(KEYS)
        assert len(client.table("users--sightings")) > 0
    with Servers(tmp_path, 2, *NEVER, restart=False) as two:
        with tb.connect(two.addresses, rank=0, job="faults") as client:
            train(client, 0, 12)
            client.checkpoint()
        two.end_all()
    with (
        Servers(tmp_path, 3, *NEVER, restart=False) as three,
        tb.connect(three.addresses, rank=0, job="faults") as client,
    ):
        train(client, client.next_step, 24)
        assert content(client) == wanted, f"seed {SEED}"


def test_a_table_that_comes_without_its_counts_begins_them_anew(tmp_path: Path) -> None:
    """client.restore of that table alone: its rows are there, and a new key is sighted from 1 on."""
    with (
        Servers(tmp_path / "source", 1, *NEVER, restart=False) as source,
        tb.connect(source.addresses, rank=0, job="faults") as client,
    ):
        train(client, 0, 12)
        client.checkpoint()
        users = tables(client)[0]
        rows, seen = users.contains(KEYS), client.table("users--sightings")
        waiting = KEYS[seen.contains(KEYS)][:1]
    with (
        Servers(tmp_path / "other", 2, *NEVER, restart=False) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
    ):
        client.restore(str(source.destination), tables=["users"])
        users = client.table("users")
        assert users.contains(KEYS).tolist() == rows.tolist()
        for push in range(3):
            assert not users.contains(waiting)[0], f"push {push}, seed {SEED}"
            users.push(waiting, np.ones((1, DIM), np.float32))
        assert users.contains(waiting)[0]
        client.checkpoint()
