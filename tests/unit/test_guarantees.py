"""docs/guarantees.md and the tests that it names: none is missing on either side."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = (TESTS.parent / "docs" / "guarantees.md").read_text()


def defined() -> set[str]:
    """The names of all tests."""
    return {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def test_every_test_that_the_document_names_is_there() -> None:
    """And each row of the second table names some."""
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    assert len(named) > 20
    assert named <= defined(), sorted(named - defined())


def test_every_test_with_a_t_number_is_in_the_document() -> None:
    """Its number has a row, and its name is somewhere."""
    for name in defined():
        for number in re.findall(r"_t(\d+)(?=_)", name.lower()):
            assert re.search(rf"^\| T{number} \|", DOCUMENT, re.MULTILINE), name
            assert f"`{name}`" in DOCUMENT, name


def test_every_promise_names_tests_that_have_a_row() -> None:
    """T numbers in the first table are rows of the second."""
    rows = set(re.findall(r"^\| (T\d+) \|", DOCUMENT, re.MULTILINE))
    used = set(re.findall(r"\b(T\d+)\b", DOCUMENT.split("## The tests")[0]))
    assert used == rows


def test_every_misfortune_of_the_operator_names_tests_that_are_there() -> None:
    """docs/operator-faults.md has a row for F1 to F46, and each test with an F number is in it."""
    document = (TESTS.parent / "docs" / "operator-faults.md").read_text()
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", document))
    assert len(named) > 20
    assert named <= defined(), sorted(named - defined())
    rows = " ".join(re.findall(r"^\| (F[F0-9, ]+) \|", document, re.MULTILINE))
    assert set(re.findall(r"F\d+", rows)) == {f"F{number}" for number in range(1, 47)}
    for name in defined():
        if re.match(r"test_f\d+_", name):
            assert f"`{name}`" in document, name
