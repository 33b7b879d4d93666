"""Scores flights from a checkpoint, without servers: `python -m tablebay.examples.flights.score`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tablebay as tb
from tablebay.examples.flights import data, model

TABLE = "fields"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; wrong usage ends the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tablebay.examples.flights.score",
        description="Score the test part of the flights with a checkpoint's rows.",
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a destination, or a manifest in it"
    )
    parser.add_argument("--to", required=True, type=Path, metavar="FILE", help="a new file, .tsv")
    parser.add_argument(
        "--table", default=TABLE, help="which table: fields_lr after --model lr (default: fields)"
    )
    parser.add_argument(
        "--split", choices=data.SPLITS, default="random", help="as in training (default: random)"
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="flights in a batch (default: 2048)")
    found = parser.parse_args(arguments)
    if found.batch_size < 1:
        parser.error(f"--batch-size is {found.batch_size}, wanted 1 or more")
    return found


def score(options: argparse.Namespace) -> None:
    """Write a line for each flight of the test part, and print how good the scores are."""
    table = tb.open(options.checkpoint)[options.table]
    test = data.split(data.load(), options.split)[1]
    began = time.monotonic()
    scores = model.predict(table, test, options.batch_size)
    seconds = max(time.monotonic() - began, 1e-9)
    try:
        with options.to.open("x", encoding="utf-8") as file:
            file.write("probability\tlate\n")
            file.writelines(
                f"{probability:.6f}\t{label:.0f}\n"
                for probability, label in zip(model.sigmoid(scores), test.labels, strict=True)
            )
    except OSError as error:
        raise tb.TablebayError(f"{options.to}: {error.strerror}, wanted a new file") from None
    print(
        f"test AUC     {model.auc(scores, test.labels):.4f} on {len(test):,} flights\n"
        f"test logloss {model.logloss(scores, test.labels):.4f}\n"
        f"flights/s    {len(test) / seconds:,.0f} ({len(test):,} in {seconds:.2f} s)\n"
        f"rows/s       {len(test) * (1 + len(data.FIELDS)) / seconds:,.0f}\n"
        f"written to   {options.to}"
    )


def main() -> int:
    """Returns the exit status."""
    options = parse()
    try:
        score(options)
    except tb.TablebayError as error:
        print(f"score: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
