"""The key, certificate and trusted authorities of a process, from a folder that somebody else renews.

Standard library only. Nothing here holds on to an old file: whoever connects or listens asks for what is there now.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tablebay.client.errors import BadRequest

KEY, CERTIFICATE, AUTHORITIES = "tls.key", "tls.crt", "ca.crt"
_FILES = (KEY, CERTIFICATE, AUTHORITIES)
_TRIES = 5
# How often it is looked whether there are new ones.
_LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Credentials:
    """PEM texts. certificate: with its chain. authorities: those that sign the other side's."""

    key: bytes = field(repr=False)
    certificate: bytes
    authorities: bytes


class Source(Protocol):
    """Where credentials come from."""

    def version(self) -> object:
        """Equal as long as `read` gives the same; cheap. Raises BadRequest where nothing can be read."""

    def read(self) -> Credentials:
        """The credentials of now. Raises BadRequest."""


class Renewals:
    """Notices that a source has new credentials. Safe in threads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._version: object = None

    def first(self) -> Credentials:
        """The credentials of now, of which `look` tells no more. Raises BadRequest."""
        # Read after: files that change in between are looked at once more.
        self._version = self._source.version()
        return self._source.read()

    def look(self) -> Credentials | None:
        """New ones, to one of those who ask; None where there are none, or where somebody looked a moment ago."""
        if time.monotonic() < self._look_at:
            return None
        with self._lock:
            now = time.monotonic()
            if now < self._look_at:
                return None
            self._look_at = now + _LOOK_EVERY_S
            try:
                return None if self._source.version() == self._version else self.first()
            except BadRequest:
                # About to be written; what there was goes on.
                return None


class Folder:
    """tls.key, tls.crt and ca.crt of a folder; the folder may be a link that is set to another one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def version(self) -> object:
        """Which files these are. Raises BadRequest naming the file that is not there."""
        return self._version(self._folder())

    def read(self) -> Credentials:
        """The three files, as they were at one moment. Raises BadRequest."""
        for _ in range(_TRIES):
            folder = self._folder()
            try:
                before = self._version(folder)
                texts = [(folder / name).read_bytes() for name in _FILES]
                if self._folder() == folder and self._version(folder) == before:
                    return Credentials(*texts)
            except FileNotFoundError:
                # The link was set to another folder in between.
                continue
            except OSError as error:
                raise BadRequest(
                    f"{self.path}: {error.strerror}; wanted readable {', '.join(_FILES)}"
                ) from None
        raise BadRequest(
            f"{self.path}: {', '.join(_FILES)} change all the time; wanted them still for a moment"
        )

    def _folder(self) -> Path:
        return Path(os.path.realpath(self.path))

    def _version(self, folder: Path) -> tuple[object, ...]:
        found: list[object] = [str(folder)]
        for name in _FILES:
            try:
                file = (folder / name).stat()
            except OSError as error:
                raise BadRequest(
                    f"{Path(self.path) / name}: {error.strerror}; wanted {', '.join(_FILES)} in that folder"
                ) from None
            found += [file.st_ino, file.st_mtime_ns, file.st_size]
        return tuple(found)
