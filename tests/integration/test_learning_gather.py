"""tb.LearningMetrics over workers, through real servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from faults.servers import Servers

import tablebay as tb

WORKERS = 3


def test_all_workers_gather_the_same_figures_through_the_servers(tmp_path: Path) -> None:
    """Three workers, one without examples: each gets what one process with all examples has, and no row stays."""
    generator = np.random.default_rng(2)
    scores = generator.random(5000).astype(np.float32)
    labels = generator.random(5000) < scores
    groups = generator.integers(0, 300, 5000)
    whole = tb.LearningMetrics()
    whole.update(scores, labels, groups)
    with Servers(tmp_path, 2) as servers:

        def work(rank: int) -> list[float]:
            own = tb.LearningMetrics()
            if rank < 2:
                own.update(scores[rank::2], labels[rank::2], groups[rank::2])
            with tb.connect(servers.addresses, rank=rank, workers=WORKERS, job="faults") as client:
                return figures(own.gather(client, "evaluation"))

        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(work, range(WORKERS)))
        assert found == [figures(whole)] * WORKERS
        with tb.connect(servers.addresses, job="faults") as client:
            assert len(client.table("evaluation")) == 0


def figures(metrics: tb.LearningMetrics) -> list[float]:
    return [
        metrics.auc(),
        metrics.gauc(),
        metrics.logloss(),
        metrics.ctr(),
        metrics.pctr(),
        metrics.copc(),
        metrics.examples,
    ]
