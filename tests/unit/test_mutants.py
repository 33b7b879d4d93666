"""The list of mutants: each can still be made, and one that nobody notices is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutants.catalogue import CATALOGUE, ROOT, CatalogueError, load

_HEAD = 'name = "a"\nbreaks = "b"\nfile = "client/replay.py"\ntests = ["tests/unit/test_mutants.py"]\n'


def test_each_mutant_can_be_made() -> None:
    """Whoever changes the code that a mutant breaks, or the name of its test, changes the mutant with it."""
    mutants = load()
    assert len(mutants) >= 30
    assert sum(mutant.native for mutant in mutants) >= 10
    for mutant in mutants:
        for test in mutant.tests:
            file, _, name = test.partition("[")[0].partition("::")
            assert f"def {name}" in (ROOT / file).read_text(), f"{mutant.name}: {test}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('old = "nowhere to be found"\nnew = ""', "has the text to replace 0 times, wanted once"),
        ('old = "self"\nnew = ""', "times, wanted once"),
        ('old = "BYTES_MAX = 256"\nnew = "BYTES_MAX = 256"', "replaces a text by itself"),
    ],
)
def test_a_mutant_without_one_place_is_an_error(tmp_path: Path, text: str, wanted: str) -> None:
    """Not one that passes because nothing was broken."""
    path = tmp_path / "mutants.toml"
    path.write_text(f"[[mutant]]\n{_HEAD}{text}\n")
    with pytest.raises(CatalogueError, match=wanted):
        load(path)


def test_a_survivor_ends_the_run_with_1(tmp_path: Path) -> None:
    """A mutant whose test does not notice: the command says so, and the report has a failure."""
    path = tmp_path / "mutants.toml"
    path.write_text(
        f'[[mutant]]\n{_HEAD.replace("test_mutants.py", "test_client_retry.py")}old = "BYTES_MAX = 256"\n'
        'new = "BYTES_MAX = 255"\n'
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, str(CATALOGUE.with_name("run.py")), "--catalogue", str(path)]
    command += ["--folder", str(tmp_path), "--junit-xml", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "SURVIVED" in done.stdout
    assert "0 of 1 mutants killed" in done.stdout
    assert report.read_text().count("<failure") == 1
