"""Tablebay beside what else a user would pick, each in the version its figures are of: `make bench ONLY=peers`.

Every peer has an environment of its own under build/peers, made when it is first needed: 9 GB, and root for Redis'
package. A peer that cannot be installed or does not run is printed as such.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from measure import Figure, figure

from . import environments, report
from .contest import Contestant, Failed, contestant, in_turn
from .environments import Environment, NotInstalled

sys.path.insert(0, str(Path(__file__).with_name("drivers")))
import workload

WARM_UP, TIMED = 2, 10
FILES_TURNS = 3
CALLS = ("pull_uniq", "pull_raw", "push_uniq", "push_raw", "step_uniq", "step_raw", "cold")
FILES = ("save", "load")


@dataclass(frozen=True)
class Peer:
    """ours: the driver that it is held against. workloads: what is asked of both, where they can."""

    name: str
    ours: str
    environment: Environment
    workloads: tuple[str, ...] = CALLS
    timed: int = TIMED


PEERS = (
    Peer("tensorflow_grpc", "tablebay_grpc", environments.TENSORFLOW),
    Peer("torch_rpc", "tablebay_grpc", environments.TORCH),
    Peer("tfra_grpc", "tablebay_grpc", environments.TFRA),
    Peer("redis_pipelined", "tablebay_grpc", environments.REDIS, timed=5),
    Peer("torch_local", "tablebay_local", environments.TORCH),
    Peer("fbgemm_local", "tablebay_local", environments.TORCH),
    Peer("tfra_local", "tablebay_local", environments.TFRA),
    Peer("tfra_files", "tablebay_files", environments.TFRA, FILES),
)


def run(folder: Path) -> dict[str, Figure]:
    """Figures `peers.PEER.WORKLOAD.over` (how many times as fast Tablebay is), `.ms` and `.ours_ms`.

    They are written as a table, too, to build/peers/table.md. PEERS_ONLY in the environment: names of peers, with
    commas.
    """
    there = folder.parent / "peers"
    there.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in os.environ.get("PEERS_ONLY", "").split(",") if name]
    unknown = set(wanted) - {peer.name for peer in PEERS}
    if unknown:
        raise SystemExit(f"PEERS_ONLY={','.join(sorted(unknown))}: wanted some of {[p.name for p in PEERS]}")
    workload.ranks(there)
    figures: dict[str, Figure] = {}
    versions: dict[str, str] = {}
    missing: list[str] = []
    for peer in PEERS:
        if wanted and peer.name not in wanted:
            continue
        try:
            versions[peer.name], found = _against(peer, there)
            figures |= found
        except (NotInstalled, Failed) as reason:
            versions.pop(peer.name, None)
            missing.append(f"{peer.name}: not measured: {reason}")
            print(missing[-1], flush=True)
    text = report.table(figures, versions, (*CALLS, *FILES)) + "".join(f"\n{line}\n" for line in missing)
    (there / "table.md").write_text(text)
    print(text)
    return figures


def _against(peer: Peer, folder: Path) -> tuple[str, dict[str, Figure]]:
    """The peer's version, and the figures."""
    figures: dict[str, Figure] = {}
    with (
        contestant(peer.name, peer.environment, folder) as theirs,
        contestant(peer.ours, environments.OURS, folder) as ours,
    ):
        print(f"# {ours.version} beside {theirs.version}", flush=True)
        # Files are of half of the rows, as the others' figures are.
        last = workload.NIDS // 2 if peer.workloads == FILES else workload.NIDS
        for one, prefix in ((ours, "ours_"), (theirs, "")):
            before = one.ask("rss")["rss"]
            after = one.ask("fill", first=0, last=last)["rss"]
            figures[f"peers.{peer.name}.{prefix}bytes_per_row"] = figure([(after - before) / last], "bytes")
            one.ask("check")
        for name in peer.workloads:
            if name in ours.can and name in theirs.can:
                figures |= _workload(peer, ours, theirs, name)
        return theirs.version, figures


def _workload(peer: Peer, ours: Contestant, theirs: Contestant, name: str) -> dict[str, Figure]:
    if name in FILES:
        numbers, warm_up = list(range(FILES_TURNS)), 0
    elif name == "cold":
        numbers, warm_up = list(range(workload.COLD_BATCHES)), 1
    else:
        numbers, warm_up = [n % workload.BATCHES for n in range(WARM_UP + peer.timed)], WARM_UP
    pairs = in_turn(ours, theirs, name, numbers, warm_up)
    head = f"peers.{peer.name}.{name}"
    return {
        f"{head}.over": figure([b / a for a, b in pairs], "ratio"),
        f"{head}.ours_ms": figure([1e3 * a for a, _ in pairs], "ms"),
        f"{head}.ms": figure([1e3 * b for _, b in pairs], "ms"),
    }
