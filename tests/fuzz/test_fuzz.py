"""Bytes from the wire and from files: whatever they are, what comes of them is documented."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.run import Fuzzer, main
from fuzz.targets import CORPUS, TARGETS, Target, Wrong

SEED = int(os.environ.get("TABLEBAY_SEED", "1"))
# More of them under a sanitizer (Makefile).
COUNT = int(os.environ.get("TABLEBAY_FUZZ", "300"))
SECONDS = 60


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_corpus_and_what_is_made_of_it(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All inputs kept, with what was found once, and some changes of them by a fixed seed."""
    monkeypatch.chdir(tmp_path)
    fuzzer = Fuzzer(target, SEED)
    fuzzer.replay()
    fuzzer.some(COUNT)
    assert fuzzer.executions == COUNT + len(target.corpus())
    fuzzer.close()


def test_each_target_has_a_corpus_of_small_inputs() -> None:
    """And there is none without a target."""
    assert {path.name for path in CORPUS.iterdir()} == {target.name for target in TARGETS}
    for target in TARGETS:
        assert 2 <= len(target.corpus()) < 100, target.name
        assert all(len(data) <= 16 * 1024 for data in target.corpus()), target.name


def test_what_is_found_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that is not documented ends the run with 1, its input written down."""

    def attempt(data: bytes) -> None:
        if len(data) % 2:
            raise Wrong("an odd input")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fuzz.run.TARGETS", (Target("header", attempt),))
    assert main(["--seconds", "5"]) == 1
    assert "FOUND" in capsys.readouterr().out
    assert len((tmp_path / "build" / "fuzz" / "header-found").read_bytes()) % 2 == 1


@pytest.mark.deep
@pytest.mark.timeout(3 * SECONDS)
def test_nothing_is_found_within_a_minute(tmp_path: Path) -> None:
    """All targets together, with a bound of memory, in a process that may die."""
    command = [
        sys.executable,
        str(CORPUS.with_name("run.py")),
        "--seconds",
        str(SECONDS),
        "--seed",
        str(SEED),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing found") == len(TARGETS)
