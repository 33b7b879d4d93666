"""Two workers that push without end, each in a thread, while a test changes what is around them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

import tablebay as tb

TABLES = '[{"name": "words", "dim": 4}]'
KEYS = np.arange(64, dtype=np.uint64)


class TwoWorkers:
    """Ranks 0 and 1 with the certificates of `tls_dirs`. steps: of each, so far; failures: what a call raised."""

    def __init__(self, addresses: str, tls_dirs: list[Path]) -> None:
        self.steps = [0, 0]
        self.failures: list[Exception] = []
        self._addresses, self._tls_dirs = addresses, tls_dirs
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._train, args=(rank,)) for rank in range(2)]
        for thread in self._threads:
            thread.start()

    def _train(self, rank: int) -> None:
        try:
            with tb.connect(
                self._addresses, rank=rank, workers=2, tls_dir=self._tls_dirs[rank], timeout=60
            ) as client:
                table = client.table("words", dim=4)
                while not self._ends.is_set():
                    with client.step() as step:
                        step.pull({table: KEYS})
                        step.push({table: (KEYS, np.ones((len(KEYS), 4), np.float32))})
                    self.steps[rank] += 1
        except Exception as error:  # noqa: BLE001 - shown by who looks
            self.failures.append(error)

    def go_on(self, seconds: float) -> None:
        """For so long, and for three steps of each."""
        before, until = list(self.steps), time.monotonic() + seconds
        while time.monotonic() < until or min(a - b for a, b in zip(self.steps, before, strict=True)) < 3:
            assert not self.failures, self.failures
            assert time.monotonic() < until + 40, self.steps
            time.sleep(0.05)

    def end(self) -> None:
        """Both have ended well."""
        self._ends.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.failures, self.failures
