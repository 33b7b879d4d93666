"""A destination: whose it is, who gets a number, and what storage promises under it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faults.faulty_storage import Faults, FaultySystem, each_failure

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.manifest import Manifest
from tablebay.client.checkpoint.storage import (
    LocalStorage,
    NotThere,
    StorageError,
    Uncertain,
    local_directory,
)
from tablebay.client.errors import CheckpointInvalid, CheckpointMismatch
from tablebay.native import _core


def opened(path: Path, job: str = "toy") -> Destination:
    return Destination.open(str(path), job=job)


def numbered(number: int, generation: int = 1) -> Manifest:
    return Manifest(
        number=number,
        kind="Empty",
        job="toy",
        generation=generation,
        created="2026-11-23T11:00:00+00:00",
        version="1",
        aligned=True,
    )


# -- whose it is --


def test_a_directory_belongs_to_one_job(tmp_path: Path) -> None:
    """Another job is refused, with both names; the same one comes again."""
    opened(tmp_path / "new" / "below")
    opened(tmp_path / "new" / "below")
    with pytest.raises(CheckpointMismatch, match="checkpoints of job 'toy', wanted those of job 'other'"):
        opened(tmp_path / "new" / "below", "other")
    assert Destination.open_source(str(tmp_path / "new" / "below")).job == "toy"


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    """What is nobody's, as a new disk's lost+found, does not count."""
    (tmp_path / "lost+found").mkdir()
    opened(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointMismatch, match=r"found thesis\.tex and no tablebay\.json, wanted an empty"):
        opened(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["thesis.tex"]


def test_a_source_must_be_there_and_is_not_written_to(tmp_path: Path) -> None:
    """Neither a directory is made, nor a file."""
    with pytest.raises(StorageError, match="nowhere: No such file"):
        Destination.open_source(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointMismatch, match="wanted a directory of checkpoints"):
        Destination.open_source(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "found no JSON"),
        ("[]", "found a list of 0, wanted an object"),
        ('{"format": 2, "job": "toy"}', "format: found 2, wanted at most 1"),
        ('{"format": 1}', "wanted the fields format and job"),
        ('{"format": 1, "job": 7}', "wanted the fields format and job"),
    ],
)
def test_a_damaged_tablebay_json_is_named(tmp_path: Path, content: str, wanted: str) -> None:
    """It is never made anew over what is there."""
    (tmp_path / "tablebay.json").write_text(content)
    with pytest.raises(CheckpointInvalid, match=r"tablebay\.json: ") as caught:
        opened(tmp_path)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "hdfs", "S3", "abfs+x"])
def test_what_is_not_there_yet_is_refused_by_name(scheme: str) -> None:
    """An object store does not become a directory called `s3:`."""
    with pytest.raises(StorageError, match=f"{scheme.lower()}".replace("+", r"\+") + "://.* not there yet"):
        Destination.open(f"{scheme}://bucket/x", job="toy")
    assert not Path(f"{scheme}:").exists()


def test_a_claim_must_have_been_resolved(tmp_path: Path) -> None:
    """`pvc://` is the job file's; `file://` is a directory."""
    with pytest.raises(StorageError, match="wanted the directory where it is mounted"):
        Destination.open("pvc://claim/x", job="toy")
    assert local_directory(f"file://{tmp_path}/x") == tmp_path / "x"
    with pytest.raises(StorageError, match="wanted one"):
        Destination.open("", job="toy")


# -- races --


def together(count: int, work: Callable[[int], object]) -> list[object]:
    gate = threading.Barrier(count)

    def one(index: int) -> object:
        gate.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


_RACE = """
import dataclasses, json, os, sys, time
from tablebay.client.checkpoint.destination import AlreadyThere, Destination
from tablebay.client.checkpoint.manifest import Manifest

root, ready = sys.argv[1:]
open(f"{ready}/{os.getpid()}", "w").close()
while len(os.listdir(ready)) < 3:
    time.sleep(0.001)
destination = Destination.open(root, job="toy")
epochs = [destination.take_epoch(0) for _ in range(20)]
won = []
for number in range(20):
    try:
        manifest = Manifest.from_json(json.loads(sys.stdin.readline()))
        destination.publish(dataclasses.replace(manifest, generation=os.getpid()))
        won.append(number)
    except AlreadyThere:
        pass
print(json.dumps([os.getpid(), epochs, won]))
"""


def test_of_processes_that_want_one_number_exactly_one_gets_it(tmp_path: Path) -> None:
    """Epochs and manifests, and the directory itself, which all of them open new."""
    ready = tmp_path / "ready"
    ready.mkdir()
    root = tmp_path / "root"
    lines = "".join(json.dumps(numbered(number).to_json()) + "\n" for number in range(20))
    command = [sys.executable, "-c", _RACE, str(root), str(ready)]
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(subprocess.run, command, input=lines, capture_output=True, text=True, timeout=60)
            for _ in range(3)
        ]
        ended = [run.result() for run in runs]
    assert [one.returncode for one in ended] == [0] * 3, ended[0].stderr
    found = [json.loads(one.stdout) for one in ended]
    assert sorted(epoch for _, epochs, _ in found for epoch in epochs) == list(range(1, 61))
    assert sorted(number for _, _, won in found for number in won) == list(range(20))
    destination = opened(root)
    assert destination.newest_epoch(0) == 60
    for pid, _, won in found:
        assert all(destination.manifest(number).generation == pid for number in won)
    assert all(not path.name.startswith(".new-") for path in (root / "manifests").iterdir())


def test_of_threads_that_open_one_directory_for_two_jobs_one_job_wins(tmp_path: Path) -> None:
    """Nobody finds the other's half-made directory foreign."""
    for turn in range(20):

        def work(index: int, root: Path = tmp_path / str(turn)) -> object:
            try:
                destination = opened(root, f"job-{index % 2}")
                destination.take_epoch(index)
                return destination.job
            except CheckpointMismatch as error:
                return error

        jobs = together(6, work)
        winner = {job for job in jobs if isinstance(job, str)}
        assert len(winner) == 1
        assert all("wanted those of job" in str(job) for job in jobs if not isinstance(job, str))


def test_claims_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    """One makes checkpoint 0, the others fences after it, all of one run."""
    destination = opened(tmp_path)
    numbers = together(
        5, lambda index: opened(tmp_path).claim(epoch=index, servers=2, job="toy", generation=1)
    )
    assert sorted(numbers, key=str) == list(range(5))
    manifests = [destination.manifest(number) for number in range(5)]
    assert [one.kind for one in manifests] == ["Empty", *["Fence"] * 4]
    assert len({one.run for one in manifests}) == 1


def test_epochs_count_from_1_for_each_server(tmp_path: Path) -> None:
    """What is no number there does not disturb."""
    destination = opened(tmp_path)
    assert destination.newest_epoch(1) == 0
    assert [destination.take_epoch(1), destination.take_epoch(1), destination.take_epoch(0)] == [1, 2, 1]
    (tmp_path / "epochs" / "1" / "x").write_text("")
    (tmp_path / "epochs" / "1" / "007").write_text("")
    assert destination.take_epoch(1) == 3


def test_an_epoch_that_another_takes_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and taking (G9)."""
    destination = opened(tmp_path)
    look = destination.newest_epoch
    assert opened(tmp_path).take_epoch(0) == 1
    before = iter([0])
    monkeypatch.setattr(destination, "newest_epoch", lambda index: next(before, look(index)))
    assert destination.take_epoch(0) == 2


def test_whether_the_first_checkpoint_is_there(tmp_path: Path) -> None:
    """For a job that begins anew only one of its own generation counts."""
    destination = opened(tmp_path)
    assert not destination.has_manifest()
    destination.claim(epoch=1, servers=1, job="toy", generation=1)
    assert destination.has_manifest()
    assert destination.has_manifest(1)
    assert not destination.has_manifest(2)
    destination.claim(epoch=2, servers=1, job="toy", generation=2, anew=True)
    assert destination.has_manifest(2)


# -- barriers --


def test_a_released_barrier_stays_released_in_its_run(tmp_path: Path) -> None:
    """In a later life, but not where the job has begun anew; odd names and equal crcs included."""
    destination = opened(tmp_path)
    destination.claim(epoch=1, servers=1, job="toy", generation=1)
    names = ["epoch-1", "ä/../..", "", "x" * 256]
    for name in names:
        destination.release_barrier(name, 3)
        destination.release_barrier(name, 3)
    # Something else lies where a name of that crc would go.
    file = tmp_path / "barriers" / f"{_core.crc32c(b'taken'):08x}.json"
    file.write_text((tmp_path / "barriers" / f"{_core.crc32c(b'epoch-1'):08x}.json").read_text())
    destination.release_barrier("taken", 2)
    later = opened(tmp_path)
    later.claim(epoch=2, servers=1, job="toy", generation=1)
    assert later.released_barriers() == {**dict.fromkeys(names, 3), "taken": 2}
    (tmp_path / "barriers" / "zz.json").write_text("{")
    assert len(later.released_barriers()) == 5
    anew = opened(tmp_path)
    anew.claim(epoch=3, servers=1, job="toy", generation=2, anew=True)
    assert anew.released_barriers() == {}
    anew.release_barrier("epoch-1", 1)
    assert anew.released_barriers() == {"epoch-1": 1}


def test_a_wrong_name_leads_nowhere(tmp_path: Path) -> None:
    """An attempt's name comes over the wire."""
    destination = opened(tmp_path)
    for name in ("..", "../x", "", "1-short", "1-" + "a" * 32 + "/..", "1-" + "a" * 32 + "\n"):
        with pytest.raises(StorageError, match="wanted <number>-<32 hex digits>"):
            destination.remove_attempt(name)


# -- storage --


def test_a_root_that_is_gone_is_not_an_empty_one(tmp_path: Path) -> None:
    """As where a mount was lost: no job begins anew by it."""
    storage = LocalStorage(tmp_path / "gone")
    for call in (storage.list, storage.exists, storage.size, storage.remove):
        with pytest.raises(StorageError, match="gone: No such file") as caught:
            call("manifests")
        assert not isinstance(caught.value, NotThere)


def test_no_path_leads_out_of_the_root(tmp_path: Path) -> None:
    """Neither by its text nor by a link."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    storage = LocalStorage(root)
    for path in ("../secret", "/etc/passwd", "a//b", "a/../../secret", "", ".", "a\0b"):
        with pytest.raises(StorageError, match="may lead elsewhere"):
            storage.open(path)
    (root / "file").symlink_to(tmp_path / "secret")
    (root / "directory").symlink_to(tmp_path)
    for path in ("file", "directory/secret"):
        with pytest.raises(NotThere):
            storage.open(path)
        assert not storage.exists(path)
    for path in ("file", "directory/new"):
        with pytest.raises(StorageError):
            storage.create(path)
    with pytest.raises(StorageError):
        storage.publish("directory/new", b"")
    storage.remove_tree("directory/secret")
    assert (tmp_path / "secret").read_text() == "secret"
    os.mkfifo(root / "pipe")
    with pytest.raises(NotThere, match="no regular file"):
        storage.open("pipe")


def test_what_is_written_is_read_by_parts(tmp_path: Path) -> None:
    """Ranges beyond the end are short; a file that is not finished is no file."""
    storage = LocalStorage(tmp_path)
    with storage.create("a/b/c") as writer:
        writer.write(b"hello ")
        writer.write(memoryview(b"world"))
        writer.finish()
    assert storage.read("a/b/c", 6, 100) == b"world"
    assert storage.read("a/b/c", 100, 100) == b""
    assert storage.size("a/b/c") == 11
    assert storage.list("a") == ["b"]
    assert storage.list("x") == []
    with pytest.raises(StorageError, match="EEXIST"):
        storage.create("a/b/c")
    with pytest.raises(RuntimeError), storage.create("a/d") as writer:
        raise RuntimeError
    assert not storage.exists("a/d")
    assert storage.touch("a/e")
    assert not storage.touch("a/e")
    assert storage.publish("a/f", b"1")
    assert not storage.publish("a/f", b"2")
    assert storage.read("a/f", 0, 9) == b"1"
    storage.remove("a/f")
    storage.remove("a/f")
    storage.remove_tree("a")
    storage.remove_tree("a")
    assert storage.list("") == []


def test_whichever_call_of_a_publish_fails_there_is_all_or_nothing(tmp_path: Path) -> None:
    """False never means that nothing is there; an error before the link leaves nothing, after it Uncertain."""
    lives = 0

    def attempt(faults: Faults) -> None:
        nonlocal lives
        lives += 1
        system = FaultySystem()
        storage = LocalStorage(tmp_path, system)
        system.faults = faults
        path = f"{lives}/file"
        try:
            assert storage.publish(path, b"content")
        except Uncertain:
            assert storage.read(path, 0, 99) == b"content"
            system.power_cut(tmp_path)
            assert not storage.exists(path)
        except StorageError:
            assert not storage.exists(path)
        else:
            system.power_cut(tmp_path)
            assert storage.read(path, 0, 99) == b"content"
        assert not list(tmp_path.glob("*/.new-*"))

    assert each_failure(attempt, errno.EIO) == 7


def test_a_link_that_was_made_and_answered_with_an_error_is_made(tmp_path: Path) -> None:
    """NFS sends a link again whose answer was lost, and says EEXIST."""

    class Retransmits(FaultySystem):
        def link(self, source: str, target: str, directory: int) -> None:
            super().link(source, target, directory)
            raise FileExistsError(errno.EEXIST, "File exists")

    assert LocalStorage(tmp_path, Retransmits()).publish("file", b"1")
    assert not LocalStorage(tmp_path).publish("file", b"2")


class Watched(FaultySystem):
    """Counts bytes by whether they went past the page cache. refuses: "fcntl" or "write" what would have them go so."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__()
        self.refuses = refuses
        self.direct = False
        self.bytes = {True: 0, False: 0}

    def set_direct(self, file: int, direct: bool) -> None:
        if self.refuses == "fcntl":
            raise OSError(errno.EINVAL, "Invalid argument")
        super().set_direct(file, direct)
        self.direct = direct

    def write(self, file: int, data: memoryview) -> int:
        if self.direct and self.refuses == "write":
            raise OSError(errno.EINVAL, "Invalid argument")
        count = super().write(file, data)
        self.bytes[self.direct] += count
        return count


@pytest.mark.parametrize("refuses", ["", "fcntl", "write"])
@pytest.mark.parametrize("short", [False, True], ids=["whole writes", "short writes"])
@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (9 << 20) + 4099])
def test_a_large_file_is_whole_whether_or_not_it_can_go_past_the_page_cache(
    tmp_path: Path, refuses: str, short: bool, size: int
) -> None:
    """In pieces of any length; what is less than a block goes the usual way, as does all where it must."""
    seed = 17
    content = np.random.default_rng(seed).bytes(size)
    system = Watched(refuses)
    system.faults.short_writes = short
    storage = LocalStorage(tmp_path, system)
    for name in ("one", "two"):  # the second one gathers in the first one's memory
        with storage.create(name) as writer:
            for at in range(0, size, 1_000_003):
                writer.write(content[at : at + 1_000_003])
            writer.finish()
        assert storage.read(name, 0, size + 1) == content, f"seed {seed}"
    assert sum(system.bytes.values()) == 2 * size
    if refuses or size < 4 << 20:
        assert system.bytes[True] == 0
    elif not short:
        assert system.bytes[True] == 2 * (size - size % (4 << 20))
