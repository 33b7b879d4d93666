"""What a worker of the job does, and the same training in one process without Tablebay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import tablebay as tb
from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share
from tablebay.examples.flights.data import FIELDS
from tablebay.examples.flights_torch.model import DLRM, DLRM_FACTORS, FACTORS, DeepFM

STEPS_PER_REPORT = 20
DENSE_LEARNING_RATE = 0.002


@dataclass(frozen=True)
class Options:
    """The flags of the worker's command."""

    model: str = "deepfm"
    epochs: int = 1
    seed: int = 0
    batch_size: int = 2048
    device: str = "cpu"
    checkpoint_every_steps: int = 0


def work(client: Any, options: Options) -> int:
    """The whole life of one worker. Returns its exit status."""
    training, test = data.split(data.load(), "random")
    share = Share(
        len(training), options.batch_size, options.epochs, options.seed, client.rank, client.workers
    )
    # The environment of a worker has the rest: MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE.
    distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    try:
        device = torch.device(
            options.device, int(os.environ["LOCAL_RANK"]) if options.device == "cuda" else None
        )
        model = MODELS[options.model](client, options.seed).to(device)
        trained = DistributedDataParallel(model)
        opt = tb.torch.Optimizer(torch.optim.Adam(trained.parameters(), DENSE_LEARNING_RATE), trained)
        known = tb.torch.load_state(tb.torch.group_state(client), trained, opt)
        if client.next_step:
            dense = "as rank 0 last kept them" if known else "begun anew"
            print(
                f"rank {client.rank} goes on at step {client.next_step}, dense parameters {dense}", flush=True
            )
        began = time.time()
        # Ranks may have other numbers of steps: the share ends unevenly, and so did a process group that broke.
        with trained.join():
            for number, _ in client.resume(range(share.steps)):
                keys, labels = batch(training, share.positions(number))
                labels = labels.to(device)
                opt.zero_grad()
                loss = functional.binary_cross_entropy_with_logits(trained(keys), labels)
                loss.backward()
                opt.step()
                if number % STEPS_PER_REPORT == 0:
                    client.report(step=number + 1, loss=float(loss.detach()))
                every = options.checkpoint_every_steps
                if every and client.rank == 0 and number % every == every - 1:
                    client.checkpoint(state=tb.torch.state(trained, opt))
        client.report(step=share.steps, examples=options.epochs * len(training) / client.workers)
        client.barrier("trained")
        client.report(train_seconds=time.time() - began)
        # Each worker scores a part of the test set.
        own = test.take(np.arange(client.rank, len(test), client.workers))
        metrics = tb.LearningMetrics()
        metrics.update(1.0 / (1.0 + np.exp(-predict(model, own).astype(np.float64))), own.labels)
        everybody = metrics.gather(client, "evaluation")
        if client.rank == 0:
            client.report(auc=everybody.auc(), logloss=everybody.logloss())
            print(
                f"{options.model}, seed {options.seed}, workers {client.workers}: test AUC {everybody.auc():.4f}, "
                f"COPC {everybody.copc():.3f} on {everybody.examples:,} flights",
                flush=True,
            )
    finally:
        distributed.destroy_process_group()
    return 0


def table(client: Any, name: str, seed: int) -> Any:
    """The table that the job declares, or one like it where the seed is another."""
    declared = client.table(name)
    spec = declared.spec
    if seed == spec.seed:
        return declared
    return client.table(
        f"{name}_seed_{seed}", spec.dim, optimizer=spec.optimizer, initializer=spec.initializer, seed=seed
    )


def deepfm(client: Any, seed: int) -> DeepFM:
    """Over the job's tables `linear` and `factors`."""
    linear, factors = (table(client, name, seed) for name in ("linear", "factors"))
    return DeepFM(tb.torch.EmbeddingBag(linear, mode="sum"), tb.torch.Embedding(factors), seed)


def dlrm(client: Any, seed: int) -> DLRM:
    """Over the job's table `fields`: one for all 12, since no two fields share a key."""
    config = tb.torch.EmbeddingBagConfig("fields", DLRM_FACTORS, feature_names=FIELDS)
    return DLRM(tb.torch.EmbeddingBagCollection([config], {"fields": table(client, "fields", seed)}), seed)


MODELS: dict[str, Callable[[Any, int], nn.Module]] = {"deepfm": deepfm, "dlrm": dlrm}


def batch(examples: data.Examples, positions: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys int64 (B, 12) and labels float32 (B,)."""
    keys = torch.from_numpy(examples.keys[positions].view(np.int64))
    return keys, torch.from_numpy(examples.labels[positions].astype(np.float32))


def predict(model: nn.Module, examples: data.Examples, batch_size: int = 8192) -> Any:
    """Log-odds of each example, float32 (n,); makes no rows."""
    model.eval()
    with torch.no_grad():
        parts = [
            model(batch(examples, slice(start, start + batch_size))[0]).cpu().numpy()
            for start in range(0, len(examples), batch_size)
        ]
    return np.concatenate(parts)


class Numbered(nn.Module):
    """torch's own layer, over the numbers of sorted keys; what the reference has in place of a table."""

    def __init__(self, keys: Any, layer: nn.Module) -> None:
        super().__init__()
        self.keys = torch.from_numpy(keys)
        self.layer = layer

    def forward(self, keys: torch.Tensor) -> Any:
        """As `layer`, of keys."""
        return self.layer(torch.searchsorted(self.keys, keys))


def reference(keys: Any, linear: torch.Tensor, factors: torch.Tensor, seed: int) -> DeepFM:
    """DeepFM in torch alone. keys: int64 (n,), sorted. linear (n, 1), factors (n, 8): the rows to begin with."""
    bag = nn.EmbeddingBag(len(keys), 1, mode="sum", sparse=True, _weight=linear)
    rows = nn.Embedding(len(keys), FACTORS, sparse=True, _weight=factors)
    return DeepFM(Numbered(keys, bag), Numbered(keys, rows), seed)


def reference_optimizers(model: DeepFM, table_optimizer: Any) -> tuple[Any, Any]:
    """Adam for the dense layers, and the tables' Adagrad for the rows."""
    adagrad = torch.optim.Adagrad(
        [*model.linear.parameters(), *model.factors.parameters()],
        table_optimizer.learning_rate,
        initial_accumulator_value=table_optimizer.initial_accumulator,
        eps=table_optimizer.epsilon,
    )
    return torch.optim.Adam(model.deep.parameters(), DENSE_LEARNING_RATE), adagrad
