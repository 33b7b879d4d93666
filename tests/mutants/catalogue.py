"""The mutants: what each breaks, where, and the tests that must notice."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = Path(__file__).with_name("mutants.toml")


class CatalogueError(Exception):
    """A mutant that cannot be made, or that nothing looks at."""


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file. breaks: the rule that it breaks. tests: pytest's names of what must fail."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def native(self) -> bool:
        """Whether the core must be built for it."""
        return self.file.startswith("native/")

    def apply(self, text: str) -> str:
        """The file's text with the replacement. Raises CatalogueError where its place is not clear."""
        found = text.count(self.old)
        if found != 1:
            raise CatalogueError(
                f"{self.name}: {self.file} has the text to replace {found} times, wanted once"
            )
        if self.old == self.new:
            raise CatalogueError(f"{self.name}: replaces a text by itself")
        return text.replace(self.old, self.new)


def load(path: Path = CATALOGUE) -> list[Mutant]:
    """All mutants. Raises CatalogueError, also for one whose text has changed since it was written."""
    mutants = [
        Mutant(**{**entry, "tests": tuple(entry["tests"])})
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CatalogueError(f"{twice[0]}: is there twice")
    for mutant in mutants:
        mutant.apply((ROOT / mutant.file).read_text())
        if not mutant.tests:
            raise CatalogueError(f"{mutant.name}: names no test")
        for test in mutant.tests:
            if not (ROOT / test.split("::")[0]).is_file():
                raise CatalogueError(f"{mutant.name}: there is no test file for {test}")
    return mutants
