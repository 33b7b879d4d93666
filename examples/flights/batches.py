"""Which examples a worker trains on at which of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Share:
    """One rank's share of a training run: batches `rank`, `rank + workers`, … of all batches of all epochs.

    Each epoch is a permutation of the examples that depends on (seed, epoch) alone, cut into batches; the
    last batch of an epoch may be short. So a step number says all there is to say of a batch, and a restarted
    worker needs nothing but that number to go on.
    """

    examples: int
    batch_size: int
    epochs: int
    seed: int
    rank: int
    workers: int
    _epoch: int = field(default=-1, init=False, repr=False)
    _order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), init=False, repr=False)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches one epoch has, of all ranks together."""
        return -(-self.examples // self.batch_size)

    @property
    def steps(self) -> int:
        """How many steps this rank has."""
        return len(range(self.rank, self.epochs * self.batches_per_epoch, self.workers))

    def positions(self, step: int) -> NDArray[np.int64]:
        """Positions of the examples of this rank's batch number `step`: int64 (at most batch_size,)."""
        if not 0 <= step < self.steps:
            raise ValueError(f"rank {self.rank} has steps 0 to {self.steps - 1}, found {step}")
        epoch, batch = divmod(self.rank + step * self.workers, self.batches_per_epoch)
        if epoch != self._epoch:
            # RandomState takes words of 32 bits; a seed has 64.
            generator = np.random.RandomState([self.seed & 0xFFFFFFFF, self.seed >> 32, epoch])
            self._order = generator.permutation(self.examples).astype(np.int64)
            self._epoch = epoch
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
