"""The figures as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from measure import Figure


def table(figures: dict[str, Figure], versions: dict[str, str], workloads: Sequence[str]) -> str:
    """A row for each peer, in milliseconds a batch: theirs / Tablebay's = how many times as fast Tablebay is.

    figures: as run() returns them. versions: by peer.
    """
    lines = [f"| beside | {' | '.join(workloads)} | bytes a row |", "|---" * (len(workloads) + 2) + "|"]
    for peer, version in versions.items():
        cells = [f"{peer}: {version}"]
        for workload in workloads:
            ratio = figures.get(f"peers.{peer}.{workload}.over")
            if ratio is None:
                cells.append("")
                continue
            theirs, ours = (figures[f"peers.{peer}.{workload}.{which}"].value for which in ("ms", "ours_ms"))
            cells.append(
                f"{theirs:.1f} / {ours:.1f} = **{ratio.value:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"
            )
        theirs, ours = (figures[f"peers.{peer}.{which}bytes_per_row"].value for which in ("", "ours_"))
        cells.append(f"{theirs:.0f} / {ours:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
