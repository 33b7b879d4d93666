"""Rows 47 to 56 of the list of bad inputs: what may lie in a directory of checkpoints, and what is made of it.

Real files and the real core; a real server process where the row is about starting.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_world import IDS, ITEM, JOB, USER, World
from faults.workers import leave
from free_ports import free_data_ports
from reference_checkpoint import Client

import tablebay
from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.files import HEADER_BYTES
from tablebay.client.checkpoint.manifest import canonical_crc
from tablebay.client.checkpoint.restore import Restored, restore_from, restore_newest
from tablebay.client.checkpoint.verify import verify
from tablebay.client.environment import NO_CHECKPOINT_EXIT, http_port
from tablebay.client.errors import CheckpointInvalid, CheckpointMismatch, TableMismatch
from tablebay.client.local.ports import HOST
from tablebay.client.tables import load_tables
from tablebay.native import _core

START_S = 60.0
ROWS_NAME = f"0-rows-{IDS['user']:08x}"
KEYS = range(1, 40)
BLOCK = struct.Struct("<IIII")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One server's checkpoints: empty 0, full 1, full 2, delta 3 on 2. Not to be changed."""
    root = tmp_path_factory.mktemp("made") / "d"
    world = World(root, servers=1)
    for number in (1, 2, 3):
        for key in KEYS if number < 3 else (1, 2):
            world.put("user", key, key, number)
        world.put("item", 5, 1, 2, number)
        world.push(Client(7, 8, rank=0, next=number, bits=(1 << number) - 1))
        assert world.save(full=number < 3) == ""
    world.end()
    assert [manifest_of(root, number)["kind"] for number in range(4)] == ["Empty", "Full", "Full", "Delta"]
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "d"))


def manifest_path(root: Path, number: int) -> Path:
    return root / "manifests" / f"{number:010}.json"


def manifest_of(root: Path, number: int) -> Any:
    return json.loads(manifest_path(root, number).read_bytes())


def rewrite(root: Path, number: int, change: Callable[[Any], object]) -> None:
    """Change a manifest as whoever means harm does: with the crc that its fields have."""
    content = manifest_of(root, number)
    change(content)
    content["crc"] = canonical_crc(content)
    manifest_path(root, number).write_text(json.dumps(content))


def file_of(root: Path, number: int, name: str = ROWS_NAME) -> Path:
    (path,) = (root / "attempts").glob(f"{number}-*/{name}")
    return path


def read(root: Path) -> tuple[Any, Restored]:
    """What a server's core has after its start, and what was said of it."""
    store: Any = _core.Store()
    destination = Destination.open_source(str(root))
    restored = restore_newest(store, destination, index=0, servers=1, owners=range(1024), job=JOB)
    return store, restored


def weights_of(store: Any) -> list[float]:
    """The second weight of each key of `user`: the number of the checkpoint that it was last changed before."""
    out = np.empty((len(KEYS), 2), np.float32)
    store.pull(IDS["user"], np.array(KEYS, np.uint64), out, False)
    return [float(value) for value in out[:, 1]]


def require_older(root: Path, wanted: str, number: int) -> str:
    """The newest is refused for this reason, and an older one restored whole: the reason."""
    store, restored = read(root)
    assert restored.manifest.number == number
    assert weights_of(store) == [float(number)] * len(KEYS)
    assert len(restored.refused) == 3 - number
    reason = restored.refused[0]
    assert re.search(wanted, reason), reason
    assert len(reason) < 2000
    return reason


# -- servers --


@dataclass
class Started:
    """A server process on a destination, with job `toy`, alone of its job."""

    process: subprocess.Popen[bytes]
    data_port: int
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def ready(self) -> bool:
        url = f"http://{HOST}:{http_port(self.data_port)}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=2) as page:
                return bool(page.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def until_ready(self) -> Started:
        end = time.monotonic() + START_S
        while not self.ready:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < end, f"not ready within {START_S:g} s:\n{self.log}"
            time.sleep(0.05)
        return self

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log of one event."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def end_code(self, *, never_ready: bool = True) -> int:
        """Wait for its end."""
        end = time.monotonic() + START_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it goes on:\n{self.log}"
            assert not (never_ready and self.ready), self.log
            time.sleep(0.05)
        return self.process.returncode


@contextmanager
def server(root: Path, *options: str, tables: str = "") -> Iterator[Started]:
    """Start one; it is gone in the end."""
    (port,) = free_data_ports(1)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TABLEBAY_")}
    command = [sys.executable, "-m", "tablebay.ps_server.main", "--exit-with-parent", "--job", JOB]
    command += ["--data-port", str(port), "--checkpoint", str(root), *options]
    command += ["--tables", tables] if tables else []
    log_path = root.parent / f"server-{port}-{time.monotonic_ns()}.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=clean
        )
    try:
        yield Started(process, port, log_path)
    finally:
        process.kill()
        process.wait()


def require_refused(started: Started, wanted: str) -> str:
    """It ends with code 3 without ever having been ready; its last line, which says why."""
    assert started.end_code() == NO_CHECKPOINT_EXIT == 3, started.log
    last = started.log.splitlines()[-1]
    assert last.startswith("tablebay-server: "), started.log
    assert re.search(wanted, last), last
    assert "Traceback" not in started.log
    assert not started.events("server.ready")
    return last


# -- row 47 --


@pytest.mark.parametrize("content", ["empty", "unfinished"])
def test_row_47_a_directory_without_a_checkpoint(tmp_path: Path, content: str) -> None:
    """It begins a new job; a server that requires a checkpoint says that there is none, and ends with code 3."""
    root = tmp_path / "d"
    root.mkdir()
    if content == "unfinished":
        (root / ".new-abc").write_bytes(b'{"form')
        (root / "manifests").mkdir()
        (root / "manifests" / ".new-0000000001.json").write_bytes(b'{"format": 1')
        (root / "tablebay.json").write_text(json.dumps({"format": 1, "job": JOB}))
    with server(root, "--restore-policy", "Required") as one:
        require_refused(one, "holds no checkpoint, and one is required")
    with server(root) as one:
        (event,) = one.until_ready().events("server.restored")
        assert (event["kind"], event["rows"], event["passed_over"]) == ("Empty", 0, 0)


def test_row_47_only_what_a_first_start_left_unfinished(tmp_path: Path) -> None:
    """Killed before its first file was named: the next start is a first one."""
    root = tmp_path / "d"
    root.mkdir()
    (root / ".new-abc").write_bytes(b'{"form')
    assert Destination.open(str(root), job=JOB).numbers() == []


# -- row 48 --


def _drop_server(content: Any) -> None:
    content["servers"][0]["owners"] = "0-1022"


def _add_server(content: Any) -> None:
    content["servers"].append({**content["servers"][0], "index": 1})


def _drop_file(content: Any) -> None:
    files = content["servers"][0]["chain"][-1]["files"]
    files[:] = [file for file in files if file["kind"] != "Steps"]


def _add_file(content: Any) -> None:
    files = content["servers"][0]["chain"][-1]["files"]
    files.append({**files[0], "name": "another"})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_drop_server, "servers: found 1 shards of no server and 0 of two"),
        (_add_server, "servers: found 0 shards of no server and 1024 of two"),
        (_drop_file, "0 of kind Steps, wanted one"),
        (_add_file, "files: found table .* twice"),
        (lambda content: content.update(format=2), "format: found 2, wanted at most 1; a newer Tablebay"),
        (lambda content: content.update(number=7), "number: found 7, wanted 3"),
    ],
)
def test_row_48_a_manifest_that_is_not_right(
    root: Path, change: Callable[[Any], object], wanted: str
) -> None:
    """Refused by its name and field; the checkpoint before it is restored."""
    rewrite(root, 3, change)
    assert "0000000003.json" in require_older(root, wanted, 2)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "found no JSON"),
        (b"{", "found no JSON"),
        (b'{"format": 1, "format": 1}', "format: found twice in an object"),
        (b"[" * 100_000, "found"),
        (b'{"format": ' + b"9" * 100_000 + b"}", "found what cannot be read"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_row_48_what_is_no_manifest(root: Path, content: bytes, wanted: str) -> None:
    """Bad JSON, names twice, too deep, a number without end, no UTF-8."""
    manifest_path(root, 3).write_bytes(content)
    require_older(root, wanted, 2)


def test_row_48_a_file_that_the_manifest_names_is_missing(root: Path) -> None:
    """And one that it does not name is nobody's."""
    stray = file_of(root, 3).with_name("1-rows-00000000")
    stray.write_bytes(b"stray")
    assert read(root)[1].manifest.number == 3
    file_of(root, 3).unlink()
    assert ROWS_NAME in require_older(root, "No such file", 2)


# -- rows 49 to 51 --


def blocks_of(content: bytes) -> list[tuple[int, int, int, int]]:
    """(offset, kind, count, payload's bytes) of each block."""
    found, offset = [], HEADER_BYTES
    while offset < len(content):
        kind, count, size, _ = BLOCK.unpack_from(content, offset)
        found.append((offset, kind, count, size))
        offset += BLOCK.size + size
    return found


def with_block(content: bytes, offset: int, kind: int, count: int, size: int, payload: bytes) -> bytes:
    """The file with another block's head, with its right crc over what payload there is."""
    head = struct.pack("<III", kind, count, size)
    crc = _core.crc32c(payload, _core.crc32c(head))
    return content[:offset] + head + struct.pack("<I", crc) + content[offset + BLOCK.size :]


def memory_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 40])
@pytest.mark.parametrize("size", ["as it is", "huge"])
def test_row_49_a_block_that_says_it_has_more_rows(root: Path, count: int, size: str) -> None:
    """The crc is right, so the counts themselves are refused, before any memory is taken for them."""
    path = file_of(root, 2)
    content = path.read_bytes()
    offset, kind, _, length = blocks_of(content)[0]
    payload = content[offset + BLOCK.size :][:length]
    told = length if size == "as it is" else 2**32 - 1
    path.write_bytes(with_block(content, offset, kind, count, told, payload))
    before = memory_peak()
    reason = require_older(root, rf"{ROWS_NAME}: at byte {offset}: ", 1)
    assert str(path) in reason
    assert memory_peak() - before < 64 * 1024 * 1024


def test_row_49_a_manifest_that_says_2_to_the_60_rows(root: Path) -> None:
    """Bytes and rows of a manifest are compared with the file before anything is made for them."""
    for field, value in (("bytes", 2**60), ("rows", 2**60)):
        copy = Path(shutil.copytree(root, root.parent / field))

        def change(content: Any, field: str = field, value: int = value) -> None:
            next(file for file in content["servers"][0]["chain"][-1]["files"] if file["name"] == ROWS_NAME)[
                field
            ] = value

        rewrite(copy, 3, change)
        before = memory_peak()
        require_older(copy, rf"{ROWS_NAME}: at byte \d+: found .* wanted .*{value}", 2)
        assert memory_peak() - before < 64 * 1024 * 1024


def test_row_50_a_file_cut_off_anywhere(root: Path) -> None:
    """In the header, in a block's head, in a row, in the footer's crc: refused by name and byte."""
    path = file_of(root, 2)
    content = path.read_bytes()
    places = {0, 1, 50, HEADER_BYTES - 1, HEADER_BYTES, len(content) - 1, len(content) - 8}
    for offset, _, _, size in blocks_of(content):
        places |= {offset + 8, offset + BLOCK.size, offset + BLOCK.size + size // 2}
    for length in sorted(places):
        path.write_bytes(content[:length])
        require_older(root, rf"{ROWS_NAME}: at byte {length}: found {length} bytes, wanted {len(content)}", 1)
        # Also where the manifest was cut to fit, which no accident does.
        for number in (2, 3):
            rewrite(root, number, lambda found, length=length: _set_bytes(found, length))
        require_older(root, rf"{ROWS_NAME}: at byte \d+: found ", 1)
        for number in (2, 3):
            rewrite(root, number, lambda found: _set_bytes(found, len(content)))


def _set_bytes(manifest: Any, value: int) -> None:
    for file in manifest["servers"][0]["chain"][0]["files"]:
        if file["name"] == ROWS_NAME:
            file["bytes"] = value


def test_row_51_a_bit_flipped_anywhere(root: Path) -> None:
    """Of a file with rows and one with steps, by the core: the byte that is named is where the flip's block begins."""
    for name in (ROWS_NAME, "0-steps"):
        path = file_of(root, 3, name)
        content = bytearray(path.read_bytes())
        begins = [(offset, "block") for offset, *_ in blocks_of(bytes(content))]
        for at in range(len(content)):
            content[at] ^= 1 << at % 8
            path.write_bytes(content)
            reason = require_older(root, rf"{path.parent.name}/{name}: at byte \d+: ", 2)
            content[at] ^= 1 << at % 8
            named = int(re.search(r"at byte (\d+)", reason)[1])  # type: ignore[index]
            begin, kind = max(((start, kind) for start, kind in begins if start <= at), default=(0, "header"))
            if kind == "header":
                assert named < HEADER_BYTES
            elif at >= begin + BLOCK.size:
                assert named == begin
            else:
                # A block that says that it is longer is found where the file ends.
                assert begin <= named <= len(content)
        path.write_bytes(content)
    assert read(root)[1].manifest.number == 3


# -- row 52 --


def test_row_52_the_directory_of_another_job(root: Path) -> None:
    """A server that is given it ends with code 3, and nothing is written there."""
    before = sorted(root.rglob("*"))
    with server(root, "--job", "other") as one:
        require_refused(one, "found the checkpoints of job 'toy', wanted those of job 'other'")
    assert sorted(root.rglob("*")) == before
    rewrite(root, 3, lambda content: content.update(job="other"))
    with pytest.raises(CheckpointMismatch, match="found the job 'other', wanted 'toy'"):
        read(root)


def test_row_52_a_file_of_another_table_or_checkpoint(root: Path) -> None:
    """Whole by itself, and in the wrong place."""
    path = file_of(root, 3)
    whole = path.read_bytes()
    other = file_of(root, 3, f"0-rows-{IDS['item']:08x}").read_bytes()
    rewrite(root, 3, lambda content: _as_long_as(content, 3, len(other)))
    path.write_bytes(other)
    require_older(root, f"{ROWS_NAME}: at byte 64: found the table {IDS['item']}, wanted {IDS['user']}", 2)
    rewrite(root, 3, lambda content: _as_long_as(content, 3, len(whole)))
    path.write_bytes(whole)
    newer = file_of(root, 2)
    newer.write_bytes(file_of(root, 1).read_bytes())
    require_older(root, f"{ROWS_NAME}: at byte 24: found the number 1, wanted 2", 1)


def _as_long_as(manifest: Any, number: int, value: int) -> None:
    (link,) = (link for link in manifest["servers"][0]["chain"] if link["number"] == number)
    next(file for file in link["files"] if file["name"] == ROWS_NAME)["bytes"] = value


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"dim": 3}, "dim"),
        ({"dtype": "int64", "optimizer": {"type": "Add"}}, "dtype"),
        ({"optimizer": {"type": "SGD", "learningRate": 0.05}}, "optimizer"),
    ],
)
def test_row_52_a_table_declared_otherwise(root: Path, change: dict[str, Any], wanted: str) -> None:
    """The job's table has another width, type or optimizer than the checkpoint's: no start, and both are named."""
    declared = {**manifest_of(root, 3)["tables"][0]["spec"], **change}
    with server(root, tables=json.dumps([declared])) as one:
        assert one.end_code() == 1, one.log
        last = one.log.splitlines()[-1]
        assert "table 'user'" in last
        assert wanted in last
        assert "Traceback" not in one.log
    store: Any = _core.Store()
    here = {"user": USER, "item": ITEM}
    (here["user"],) = load_tables(json.dumps([declared]))
    with pytest.raises(TableMismatch, match=rf"table 'user' .*{wanted}"):
        restore_from(
            store, Destination.open_source(str(root)), index=0, servers=1, owners=range(1024), here=here
        )


def test_row_52_a_layout_that_is_not_the_files(root: Path) -> None:
    """A manifest whose table is wider than the rows in the files."""

    def wider(content: Any) -> None:
        table = next(one for one in content["tables"] if one["spec"]["name"] == "user")
        other = next(one for one in content["tables"] if one["spec"]["name"] == "item")
        table["layout"] = {**other["layout"]}
        table["spec"] = {**other["spec"], "name": "user"}

    rewrite(root, 3, wider)
    require_older(root, "at byte 68: found the layout", 2)


# -- row 53 --


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "device", "socket"])
@pytest.mark.parametrize("what", ["rows", "manifest"])
def test_row_53_what_is_no_regular_file(root: Path, kind: str, what: str) -> None:
    """Nothing is read through it, and nobody waits for it."""
    path = file_of(root, 3) if what == "rows" else manifest_path(root, 3)
    if kind == "link":
        path.rename(root.parent / "elsewhere")
        path.symlink_to(root.parent / "elsewhere")
    else:
        path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("making a device needs rights")
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    require_older(
        root, rf"{path.name}: found .*(symbolic link|no regular file)|{path.name}: .*regular file", 2
    )


def test_row_53_paths_that_lead_elsewhere(root: Path) -> None:
    """In a manifest: refused as names, before any file is asked for. A directory that is a link is one too."""
    secret = root.parent / "secret"
    secret.write_bytes(file_of(root, 3).read_bytes())
    for value in ("../../../secret", "/etc/passwd", "..", "a/b", "a\0b"):

        def change(content: Any, value: str = value) -> None:
            content["servers"][0]["chain"][-1]["files"][0]["name"] = value

        rewrite(root, 3, change)
        require_older(root, "files.0..name: found", 2)
    original = manifest_of(root, 2)
    rewrite(root, 3, lambda content: content["servers"][0]["chain"][-1].update(attempt="../../etc"))
    require_older(root, "attempt: found '../../etc'", 2)
    assert manifest_of(root, 2) == original
    folder = file_of(root, 2).parent
    folder.rename(root.parent / "away")
    folder.symlink_to(root.parent / "away")
    require_older(root, "", 1)
    assert "Not a directory" in read(root)[1].refused[1]


# -- row 54 --


class Evil:
    """What a pickle can do to who loads it."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["TABLEBAY_TEST_EVIL"],))


def test_row_54_a_pickle_is_refused_by_its_magic(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a file and of a manifest; nothing of it is run."""
    monkeypatch.setenv("TABLEBAY_TEST_EVIL", str(root.parent / "evil"))
    path = file_of(root, 3)
    content = pickle.dumps(Evil()).ljust(path.stat().st_size, b"\0")
    rewrite(root, 3, lambda manifest: _as_long_as(manifest, 3, len(content)))
    path.write_bytes(content)
    require_older(root, f"{ROWS_NAME}: at byte 0: found .* wanted b'TABLEBAY'", 2)
    problems = verify(
        Destination.open_source(str(root)), Destination.open_source(str(root)).manifest(3)
    ).problems
    assert any("at byte 0" in problem for problem in problems)
    manifest_path(root, 3).write_bytes(content)
    require_older(root, "0000000003.json: ", 2)
    assert not (root.parent / "evil").exists()


def test_row_54_nothing_that_runs_what_it_reads() -> None:
    """No pickle, torch.load, yaml.load or eval in the product; allow_pickle=False is the opposite of one."""
    top = Path(__file__).parents[2]
    found, seen = [], 0
    for folder in ("client", "operator", "ps_server", "native", "examples"):
        for path in (top / folder).rglob("*"):
            if path.suffix not in (".py", ".pyi", ".cc", ".h") or not path.is_file():
                continue
            seen += 1
            for number, line in enumerate(path.read_text().splitlines(), 1):
                code = line.replace("allow_pickle=False", "")
                if re.search(r"pickle|torch\.load\b|yaml\.(unsafe_|full_)?load\(|(?<![\w.])eval\(", code):
                    found.append(f"{path.relative_to(top)}:{number}: {line.strip()}")
    assert seen > 100
    assert found == []


# -- row 55 --


def _gap(content: Any) -> None:
    content["servers"][0]["chain"][1]["parent"] = 1


def _cycle(content: Any) -> None:
    content["servers"][0]["chain"][0]["parent"] = 3


def _older_than_full(content: Any) -> None:
    content["servers"][0]["chain"].reverse()


def _without_full(content: Any) -> None:
    del content["servers"][0]["chain"][0]


def _twice(content: Any) -> None:
    chain = content["servers"][0]["chain"]
    chain.append({**chain[-1], "parent": 3})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_gap, r"chain\[1\]\.parent: found 1, wanted 2"),
        (_cycle, r"chain\[0\]\.parent: found 3, wanted None"),
        (_older_than_full, r"chain\[0\]\.parent: found 2, wanted None"),
        (_without_full, r"chain\[0\]\.parent: found 2, wanted None"),
        (_twice, r"chain\[\d\]"),
    ],
)
def test_row_55_a_chain_that_is_none(root: Path, change: Callable[[Any], object], wanted: str) -> None:
    """A gap, another parent, a cycle, a delta before its full one, a link twice: the last good checkpoint is used."""
    rewrite(root, 3, change)
    require_older(root, wanted, 2)


def test_row_55_a_delta_whose_full_one_is_gone(root: Path) -> None:
    """Both that need it are refused, and the one before is restored."""
    shutil.rmtree(file_of(root, 2).parent)
    require_older(root, "No such file", 1)


# -- row 56 --


def test_row_56_two_servers_0(tmp_path: Path) -> None:
    """The newer one has claimed the next number: the older loses its next checkpoint, says so, and ends with code 3."""
    root = tmp_path / "d"
    every = ("--checkpoint-every-seconds", "0.3")
    with server(root, *every) as older:
        older.until_ready()
        with server(root, "--checkpoint-every-seconds", "3600") as newer:
            newer.until_ready()
            push_some(older)
            assert older.end_code(never_ready=False) == NO_CHECKPOINT_EXIT, older.log
            assert re.search(r"server 0 has begun life 2, and this is life 1|a newer life", older.log), (
                older.log
            )
            assert newer.ready
    *_, newest = sorted(int(path.stem) for path in (root / "manifests").glob("*.json"))
    assert manifest_of(root, newest)["kind"] == "Fence"


def push_some(started: Started) -> None:
    """A push, by a client that does not wait until a checkpoint has it: here none will."""
    client = tablebay.connect(f"{HOST}:{started.data_port}", replay_bytes=1 << 20)
    table = client.table("user", dim=2, optimizer=tablebay.SGD(0.1), initializer=tablebay.Zeros())
    table.push([1, 2], np.ones((2, 2), np.float32))
    leave(client)


# -- a server that starts on damage --


def test_a_server_that_finds_its_newest_checkpoint_damaged(root: Path) -> None:
    """Its log has file and byte; it restores the one before, whole, and is ready."""
    path = file_of(root, 3)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 20] ^= 16
    path.write_bytes(content)
    with server(root) as one:
        one.until_ready()
        (damaged,) = one.events("checkpoint.damaged")
        assert damaged["level"] == "warning"
        assert damaged["used"] == 2
        assert f"{path.parent.name}/{path.name}: at byte {HEADER_BYTES}: " in damaged["cause"]
        (restored,) = one.events("server.restored")
        assert (restored["number"], restored["rows"], restored["passed_over"]) == (2, len(KEYS) + 1, 1)
        with tablebay.connect(f"{HOST}:{one.data_port}") as client:
            rows = client.table("user").pull(list(KEYS), create=False)
        assert rows[:, 1].tolist() == [2.0] * len(KEYS)
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(START_S) == 0


@pytest.mark.parametrize("kept", ["the empty one too", "retention took the empty one"])
def test_a_server_whose_checkpoints_are_all_damaged(root: Path, kept: str) -> None:
    """It ends with code 3 and its last line names every file and byte; it never starts empty, on no try."""
    if kept != "the empty one too":
        manifest_path(root, 0).unlink()
    for number in (1, 2):
        path = file_of(root, number)
        content = bytearray(path.read_bytes())
        content[HEADER_BYTES + 20] ^= 16
        path.write_bytes(content)
    before = {path: path.read_bytes() for path in (root / "attempts").rglob("*") if path.is_file()}
    for _ in range(2):
        with server(root) as one:
            last = require_refused(one, "none of 3 checkpoints is whole")
        assert last.count(f"/{ROWS_NAME}: at byte {HEADER_BYTES}: ") == 3
    assert {path: path.read_bytes() for path in (root / "attempts").rglob("*") if path.is_file()} == before
    with pytest.raises(CheckpointInvalid):
        read(root)
