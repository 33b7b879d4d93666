"""DLRM on flights over an EmbeddingBagCollection: equal to torch.nn's layer in one process, and as a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tablebay as tb
from tablebay.client.job import load_job
from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share
from tablebay.examples.flights_torch import train
from tablebay.examples.flights_torch.model import DLRM, DLRM_FACTORS, Fields, numbers

FOLDER = Path(train.__file__).parent
STEPS = 25


class TorchBags(nn.Module):
    """What the collection gives, by nn.EmbeddingBag over the numbers of sorted keys."""

    def __init__(self, keys: Any, weight: torch.Tensor) -> None:
        super().__init__()
        self.keys = torch.from_numpy(keys)
        self.bag = nn.EmbeddingBag(len(keys), DLRM_FACTORS, mode="sum", sparse=True, _weight=weight)

    def forward(self, features: Fields) -> Any:
        places = torch.searchsorted(self.keys, features.values())
        rows = self.bag(places[:, None]).reshape(len(features.keys()), -1, DLRM_FACTORS)
        return _Values(rows.transpose(0, 1).flatten(1))


class _Values:
    def __init__(self, content: torch.Tensor) -> None:
        self.content = content

    def values(self) -> torch.Tensor:
        return self.content


def test_one_worker_of_dlrm_learns_what_torch_alone_learns() -> None:
    """Losses, dense parameters and rows of 25 steps are those of nn.EmbeddingBag, to rtol 1e-5 and atol 1e-6."""
    training, _ = data.split(data.load(), "random")
    share = Share(len(training), 2048, 1, 0, 0, 1)
    keys = np.unique(training.keys[np.concatenate([share.positions(n) for n in range(STEPS)])].view(np.int64))
    with tb.local(servers=2) as client:
        # The job's 1e-8 makes a whole step of a gradient near 0, and so of the rounding in its sum.
        rows = client.table(
            "fields",
            DLRM_FACTORS,
            optimizer=tb.Adagrad(0.05, initial_accumulator=1e-5),
            initializer=tb.Normal(0.01),
        )
        begun = rows.pull(keys)
        ours, theirs = train.dlrm(client, 0), DLRM(TorchBags(keys, torch.from_numpy(begun.copy())), 0)
        opt = tb.torch.Optimizer(torch.optim.Adam(ours.parameters(), train.DENSE_LEARNING_RATE), ours)
        reference = [
            torch.optim.Adam(
                [*theirs.bottom.parameters(), *theirs.top.parameters()], train.DENSE_LEARNING_RATE
            ),
            torch.optim.Adagrad(
                theirs.bags.parameters(),
                0.05,
                initial_accumulator_value=1e-5,
                eps=rows.spec.optimizer.epsilon,
            ),
        ]
        for number in range(STEPS):
            batch, labels = train.batch(training, share.positions(number))
            losses = []
            for model, optimizers in ((ours, [opt]), (theirs, reference)):
                for one in optimizers:
                    one.zero_grad()
                loss = functional.binary_cross_entropy_with_logits(model(batch), labels)
                loss.backward()
                for one in optimizers:
                    one.step()
                losses.append(float(loss.detach()))
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        learnt = rows.pull(keys)
        assert np.abs(learnt - begun).max() > 0.1
        np.testing.assert_allclose(learnt, theirs.bags.bag.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
        for part in ("bottom", "top"):
            for mine, wanted in zip(
                getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True
            ):
                torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def test_numbers_of_an_example_are_points_of_circles() -> None:
    """Midnight is where hour 24 would be; all six lie between -1 and 1."""
    training, _ = data.split(data.load(), "random")
    keys, _ = train.batch(training, slice(0, 1000))
    found = numbers(keys)
    assert found.shape == (1000, 6)
    torch.testing.assert_close(found.reshape(1000, 3, 2).norm(dim=2), torch.ones(1000, 3))
    hours = (training.keys[:1000, data.FIELDS.index("hour")] & np.uint64(2**56 - 1)).astype(np.float64)
    np.testing.assert_allclose(found[:, 0], np.sin(hours * 2 * np.pi / 24), atol=1e-6)


def test_the_dlrm_job_trains_with_two_workers(tmp_path: Path) -> None:
    """`tablebay run examples/flights_torch/dlrm.yaml` reaches an AUC of 0.78 with each push applied once."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("tablebay"), "run", FOLDER / "dlrm.yaml", "--run-dir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["auc"] > 0.78
    assert (report["servers"], report["workers"], report["duplicates"]) == (2, 2, 0)


@pytest.mark.parametrize("name", ["deepfm.yaml", "dlrm.yaml", "dlrm-gpu.yaml"])
def test_each_job_file_is_valid_and_only_one_asks_for_gpus(name: str) -> None:
    """They differ in what they should: the GPU job asks for one GPU a worker, and computes there."""
    container = load_job(FOLDER / name).spec.workers.container
    gpus = "nvidia.com/gpu" in json.dumps(container.model_dump(by_alias=True), default=str)
    assert gpus == (name == "dlrm-gpu.yaml")
    assert ("cuda" in container.command) == gpus
