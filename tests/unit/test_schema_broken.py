"""The broken job files of tests/e2e/broken, as the model sees them before anything is sent to a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tablebay.client.errors import JobInvalid
from tablebay.client.job import load_job

ROOT = Path(__file__).parents[2]
BROKEN = ROOT / "tests" / "e2e" / "broken"
FILES = sorted(BROKEN.glob("*.yaml"))
CHANGES = sorted((BROKEN / "changes").glob("*.yaml"))
# Rows of broken input that a job file can show, and of which there are files.
ROWS = {"01", "02", "03", "04", "05", "06", "07", "09", "10", "11", "12", "13", "14", "16", "17"}


def notes(path: Path) -> dict[str, str]:
    """The first two lines of a file, `# key: value`."""
    first, second = path.read_text().split("\n")[:2]
    return dict(line.removeprefix("# ").split(": ", 1) for line in (first, second))


def test_each_row_has_files() -> None:
    """No row has lost its files, and changes to a job that exists have theirs."""
    assert {path.name[:2] for path in FILES} == ROWS
    assert {path.name[:2] for path in CHANGES} == {"08"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_broken_file_is_refused_before_it_is_sent(path: Path) -> None:
    """The model tells the one thing that is wrong, in the words that the file's second line has."""
    said = notes(path)
    assert list(said) in (["wants", "submit"], ["condition", "submit"])
    with pytest.raises(JobInvalid) as caught:
        load_job(path)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert said["submit"] in caught.value.problems[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_the_api_server_cannot_see_the_operator_says_in_the_same_words(path: Path) -> None:
    """The condition of a file that a cluster accepts is InvalidTemplate, with what the model says."""
    said = notes(path)
    if "condition" in said:
        assert said["condition"] == f"InvalidTemplate: {said['submit']}"


@pytest.mark.parametrize("path", CHANGES, ids=lambda path: path.stem)
def test_a_broken_change_is_a_good_file_by_itself(path: Path) -> None:
    """Only a cluster that has the job of `after` can refuse it."""
    said = notes(path)
    assert list(said) == ["wants", "after"]
    assert load_job(path).name == load_job(ROOT / said["after"]).name
    assert yaml.safe_load(path.read_text()) != yaml.safe_load((ROOT / said["after"]).read_text())
