"""Where checkpoints are kept: names under one root, with the few promises that a checkpoint stands on.

`create` and `create_empty` fail where the name is taken, whoever took it; what they and `Writer.close` have returned
from is on the disk, and so are its directory's entries. Everything else may be lost with the power.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "http", "https", "oss")


class StorageError(Exception):
    """What the storage says, with the path."""


class NameTaken(Exception):
    """A conditional create found the name there already."""


class Writer(Protocol):
    """A new file."""

    def write(self, content: bytes | memoryview) -> None:
        """Append. Raises StorageError."""

    def close(self) -> None:
        """Have it on the disk. Raises StorageError."""


class Reader(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """In bytes, when it was opened."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from the offset; how many bytes, less only at the end. Raises StorageError."""

    def close(self) -> None:
        """Let go of it."""


class Storage(Protocol):
    """Paths are relative, of plain names joined by `/`. Every method raises StorageError naming the path."""

    @property
    def name(self) -> str:
        """For people."""

    def create(self, path: str, content: bytes) -> None:
        """Make a file with this content, all of it or none. Raises NameTaken."""

    def create_empty(self, path: str) -> None:
        """Make an empty file. Raises NameTaken."""

    def writer(self, path: str) -> Writer:
        """A new file at a name that is free."""

    def reader(self, path: str) -> Reader:
        """A file. Raises FileNotFoundError."""

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; none where it is not there."""

    def remove(self, path: str) -> None:
        """Delete a file, or a directory with all in it; nothing where it is not there."""


def read_all(storage: Storage, path: str, bytes_max: int) -> bytes:
    """A whole small file. Raises StorageError where it is larger, FileNotFoundError."""
    reader = storage.reader(path)
    try:
        if reader.size > bytes_max:
            raise StorageError(f"{path}: {reader.size} bytes, wanted at most {bytes_max}")
        buffer = bytearray(reader.size)
        return bytes(buffer[: reader.read_into(0, memoryview(buffer))])
    finally:
        reader.close()


def local_path(destination: str) -> Path:
    """The directory that a destination names. Raises StorageError for an object store, and for a relative path."""
    scheme = destination.partition("://")[0] if "://" in destination else ""
    if scheme == "file":
        destination = destination.removeprefix("file://")
    elif scheme:
        known = "an object store, which is not supported yet" if scheme in SCHEMES else "not known"
        raise StorageError(f"{destination}: {scheme}:// is {known}; wanted a directory's absolute path")
    path = Path(destination)
    if not path.is_absolute():
        raise StorageError(f"'{destination}' is a relative path, wanted an absolute one")
    return path


class LocalStorage:
    """A directory. The root is made where it is not there, with `make`."""

    def __init__(self, root: Path, *, make: bool = True) -> None:
        self._root = root
        if make:
            with _errors(str(root)):
                root.mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """For people."""
        return str(self._root)

    def create(self, path: str, content: bytes) -> None:
        """Make a file with this content, all of it or none. Raises NameTaken."""
        final = self._at(path)
        draft = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        with _errors(path):
            self._make_directory(final.parent)
            try:
                writer = _LocalWriter(draft, sync_directory=False)
                writer.write(content)
                writer.close()
                try:
                    os.link(draft, final)
                except FileExistsError:
                    raise NameTaken(path) from None
            finally:
                with suppress(FileNotFoundError):
                    draft.unlink()
            _sync_directory(final.parent)

    def create_empty(self, path: str) -> None:
        """Make an empty file. Raises NameTaken."""
        final = self._at(path)
        with _errors(path):
            self._make_directory(final.parent)
            try:
                os.close(
                    os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                )
            except FileExistsError:
                raise NameTaken(path) from None
            _sync_directory(final.parent)

    def writer(self, path: str) -> Writer:
        """A new file at a name that is free."""
        final = self._at(path)
        with _errors(path):
            self._make_directory(final.parent)
            return _LocalWriter(final, sync_directory=True)

    def reader(self, path: str) -> Reader:
        """A file. Raises FileNotFoundError."""
        with _errors(path):
            return _LocalReader(self._at(path))

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; none where it is not there."""
        with _errors(path):
            try:
                return sorted(name for name in os.listdir(self._at(path)) if not name.startswith("."))
            except FileNotFoundError:
                return []

    def remove(self, path: str) -> None:
        """Delete a file, or a directory with all in it; nothing where it is not there."""
        target = self._at(path)
        with _errors(path), suppress(FileNotFoundError):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()
            _sync_directory(target.parent)

    def _at(self, path: str) -> Path:
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise StorageError(f"'{path}' is no path below {self._root}")
        at = self._root
        for part in parts[:-1]:
            at = at / part
            if at.is_symlink():
                raise StorageError(f"{at} is a symbolic link, wanted a directory")
        return at / parts[-1] if parts else at

    def _make_directory(self, directory: Path) -> None:
        missing = []
        at = directory
        while not at.exists():
            missing.append(at)
            at = at.parent
        for one in reversed(missing):
            with suppress(FileExistsError):
                one.mkdir()
            _sync_directory(one.parent)


class _LocalWriter:
    def __init__(self, path: Path, *, sync_directory: bool) -> None:
        self._path = path
        self._sync_directory = sync_directory
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o644)

    def write(self, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        with _errors(self._path.name):
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def close(self) -> None:
        with _errors(self._path.name):
            try:
                os.fsync(self._file)
            finally:
                os.close(self._file)
            if self._sync_directory:
                _sync_directory(self._path.parent)


class _LocalReader:
    def __init__(self, path: Path) -> None:
        self._path = path
        # Not blocking: a pipe that lies there is refused, not waited for.
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._file)
            raise StorageError(f"{path.name} is not a regular file")
        self.size = found.st_size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        filled = 0
        with _errors(self._path.name):
            while filled < len(buffer):
                count = os.preadv(self._file, [buffer[filled:]], offset + filled)
                if count == 0:
                    break
                filled += count
        return filled

    def close(self) -> None:
        os.close(self._file)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(f"{path} is a symbolic link, wanted a file") from None
        raise StorageError(
            f"{path}: {error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
        ) from error
