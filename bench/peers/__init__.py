"""Tablebay beside what else a user would pick, each in the version its figures are of: `make bench ONLY=peers`.

Every peer has an environment of its own under build/peers, made when it is first needed: 9 GB, and root for Redis'
package. A peer that cannot be installed or does not run is printed as such. Limits take part as peers do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from measure import Figure, figure, quantile_figures, touch

from tablebay.ps_server.config import DEFAULT_RETAIN_LAST

from . import environments, report
from .contest import Contestant, Failed, contestant, in_turn
from .environments import Environment, NotInstalled

sys.path.insert(0, str(Path(__file__).with_name("drivers")))
import peer_workload as workload

WARM_UP, TIMED = 2, 30
# Saves before those that are timed: until the next one takes the place of an old one. Before that each is of memory
# that is new to the machine, which costs it more than the save does. A peer that writes over its file is there with its
# second save; Tablebay once there are as many checkpoints as a server keeps if it is not told otherwise, and one more
# while the oldest goes. And since a virtual machine's host may take the memory of the old one back within seconds, as
# much is touched before each turn.
SAVE_WARM_UP, LOAD_WARM_UP, FILES_TIMED = DEFAULT_RETAIN_LAST + 2, 1, 7
FILES_BYTES = workload.NIDS // 2 * 300
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
    Peer("limit_tcp_table", "tablebay_grpc", environments.OURS),
    Peer("limit_loopback", "tablebay_grpc", environments.OURS),
    Peer("limit_memory", "tablebay_local", environments.OURS),
    Peer("limit_memcpy", "tablebay_local", environments.OURS),
)

# The figures that have names of their own, and those that they are.
NAMED = {
    "step.over_tensorflow_ps": "tensorflow_grpc.step_uniq",
    "step.over_torch_rpc": "torch_rpc.step_uniq",
    "step.over_tfra_ps": "tfra_grpc.step_uniq",
    "step_raw.over_tensorflow_ps": "tensorflow_grpc.step_raw",
    "step_raw.over_torch_rpc": "torch_rpc.step_raw",
    "step_raw.over_tfra_ps": "tfra_grpc.step_raw",
    "pull.over_redis": "redis_pipelined.pull_uniq",
    "local_step.over_torch": "torch_local.step_uniq",
    "local_step.over_fbgemm": "fbgemm_local.step_uniq",
    "local_step.over_tfra": "tfra_local.step_uniq",
    "insert.over_tfra": "tfra_grpc.cold",
    "save.over_tfra": "tfra_files.save",
    "load.over_tfra": "tfra_files.load",
}


def run(folder: Path) -> dict[str, Figure]:
    """Figures `peers.PEER.WORKLOAD.over` (how many times as fast Tablebay is), and of both p50 and p99 in ms.

    All that were ever taken are written as tables and plots, too, to build/peers. PEERS_ONLY in the environment: names
    of peers, with commas.
    """
    there = folder.parent / "peers"
    there.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in os.environ.get("PEERS_ONLY", "").split(",") if name]
    unknown = set(wanted) - {peer.name for peer in PEERS}
    if unknown:
        raise SystemExit(f"PEERS_ONLY={','.join(sorted(unknown))}: wanted some of {[p.name for p in PEERS]}")
    workload.ranks(there)
    figures: dict[str, Figure] = {}
    found = report.Found.read(there / "found.json")
    for peer in PEERS:
        if wanted and peer.name not in wanted:
            continue
        try:
            version, of_peer = _against(peer, there)
            found.put(peer.name, version, of_peer)
            figures |= of_peer
        except (NotInstalled, Failed) as reason:
            found.put_missing(peer.name, str(reason))
            print(f"{peer.name}: not measured: {reason}", flush=True)
        found.write(there / "found.json")
    text = found.tables([peer.name for peer in PEERS], (*CALLS, *FILES))
    (there / "table.md").write_text(text)
    print(text)
    _plot(there)
    return figures


def _plot(there: Path) -> None:
    try:
        python = environments.python_of(environments.PLOTS, there)
    except NotInstalled as reason:
        print(f"no plot: {reason}")
        return
    script = Path(__file__).with_name("plot.py")
    subprocess.run([python, str(script), str(there / "found.json"), str(there / "plot.svg")], check=True)


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
        bytes_per_row = []
        for one in (ours, theirs):
            before = one.ask("rss")["rss"]
            after = one.ask("fill", first=0, last=last)["rss"]
            bytes_per_row.append((after - before) / last)
            one.ask("check")
        for name, value in zip(("ours_bytes_per_row", "bytes_per_row"), bytes_per_row, strict=True):
            figures[f"peers.{peer.name}.{name}"] = figure([value], "bytes")
        if peer.name == "tfra_grpc":
            figures["bytes_per_row.over_tfra"] = figure([bytes_per_row[0] / bytes_per_row[1]], "ratio")
        for name in peer.workloads:
            if name in ours.can and name in theirs.can:
                figures |= _workload(peer, ours, theirs, name)
        return theirs.version, figures


def _workload(peer: Peer, ours: Contestant, theirs: Contestant, name: str) -> dict[str, Figure]:
    if name in FILES:
        warm_up = SAVE_WARM_UP if name == "save" else LOAD_WARM_UP
        numbers = list(range(warm_up + FILES_TIMED))
    elif name == "cold":
        numbers, warm_up = list(range(workload.COLD_BATCHES)), 1
    else:
        numbers, warm_up = [n % workload.BATCHES for n in range(WARM_UP + peer.timed)], WARM_UP
    before = partial(touch, FILES_BYTES) if name in FILES else lambda: None
    pairs = in_turn(ours, theirs, name, numbers, warm_up, before)
    head = f"peers.{peer.name}.{name}"
    over = figure([b / a for a, b in pairs], "ratio")
    figures = {f"{head}.over": over}
    figures |= quantile_figures(f"{head}.ours", [a for a, _ in pairs])
    figures |= quantile_figures(head, [b for _, b in pairs])
    for own, which in NAMED.items():
        if which == f"{peer.name}.{name}":
            figures[own] = over
    return figures
