"""Tests the tests: breaks the product in one place after the other, and wants a test to fail each time.

Each mutant has a copy of the tree under build/mutants; the working tree is not touched. Those of C++ are built one
after the other in one build folder, while the tests of those before run. What the mutants are and which tests must
notice is in mutants.toml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))

from catalogue import CATALOGUE, ROOT, CatalogueError, Mutant, load

BUILD = ROOT / "build" / "mutants"
# A mutant may make a test wait for ever: that is a failure as well.
TEST_S = 60
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Outcome:
    """name: of the mutant, or of an unmutated tree. failed: the first test that did, "" if none. error: of pytest."""

    name: str
    mutated: bool
    seconds: float
    failed: str
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether a mutant was noticed; whether without one all went well."""
        return not self.error and bool(self.failed) == self.mutated

    @property
    def said(self) -> str:
        """For the table."""
        if self.error:
            return f"ERROR: {self.error}"
        if self.mutated:
            return self.failed or "SURVIVED"
        return f"FAILED: {self.failed}" if self.failed else "passes"


# -- trees --


def make_tree(folder: Path, mutant: Mutant | None, core: Path) -> Path:
    """A copy of the package as it installs, in an environment of its own; the environment's Python."""
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "tree" / "tablebay"
    package.mkdir(parents=True)
    # With what Python has compiled of it: only the changed file is compiled again.
    for part in ("client", "ps_server"):
        shutil.copytree(ROOT / part, package / part)
    (package / "examples").symlink_to(ROOT / "examples")
    for file in ("__init__.py", "py.typed"):
        shutil.copy2(ROOT / "client" / "package" / file, package)
    for part in ("native", "operator"):
        (package / part).mkdir()
        for source in (ROOT / part).glob("*.py*"):
            shutil.copy2(source, package / part)
    (package / "operator" / "__init__.py").touch()
    shutil.copy2(core, package / "native")
    if mutant is not None and not mutant.native:
        target = package / mutant.file
        target.write_text(mutant.apply(target.read_text()))
    environment = folder / "venv"
    venv.EnvBuilder(symlinks=True).create(environment)
    paths = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    # As a line of a .pth, so that the editable install in it does not come before the copy.
    lines = [str(folder / "tree"), *site.getsitepackages()]
    Path(paths, "tablebay.pth").write_text("\n".join(lines) + "\n")
    return environment / "bin" / "python"


class Core:
    """The native core, built from a copy of its sources, one mutant at a time."""

    def __init__(self, folder: Path) -> None:
        self._source = folder / "source"
        self._build = folder / "build"
        self._cores = folder / "cores"

    def build(self, mutant: Mutant | None) -> Path:
        """The core with one change, in a folder of its own."""
        self._sync(mutant)
        if not (self._build / "build.ninja").is_file():
            self._configure()
        self._run("cmake", "--build", str(self._build), "--parallel", "2")
        (core,) = self._build.glob("_core.*.so")
        kept = self._cores / ("unmutated" if mutant is None else mutant.name)
        kept.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(core, kept))

    def _sync(self, mutant: Mutant | None) -> None:
        """Write only what differs, so that only that is compiled."""
        files = [ROOT / "CMakeLists.txt", *(ROOT / "native").rglob("*.cc"), *(ROOT / "native").rglob("*.h")]
        for file in files:
            name = file.relative_to(ROOT)
            text = file.read_text()
            if mutant is not None and str(name) == mutant.file:
                text = mutant.apply(text)
            target = self._source / name
            if not target.is_file() or target.read_text() != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)

    def _configure(self) -> None:
        import pybind11

        from tablebay import __version__

        # Little optimization: these cores are compiled more often than they are run.
        self._run(
            "cmake",
            *("-S", str(self._source), "-B", str(self._build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"),
            *("-DCMAKE_CXX_FLAGS=-O1", f"-DSKBUILD_PROJECT_VERSION={__version__}"),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        )

    def _run(self, *command: str) -> None:
        tools = Path(sys.executable).parent
        # No commit: a new one would compile the bindings, the largest file.
        environment = {**os.environ, "TABLEBAY_COMMIT": "mutants", "PATH": f"{tools}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise CatalogueError(f"{' '.join(command[:3])}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


# -- tests --


def run_tests(folder: Path, mutant: Mutant | None, tests: Sequence[str], core: Path) -> Outcome:
    """Run the tests on a tree in a folder, until one fails."""
    began = time.monotonic()
    name = folder.name
    python = make_tree(folder, mutant, core)
    report = folder / "report.xml"
    command = [str(python), "-Im", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_S}"]
    done = subprocess.run(
        [*command, f"--junit-xml={report}", *tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    seconds = time.monotonic() - began
    if done.returncode not in (_PASSED, _FAILED):
        said = (done.stdout + done.stderr).strip().splitlines()
        return Outcome(
            name, mutant is not None, seconds, "", f"pytest ended with {done.returncode}: {said[-1:]}"
        )
    return Outcome(name, mutant is not None, seconds, first_failure(report) if done.returncode else "")


def first_failure(report: Path) -> str:
    """The first failed test of a report by pytest."""
    if not report.is_file():
        return "the process ended"
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            return f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
    return "the process ended"


def union(mutants: Iterable[Mutant]) -> list[str]:
    """All their tests, each once."""
    return list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))


def run_all(mutants: Sequence[Mutant], workers: int, folder: Path) -> list[Outcome]:
    """All mutants, and the unmutated trees that they came from."""
    from tablebay.native import _core

    installed = Path(_core.__file__)
    natives = [mutant for mutant in mutants if mutant.native]
    # Those of one file after each other: fewer files are compiled.
    natives.sort(key=lambda mutant: mutant.file)
    others = [mutant for mutant in mutants if not mutant.native]
    runs: list[Future[Outcome]] = []
    with ThreadPoolExecutor(workers) as pool:

        def start(name: str, mutant: Mutant | None, tests: Sequence[str], core: Path) -> None:
            runs.append(pool.submit(run_tests, folder / "trees" / name, mutant, tests, core))

        if others:
            start("unmutated", None, union(others), installed)
        for mutant in others:
            start(mutant.name, mutant, mutant.tests, installed)
        if natives:
            core = Core(folder / "native")
            start("unmutated core", None, union(natives), core.build(None))
            for mutant in natives:
                start(mutant.name, mutant, mutant.tests, core.build(mutant))
        return [run.result() for run in runs]


# -- what is said --


def write_report(outcomes: Sequence[Outcome], path: Path) -> None:
    """As pytest would: a test for each mutant, failed where it survived."""
    suite = ElementTree.Element("testsuite", name="mutants", tests=str(len(outcomes)))
    for one in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname="tests.mutants", name=one.name, time=f"{one.seconds:.3f}"
        )
        if not one.good:
            ElementTree.SubElement(case, "failure", message=one.said)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def main() -> int:
    """1 where a mutant survived, or a test failed without one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--junit-xml", type=Path)
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE)
    parser.add_argument("--folder", type=Path, default=BUILD, help="where trees and cores are made")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        mutants = [mutant for mutant in load(options.catalogue) if options.only in mutant.name]
        if not mutants:
            raise CatalogueError(f"no mutant's name contains '{options.only}'")
        outcomes = run_all(mutants, options.workers, options.folder)
    except CatalogueError as error:
        print(error, file=sys.stderr)
        return 1
    width = max(len(one.name) for one in outcomes)
    for one in outcomes:
        print(f"{one.name:<{width}}  {one.seconds:6.1f} s  {one.said}")
    if options.junit_xml:
        write_report(outcomes, options.junit_xml)
    bad = [one for one in outcomes if not one.good]
    killed = sum(one.mutated and one.good for one in outcomes)
    print(f"{killed} of {len(mutants)} mutants killed in {time.monotonic() - began:.0f} s")
    for one in bad:
        print(f"{one.name}: {one.said}; see {options.folder}/trees/{one.name}/output.txt")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
