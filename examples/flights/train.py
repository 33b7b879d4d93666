"""What a worker of the flights job does: train its share, wait for the others, on rank 0 test the model."""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import tablebay as tb
from tablebay.examples.flights import data, model, oracle
from tablebay.examples.flights.batches import Share

if TYPE_CHECKING:
    from tablebay.client.client import Client
    from tablebay.client.table import RemoteTable

STEPS_PER_REPORT = 20
MODEL_NAMES = {"fm": "factorization machine", "lr": "logistic regression"}
SPLIT_MEANING = {
    "random": (
        "The random split puts flights of the same hour in both parts: the test part asks about hours\n"
        "whose weather and congestion were seen in training. This is interpolation, not a forecast of\n"
        "delays. For a forecast's figure, trained on January to October and tested on November and\n"
        "December, add `--split time`: its AUC is about 0.62."
    ),
    "time": (
        "The time split trains on January to October and tests on November and December: no day of the\n"
        "test part was seen in training."
    ),
}


@dataclass(frozen=True)
class Options:
    """The flags of the worker's command.

    seed: None for that of the table that the job declares.
    steps_per_second: None where nothing slows the worker. slow_until: a file; from when it is there, nothing does.
    """

    model: str = "fm"
    split: str = "random"
    epochs: int = 1
    seed: int | None = None
    batch_size: int = 2048
    steps_per_second: float | None = None
    prefetch: bool = False
    oracle: bool = False
    slow_until: Path | None = None


def work(client: Client, options: Options) -> int:
    """The whole life of one worker. Returns its exit status: 1 where the oracle disagrees."""
    if client.rank is None or client.workers is None:
        raise tb.BadRequest(
            "this process has no rank; start the job with `tablebay run examples/flights/job.yaml`"
        )
    declared = client.table("fields")
    seed = declared.spec.seed if options.seed is None else options.seed
    table = open_table(client, declared, options.model, seed)
    oracle_table = open_oracle(client) if options.oracle else None
    training, test = data.split(data.load(), options.split)
    share = Share(len(training), options.batch_size, options.epochs, seed, client.rank, client.workers)

    # A worker whose pod is taken away ends between two steps; its successor goes on with the next.
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    started = train(client, table, oracle_table, training, share, options, told_to_end)
    if told_to_end.is_set():
        return 128 + signal.SIGTERM
    # From here on nothing is lost by an end in the middle.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    client.barrier("trained")
    # From this rank's first step, over any restart, until every rank was done.
    train_seconds = max(time.time() - started, 1e-9)
    client.report(train_seconds=train_seconds)
    if client.rank != 0:
        return 0

    pull_latency = client.pull_latency()
    rows = len(table)
    scores = model.predict(table, test, options.batch_size)
    auc, logloss = model.auc(scores, test.labels), model.logloss(scores, test.labels)
    client.report(auc=auc, logloss=logloss)
    print(
        f"{MODEL_NAMES[options.model]}, {options.split} split, epochs {options.epochs}, seed {seed}, "
        f"workers {client.workers}\n"
        f"  test AUC     {auc:.4f} on {len(test):,} flights\n"
        f"  test logloss {logloss:.4f}\n"
        f"  examples/s   {len(training) * options.epochs / train_seconds:,.0f} "
        f"({len(training) * options.epochs:,} in {train_seconds:.1f} s)\n"
        f"  rows         {rows:,} of dim {table.spec.dim}\n"
        f"  pull         p50 {pull_latency.quantile(0.50) * 1e3:.2f} ms, "
        f"p99 {pull_latency.quantile(0.99) * 1e3:.2f} ms\n"
        f"{SPLIT_MEANING[options.split]}",
        flush=True,
    )
    return 0 if oracle_table is None else check_oracle(oracle_table, training, share)


def open_table(client: Client, declared: RemoteTable, model_kind: str, seed: int) -> RemoteTable:
    """The model's table: `declared`, the one that the job declares, or one like it.

    The job file alone says how to train. What it does not declare, rows of another seed and the logistic
    regression's rows of dim 1, takes its optimizer, and its initializer where there are factors to
    initialise.
    """
    spec = declared.spec
    if model_kind == "lr":
        return client.table("fields_lr", dim=1, optimizer=spec.optimizer, initializer=tb.Zeros())
    if seed == spec.seed:
        return declared
    return client.table(
        f"fields_seed_{seed}", dim=spec.dim, optimizer=spec.optimizer, initializer=spec.initializer, seed=seed
    )


def open_oracle(client: Client) -> RemoteTable:
    """The oracle's table of int64 sums."""
    return client.table(oracle.TABLE, dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())


def train(
    client: Client,
    table: RemoteTable,
    oracle_table: RemoteTable | None,
    training: data.Examples,
    share: Share,
    options: Options,
    told_to_end: threading.Event | None = None,
) -> float:
    """This rank's steps, from where it stopped, until told to end. Returns when it began, in seconds since 1970.

    Each step is one pull and one push. The time of the first step travels in the cursor, so that it outlives
    a killed worker.
    """
    first_step = client.next_step
    started = float(client.cursor) if client.cursor else time.time()
    cursor = f"{started:.6f}".encode()
    pace = Pace(options.steps_per_second, options.slow_until)
    losses: list[float] = []
    examples = 0
    prefetched: Any = None
    for step_number in range(first_step, share.steps):
        pace.wait()
        if told_to_end is not None and told_to_end.is_set():
            break
        positions = share.positions(step_number)
        keys, labels = model.batch_keys(training.keys[positions]), training.labels[positions]
        with client.step() as step:
            rows = prefetched.result()[0] if prefetched is not None else step.pull({table: keys})[0]
            if options.prefetch and step_number + 1 < share.steps:
                next_keys = model.batch_keys(training.keys[share.positions(step_number + 1)])
                prefetched = client.prefetch({table: next_keys})
            batch = model.forward(rows)
            pushes: dict[RemoteTable, tuple[data.Keys, NDArray[Any]]]
            pushes = {table: (keys, model.gradients(batch, labels))}
            if oracle_table is not None:
                unique = np.unique(keys)
                additions = oracle.additions(share.rank, step_number, unique)
                pushes[oracle_table] = (unique, additions.reshape(-1, 1))
            step.push(pushes, cursor=cursor)
        examples += len(labels)
        losses.append(model.logloss(batch.scores, labels))
        if len(losses) == STEPS_PER_REPORT or step_number + 1 == share.steps:
            client.report(step=step_number + 1, examples=examples, loss=float(np.mean(losses)))
            losses.clear()
            examples = 0
    return started


def check_oracle(table: RemoteTable, training: data.Examples, share: Share) -> int:
    """Compare the oracle's table with what the data says it must hold, print the verdict, return 0 or 1."""
    keys, wanted = oracle.expected(training.keys, share)
    problem = oracle.difference(keys, wanted, oracle.pull_sums(table, keys), len(table))
    if problem is not None:
        print(f"oracle: {problem}", file=sys.stderr, flush=True)
        return 1
    print(f"oracle: {len(keys)} rows equal", flush=True)
    return 0


class Pace:
    """Lets at most so many steps a second go by, until a file is there; `None` lets all."""

    def __init__(self, steps_per_second: float | None, until: Path | None = None) -> None:
        self._interval = 0.0 if steps_per_second is None else 1.0 / steps_per_second
        self._until = until
        self._next = time.monotonic()

    def wait(self) -> None:
        """Sleep until the next step may begin. Time that a slow step lost is not made up for."""
        if self._interval and self._until is not None and self._until.exists():
            self._interval, self._next = 0.0, time.monotonic()
        now = time.monotonic()
        if now < self._next:
            time.sleep(self._next - now)
        self._next = max(now, self._next) + self._interval
