"""`make test-gpu`: with a CUDA device it compares and measures; without one it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch import gpu

from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share
from tablebay.examples.flights_torch import train


def test_without_a_device_nothing_is_claimed() -> None:
    """It ends with 3 and says that nothing was run; where a device is, with 0 and all of its figures."""
    command = [sys.executable, Path(gpu.__file__), "--steps", "10"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if torch.cuda.is_available():
        assert ended.returncode == 0, ended.stdout + ended.stderr
        for words in (
            "peak GPU memory",
            "GPU-busy share",
            "host-to-device bytes a step",
            "rows, GPU and CPU",
        ):
            assert words in ended.stdout
    else:
        assert ended.returncode == gpu.NO_DEVICE, ended.stdout + ended.stderr
        assert "no CUDA device here: nothing was run on a GPU" in ended.stderr
        assert not ended.stdout


def test_a_trace_says_how_busy_the_device_was() -> None:
    """Overlaps count once, what is no work of the device does not; bytes are told by where they came from."""
    events: list[dict[str, Any]] = [
        {"cat": "cpu_op", "name": "aten::add", "ts": 0, "dur": 900},
        {"cat": "kernel", "name": "a", "ts": 100, "dur": 50, "args": {"stream": 7}},
        {
            "cat": "gpu_memcpy",
            "name": "Memcpy HtoD (Pinned -> Device)",
            "ts": 120,
            "dur": 80,
            "args": {"stream": 13, "bytes": 1000},
        },
        {
            "cat": "gpu_memcpy",
            "name": "Memcpy HtoD (Pageable -> Device)",
            "ts": 300,
            "dur": 10,
            "args": {"stream": 7, "bytes": 30},
        },
        {
            "cat": "gpu_memcpy",
            "name": "Memcpy DtoH (Device -> Pinned)",
            "ts": 400,
            "dur": 40,
            "args": {"stream": 13, "bytes": 500},
        },
        {"cat": "gpu_memset", "name": "Memset", "ts": 405, "dur": 5, "args": {"stream": 7}},
        {"name": "process_name", "ph": "M"},
    ]
    found = gpu.busy(events, 1e-3)
    assert found.share == pytest.approx((100 + 10 + 40) / 1000)
    assert (found.pinned_bytes, found.pageable_bytes) == (1000, 30)
    assert (found.streams_of_copies, found.streams_of_kernels) == (2, 1)
    assert gpu.busy([], 1.0).share == 0


def test_the_comparison_sees_what_is_not_the_same() -> None:
    """Two runs on the CPU are equal; a loss, a dense parameter or a row that is off is seen."""
    training, _ = data.split(data.load(), "random")
    share = Share(len(training), 256, 1, 0, 0, 1)
    positions = [share.positions(number) for number in range(gpu.WARM_UP + 2)]
    batches = [train.batch(training, one) for one in positions]
    keys = np.unique(training.keys[np.concatenate(positions)].view(np.int64))
    (one, none), (other, _) = (gpu.learn(torch.device("cpu"), batches, keys) for _ in range(2))
    assert none is None
    assert len(one.losses) == len(batches)
    assert max(gpu.differences(one, other).values()) == 0
    other.losses[-1] *= 1.001
    other.dense[0][0] += 0.01
    other.rows[5] += 0.01
    assert min(gpu.differences(one, other).values()) > 1
