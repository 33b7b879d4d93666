"""A worker of the jobs in this folder: `python -m tablebay.examples.flights_torch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import tablebay as tb
from tablebay.examples.flights_torch import train


def parse(arguments: Sequence[str] | None = None) -> train.Options:
    """The options of one worker; wrong usage ends the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tablebay.examples.flights_torch",
        description="DeepFM and DLRM in PyTorch on 327,346 flights.",
    )
    parser.add_argument("--model", choices=tuple(train.MODELS), default="deepfm", help="(default: deepfm)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="of the dense layers and the pulled rows (default: cpu)",
    )
    parser.add_argument("--epochs", type=int, default=1, help="how often each example is seen (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of rows, dense layers and order (default: 0)")
    parser.add_argument("--batch-size", type=int, default=2048, help="examples in a batch (default: 2048)")
    parser.add_argument(
        "--checkpoint-every-steps",
        type=int,
        default=0,
        help="rank 0 has a checkpoint made with the dense part, in a job that has a `checkpoint` (default: 0, never)",
    )
    found = parser.parse_args(arguments)
    for flag, value, lowest in (
        ("--epochs", found.epochs, 1),
        ("--batch-size", found.batch_size, 1),
        ("--seed", found.seed, 0),
        ("--checkpoint-every-steps", found.checkpoint_every_steps, 0),
    ):
        if value < lowest:
            parser.error(f"{flag} is {value}, wanted {lowest} or more")
    return train.Options(**vars(found))


def main() -> int:
    """Train, then on rank 0 test. Returns the exit status."""
    options = parse()
    try:
        with tb.connect() as client:
            if client.rank is None:
                raise tb.BadRequest("this process has no rank; start the job with `tablebay run`")
            return train.work(client, options)
    except tb.TablebayError as error:
        print(f"flights_torch: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
