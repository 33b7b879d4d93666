"""The wheel that `make wheel` makes, in an empty virtual environment outside the repository.

Once beside the newest dependencies, as `pip install` brings them, and once beside the lowest that pyproject.toml
allows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
QUICKSTART_SECONDS_MAX = 60
AUC_MIN = 0.785

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]


def command(*arguments: str | os.PathLike[str], cwd: Path) -> str:
    """Run a command, outside of any make, to a good end: what it printed."""
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "VIRTUAL_ENV")
    ended = subprocess.run(
        arguments,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, f"{arguments} ended with {ended.returncode}\n{ended.stdout}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The only file of dist/, freshly made."""
    command("make", "wheel", cwd=ROOT)
    found = list((ROOT / "dist").iterdir())
    assert len(found) == 1, found
    return found[0]


def environment(folder: Path, *requirements: str | os.PathLike[str]) -> Path:
    """The bin/ of a new virtual environment in `folder` that has what each list of arguments to uv asks for."""
    command(UV, "venv", "--python", sys.executable, folder, cwd=folder.parent)
    command(UV, "pip", "install", "--python", folder / "bin" / "python", *requirements, cwd=folder.parent)
    return folder / "bin"


def quickstart(bin_folder: Path, tmp_path: Path) -> None:
    """Run `tablebay quickstart` somewhere else, and check what it prints and writes."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    began = time.monotonic()
    printed = command(bin_folder / "tablebay", "quickstart", "--run-dir", "run", cwd=elsewhere)
    seconds = time.monotonic() - began
    report = json.loads((elsewhere / "run" / "report.json").read_text("utf-8"))
    assert report["auc"] >= AUC_MIN
    assert (report["servers"], report["workers"], report["duplicates"]) == (2, 2, 0)
    assert report["rows"] > 70_000
    assert f"{report['auc']:.4f}" in printed
    assert seconds < QUICKSTART_SECONDS_MAX, f"quickstart took {seconds:.1f} s"


def test_the_wheel_is_for_many_linux_systems_only(wheel: Path) -> None:
    """Each platform tag of the wheel is a manylinux tag for x86_64."""
    platforms = wheel.stem.split("-")[-1].split(".")
    assert all(tag.startswith("manylinux") and tag.endswith("x86_64") for tag in platforms), wheel.name


def test_the_wheel_holds_what_users_need_and_no_more(wheel: Path) -> None:
    """Code, types, the licence, the example with its data; no C++, no tests, nothing that only the repository uses."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    needed = {
        "tablebay/__init__.py",
        "tablebay/py.typed",
        "tablebay/client/client.py",
        "tablebay/client/proto/tablebay.proto",
        "tablebay/client/proto/tablebay_pb2.py",
        "tablebay/examples/flights/SOURCE.md",
        "tablebay/examples/flights/flights.npz",
        "tablebay/examples/flights/job.yaml",
        "tablebay/native/__init__.py",
        "tablebay/native/_core.pyi",
        "tablebay/operator/main.py",
        "tablebay/ps_server/main.py",
    }
    assert needed - set(names) == set()
    assert "tablebay/operator/__init__.py" not in names
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    libraries = [name for name in names if ".so" in name]
    assert [name.rpartition("/")[0] for name in libraries] == ["tablebay/native"] * 2, libraries
    assert [name for name in names if name.endswith(".h")] == ["tablebay/native/include/tablebay.h"]
    unwanted = (".cc", ".pyc", ".a", ".o", "CMakeLists.txt", "/generate.py", "/stubs.py")
    assert [name for name in names if name.endswith(unwanted)] == []
    assert [name for name in names if "tests/" in name or "tablebay/client/package/" in name] == []
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("tablebay-")} == {"tablebay"}


def test_quickstart_trains_from_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With the newest dependencies, `tablebay quickstart` passes the gate in under 60 s."""
    bin_folder = environment(tmp_path / "venv", wheel)
    origin = command(
        bin_folder / "python", "-c", "import tablebay.native; print(tablebay.__file__)", cwd=tmp_path
    )
    assert origin.startswith(str(tmp_path / "venv"))
    quickstart(bin_folder, tmp_path)


def test_the_wheel_is_typed(wheel: Path, tmp_path: Path) -> None:
    """mypy --strict, from outside, knows the types of the public names."""
    bin_folder = environment(tmp_path / "venv", wheel)
    script = tmp_path / "script.py"
    script.write_text(
        "import tablebay as tb\n"
        "with tb.local(servers=2) as client:\n"
        "    table = client.table('user', dim=4, optimizer=tb.SGD(0.1))\n"
        "    reveal_type(client)\n"
        "    table.pull(None, nothing=1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-Im", "mypy", "--strict", "--python-executable", bin_folder / "python", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert 'Revealed type is "tablebay.client.client.Client"' in ended.stdout, ended.stdout + ended.stderr
    assert 'Unexpected keyword argument "nothing"' in ended.stdout, ended.stdout


def test_the_lowest_dependencies_are_enough(wheel: Path, tmp_path: Path) -> None:
    """With the lowest version of each direct dependency, `tablebay quickstart`, the operator's check
    and an export to Parquet work."""
    lowest = (
        "--resolution",
        "lowest-direct",
        "--requirement",
        ROOT / "pyproject.toml",
        "--extra",
        "operator",
        "--extra",
        "parquet",
    )
    bin_folder = environment(tmp_path / "venv", *lowest)
    command(UV, "pip", "install", "--python", bin_folder / "python", "--no-deps", wheel, cwd=tmp_path)
    quickstart(bin_folder, tmp_path)
    job = ROOT / "examples" / "flights" / "job.yaml"
    assert "is valid" in command(bin_folder / "tablebay-operator", "check", job, cwd=tmp_path)
    checkpoint = ROOT / "tests" / "unit" / "golden" / "checkpoint_v1"
    export = ("checkpoint", "export", checkpoint, "--table", "user", "--to", tmp_path / "user.parquet")
    assert "4 rows of 'user'" in command(bin_folder / "tablebay", *export, cwd=tmp_path)
