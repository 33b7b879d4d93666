"""A destination: the directories of docs/checkpoint-format.md, over a storage."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tablebay.client.checkpoint.checksum import crc32c
from tablebay.client.checkpoint.manifest import (
    FORMAT,
    MANIFEST_BYTES_MAX,
    Manifest,
    StateEntry,
    parse_json,
)
from tablebay.client.checkpoint.storage import (
    LocalStorage,
    NameTaken,
    Storage,
    StorageError,
    local_path,
    read_all,
)
from tablebay.client.errors import BadRequest, CheckpointInvalid, CheckpointMismatch

_MARK = "tablebay.json"
_KNOWN = {_MARK, "epochs", "attempts", "manifests", "barriers", "lost+found"}
_MANIFEST = re.compile(r"(\d{10})\.json")
_SMALL = 1 << 20


class AlreadyThere(Exception):
    """A manifest of that number is there: a newer server 0 has taken over."""


class Destination:
    """Safe in threads and between processes, as its storage is."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @classmethod
    def open(cls, destination: str, *, job: str) -> Destination:
        """A job's own, marked as such if it is empty.

        Raises CheckpointMismatch where it is another job's, or holds other things; BadRequest for what is no
        directory's path; StorageError.
        """
        try:
            path = local_path(destination)
        except StorageError as error:
            raise BadRequest(f"checkpoint destination: {error}") from None
        return cls.on(LocalStorage(path), job=job)

    @classmethod
    def on(cls, storage: Storage, *, job: str) -> Destination:
        """As `open`, over any storage."""
        foreign = sorted(set(storage.list("")) - _KNOWN)
        if foreign:
            raise CheckpointMismatch(
                f"{storage.name} holds '{foreign[0][:80]}', which is no part of a checkpoint; wanted an empty "
                "directory, or one of this job"
            )
        with suppress(NameTaken):
            storage.create(_MARK, json.dumps({"format": FORMAT, "job": job}).encode())
        found = cls(storage)._mark()
        if found != job:
            raise CheckpointMismatch(f"{storage.name} is of job '{found}', and this is job '{job}'")
        return cls(storage)

    @classmethod
    def open_source(cls, source: str) -> Destination:
        """Any job's, to read. Raises BadRequest, CheckpointInvalid where there is none."""
        try:
            path = local_path(source)
        except StorageError as error:
            raise BadRequest(f"checkpoint: {error}") from None
        found = cls(LocalStorage(Path(path), make=False))
        found._mark()
        return found

    @property
    def name(self) -> str:
        """For people."""
        return self.storage.name

    @property
    def job(self) -> str:
        """Whose it is. Raises CheckpointInvalid."""
        return self._mark()

    def _mark(self) -> str:
        try:
            content = read_all(self.storage, _MARK, _SMALL)
        except FileNotFoundError:
            raise CheckpointInvalid(f"{self.name} holds no checkpoints: there is no {_MARK}") from None
        try:
            value = parse_json(content)
            if value["format"] > FORMAT:
                raise CheckpointInvalid(f"format {value['format']}, and this version reads up to {FORMAT}")
            return str(value["job"])
        except CheckpointInvalid as error:
            raise CheckpointInvalid(f"{self.name}/{_MARK}: {error}") from None
        except (KeyError, TypeError):
            raise CheckpointInvalid(f"{self.name}/{_MARK}: wanted the fields format and job") from None

    # -- lives of servers --

    def take_epoch(self, index: int) -> int:
        """The number of a new life of a server, above all of its earlier ones."""
        while True:
            epoch = self.newest_epoch(index) + 1
            with suppress(NameTaken):
                self.storage.create_empty(f"epochs/{index}/{epoch}")
                return epoch

    def newest_epoch(self, index: int) -> int:
        """0 before the first."""
        return max((int(name) for name in self.storage.list(f"epochs/{index}") if name.isdigit()), default=0)

    # -- manifests --

    def numbers(self) -> list[int]:
        """Of all manifests, ascending."""
        found = (_MANIFEST.fullmatch(name) for name in self.storage.list("manifests"))
        return sorted(int(match[1]) for match in found if match)

    def has_begun(self, generation: int | None = None) -> bool:
        """Whether there is a checkpoint, if only an empty one; with `generation` one that it made."""
        return any(
            not isinstance(found, CheckpointInvalid) and generation in (None, found.generation)
            for found in self.manifests_newest_first()
        )

    def manifest(self, number: int) -> Manifest:
        """Raises CheckpointInvalid naming the file."""
        path = manifest_path(number)
        try:
            found = Manifest.decode(read_all(self.storage, path, MANIFEST_BYTES_MAX))
        except FileNotFoundError:
            raise CheckpointInvalid(f"{self.name}/{path} is not there") from None
        except (CheckpointInvalid, StorageError) as error:
            raise CheckpointInvalid(f"{self.name}/{path}: {error}") from None
        if found.number != number:
            raise CheckpointInvalid(f"{self.name}/{path}: it says number {found.number}")
        return found

    def manifests_newest_first(self) -> Iterator[Manifest | CheckpointInvalid]:
        """All but fences; what cannot be read as the error."""
        for number in reversed(self.numbers()):
            try:
                found = self.manifest(number)
            except CheckpointInvalid as error:
                yield error
                continue
            if found.kind != "Fence":
                yield found

    def publish(self, manifest: Manifest) -> None:
        """The commit point. Raises AlreadyThere."""
        path = manifest_path(manifest.number)
        content = manifest.encode()
        if len(content) > MANIFEST_BYTES_MAX:
            raise StorageError(f"{path}: {len(content)} bytes, wanted at most {MANIFEST_BYTES_MAX}")
        try:
            self.storage.create(path, content)
        except NameTaken:
            raise AlreadyThere(f"{self.name}/{path} is there already") from None

    def claim(self, manifest: Manifest, *, anew: bool = False) -> int:
        """Make a manifest of the next number, whatever that is: a fence, by which older lives of server 0 fail.

        For a new job, and to begin `anew`, it is an empty checkpoint.
        """
        while True:
            number = max(self.numbers(), default=-1) + 1
            kind = "Empty" if number == 0 or anew else "Fence"
            with suppress(AlreadyThere):
                self.publish(replace(manifest, number=number, kind=kind))  # type: ignore[arg-type]
                return number

    def remove_manifest(self, number: int) -> None:
        """It is needed no more."""
        self.storage.remove(manifest_path(number))

    # -- attempts --

    def begin_attempt(self, number: int) -> str:
        """The name of a directory that nobody else writes to."""
        return f"{number}-{uuid.uuid4().hex}"

    def attempts(self) -> list[str]:
        """The names of all."""
        return self.storage.list("attempts")

    def remove_attempt(self, name: str) -> None:
        """Delete its files."""
        self.storage.remove(f"attempts/{name}")

    def write_state(self, attempt: str, rank: int, number: int, content: bytes | bytearray) -> StateEntry:
        """Bytes of a worker."""
        path = f"attempts/{attempt}/state-{rank}-{number}"
        writer = self.storage.writer(path)
        writer.write(memoryview(content))
        writer.close()
        return StateEntry(path, len(content), crc32c(memoryview(content)))

    def read_state(self, entry: StateEntry, offset: int, bytes_max: int) -> bytes:
        """A part of it; the whole is checked when its first part is read. Raises CheckpointInvalid."""
        reader = self.storage.reader(entry.path)
        try:
            if reader.size != entry.bytes:
                raise CheckpointInvalid(
                    f"{self.name}/{entry.path}: {reader.size} bytes, wanted {entry.bytes}"
                )
            if offset == 0:
                self._check_state(entry)
            buffer = bytearray(max(0, min(bytes_max, entry.bytes - offset)))
            return bytes(buffer[: reader.read_into(offset, memoryview(buffer))])
        finally:
            reader.close()

    def _check_state(self, entry: StateEntry) -> None:
        reader = self.storage.reader(entry.path)
        try:
            buffer = memoryview(bytearray(_SMALL))
            crc = at = 0
            while count := reader.read_into(at, buffer):
                crc = crc32c(buffer[:count], crc)
                at += count
        finally:
            reader.close()
        if (at, crc) != (entry.bytes, entry.crc):
            raise CheckpointInvalid(
                f"{self.name}/{entry.path}: {at} bytes of CRC-32C {crc:08x}, wanted {entry.bytes} of {entry.crc:08x}"
            )

    # -- barriers --

    def released_barriers(self) -> dict[str, int]:
        """By name, how many had come."""
        found: dict[str, int] = {}
        for name in self.storage.list("barriers"):
            value = parse_json(read_all(self.storage, f"barriers/{name}", _SMALL))
            found[str(value["name"])] = int(value["workers"])
        return found

    def release_barrier(self, name: str, workers: int) -> None:
        """Write down that it is released."""
        path = f"barriers/{hashlib.sha256(name.encode()).hexdigest()}.json"
        with suppress(NameTaken):
            self.storage.create(path, json.dumps({"name": name, "workers": workers}).encode())


def manifest_path(number: int) -> str:
    """Below the destination."""
    return f"manifests/{number:010d}.json"
