"""Tablebay: checkpoints of one server, durably, and their rows read into a new table."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from driver import serve
from tablebay_grpc import TablebayGrpc

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.restore import restore_newest
from tablebay.native import _core


class TablebayFiles(TablebayGrpc):
    """A server that makes checkpoints, in memory's file system."""

    def __init__(self, folder: Path) -> None:
        self._files = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self._destination = str(self._files / "checkpoints")
        self.options = ("--checkpoint", self._destination, "--checkpoint-every-seconds", "86400")
        self._loaded: _core.Store | None = None
        super().__init__(folder)

    def save(self) -> None:
        self.client.checkpoint(full=True)

    def prepare_load(self) -> None:
        self._loaded = None

    def load(self) -> None:
        destination = Destination.open(self._destination, job="peers")
        self._loaded = _core.Store()
        owners = tuple(range(1024))
        restored = restore_newest(self._loaded, destination, index=0, servers=1, owners=owners, job="peers")
        assert restored.rows > 0

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._files)


if __name__ == "__main__":
    serve(TablebayFiles)
