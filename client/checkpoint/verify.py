"""Reading a checkpoint to its last byte, to know that it could be restored."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.manifest import Manifest
from tablebay.client.checkpoint.reading import blocks
from tablebay.client.checkpoint.restore import check_state
from tablebay.client.errors import CheckpointInvalid


@dataclass(frozen=True)
class Verified:
    """What was read. problems: each with its file and byte; none where all is whole. bytes: of good files."""

    manifest: Manifest
    problems: tuple[str, ...]
    files: int
    bytes: int
    rows: int
    seconds: float


def verify(source: Destination, manifest: Manifest) -> Verified:
    """Read every file that a manifest names, with all checksums; damage is collected. Raises StorageError.

    rows: in all links' files, so a row that was written again is counted again.
    """
    began = time.perf_counter()
    problems: list[str] = []
    files = bytes_read = rows = 0
    for server in manifest.servers:
        for link in server.chain:
            for file in link.files:
                files += 1
                try:
                    for _ in blocks(source, manifest, server, link, file):
                        pass
                except CheckpointInvalid as error:
                    problems.append(str(error))
                    continue
                bytes_read += file.bytes
                rows += file.rows
    for state in manifest.states():
        files += 1
        try:
            check_state(source, state)
            bytes_read += state.bytes
        except CheckpointInvalid as error:
            problems.append(str(error))
    return Verified(manifest, tuple(problems), files, bytes_read, rows, time.perf_counter() - began)
