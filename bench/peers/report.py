"""What was found so far, as tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from measure import Figure


@dataclass
class Found:
    """Of each peer its version and figures, or why there are none: of the last run that asked for it."""

    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Found:
        """Nothing where there is no file."""
        if not path.exists():
            return cls()
        kept = json.loads(path.read_text())
        figures = {
            peer: {name: Figure(**value) for name, value in of_peer.items()}
            for peer, of_peer in kept["figures"].items()
        }
        return cls(kept["versions"], figures, kept["missing"])

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def put(self, peer: str, version: str, figures: dict[str, Figure]) -> None:
        """In place of what was known of the peer."""
        self.missing.pop(peer, None)
        self.versions[peer], self.figures[peer] = version, figures

    def put_missing(self, peer: str, reason: str) -> None:
        """In place of what was known of the peer."""
        self.versions.pop(peer, None)
        self.figures.pop(peer, None)
        self.missing[peer] = reason

    def tables(self, peers: Sequence[str], workloads: Sequence[str]) -> str:
        """Milliseconds a batch, theirs / Tablebay's = how many times as fast Tablebay is; then the slowest calls."""
        known = [peer for peer in peers if peer in self.versions]
        heads = f"| beside | {' | '.join(workloads)} |"
        rule = "|---" * (len(workloads) + 1) + "|"
        lines = [f"{heads} bytes a row |", f"{rule}---|"]
        for peer in known:
            theirs, ours = (
                self.figures[peer][f"peers.{peer}.{one}bytes_per_row"].value for one in ("", "ours_")
            )
            cells = [self._ratio(peer, workload) for workload in workloads]
            # A limit that moves bytes has no rows.
            size = f"{theirs:.0f} / {ours:.0f}" if theirs >= 1 else ""
            lines.append(f"| {self.versions[peer]} ({peer}) | {' | '.join(cells)} | {size} |")
        lines += ["", "99th percentile, ms:", "", heads, rule]
        for peer in known:
            cells = [self._slowest(peer, workload) for workload in workloads]
            lines.append(f"| {peer} | {' | '.join(cells)} |")
        lines += [f"\n{peer}: not measured: {reason}" for peer, reason in self.missing.items()]
        return "\n".join(lines) + "\n"

    def _ratio(self, peer: str, workload: str) -> str:
        head, figures = f"peers.{peer}.{workload}", self.figures[peer]
        if f"{head}.over" not in figures:
            return ""
        ratio = figures[f"{head}.over"]
        theirs, ours = (figures[f"{head}{which}.p50_ms"].value for which in ("", ".ours"))
        return f"{theirs:.1f} / {ours:.1f} = **{ratio.value:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"

    def _slowest(self, peer: str, workload: str) -> str:
        head, figures = f"peers.{peer}.{workload}", self.figures[peer]
        if f"{head}.over" not in figures:
            return ""
        theirs, ours = (figures[f"{head}{which}.p99_ms"].value for which in ("", ".ours"))
        return f"{theirs:.1f} / {ours:.1f}"
