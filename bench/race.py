"""Time to an AUC of 0.785 on the flights, beside the same model in one numpy process: `make bench ONLY=race`.

The factorization machine of examples/flights with its fixed parameters. The clock runs from the first pull; it stands
still while the test part is scored, after every 32 steps of all workers together. Two servers and two workers are
processes of this machine; what they are held against is one process, with rows in plain arrays whose places are known
beforehand, so that it looks nothing up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Figure
from servers import tablebay_servers

import tablebay as tb
from tablebay.examples.flights import data, model
from tablebay.examples.flights.batches import Share

GATE = 0.785
EVERY, STEPS_MAX = 32, 512
BATCH, RATE, ACCUMULATOR, EPSILON, STDDEV, DIM = 2048, 0.05, 1e-8, 1e-8, 0.01, 9
SERVERS, WORKERS = 2, 2
# Each with a seed of its own.
RACES = 5
_BEGIN_S = 0.02


def run(folder: Path) -> dict[str, Figure]:
    """Figures `time_to_auc.*`."""
    training, test = data.split(data.load(), "random")
    positions = np.unique(np.append(training.keys, data.BIAS_KEY))
    seconds: dict[str, list[float]] = {"ours": [], "numpy": []}
    with tablebay_servers(SERVERS) as (addresses, _), tb.connect(addresses) as client:
        for seed in range(RACES + 1):
            sides: list[tuple[str, Callable[[], float]]] = [
                ("ours", lambda s=seed: _through_servers(client, addresses, test, s)),  # type: ignore[misc]
                ("numpy", lambda s=seed: _in_numpy(positions, training, test, s)),  # type: ignore[misc]
            ]
            for name, side in sides if seed % 2 == 0 else sides[::-1]:
                taken = side()
                # The first race warms up.
                if seed:
                    seconds[name].append(taken)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["numpy"], strict=True)]
    return {
        "time_to_auc.over_numpy": measure.figure(ratios, "ratio"),
        "time_to_auc.seconds": measure.figure(seconds["ours"], "s"),
        "time_to_auc.numpy_seconds": measure.figure(seconds["numpy"], "s"),
    }


def _until(go: Callable[[int], float], score: Callable[[], float], who: str) -> float:
    """Seconds until the gate. go: have as many steps done, and say how long they took."""
    taken, auc = 0.0, 0.0
    for done in range(EVERY, STEPS_MAX + 1, EVERY):
        taken += go(done)
        auc = score()
        if auc >= GATE:
            print(f"{who}: AUC {auc:.4f} after {done} steps, {taken:.3f} s", flush=True)
            return taken
    raise SystemExit(f"{who}: AUC {auc:.4f} after {STEPS_MAX} steps, wanted {GATE}")


# -- one process --


class _Arrays:
    """Rows of known keys in arrays; Adagrad by its formula, over sums of repeated keys."""

    def __init__(self, keys: data.Keys, seed: int) -> None:
        self._keys = keys
        drawn = np.random.default_rng(seed).standard_normal((len(keys), DIM))
        self._weights = (drawn * STDDEV).astype(np.float32)
        self._sums = np.full_like(self._weights, ACCUMULATOR)

    def pull(self, keys: data.Keys, *, create: bool) -> model.Floats:
        """Zeros for keys that are not there."""
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        rows: model.Floats = np.where((self._keys[at] == keys)[:, None], self._weights[at], np.float32(0))
        return rows

    def step(self, places: np.ndarray[Any, np.dtype[np.int64]], labels: data.Labels) -> None:
        """places: of a batch's keys."""
        gradients = model.gradients(model.forward(self._weights[places]), labels)
        unique, inverse = np.unique(places, return_inverse=True)
        # The fastest of numpy's ways to sum rows by group: a third of np.add.at's time.
        columns = [np.bincount(inverse, column, len(unique)) for column in gradients.T]
        summed = np.stack(columns, axis=1).astype(np.float32)
        sums = self._sums[unique] + summed * summed
        self._sums[unique] = sums
        self._weights[unique] -= np.float32(RATE) * summed / (np.sqrt(sums) + np.float32(EPSILON))


def _in_numpy(keys: data.Keys, training: data.Examples, test: data.Examples, seed: int) -> float:
    table = _Arrays(keys, seed)
    share = Share(len(training), BATCH, 100, seed, 0, 1)
    places = np.searchsorted(keys, training.keys)
    bias = np.array([np.searchsorted(keys, data.BIAS_KEY)])
    done = 0
    share.positions(0)  # the order of the epoch, which is no part of training

    def go(until: int) -> float:
        nonlocal done
        began = time.monotonic()
        while done < until:
            at = share.positions(done)
            table.step(np.concatenate((bias, places[at].reshape(-1))), training.labels[at])
            done += 1
        return time.monotonic() - began

    return _until(go, lambda: model.auc(model.predict(table, test, BATCH), test.labels), "numpy")


# -- workers and servers --


def _through_servers(client: tb.Client, addresses: list[str], test: data.Examples, seed: int) -> float:
    workers = []
    try:
        for rank in range(WORKERS):
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                ",".join(addresses),
                str(seed),
                str(rank),
            ]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers.append(worker)
        for worker in workers:
            _hear(worker)
        table = client.table(_name(seed))

        def go(until: int) -> float:
            begin = time.monotonic() + _BEGIN_S
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(json.dumps([until // WORKERS, begin]) + "\n")
                worker.stdin.flush()
            times = [_hear(worker) for worker in workers]
            return float(max(ended for _, ended in times) - min(began for began, _ in times))

        return _until(go, lambda: model.auc(model.predict(table, test, BATCH), test.labels), "tablebay")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _hear(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a worker of the race ended with {worker.wait()}")
    return json.loads(line)


def _name(seed: int) -> str:
    return f"race_{seed}"


def _worker(addresses: str, seed: int, rank: int) -> None:
    training, _ = data.split(data.load(), "random")
    share = Share(len(training), BATCH, 100, seed, rank, WORKERS)
    with tb.connect(addresses.split(",")) as client:
        table = client.table(
            _name(seed),
            dim=DIM,
            optimizer=tb.Adagrad(RATE, ACCUMULATOR, EPSILON),
            initializer=tb.Normal(STDDEV),
            seed=seed,
        )
        share.positions(0)
        print(json.dumps("ready"), flush=True)
        done = 0
        for line in sys.stdin:
            until, begin = json.loads(line)
            time.sleep(max(0.0, begin - time.monotonic()))
            began = time.monotonic()
            while done < until:
                at = share.positions(done)
                keys = model.batch_keys(training.keys[at])
                table.push(keys, model.gradients(model.forward(table.pull(keys)), training.labels[at]))
                done += 1
            print(json.dumps([began, time.monotonic()]), flush=True)


if __name__ == "__main__":
    _worker(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
