"""Eviction on real servers: by themselves, through checkpoints and a server's death."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from faults.servers import Servers

import tablebay as tb

NEVER = ("--checkpoint-every-seconds", "3600")
DIM = 4
KEYS = np.arange(400, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
KEPT = KEYS[:100]
RULES = tb.Eviction(min_count=1, grace_seconds=1, every_seconds=1)


def until_rows(table: Any, rows: int) -> None:
    """Wait until the servers have swept."""
    end = time.monotonic() + 60
    while len(table) != rows:
        assert time.monotonic() < end, f"{len(table)} rows, wanted {rows}"
        time.sleep(0.05)


def test_what_left_stays_away_after_a_servers_death(tmp_path: Path) -> None:
    """The full checkpoint has the rows and the delta has them deleted; steps after it are applied once."""
    ones = np.ones((len(KEPT), DIM), np.float32)
    with (
        Servers(tmp_path, 2, *NEVER) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
    ):
        users = client.table("users", dim=DIM, optimizer=tb.SGD(1.0), initializer=tb.Zeros(), eviction=RULES)
        users.pull(KEYS)
        client.checkpoint(full=True)
        users.push(KEPT, ones)
        until_rows(users, len(KEPT))
        assert users.contains(KEYS).tolist() == [True] * 100 + [False] * 300
        client.checkpoint()
        users.push(KEPT, ones)
        for server in (0, 1):
            servers.kill(server)
        users.push(KEPT, ones)
        assert users.contains(KEYS).tolist() == [True] * 100 + [False] * 300
        np.testing.assert_array_equal(users.pull(KEPT), -3 * ones)
        # Counts are in the checkpoint, too: rows with a push stay.
        assert users.evict() == 0
        assert client.table("users").spec.eviction == RULES


def test_shows_and_days_come_back_after_a_servers_death(tmp_path: Path) -> None:
    """Pushes with counts and ends of days that no checkpoint had are sent again, each applied once and in order."""
    keys, rows = KEYS[:200], np.zeros((200, DIM), np.float32)
    counts = np.tile(np.array([[8.0, 4.0]], np.float32), (200, 1))
    with (
        Servers(tmp_path, 2, *NEVER) as servers,
        tb.connect(servers.addresses, rank=0, job="faults") as client,
    ):
        users = client.table("users", dim=DIM, optimizer=tb.SGD(1.0), eviction=tb.Eviction(decay=0.5))
        users.push(keys, rows, counts)
        assert users.decay(20)
        client.checkpoint(full=True)
        users.push(keys, rows, counts)
        assert users.decay(22)
        for server in (0, 1):
            servers.kill(server)
        users.push(keys, rows, counts)
        # (8 / 2 + 8) / 4 + 8
        np.testing.assert_array_equal(users.shows(keys), counts * (11 / 8))
        assert not users.decay(22)
        assert users.decay(23)
        np.testing.assert_array_equal(users.shows(keys), counts * (11 / 16))
