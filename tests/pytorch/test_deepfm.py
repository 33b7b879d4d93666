"""DeepFM on flights: with tb.torch in one process equal to torch.nn's layers, and as a job of two workers as good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tablebay as tb
from tablebay.client.job import load_job
from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share
from tablebay.examples.flights.model import auc
from tablebay.examples.flights_torch import train

JOB = Path(train.__file__).with_name("deepfm.yaml")
SEEDS = range(5)
BATCH = 2048


@pytest.fixture(scope="module")
def parts() -> tuple[data.Examples, data.Examples]:
    """The training and the test part of the random split."""
    return data.split(data.load(), "random")


def tables(client: Any, seed: int, initial_accumulator: float = 1e-8) -> None:
    """The job's tables."""
    for table in load_job(JOB).spec.tables:
        client.table(
            table.name,
            table.dim,
            optimizer=tb.Adagrad(0.05, initial_accumulator=initial_accumulator),
            initializer=tb.Normal(0.01),
            seed=seed,
        )


def reference_like(client: Any, keys: Any, seed: int) -> tuple[train.DeepFM, tuple[Any, Any]]:
    """The model in torch alone, with the rows that the tables of `client` give to `keys`."""
    linear, factors = (torch.from_numpy(client.table(name).pull(keys)) for name in ("linear", "factors"))
    model = train.reference(keys, linear, factors, seed)
    return model, train.reference_optimizers(model, client.table("linear").spec.optimizer)


def train_reference(model: Any, optimizers: Any, training: Any, share: Share, steps: int) -> list[float]:
    losses = []
    for number in range(steps):
        keys, labels = train.batch(training, share.positions(number))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(keys), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_one_worker_learns_what_torch_alone_learns(parts: Any) -> None:
    """Losses, dense parameters and rows of the first 25 steps are those of nn.EmbeddingBag and nn.Embedding."""
    training, _ = parts
    share = Share(len(training), BATCH, 1, 0, 0, 1)
    positions = np.concatenate([share.positions(number) for number in range(25)])
    keys = np.unique(training.keys[positions].view(np.int64))
    with tb.local(servers=2) as client:
        # The job's 1e-8 makes a whole step of a gradient near 0, and so of the rounding in its sum.
        tables(client, 0, initial_accumulator=1e-5)
        reference, optimizers = reference_like(client, keys, 0)
        begun = {name: client.table(name).pull(keys) for name in ("linear", "factors")}
        model = train.deepfm(client, 0)
        opt = tb.torch.Optimizer(torch.optim.Adam(model.parameters(), train.DENSE_LEARNING_RATE), model)
        losses = []
        for number in range(25):
            batch, labels = train.batch(training, share.positions(number))
            opt.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(model(batch), labels)
            loss.backward()
            opt.step()
            losses.append(float(loss.detach()))
        wanted = train_reference(reference, optimizers, training, share, 25)
        assert losses[-1] < losses[0]
        np.testing.assert_allclose(losses, wanted, rtol=1e-5)
        for name, layer in (("linear", reference.linear), ("factors", reference.factors)):
            rows = client.table(name).pull(keys)
            assert np.abs(rows - begun[name]).max() > 0.1
            np.testing.assert_allclose(rows, layer.layer.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(model.deep.parameters(), reference.deep.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_two_servers_and_two_ddp_workers_are_as_good_as_one_process(
    tmp_path: Path, parts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each of five seeds `tablebay run` gives an AUC at most 0.005 from that of torch alone, in one process."""
    training, test = parts
    keys = np.unique(np.concatenate((training.keys, test.keys)).view(np.int64))
    seen = torch.from_numpy(np.isin(keys, training.keys.view(np.int64)).astype(np.float32))[:, None]
    found: list[tuple[float, float]] = []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        ended = subprocess.run(
            [
                Path(sys.executable).with_name("tablebay"),
                "run",
                JOB,
                "--run-dir",
                folder,
                "--",
                "--seed",
                str(seed),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stdout
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert (report["servers"], report["workers"], report["duplicates"]) == (2, 2, 0)
        with tb.local() as client:
            tables(client, seed)
            model, optimizers = reference_like(client, keys, seed)
        share = Share(len(training), BATCH, 1, seed, 0, 1)
        train_reference(model, optimizers, training, share, share.steps)
        with torch.no_grad():
            # A key that training never saw reads as zeros from a table.
            model.linear.layer.weight *= seen
            model.factors.layer.weight *= seen
        found.append((report["auc"], auc(train.predict(model, test), test.labels)))
    worst = max(abs(ours - theirs) for ours, theirs in found)
    with capsys.disabled():
        pairs = ", ".join(f"{ours:.4f} {theirs:.4f}" for ours, theirs in found)
        print(
            f"\nAUC by tablebay run, and of torch alone, seeds 0 to 4: {pairs}; worst difference {worst:.4f}"
        )
    assert worst <= 0.005
