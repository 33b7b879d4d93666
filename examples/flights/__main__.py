"""A worker of the flights job: `python -m tablebay.examples.flights`, for `tablebay run` and for pods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tablebay as tb
from tablebay.examples.flights import data, train


def parse(arguments: Sequence[str] | None = None) -> train.Options:
    """The options of one worker; wrong usage ends the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tablebay.examples.flights",
        description="Train on 327,346 flights out of New York in 2013.",
    )
    parser.add_argument(
        "--model",
        choices=("fm", "lr"),
        default="fm",
        help="fm: factorization machine, lr: logistic regression (default: fm)",
    )
    parser.add_argument(
        "--split",
        choices=data.SPLITS,
        default="random",
        help="random: 80/20 over all hours, time: January to October against November and December",
    )
    parser.add_argument("--epochs", type=int, default=1, help="how often each example is seen (default: 1)")
    parser.add_argument(
        "--seed", type=int, help="of the initial rows and of the order (default: the job's, 0)"
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="examples in a batch (default: 2048)")
    parser.add_argument(
        "--steps-per-second", type=float, help="go no faster than this (default: as fast as it can)"
    )
    parser.add_argument(
        "--slow-until",
        type=Path,
        metavar="FILE",
        help="with --steps-per-second: once this file is there, no more",
    )
    parser.add_argument(
        "--prefetch", action="store_true", help="pull the next batch's rows during this batch's step"
    )
    parser.add_argument(
        "--oracle",
        action="store_true",
        help="prove beside the training that every push was applied exactly once",
    )
    found = parser.parse_args(arguments)
    for flag, value, lowest in (("--epochs", found.epochs, 1), ("--batch-size", found.batch_size, 1)):
        if value < lowest:
            parser.error(f"{flag} is {value}, wanted {lowest} or more")
    if found.seed is not None and not 0 <= found.seed < 2**64:
        parser.error(f"--seed is {found.seed}, wanted 0 to {2**64 - 1}")
    if found.steps_per_second is not None and not 0 < found.steps_per_second < float("inf"):
        parser.error(f"--steps-per-second is {found.steps_per_second}, wanted more than 0")
    if found.slow_until is not None and found.steps_per_second is None:
        parser.error(f"--slow-until is {found.slow_until}, wanted with --steps-per-second alone")
    return train.Options(**vars(found))


def main() -> int:
    """Train, then on rank 0 test. Returns the exit status."""
    options = parse()
    try:
        with tb.connect() as client:
            return train.work(client, options)
    except tb.TablebayError as error:
        print(f"flights: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
