"""Folders of certificates for tests, as the operator or a person would make them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from tablebay.client.certificates import Pair, issue, make_authority
from tablebay.client.peer import Peer

NAMESPACE, JOB = "ads", "0b7c"
HOUR = datetime.timedelta(hours=1)
LOCAL = ("localhost", "127.0.0.1")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def authority(*, ended: bool = False) -> Pair:
    """A job's authority; ended: its time was over long ago."""
    return make_authority("tests", now() - (100 * HOUR if ended else HOUR), 20 * HOUR if ended else 10 * HOUR)


def peer(name: str, *, job: str = JOB, namespace: str = NAMESPACE) -> Peer:
    """Of `worker/3` or `operator`."""
    return Peer.parse(f"spiffe://tablebay/ns/{namespace}/job/{job}/{name}")


def pair(by: Pair, who: Peer, *, names: Sequence[str] = (), ended: bool = False) -> Pair:
    """A certificate; a server's is good for this machine. ended: a second after it was made, long ago."""
    if ended:
        return issue(by, who, names, now() - HOUR / 2, datetime.timedelta(seconds=1))
    return issue(by, who, names or (LOCAL if who.role == "server" else ()), now(), HOUR)


def write(folder: Path, found: Pair, *authorities: Pair) -> Path:
    """What a process is given, put in place of what there was at one moment."""
    new = folder.parent / f"{folder.name}-{os.urandom(4).hex()}"
    new.mkdir(parents=True)
    (new / "tls.key").write_bytes(found.key)
    (new / "tls.crt").write_bytes(found.certificate)
    (new / "ca.crt").write_bytes(b"".join(one.certificate for one in authorities))
    link = folder.parent / f"{new.name}.link"
    link.symlink_to(new)
    link.replace(folder)
    return folder
