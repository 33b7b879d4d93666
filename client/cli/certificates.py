"""`tablebay certificates`: an authority and certificates for servers and clients outside Kubernetes."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from tablebay.client.cli.usage import UsageError


def make(folder: Path, *, job: str, servers: Sequence[str], workers: int, days: int) -> list[Path]:
    """A folder for each process below `folder`, which must not exist; the key of the authority is kept nowhere.

    servers: for each, its host names and addresses, separated by commas. Raises UsageError.
    """
    try:
        from tablebay.client.certificates import issue, make_authority
    except ModuleNotFoundError:
        raise UsageError(
            "tablebay certificates wants the package cryptography: pip install 'tablebay[tls]'"
        ) from None
    from tablebay.client.errors import BadRequest
    from tablebay.client.peer import Peer
    from tablebay.client.tls import AUTHORITIES, CERTIFICATE, KEY

    now, life = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=days)
    peers = [
        *(
            (Peer("local", job, "server", index), tuple(names.split(",")))
            for index, names in enumerate(servers)
        ),
        *((Peer("local", job, "worker", rank), ()) for rank in range(workers)),
        (Peer("local", job, "client"), ()),
    ]
    authority = make_authority(f"{job} {now:%Y-%m-%dT%H:%M:%SZ}", now, life)
    try:
        for peer, _ in peers:
            Peer.parse(peer.uri)
        pairs = [issue(authority, peer, names, now, life) for peer, names in peers]
        folder.mkdir(mode=0o700)
    except (BadRequest, ValueError) as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; wanted a new folder") from None
    made = []
    for (peer, _), pair in zip(peers, pairs, strict=True):
        own = folder / peer.name.replace(" ", "-")
        own.mkdir(mode=0o700)
        for name, text in (
            (KEY, pair.key),
            (CERTIFICATE, pair.certificate),
            (AUTHORITIES, authority.certificate),
        ):
            with open(os.open(own / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(text)
        made.append(own)
    return made
