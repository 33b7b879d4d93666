"""The peers' figures as a plot: `python plot.py found.json PLOT.svg`, in an environment with matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

WORKLOADS = ("pull_uniq", "push_uniq", "step_uniq", "step_raw", "cold", "save", "load")
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def _is_limit(peer: str) -> bool:
    return peer.startswith("limit")


def main(source: Path, target: Path) -> None:
    """A panel for each workload: how many times as fast Tablebay is, with the quartiles."""
    mpl.rcParams["svg.hashsalt"] = "tablebay"
    found = json.loads(source.read_text())
    panels = {}
    for workload in WORKLOADS:
        ratios = {
            peer: figures[f"peers.{peer}.{workload}.over"]
            for peer, figures in sorted(found["figures"].items(), key=lambda item: _is_limit(item[0]))
            if f"peers.{peer}.{workload}.over" in figures
        }
        if ratios:
            panels[workload] = ratios
    figure, axes = plt.subplots(
        len(panels),
        figsize=(8, 0.6 + sum(0.5 + 0.25 * len(ratios) for ratios in panels.values())),
        height_ratios=[len(ratios) + 1 for ratios in panels.values()],
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for axis, (workload, ratios) in zip(axes[:, 0], panels.items(), strict=True):
        values = [ratio["value"] for ratio in ratios.values()]
        spread = [
            [ratio["value"] - ratio["low"] for ratio in ratios.values()],
            [ratio["high"] - ratio["value"] for ratio in ratios.values()],
        ]
        colours = ["#999999" if _is_limit(peer) else "#2a6fb0" for peer in ratios]
        # From 1: as fast as the other.
        axis.barh(
            list(ratios), [value - 1 for value in values], left=1, xerr=spread, color=colours, height=0.7
        )
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(f"{workload}: how many times as fast Tablebay is", fontsize=9, loc="left")
        axis.tick_params(labelsize=8, labelbottom=True)
        axis.invert_yaxis()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
