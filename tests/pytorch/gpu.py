"""DLRM on a CUDA device beside the same on the CPU: `make test-gpu`, for whoever has a GPU.

    python tests/pytorch/gpu.py [--steps 50] [--batch-size 2048]

Exit status: 0 where both learnt the same, 1 where they did not, 3 where there is no CUDA device; then nothing was run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import tablebay as tb
from tablebay.examples.flights import data
from tablebay.examples.flights.batches import Share
from tablebay.examples.flights_torch import train
from tablebay.examples.flights_torch.model import DLRM_FACTORS

NO_DEVICE = 3
# The devices add in other orders, and Adam's first steps are a whole step for any gradient.
RTOL, ATOL = 1e-4, 1e-5
WARM_UP = 5


@dataclass(frozen=True)
class Learnt:
    """What a device has learnt: losses by step, dense parameters, rows by key."""

    losses: list[float]
    dense: list[torch.Tensor]
    rows: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Busy:
    """What a trace says of the device. share: of the time in which it did anything. Bytes: copied to it, in all."""

    share: float
    pinned_bytes: int
    pageable_bytes: int
    streams_of_copies: int
    streams_of_kernels: int


def busy(events: Iterable[dict[str, Any]], seconds: float) -> Busy:
    """Of the events of a Chrome trace by torch.profiler, and the seconds that it covers."""
    spans: list[tuple[float, float]] = []
    copied = {"Pinned": 0, "Pageable": 0}
    copying, computing = set(), set()
    for event in events:
        kind = event.get("cat")
        if kind not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        spans.append((event["ts"], event["ts"] + event["dur"]))
        arguments = event.get("args", {})
        if kind == "kernel":
            computing.add(arguments.get("stream"))
        if kind == "gpu_memcpy" and "HtoD" in event["name"]:
            copying.add(arguments.get("stream"))
            copied["Pinned" if "Pinned" in event["name"] else "Pageable"] += int(arguments["bytes"])
    covered = end = 0.0
    for begin, until in sorted(spans):
        covered += max(0.0, until - max(begin, end))
        end = max(end, until)
    return Busy(covered / (1e6 * seconds), copied["Pinned"], copied["Pageable"], len(copying), len(computing))


def learn(device: torch.device, batches: list[Any], keys: Any) -> tuple[Learnt, Busy | None]:
    """On two servers in this process. Of a CUDA device also what it did after the first steps."""
    losses: list[float] = []
    found: Busy | None = None
    with tb.local(servers=2) as client:
        # The job's accumulator of 1e-8 makes a whole step of a gradient near 0, and so of the rounding in its sum.
        optimizer = tb.Adagrad(0.05, initial_accumulator=1e-5)
        client.table("fields", DLRM_FACTORS, optimizer=optimizer, initializer=tb.Normal(0.01))
        model = train.dlrm(client, 0).to(device)
        opt = tb.torch.Optimizer(torch.optim.Adam(model.parameters(), train.DENSE_LEARNING_RATE), model)

        def take(some: list[Any]) -> None:
            for batch, labels in some:
                opt.zero_grad()
                loss = functional.binary_cross_entropy_with_logits(model(batch), labels.to(device))
                loss.backward()
                opt.step()
                losses.append(float(loss.detach()))

        take(batches[:WARM_UP])
        if device.type == "cuda":
            found = _watched(lambda: take(batches[WARM_UP:]), device)
        else:
            take(batches[WARM_UP:])
        dense = [one.detach().cpu() for one in model.parameters() if not isinstance(one, tb.torch.Rows)]
        return Learnt(losses, dense, client.table("fields").pull(keys)), found


def _watched(work: Callable[[], None], device: torch.device) -> Busy:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        return busy(json.loads(trace.read_text("utf-8"))["traceEvents"], seconds)


def differences(one: Learnt, other: Learnt) -> dict[str, float]:
    """How far both are from each other, in parts of what is allowed: more than 1 is too far."""

    def worst(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.max(np.abs(a - b) / (ATOL + RTOL * np.abs(b)), initial=0.0))

    return {
        "losses": worst(one.losses, other.losses),
        "dense parameters": max(worst(a, b) for a, b in zip(one.dense, other.dense, strict=True)),
        "rows": worst(one.rows, other.rows),
    }


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="DLRM on a CUDA device beside the same on the CPU.")
    parser.add_argument("--steps", type=int, default=50, help=f"more than {WARM_UP} (default: 50)")
    parser.add_argument("--batch-size", type=int, default=2048, help="(default: 2048)")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP or options.batch_size < 1:
        parser.error(
            f"--steps is {options.steps} and --batch-size {options.batch_size}, wanted more than "
            f"{WARM_UP}, and 1 or more"
        )
    if not torch.cuda.is_available():
        print(
            f"no CUDA device here: nothing was run on a GPU (torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda or 'not at all'}); exit status {NO_DEVICE}",
            file=sys.stderr,
        )
        return NO_DEVICE
    device = torch.device("cuda", torch.cuda.current_device())
    training, _ = data.split(data.load(), "random")
    share = Share(len(training), options.batch_size, 1, 0, 0, 1)
    positions = [share.positions(number) for number in range(options.steps)]
    batches = [train.batch(training, one) for one in positions]
    keys = np.unique(training.keys[np.concatenate(positions)].view(np.int64))
    on_cpu, _ = learn(torch.device("cpu"), batches, keys)
    on_gpu, found = learn(device, batches, keys)
    assert found is not None
    counted = options.steps - WARM_UP
    peak = torch.cuda.max_memory_allocated(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}: DLRM, {options.steps} steps")
    print(f"peak GPU memory: {peak / 2**20:.1f} MiB")
    print(f"GPU-busy share: {found.share:.3f}")
    print(
        f"host-to-device bytes a step: {(found.pinned_bytes + found.pageable_bytes) / counted:,.0f}, of which "
        f"{found.pinned_bytes / counted:,.0f} pinned; copies in {found.streams_of_copies} streams, kernels in "
        f"{found.streams_of_kernels}"
    )
    apart = differences(on_gpu, on_cpu)
    for what, value in apart.items():
        print(f"{what}, GPU and CPU: {value:.3f} of what is allowed (rtol {RTOL:g}, atol {ATOL:g})")
    if max(apart.values()) > 1 or not np.isfinite(list(apart.values())).all():
        print("the GPU learnt something else than the CPU", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
