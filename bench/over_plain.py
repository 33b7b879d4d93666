"""A pull and a push with mutual TLS, beside the same in plain, each as `tb.connect` does it: `make bench ONLY=grpc`."""

from __future__ import annotations

import datetime
import tempfile
from functools import partial
from pathlib import Path

import measure
import numpy as np
import workload
from measure import Figure
from servers import tablebay_servers
from workload import DIM, KEYS

import tablebay as tb
from tablebay.client.certificates import Pair, issue, make_authority
from tablebay.client.peer import Peer

ROUNDS = 6


def run() -> dict[str, Figure]:
    """Figures `grpc.tls.*`."""
    with tempfile.TemporaryDirectory(prefix="tablebay-bench-") as found:
        folder = Path(found)
        now, life = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
        authority = make_authority("bench", now, life)
        for name, names in (("server/0", ("127.0.0.1",)), ("client", ())):
            peer = Peer.parse(f"spiffe://tablebay/ns/local/job/bench/{name}")
            _write(folder / peer.role, issue(authority, peer, names, now, life), authority)
        with (
            tablebay_servers(1) as (plain, _),
            tablebay_servers(1, folder / "server") as (secure, _),
            tb.connect(plain) as client,
            tb.connect(secure, tls_dir=folder / "client") as other,
        ):
            return _figures(client, other)


def _write(folder: Path, pair: Pair, authority: Pair) -> None:
    folder.mkdir(mode=0o700)
    (folder / "tls.key").write_bytes(pair.key)
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "ca.crt").write_bytes(authority.certificate)


def _figures(client: tb.Client, other: tb.Client) -> dict[str, Figure]:
    work = workload.Workload.make()
    tables = [
        one.table("bench", dim=DIM, optimizer=tb.Adagrad(0.05), initializer=tb.Normal(0.01))
        for one in (client, other)
    ]
    out = [np.empty((KEYS, DIM), np.float32) for _ in tables]
    for keys in work.batches():
        for table, rows in zip(tables, out, strict=True):
            table.pull(keys, out=rows[: len(keys)])
        if not np.array_equal(*out):
            raise SystemExit("TLS and plain answer different rows")
    plain, secure = (
        [partial(_pull_and_push, table, keys, rows, work.gradients) for keys in work.calls]
        for table, rows in zip(tables, out, strict=True)
    )
    times = measure.interleave(secure, plain, ROUNDS)
    return {
        "grpc.tls.over_plain": times.ours_over_theirs(),
        "grpc.tls.rows_per_s": measure.figure([2 * KEYS / s for s in times.ours], "rows/s"),
    }


def _pull_and_push(table: tb.Table, keys: np.ndarray, out: np.ndarray, gradients: np.ndarray) -> None:
    table.pull(keys, out=out)
    table.push(keys, gradients)
