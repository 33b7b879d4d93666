"""`make bench`: the figures of docs and README, as build/bench.json and a table.

    python bench/run.py [--only table,grpc]

Each `over` figure is how many times as fast as the thing named, both measured in this run, in interleaved pairs; but
`over_plain_apply`, `time_to_auc.over_numpy`, `torch.step_over_local` and `prefetch.step_over_max` are how many times as
long it takes. `operator` needs root and about 15 minutes, `torch` needs PyTorch (`make test-torch`), `durability` 10 GB
of disk and `table100m` 17 GB of memory, so they are done only where they are asked for: make bench ONLY=operator.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import measure

from tablebay.native import _core

PARTS = {
    "table": "in_process",
    "table100m": "table100m",
    "index": "boost_index",
    "grpc": "over_tcp",
    "scaling": "scaling",
    "race": "race",
    "peers": "peers",
    "durability": "durability",
    "torch": "torch_steps",
    "operator": "operator_bench",
}
UNASKED = ("table", "grpc", "scaling", "race", "peers")
RESULT = measure.ROOT / "build" / "bench.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Tablebay against its limits.")
    parser.add_argument("--only", default=",".join(UNASKED), help=f"parts, of {', '.join(PARTS)}")
    names = [name for name in parser.parse_args().only.split(",") if name]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        parser.error(f"--only {','.join(unknown) or 'nothing'}: wanted some of {', '.join(PARTS)}")
    folder = measure.build_libraries()
    print(f"{measure.machine()['cpu']}, {measure.machine()['cores']} cores, {_core.instruction_set()}")
    for name in names:
        figures = importlib.import_module(PARTS[name]).run(Path(folder))
        measure.write(RESULT, _core.commit(), figures)
        for figure_name, figure in figures.items():
            spread = f"{figure.low:,.4g} to {figure.high:,.4g}"
            print(f"{figure_name:34} {figure.value:>14,.4g} {figure.unit:7} ({spread})")
    print(f"written: {RESULT.relative_to(measure.ROOT)}")


if __name__ == "__main__":
    main()
