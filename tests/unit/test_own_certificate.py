"""The program beside a pod's containers: of everybody's pairs it hands on this pod's own."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tablebay.client import own_certificate
from tablebay.client.own_certificate import OwnCertificate, main
from tablebay.client.tls import Folder


def publish(volume: Path, **texts: bytes) -> None:
    """What the kubelet does with the Secrets of a volume: a new folder, and one link to it set anew."""
    volume.mkdir(exist_ok=True)
    new = volume / f"..{os.urandom(4).hex()}"
    new.mkdir()
    for name, text in texts.items():
        (new / name.replace("_", ".")).write_bytes(text)
    link = volume / "..data_tmp"
    link.symlink_to(new.name)
    link.replace(volume / "..data")


def pairs(number: int) -> dict[str, bytes]:
    """Of three pods."""
    texts = {f"{i}_{kind}": f"{kind} {i} {number}".encode() for i in range(3) for kind in ("key", "crt")}
    return {**texts, "ca_crt": f"ca {number}".encode()}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder that the pod's containers share."""
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def test_a_pod_finds_its_own_pair_and_no_other(tmp_path: Path, shared: Path) -> None:
    """Three files as servers and clients read them, for the pod's group alone; nothing else is in the folder."""
    publish(tmp_path / "all", **pairs(1))
    own = OwnCertificate(tmp_path / "all", shared / "own", 1)
    assert own.look()
    found = Folder(shared / "own").read()
    assert (found.key, found.certificate, found.authorities) == (b"key 1 1", b"crt 1 1", b"ca 1")
    files = [one for one in shared.rglob("*") if one.is_file() and not one.is_symlink()]
    assert sorted({one.name for one in files}) == ["ca.crt", "tls.crt", "tls.key"]
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o640 for one in files)
    assert not any(b"key 0" in one.read_bytes() or b"key 2" in one.read_bytes() for one in files)
    assert not own.look(), "nothing is written where nothing is new"
    # Where the folder is mounted in another container has another path.
    shared.rename(tmp_path / "elsewhere")
    assert Folder(tmp_path / "elsewhere" / "own").read() == found


def test_a_renewed_pair_comes_whole_and_the_old_one_goes(tmp_path: Path, shared: Path) -> None:
    """Fifty renewals while a reader reads: each time key, certificate and authorities of one moment."""
    volume = tmp_path / "all"
    publish(volume, **pairs(0))
    own = OwnCertificate(volume, shared / "own", 2)
    own.look()
    folder = Folder(shared / "own")
    version = folder.version()
    for number in range(1, 51):
        publish(volume, **pairs(number))
        assert own.look()
        found = folder.read()
        assert {one.split()[-1] for one in (found.key, found.certificate, found.authorities)} == {
            str(number).encode()
        }
        assert folder.version() != version
        version = folder.version()
    assert len([one for one in shared.iterdir() if one.is_dir() and not one.is_symlink()]) == 1


def test_a_pair_that_is_not_there_yet_is_waited_for(tmp_path: Path, shared: Path) -> None:
    """Said once; what there was stays until there is another."""
    volume = tmp_path / "all"
    publish(volume, **pairs(1))
    said: list[str] = []
    looks = iter(range(6))

    def stop(seconds: float) -> bool:
        number = next(looks)
        if number == 0:
            publish(volume, ca_crt=b"ca 2")
        if number == 3:
            assert Folder(shared / "own").read().key == b"key 0 1"
            publish(volume, **pairs(3))
        return number == 5

    own_certificate.follow(OwnCertificate(volume, shared / "own", 0), stop, said.append)
    assert [one.split(":")[0] for one in said] == ["written", "cannot be read yet", "written"]
    assert Folder(shared / "own").read().key == b"key 0 3"


def test_the_command_begins_follows_and_ends(tmp_path: Path, shared: Path) -> None:
    """As in a pod: the other containers begin once --wait says so; a renewal comes; SIGTERM ends it with 0."""
    volume = tmp_path / "all"
    publish(volume, **pairs(1))
    command = [sys.executable, "-m", "tablebay.client.own_certificate", "--to", str(shared / "own")]
    with subprocess.Popen([*command, "--pairs", str(volume), "--index", "1"]) as process:
        try:
            assert subprocess.run([*command, "--wait"], timeout=60).returncode == 0
            assert Folder(shared / "own").read().key == b"key 1 1"
            publish(volume, **pairs(2))
            deadline = time.monotonic() + 30
            while Folder(shared / "own").read().key != b"key 1 2":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert not own_certificate.wait_for(tmp_path / "nowhere", 0.1)
    with pytest.raises(SystemExit) as ended:
        main(["--to", str(shared / "own")])
    assert ended.value.code == 2


def test_it_needs_the_standard_library_alone() -> None:
    """It runs in each pod of each job: nothing of gRPC, pydantic or numpy is loaded, so it takes little memory."""
    program = (
        "import sys, tablebay.client.own_certificate\n"
        "print(*sorted({n.partition('.')[0] for n in sys.modules} & {'grpc', 'google', 'numpy', 'pydantic',"
        " 'yaml', 'typer', 'rich', 'cryptography', 'prometheus_client'}))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
