"""Training steps in PyTorch through one server process: `make bench ONLY=torch`; needs `make test-torch` once.

torch.step_over_local: how long a DeepFM step takes, beside the same with nn.EmbeddingBag and sparse Adagrad here.
torch.part.*: where each of both is for how long, and torch.local_part.*.
prefetch.step_over_max: how long a step takes whose rows were prefetched and whose push goes on beside the next one,
beside the longer of its parts: some 20 ms of computing on one thread, and the pull and push.
prefetch.exact.step_over_max: with rows that this client pushed meanwhile pulled again, and pushes waited for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Figure
from servers import tablebay_servers
from torch.nn import functional

import tablebay as tb
from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share
from tablebay.examples.flights_torch import train
from tablebay.examples.flights_torch.model import DeepFM

BATCH, STEPS, ROUNDS = 2048, 10, 12
# Of a step as it is in the long run: the first batch's rows and the last push have nothing beside them.
PREFETCHED_STEPS = 50
COMPUTE_S = 0.02
DIM = 16


def run(folder: Path) -> dict[str, Figure]:
    torch.set_num_threads(1)
    with tablebay_servers(1) as (addresses, _), tb.connect(addresses[0], timeout=30.0) as client:
        return _deepfm(client) | _prefetch(client)


def _deepfm(client: tb.Client) -> dict[str, Figure]:
    training, _ = data.split(data.load(), "random")
    share = Share(len(training), BATCH, 1, 0, 0, 1)
    batches = [train.batch(training, share.positions(number)) for number in range(STEPS)]
    keys = np.unique(training.keys.view(np.int64))
    for name, dim in (("linear", 1), ("factors", 8)):
        client.table(name, dim, optimizer=tb.Adagrad(0.05, 1e-8), initializer=tb.Normal(0.01))
    linear, factors = (torch.from_numpy(client.table(name).pull(keys)) for name in ("linear", "factors"))
    ours = train.deepfm(client, 0)
    opt = tb.torch.Optimizer(torch.optim.Adam(ours.parameters(), train.DENSE_LEARNING_RATE), ours)
    theirs = train.reference(keys, linear, factors, 0)
    optimizers = train.reference_optimizers(theirs, client.table("linear").spec.optimizer)

    def steps(model: DeepFM, all_optimizers: tuple[object, ...]) -> None:
        for batch, labels in batches:
            for one in all_optimizers:
                one.zero_grad()
            functional.binary_cross_entropy_with_logits(model(batch), labels).backward()
            for one in all_optimizers:
                one.step()

    pairs = measure.interleave([lambda: steps(ours, (opt,))], [lambda: steps(theirs, optimizers)], ROUNDS)
    parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for prefix, model, rows_optimizer, dense_optimizer in (
            ("torch.part", ours, opt, opt.dense),
            ("torch.local_part", theirs, optimizers[1], optimizers[0]),
        ):
            for name, seconds in _parts(model, rows_optimizer, dense_optimizer, batches).items():
                parts[f"{prefix}.{name}_ms"].append(1e3 * seconds / STEPS)
    return {
        "torch.step_over_local": measure.figure(
            [a / b for a, b in zip(pairs.ours, pairs.theirs, strict=True)], "ratio"
        ),
        "torch.step_ms": measure.figure([1e3 * a / STEPS for a in pairs.ours], "ms"),
        "torch.local_step_ms": measure.figure([1e3 * b / STEPS for b in pairs.theirs], "ms"),
    } | {name: measure.figure(values, "ms") for name, values in parts.items()}


def _parts(model: DeepFM, rows_optimizer: Any, dense_optimizer: Any, batches: list[Any]) -> dict[str, float]:
    """Seconds of `batches` in the lookups, the dense layers, backward, and the rows' step (a push, or Adagrad)."""
    took: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = call(*arguments)
            took[name] += time.perf_counter() - began
            return found

        return run

    # Of the instances alone; what is within another part is taken out of that below.
    inner: list[tuple[Any, str, str]] = [
        (model.linear, "forward", "lookup"),
        (model.factors, "forward", "lookup"),
        (dense_optimizer, "step", "dense_step"),
    ]
    try:
        for owner, method, name in inner:
            setattr(owner, method, timed(name, getattr(owner, method)))
        for keys, labels in batches:
            rows_optimizer.zero_grad()
            dense_optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(timed("forward", model)(keys), labels)
            timed("backward", loss.backward)()
            timed("rows_step", rows_optimizer.step)()
            if not isinstance(rows_optimizer, tb.torch.Optimizer):
                dense_optimizer.step()
    finally:
        for owner, method, _ in inner:
            delattr(owner, method)
    if isinstance(rows_optimizer, tb.torch.Optimizer):
        took["rows_step"] -= took["dense_step"]
    took["dense"] = took.pop("forward") - took["lookup"] + took.pop("dense_step")
    return dict(took)


def _prefetch(client: tb.Client) -> dict[str, Figure]:
    table = client.table("prefetched", DIM, optimizer=tb.Adagrad(0.05))
    bag = tb.torch.EmbeddingBag(table, mode="sum")
    opt = tb.torch.Optimizer(None, bag)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, 200_000, (BATCH, 12), generator=generator) for _ in range(PREFETCHED_STEPS)]
    weight = torch.randn(384, 384)
    for _ in range(20):
        weight @ weight
    began = time.perf_counter()
    for _ in range(20):
        weight @ weight
    repeats = max(1, round(COMPUTE_S / ((time.perf_counter() - began) / 20)))

    def compute() -> None:
        for _ in range(repeats):
            weight @ weight

    def steps(source: Iterator[torch.Tensor], computing: bool) -> float:
        start = time.perf_counter()
        for keys in source:
            found = bag(keys)
            if computing:
                compute()
            found.sum().backward()
            opt.step()
        return time.perf_counter() - start

    def prefetched(exact: bool) -> float:
        opt.ahead = not exact
        taken = steps(tb.torch.prefetch(batches, lambda keys: {bag: keys}, refresh=exact), True)
        table.session.settle()
        opt.ahead = False
        return taken

    ratios: dict[bool, list[float]] = {True: [], False: []}
    parts = []
    for turn in range(ROUNDS + 1):
        moved = steps(iter(batches), False)
        computed = measure.seconds(lambda: [compute() for _ in batches])
        both = {exact: prefetched(exact) for exact in (True, False)}
        if turn:
            for exact, taken in both.items():
                ratios[exact].append(taken / max(moved, computed))
            parts.append((moved, computed, both[False], both[True]))
    names = (
        "prefetch.pull_push_ms",
        "prefetch.compute_ms",
        "prefetch.step_ms",
        "prefetch.exact.step_ms",
    )
    columns = zip(*parts, strict=True)
    return {
        "prefetch.step_over_max": measure.figure(ratios[False], "ratio"),
        "prefetch.exact.step_over_max": measure.figure(ratios[True], "ratio"),
    } | {
        name: measure.figure([1e3 * value / PREFETCHED_STEPS for value in column], "ms")
        for name, column in zip(names, columns, strict=True)
    }
