"""Where checkpoints are kept: a narrow interface, and a directory that has it.

A path is relative to the root, with `/` between its parts. Nothing below the root is reached through a symbolic
link. What `create`, `publish` and `touch` have returned from is still there after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tablebay.client.errors import TablebayError

Buffer = bytes | bytearray | memoryview

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
# Names of this kind are files that were not finished; no list has them.
_UNFINISHED = ".new-"
_MISSING = (errno.ENOENT, errno.ENOTDIR)
# What is gathered before it is written past the page cache, a multiple of any device's block.
_GATHERED_BYTES = 4 << 20
_BLOCK_BYTES = 4096


class StorageError(TablebayError):
    """A file could not be read or written; the text names it and says why."""


class NotThere(StorageError):
    """No regular file has this path."""


class Unreadable(StorageError):
    """The medium under a file does not give back what was written (EIO)."""


class Uncertain(StorageError):
    """A file was put in its place, and whether it stays there after a power cut is not known."""


class Writer(Protocol):
    """A new file. It is durable once `finish` has returned; leaving its `with` before that removes it."""

    def write(self, data: Buffer) -> None:
        """Add all of the bytes. Raises StorageError."""

    def finish(self) -> None:
        """Make the file and its name durable. Raises StorageError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Reader(Protocol):
    """A file open for reading: it stays whole while it is read, even if it is removed."""

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""

    def read_into(self, buffer: Buffer, offset: int) -> int:
        """Fill a writable buffer from `offset`; fewer bytes only at the file's end. Raises StorageError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Storage(Protocol):
    """Files by path. Safe in threads and among processes. All raise StorageError."""

    @property
    def name(self) -> str:
        """For messages, and for who wants to open it again."""

    def create(self, path: str) -> Writer:
        """A new file, and the directories over it. Raises where there is one of that name."""

    def publish(self, path: str, content: bytes) -> bool:
        """Put a whole file in its place, durably; False, and nothing changed, where there is one.

        Of any number of callers exactly one gets True. Raises Uncertain.
        """

    def touch(self, path: str) -> bool:
        """As `publish`, of an empty file."""

    def make_directory(self, path: str) -> None:
        """A directory, and those over it, durably."""

    def list(self, path: str) -> list[str]:
        """The names in a directory, ascending; none where there is none."""

    def exists(self, path: str) -> bool:
        """Whether a regular file has the path."""

    def size(self, path: str) -> int:
        """Bytes of a file. Raises NotThere."""

    def open(self, path: str) -> Reader:
        """A regular file, for reading. Raises NotThere."""

    def read(self, path: str, offset: int, bytes_max: int) -> bytes:
        """At most so many bytes of a file. Raises NotThere."""

    def remove(self, path: str) -> None:
        """A file; nothing happens where there is none."""

    def remove_tree(self, path: str) -> None:
        """A directory with all that is in it; nothing happens where there is none."""


class System:
    """The system calls that LocalStorage makes. Tests put faults in their place."""

    def open(self, name: str, flags: int, directory: int) -> int:
        """openat(2)."""
        return os.open(name, flags | os.O_CLOEXEC, 0o666, dir_fd=directory)

    def write(self, file: int, data: memoryview) -> int:
        """write(2)."""
        return os.write(file, data)

    def set_direct(self, file: int, direct: bool) -> None:
        """Have writes go past the page cache, or not: fcntl(2) with O_DIRECT."""
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)

    def fsync(self, file: int) -> None:
        """fsync(2), of a file or a directory."""
        os.fsync(file)

    def read_into(self, file: int, data: memoryview, offset: int) -> int:
        """preadv(2)."""
        return os.preadv(file, [data], offset)

    def link(self, source: str, target: str, directory: int) -> None:
        """linkat(2), both in one directory."""
        os.link(source, target, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)

    def mkdir(self, name: str, directory: int) -> None:
        """mkdirat(2)."""
        os.mkdir(name, dir_fd=directory)

    def unlink(self, name: str, directory: int) -> None:
        """unlinkat(2)."""
        os.unlink(name, dir_fd=directory)

    def close(self, file: int) -> None:
        """close(2)."""
        os.close(file)


class LocalStorage:
    """Storage in a directory, which must be there: a disk, or a shared file system with link(2) and fsync(2)."""

    def __init__(self, root: Path, system: System | None = None) -> None:
        self._root = root
        self._system = System() if system is None else system
        # What writers gathered in, for the next ones: new memory costs more than what is done with it.
        self._buffers: list[mmap.mmap] = []

    @property
    def name(self) -> str:
        """The directory's path."""
        return str(self._root)

    def create(self, path: str) -> Writer:
        """As Storage. The file has its name from the start: its directory is an attempt's own."""
        return _LocalWriter(self, path)

    def publish(self, path: str, content: bytes) -> bool:
        """As Storage, by link(2) of a finished file."""
        system = self._system
        unfinished = f"{_UNFINISHED}{uuid.uuid4().hex}"
        with self._parent(path, make=True) as (directory, name), _told(self, path):
            try:
                file = system.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, directory)
                try:
                    _write_all(system, file, content)
                    system.fsync(file)
                finally:
                    system.close(file)
                try:
                    system.link(unfinished, name, directory)
                except OSError as error:
                    # NFS says EEXIST to a link that was sent twice and made the first time.
                    if os.stat(unfinished, dir_fd=directory, follow_symlinks=False).st_nlink != 2:
                        if error.errno == errno.EEXIST:
                            return False
                        raise
                self._settle(path, directory)
                return True
            finally:
                with contextlib.suppress(OSError):
                    system.unlink(unfinished, directory)

    def touch(self, path: str) -> bool:
        """As Storage, by O_EXCL."""
        with self._parent(path, make=True) as (directory, name), _told(self, path):
            try:
                file = self._system.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, directory)
            except FileExistsError:
                return False
            self._system.close(file)
            self._settle(path, directory)
            return True

    def make_directory(self, path: str) -> None:
        """As Storage."""
        with self._directory(_parts(path), make=True):
            pass

    def list(self, path: str) -> list[str]:
        """As Storage. Without a path, of the root."""
        try:
            with self._directory(_parts(path) if path else ()) as directory:
                return sorted(name for name in os.listdir(directory) if not name.startswith(_UNFINISHED))
        except NotThere:
            return []

    def exists(self, path: str) -> bool:
        """As Storage."""
        try:
            self.size(path)
        except NotThere:
            return False
        return True

    def size(self, path: str) -> int:
        """As Storage."""
        with self._parent(path) as (directory, name), _told(self, path):
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        self._require_regular(path, found.st_mode)
        return found.st_size

    def open(self, path: str) -> Reader:
        """As Storage. A pipe that lies there holds nobody up."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with self._parent(path) as (directory, name), _told(self, path):
            file = self._system.open(name, flags, directory)
        try:
            found = os.fstat(file)
            self._require_regular(path, found.st_mode)
        except BaseException:
            self._system.close(file)
            raise
        return _LocalReader(self, path, file, found.st_size)

    def read(self, path: str, offset: int, bytes_max: int) -> bytes:
        """As Storage."""
        with self.open(path) as reader:
            buffer = bytearray(max(0, min(bytes_max, reader.size - offset)))
            count = reader.read_into(buffer, offset)
        return bytes(buffer[:count])

    def remove(self, path: str) -> None:
        """As Storage."""
        try:
            with self._parent(path) as (directory, name), _told(self, path):
                self._system.unlink(name, directory)
                self._system.fsync(directory)
        except NotThere:
            pass

    def remove_tree(self, path: str) -> None:
        """As Storage. A link in it is removed, not what it names."""
        try:
            with self._parent(path) as (directory, name), _told(self, path):
                shutil.rmtree(name, dir_fd=directory)
        except NotThere:
            pass

    def _settle(self, path: str, directory: int) -> None:
        """Make durable that a file has its name."""
        try:
            self._system.fsync(directory)
        except OSError as error:
            raise Uncertain(
                f"{self._root}/{path}: its directory could not be synced: {_cause(error)}"
            ) from error

    def _require_regular(self, path: str, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise NotThere(f"{self._root}/{path}: found what is no regular file, wanted one")

    @contextlib.contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        *above, name = _parts(path)
        with self._directory(tuple(above), make=make) as directory:
            yield directory, name

    @contextlib.contextmanager
    def _directory(self, parts: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        """A directory below the root, open; reached step by step, so that no link is followed."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        with _told(self, ""):
            directory = os.open(self._root, flags | os.O_CLOEXEC)
        try:
            for number, part in enumerate(parts):
                with _told(self, "/".join(parts[: number + 1])):
                    try:
                        below = self._system.open(part, flags | os.O_NOFOLLOW, directory)
                    except FileNotFoundError:
                        if not make:
                            raise
                        with contextlib.suppress(FileExistsError):
                            self._system.mkdir(part, directory)
                        # Also where another made it: whether that one has synced is not known.
                        self._system.fsync(directory)
                        below = self._system.open(part, flags | os.O_NOFOLLOW, directory)
                directory, above = below, directory
                self._system.close(above)
            yield directory
        finally:
            self._system.close(directory)


class _LocalWriter:
    """Large files go past the page cache, where the file system can do that: nobody reads them soon, and a checkpoint
    beside training spends most of its time on finding room for them there, which other files then lack.
    """

    def __init__(self, storage: LocalStorage, path: str) -> None:
        self._storage = storage
        self._path = path
        self._finished = False
        self._gathered: mmap.mmap | None = None
        self._filled = 0
        self._direct = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with storage._parent(path, make=True) as (directory, name), _told(storage, path):
            self._file = storage._system.open(name, flags, directory)

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if self._gathered is None:
            buffers = self._storage._buffers
            self._gathered = buffers.pop() if buffers else mmap.mmap(-1, _GATHERED_BYTES)
        while view:
            count = min(len(view), _GATHERED_BYTES - self._filled)
            self._gathered[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == _GATHERED_BYTES:
                self._write_gathered(direct=True)

    def finish(self) -> None:
        storage = self._storage
        # Its length is no multiple of a block.
        self._write_gathered(direct=False)
        with storage._parent(self._path) as (directory, _), _told(storage, self._path):
            storage._system.fsync(self._file)
            storage._system.fsync(directory)
        self._finished = True

    def _write_gathered(self, *, direct: bool) -> None:
        view = memoryview(self._gathered or b"")[: self._filled]
        with _told(self._storage, self._path):
            while view:
                # A write that took a part may leave the rest within a block.
                direct = self._set_direct(direct and len(view) % _BLOCK_BYTES == 0)
                try:
                    count = self._storage._system.write(self._file, view)
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        raise
                    # Some file systems say only now that they cannot.
                    direct = False
                    continue
                if count <= 0:
                    raise OSError(errno.EIO, "a write took no bytes")
                view = view[count:]
        self._filled = 0

    def _set_direct(self, wanted: bool) -> bool:
        """Whether writes go past the page cache now."""
        if wanted != self._direct:
            try:
                self._storage._system.set_direct(self._file, wanted)
                self._direct = wanted
            except OSError:
                if not wanted:
                    raise
        return self._direct

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._storage._system.close(self._file)
        if self._gathered is not None:
            self._storage._buffers.append(self._gathered)
            self._gathered = None
        if not self._finished:
            with contextlib.suppress(StorageError):
                self._storage.remove(self._path)


class _LocalReader:
    def __init__(self, storage: LocalStorage, path: str, file: int, size: int) -> None:
        self._storage = storage
        self._path = path
        self._file = file
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, buffer: Buffer, offset: int) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        with _told(self._storage, self._path):
            while done < len(view):
                count = self._storage._system.read_into(self._file, view[done:], offset + done)
                if count == 0:
                    break
                done += count
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._storage._system.close(self._file)


def local_directory(name: str) -> Path:
    """The directory that a destination's name means. Raises StorageError for one that is none."""
    scheme = _SCHEME.match(name)
    if scheme is not None and scheme[1].lower() == "file":
        name = name[len(scheme[0]) :]
    elif scheme is not None and scheme[1].lower() == "pvc":
        raise StorageError(f"'{name}': found a claim, wanted the directory where it is mounted")
    elif scheme is not None:
        raise StorageError(
            f"'{name}': checkpoints on {scheme[1].lower()}:// are not there yet; wanted a directory, or "
            "pvc://CLAIM/PATH in a job file"
        )
    if not name or "\0" in name:
        raise StorageError(f"{name!r}: found no directory's name, wanted one")
    return Path(name).absolute()


def _parts(path: str) -> tuple[str, ...]:
    parts = tuple(path.split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise StorageError(
            f"{path!r:.200}: found a path that may lead elsewhere, wanted names with / between them"
        )
    return parts


def _write_all(system: System, file: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        count = system.write(file, view)
        if count <= 0:
            raise OSError(errno.EIO, "a write took no bytes")
        view = view[count:]


@contextlib.contextmanager
def _told(storage: LocalStorage, path: str) -> Iterator[None]:
    """Give an OSError the file's name."""
    try:
        yield
    except OSError as error:
        where = f"{storage.name}/{path}" if path else storage.name
        kind = StorageError
        # A root that is gone, as with a mount that was lost, is not an empty one.
        if error.errno in _MISSING and path:
            kind = NotThere
        elif error.errno == errno.ELOOP:
            raise NotThere(f"{where}: found a symbolic link, wanted none") from error
        elif error.errno == errno.ENXIO:
            # A socket, or a device without a driver: it is as little a file as a pipe is.
            raise NotThere(f"{where}: found what is no regular file, wanted one") from error
        elif error.errno == errno.EIO:
            kind = Unreadable
        raise kind(f"{where}: {_cause(error)}") from error


def _cause(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    return f"{os.strerror(error.errno)} ({name})" if error.errno else str(error)
