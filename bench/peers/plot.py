"""The peers' figures as a plot: `python plot.py found.json PLOT.svg`, in an environment with matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

WORKLOADS = ("pull_uniq", "push_uniq", "step_uniq", "step_raw", "cold", "save", "load")


def main(source: Path, target: Path) -> None:
    """A panel for each workload: how many times as fast Tablebay is, with the quartiles."""
    mpl.rcParams["svg.hashsalt"] = "tablebay"
    found = json.loads(source.read_text())
    panels = {}
    for workload in WORKLOADS:
        ratios = {
            peer: figures[f"peers.{peer}.{workload}.over"]
            for peer, figures in found["figures"].items()
            if f"peers.{peer}.{workload}.over" in figures
        }
        if ratios:
            panels[workload] = ratios
    figure, axes = plt.subplots(
        len(panels),
        figsize=(8, 0.6 + sum(0.5 + 0.25 * len(ratios) for ratios in panels.values())),
        height_ratios=[len(ratios) + 1 for ratios in panels.values()],
        layout="constrained",
        squeeze=False,
    )
    for axis, (workload, ratios) in zip(axes[:, 0], panels.items(), strict=True):
        values = [ratio["value"] for ratio in ratios.values()]
        spread = [
            [ratio["value"] - ratio["low"] for ratio in ratios.values()],
            [ratio["high"] - ratio["value"] for ratio in ratios.values()],
        ]
        colours = ["#999999" if peer.startswith("limit") else "#2a6fb0" for peer in ratios]
        axis.barh(list(ratios), values, xerr=spread, color=colours, height=0.7)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(f"{workload}: how many times as fast Tablebay is", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
