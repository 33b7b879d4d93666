"""Checkpoints and recovery: 5 M rows of dim 16 with Adagrad.

`plain`: the same bytes, written and fsynced in one file, or read into memory that is as new as a table's. Files lie
under build/, on whatever disk that is.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import checkpoint_cost
import measure
import numpy as np
from measure import Figure, figure, interleave
from servers import JobServers, job_servers
from workload import DIM, KEYS

import tablebay as tb
from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.restore import choose, restore_newest
from tablebay.native import _core
from tablebay.ps_server.checkpoint.save import write_cut

ROWS = 5_000_000
ROUNDS = 5
CHECKPOINTS = 8
RECOVERY_ROWS = 10_000_000
_READ_BYTES = 4 << 20
_ALL_SHARDS = tuple(range(1024))
_READY_S = 60.0
_KEY_STEP = np.uint64(0x9E3779B97F4A7C15)


def run(folder: Path) -> dict[str, Figure]:
    """All figures. folder: where benchmarks are built; files go beside it, on the same disk."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        there = Path(name)
        figures = _save_and_load(there / "one")
        figures |= checkpoint_cost.run(there / "cost")
        shutil.rmtree(there / "cost")
        return figures | _recovery(there / "two")


def _connect(servers: JobServers, **options: object) -> tb.Client:
    return tb.connect(servers.addresses, job="bench", timeout=600.0, **options)


def _table(client: tb.Client) -> object:
    return client.table("bench", dim=DIM, optimizer=tb.Adagrad(0.05), initializer=tb.Normal(0.01))


def _keys(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64) * _KEY_STEP


def _fill(client: tb.Client, rows: int) -> None:
    table = _table(client)
    out = np.empty((100_000, DIM), np.float32)
    for first in range(0, rows, 100_000):
        count = min(100_000, rows - first)
        table.pull(_keys(first, count), out=out[:count])  # type: ignore[attr-defined]


def _gradients() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((KEYS, DIM)) * 0.01).astype(np.float32)


# -- save, load, pause, delta --


def _save_and_load(folder: Path) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    with (
        job_servers(folder, 1, "--checkpoint-every-seconds", "3600") as servers,
        _connect(servers, rank=0) as client,
    ):
        _fill(client, ROWS)
        full = client.checkpoint(full=True)
        table, gradients = _table(client), _gradients()
        touched = ROWS // 100
        table.push(_keys(0, touched), gradients[:touched])  # type: ignore[attr-defined]
        delta = client.checkpoint()
        figures["checkpoint.delta_over_full"] = figure([delta.bytes / full.bytes], "ratio")
        ended = threading.Event()

        def push() -> None:
            random = np.random.default_rng(1)
            while not ended.is_set():
                first = int(random.integers(0, ROWS - KEYS))
                table.push(_keys(first, KEYS), gradients)  # type: ignore[attr-defined]

        pusher = threading.Thread(target=push)
        pusher.start()
        with _connect(servers) as other:
            pauses = [1000 * other.checkpoint().pause_seconds for _ in range(CHECKPOINTS)]
        ended.set()
        pusher.join()
        figures["checkpoint.pause_ms"] = figure(pauses, "ms")
        client.checkpoint(full=True)

    destination = Destination.open(str(servers.destination), job="bench")
    number = choose(destination, None).number
    manifest = destination.manifest(number)
    files = [
        servers.destination / "attempts" / link.attempt / file.name
        for entry in manifest.servers
        for link in entry.chain
        for file in link.files
    ]
    size = sum(file.stat().st_size for file in files)
    kept: list[_core.Store] = []

    def load() -> None:
        store = _core.Store()
        restored = restore_newest(store, destination, index=0, servers=1, owners=_ALL_SHARDS, job="bench")
        assert restored.rows == ROWS
        kept[:] = [store]

    def plain_read() -> None:
        memory = np.empty(size, np.uint8)
        view = memoryview(memory)
        at = 0
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(view[at : at + _READ_BYTES]):
                    at += count
        assert at == size

    pairs = interleave([load], [plain_read], ROUNDS)
    figures["checkpoint.load.over_plain_read"] = pairs.ours_over_theirs()
    figures["checkpoint.load_s"] = figure(pairs.ours, "s")

    (store,) = kept
    specs = [(entry.spec, entry.id) for entry in manifest.tables]
    content = b"".join(path.read_bytes() for path in files)

    def save() -> None:
        attempt = destination.begin_attempt(number + 1)
        cut = store.take([], 0.0, True)
        write_cut(cut, destination, attempt, number=number + 1, index=0, epoch=1, parent=None, specs=specs)
        cut.commit()
        destination.remove_attempt(attempt)

    def plain_write() -> None:
        path = folder / "plain"
        view = memoryview(content)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for at in range(0, len(view), _READ_BYTES):
            os.write(file, view[at : at + _READ_BYTES])
        os.fsync(file)
        os.close(file)
        path.unlink()

    pairs = interleave([save], [plain_write], ROUNDS)
    figures["checkpoint.save.over_plain_write"] = pairs.ours_over_theirs()
    figures["checkpoint.save_s"] = figure(pairs.ours, "s")
    return figures


# -- recovery --


def _load_alone(destination: Destination, owners: tuple[int, ...]) -> None:
    restore_newest(_core.Store(), destination, index=1, servers=2, owners=owners, job="bench")


def _recovery(folder: Path) -> dict[str, Figure]:
    """One killed server of two: from the kill to all rows served, less 2 s, against loading its files alone."""
    ratios, seconds = [], []
    with (
        job_servers(folder, 2, "--checkpoint-every-seconds", "3600") as servers,
        _connect(servers, rank=0) as client,
    ):
        _fill(client, RECOVERY_ROWS)
        client.checkpoint(full=True)
        table = _table(client)
        probe = _keys(0, 1000)
        destination = Destination.open(str(servers.destination), job="bench")
        owners = tuple(shard for shard in _ALL_SHARDS if shard % 2 == 1)
        for _ in range(3):
            servers.processes[1].send_signal(signal.SIGKILL)
            began = time.perf_counter()
            servers.processes[1].wait()
            servers.processes[1] = servers.start(1)
            with suppress(tb.Unavailable):
                table.pull(probe, create=False)  # type: ignore[attr-defined]
            taken = time.perf_counter() - began
            bare = measure.seconds(lambda: _load_alone(destination, owners))
            ratios.append(max(0.0, taken - 2.0) / bare)
            seconds.append(taken)
    return {
        "recovery.over_bare_load": figure(ratios, "ratio"),
        "recovery.seconds": figure(seconds, "s"),
    }
