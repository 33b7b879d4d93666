"""More clients, more servers, wider rows, more tables: `make bench ONLY=scaling`.

80,000 keys a call, over 2 M rows. Clients and servers are processes that share this machine's cores, so beyond as many
busy processes as cores the rates say how well they share, and not what more machines would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import measure
from clients import Group, clients
from measure import Figure
from servers import tablebay_servers
from workload import DIM

COUNTS = (1, 2, 4)
DIMS = (8, 16, 64, 128)
TABLES = (1, 26)
ROUNDS, SLICE_S = 3, 1.0


def run(folder: Path) -> dict[str, Figure]:
    """Figures `scaling.*`."""
    figures: dict[str, Figure] = {}
    for servers in COUNTS:
        with ExitStack() as stack:
            addresses, _ = stack.enter_context(tablebay_servers(servers))
            groups = {
                f"clients_{count}.servers_{servers}": stack.enter_context(
                    clients(count, addresses=addresses, dim=DIM, tables=1)
                )
                for count in COUNTS
            }
            next(iter(groups.values())).fill()
            figures |= _compared(groups, ("pull", "push"))
    for dim in DIMS:
        figures |= _alone(f"dim_{dim}", dim, 1, ("pull", "push"))
    for tables in TABLES:
        figures |= _alone(f"tables_{tables}", DIM, tables, ("step",))
    return figures


def _alone(name: str, dim: int, tables: int, operations: Sequence[str]) -> dict[str, Figure]:
    with (
        tablebay_servers(1) as (addresses, _),
        clients(1, addresses=addresses, dim=dim, tables=tables) as one,
    ):
        one.fill()
        return _compared({name: one}, operations)


def _compared(groups: dict[str, Group], operations: Sequence[str]) -> dict[str, Figure]:
    """All groups in turn, `ROUNDS` times."""
    figures: dict[str, Figure] = {}
    for operation in operations:
        rates: dict[str, list[float]] = {name: [] for name in groups}
        taken: dict[str, list[float]] = {name: [] for name in groups}
        for turn in range(ROUNDS + 1):
            for name, group in groups.items():
                found = group.run(operation, SLICE_S)
                if turn:
                    rates[name].append(found.rows_per_s)
                    taken[name] += found.seconds
        for name in groups:
            head = f"scaling.{name}.{operation}"
            figures[f"{head}_rows_per_s"] = measure.figure(rates[name], "rows/s")
            figures |= measure.quantile_figures(head, taken[name])
    return figures
