"""Where a job keeps its checkpoints: lives of servers, attempts, manifests, states and barriers.

Every name that two processes may want is made by conditional create, so exactly one gets it.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tablebay.client.checkpoint.manifest import (
    ATTEMPT_PATTERN,
    FORMAT,
    MANIFEST_BYTES_MAX,
    NO_RUN,
    NUMBER_MAX,
    Manifest,
    ServerEntry,
    StateEntry,
    check_format,
    new_run,
    parse_json,
)
from tablebay.client.checkpoint.storage import LocalStorage, NotThere, Storage, StorageError, local_directory
from tablebay.client.environment import VERSION
from tablebay.client.errors import CheckpointInvalid, CheckpointMismatch
from tablebay.native import _core

_ABOUT = "tablebay.json"
_DIRECTORIES = ("attempts", "barriers", "epochs", "manifests")
# What a new volume may have in its root without being anybody's.
_NOBODYS = ("lost+found",)
_MANIFEST_PATTERN = re.compile(r"([0-9]{10})\.json")
_EPOCH_PATTERN = re.compile(r"[1-9][0-9]{0,17}")
_SMALL_BYTES_MAX = 64 * 1024

_LOGGER = logging.getLogger(__name__)


class AlreadyThere(StorageError):
    """Another has made the manifest of this number: a newer life of server 0."""


class Destination:
    """A job's, or another's for reading only. Safe in threads and among processes.

    pinned: the number of the one checkpoint that was asked for by its manifest's path. All raise StorageError.
    """

    def __init__(self, storage: Storage, *, job: str | None, pinned: int | None = None) -> None:
        """job: whose it must be, or will be; None: anybody's, and nothing is written.

        Raises CheckpointInvalid, CheckpointMismatch.
        """
        self._storage = storage
        self._run = NO_RUN
        self._fences: set[int] = set()
        self.pinned = pinned
        self.job = self._check_about() if job is None else self._make_about(job)

    @classmethod
    def open(cls, path: str, *, job: str) -> Self:
        """A job's own; an empty directory becomes it. Raises StorageError, CheckpointInvalid, CheckpointMismatch."""
        directory = local_directory(path)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; wanted a directory for checkpoints") from None
        return cls(LocalStorage(directory), job=job)

    @classmethod
    def open_source(cls, path: str) -> Self:
        """Any job's, to read. path: the directory, or a manifest in it.

        Raises StorageError, CheckpointInvalid, and CheckpointMismatch where it is no such directory.
        """
        directory, pinned = local_directory(path), None
        manifest = _MANIFEST_PATTERN.fullmatch(directory.name)
        if manifest is not None and directory.parent.name == "manifests":
            directory, pinned = Path(directory.parent.parent), int(manifest[1])
        return cls(LocalStorage(directory), job=None, pinned=pinned)

    @property
    def name(self) -> str:
        """For messages, and for who opens it again."""
        return self._storage.name

    @property
    def storage(self) -> Storage:
        """The files."""
        return self._storage

    # -- whose it is --

    def _make_about(self, job: str) -> str:
        content = json.dumps({"format": FORMAT, "job": job}).encode() + b"\n"
        if not self._storage.exists(_ABOUT):
            others = [name for name in self._storage.list("") if name not in _NOBODYS]
            # Who makes the file at the same time may have gone on since.
            if others and not self._storage.exists(_ABOUT):
                raise CheckpointMismatch(
                    f"{self.name}: found {', '.join(others[:5])} and no {_ABOUT}, wanted an empty directory for the "
                    f"checkpoints of job '{job}'"
                )
            self._storage.publish(_ABOUT, content)
        found = self._check_about()
        if found != job:
            raise CheckpointMismatch(
                f"{self.name}: found the checkpoints of job '{found}', wanted those of job '{job}'"
            )
        return found

    def _check_about(self) -> str:
        try:
            content = self._read_small(_ABOUT)
        except NotThere:
            raise CheckpointMismatch(
                f"{self.name}: found no {_ABOUT}, wanted a directory of checkpoints"
            ) from None
        try:
            about = parse_json(content)
            check_format(about)
        except CheckpointInvalid as error:
            raise CheckpointInvalid(f"{self.name}/{_ABOUT}: {error}") from None
        job = about.get("job")
        if not isinstance(job, str) or set(about) != {"format", "job"}:
            raise CheckpointInvalid(
                f"{self.name}/{_ABOUT}: found {about!r:.200}, wanted the fields format and job"
            )
        return job

    # -- lives of servers --

    def take_epoch(self, index: int) -> int:
        """The number of a new life of server `index`: above all others, and nobody else's."""
        while True:
            epoch = self.newest_epoch(index) + 1
            if self._storage.touch(f"epochs/{index}/{epoch}"):
                return epoch

    def newest_epoch(self, index: int) -> int:
        """Of the newest life of a server; 0 where it has had none."""
        names = self._storage.list(f"epochs/{index}")
        return max((int(name) for name in names if _EPOCH_PATTERN.fullmatch(name)), default=0)

    def claim(self, *, epoch: int, servers: int, job: str, generation: int, anew: bool = False) -> int:
        """Become the one server 0 that makes manifests: from now on an older life's attempts fail.

        Makes checkpoint 0, which is empty, or a fence with the next number; the next checkpoint's number is one
        above that returned. anew: begin without the rows of earlier generations, by an empty checkpoint.
        """
        while True:
            numbers = self.numbers()
            newest = self._newest_readable(numbers)
            begins = not numbers or (anew and (newest is None or newest.generation < generation))
            self._run = newest.run if newest is not None and not begins else new_run()
            number = numbers[-1] + 1 if numbers else 0
            entries = tuple(ServerEntry(i, epoch if i == 0 else 0, (), ()) for i in range(servers))
            manifest = Manifest(
                number=number,
                kind="Empty" if begins else "Fence",
                job=job,
                generation=generation,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                version=VERSION,
                aligned=True,
                servers=entries,
                run=self._run,
            )
            try:
                self.publish(manifest)
            except AlreadyThere:
                continue
            return number

    @property
    def run(self) -> str:
        """Of the manifests that are made since `claim`."""
        return self._run

    def _newest_readable(self, numbers: Iterable[int]) -> Manifest | None:
        for number in sorted(numbers, reverse=True):
            try:
                return self.manifest(number)
            except (CheckpointInvalid, NotThere):
                continue
        return None

    # -- manifests --

    def numbers(self) -> list[int]:
        """Of all manifests, ascending, readable or not."""
        matches = map(_MANIFEST_PATTERN.fullmatch, self._storage.list("manifests"))
        return sorted(int(match[1]) for match in matches if match is not None)

    def has_manifest(self, generation: int = 0) -> bool:
        """Whether there is one; with a generation, whether the newest readable is of that or a later one."""
        numbers = self.numbers()
        if generation == 0:
            return bool(numbers)
        newest = self._newest_readable(numbers)
        return newest is not None and newest.generation >= generation

    def manifest(self, number: int) -> Manifest:
        """That of a number. Raises CheckpointInvalid, NotThere."""
        path = self.manifest_path(number)
        content = self._storage.read(path, 0, MANIFEST_BYTES_MAX + 1)
        manifest = Manifest.parse(content, f"{self.name}/{path}")
        if manifest.number != number:
            raise CheckpointInvalid(
                f"{self.name}/{path}: number: found {manifest.number}, wanted {number}, as in its name"
            )
        return manifest

    def publish(self, manifest: Manifest) -> None:
        """Make a checkpoint complete. Raises AlreadyThere, and Uncertain where a power cut may undo it."""
        content = manifest.pack()
        path = self.manifest_path(manifest.number)
        if len(content) > MANIFEST_BYTES_MAX or manifest.number > NUMBER_MAX:
            raise StorageError(
                f"{self.name}/{path}: {len(content)} bytes, wanted at most {MANIFEST_BYTES_MAX}, and numbers up to "
                f"{NUMBER_MAX}"
            )
        if not self._storage.publish(path, content):
            raise AlreadyThere(
                f"{self.name}/{path}: another has made it; a newer life of server 0 has taken over"
            )

    def is_fence(self, number: int) -> bool:
        """Whether the manifest is a fence's. Raises CheckpointInvalid, NotThere."""
        if number not in self._fences and not self.manifest(number).complete:
            self._fences.add(number)
        return number in self._fences

    def remove_manifest(self, number: int) -> None:
        """Its checkpoint is none from now on."""
        self._storage.remove(self.manifest_path(number))

    def manifest_path(self, number: int) -> str:
        """Below the destination."""
        return f"manifests/{number:010}.json"

    # -- attempts and states --

    def begin_attempt(self, number: int) -> str:
        """A new directory for an attempt's files; its name."""
        name = f"{number}-{uuid.uuid4().hex}"
        self._storage.make_directory(f"attempts/{name}")
        return name

    def attempts(self) -> dict[str, int]:
        """The names of all attempts' directories, with their numbers."""
        names = self._storage.list("attempts")
        return {name: int(name.split("-")[0]) for name in names if ATTEMPT_PATTERN.fullmatch(name)}

    def remove_attempt(self, name: str) -> None:
        """With all its files."""
        self._storage.remove_tree(self.attempt_path(name))

    def attempt_path(self, name: str) -> str:
        """Below the destination. Raises StorageError for what is no attempt's name."""
        if not ATTEMPT_PATTERN.fullmatch(name):
            raise StorageError(f"attempt: found {name!r:.100}, wanted <number>-<32 hex digits>")
        return f"attempts/{name}"

    def write_state(self, attempt: str, rank: int, number: int, content: bytes | bytearray) -> StateEntry:
        """Keep a worker's bytes. number: which of its entries it is."""
        path = f"{self.attempt_path(attempt)}/state-{rank}-{number}"
        with self._storage.create(path) as writer:
            writer.write(content)
            writer.finish()
        return StateEntry(path, len(content), _core.crc32c(content))

    def read_state(self, entry: StateEntry, offset: int, bytes_max: int) -> bytes:
        """At most so many bytes of a worker's. Raises CheckpointInvalid where the file is not what was written."""
        where = f"{self.name}/{entry.path}"
        try:
            size = self._storage.size(entry.path)
        except NotThere as error:
            raise CheckpointInvalid(str(error)) from None
        if size != entry.bytes:
            raise CheckpointInvalid(
                f"{where}: at byte {min(size, entry.bytes)}: found {size} bytes, wanted {entry.bytes}"
            )
        return self._storage.read(entry.path, offset, min(bytes_max, max(0, entry.bytes - offset)))

    # -- barriers --

    def released_barriers(self) -> dict[str, int]:
        """Barriers released in this run, and how many had come to each."""
        released = {}
        for file in self._storage.list("barriers"):
            if file.endswith(".json"):
                path = f"barriers/{file}"
                try:
                    name, workers, run = self._read_barrier(path)
                except (CheckpointInvalid, NotThere) as error:
                    _LOGGER.warning("barrier.not_read", extra={"facts": {"cause": str(error)}})
                    continue
                if run == self._run:
                    released[name] = workers
        return released

    def release_barrier(self, name: str, workers: int) -> None:
        """Keep that a barrier was released; once is enough."""
        content = json.dumps({"format": FORMAT, "name": name, "workers": workers, "run": self._run})
        file = f"{_core.crc32c(name.encode('utf-8', 'surrogatepass')):08x}"
        further = 0
        while True:
            # Names with one crc, or of two runs, get files of their own.
            path = f"barriers/{file}{f'-{further}' if further else ''}.json"
            if self._storage.publish(path, content.encode() + b"\n"):
                return
            try:
                found, _, run = self._read_barrier(path)
            except CheckpointInvalid:
                found, run = "", ""
            if (found, run) == (name, self._run):
                return
            further += 1

    def _read_barrier(self, path: str) -> tuple[str, int, str]:
        try:
            content = parse_json(self._read_small(path))
            check_format(content)
            name, workers, run = content["name"], content["workers"], content["run"]
        except (CheckpointInvalid, KeyError) as error:
            raise CheckpointInvalid(f"{self.name}/{path}: {error}") from None
        if not isinstance(name, str) or not isinstance(workers, int) or not isinstance(run, str):
            raise CheckpointInvalid(f"{self.name}/{path}: found {content!r:.200}, wanted a barrier's name")
        return name, workers, run

    def _read_small(self, path: str) -> bytes:
        content = self._storage.read(path, 0, _SMALL_BYTES_MAX + 1)
        if len(content) > _SMALL_BYTES_MAX:
            raise CheckpointInvalid(f"{self.name}/{path}: found more than {_SMALL_BYTES_MAX} bytes")
        return content
