"""TensorFlow Recommenders Addons in one process: files in its own format, and rows read from them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from driver import serve
from tfra import Tfra


class TfraFiles(Tfra):
    """A file of keys and one of values, of each of the two tables."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm")

    def save(self) -> None:
        for table in self._tables:
            table.save_to_file_system(self._folder.name, buffer_size=4 << 20)

    def prepare_load(self) -> None:
        for table in self._tables:
            table.clear()

    def load(self) -> None:
        for table in self._tables:
            table.load_from_file_system(self._folder.name, buffer_size=4 << 20)

    def close(self) -> None:
        self._folder.cleanup()


if __name__ == "__main__":
    serve(TfraFiles)
