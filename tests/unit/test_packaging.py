"""What an editable install gives: every part under its name, quick to import, its halves of one version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import tablebay

# Plays a native part of another version.
OTHER_CORE = """import sys, types
core = types.ModuleType("tablebay.native._core")
core.version = lambda: "9.9.9"
sys.modules["tablebay.native._core"] = core
"""
SCRIPTS = (
    "tablebay",
    "kubectl-tablebay",
    "tablebay-server",
    "tablebay-operator",
    "tablebay-own-certificate",
)


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own, with `variables` in its environment."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def loaded_after(code: str) -> set[str]:
    """The names of all modules loaded after `code`."""
    ended = python(f"{code}\nimport sys; print('modules:', *sys.modules)")
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.rpartition("modules:")[2].split())


@pytest.mark.parametrize(
    "module",
    [
        "tablebay.client.client",
        "tablebay.client.cli",
        "tablebay.client.proto.tablebay_pb2",
        "tablebay.client.proto.tablebay_pb2_grpc",
        "tablebay.examples.flights.data",
        "tablebay.native",
        "tablebay.operator.main",
        "tablebay.ps_server.main",
    ],
)
def test_every_part_is_importable_from_anywhere(module: str) -> None:
    """Each folder of the repository is a package beneath tablebay, whatever the current folder."""
    ended = python(f"import os; os.chdir('/'); import {module}")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["flights.npz", "job.yaml"])
def test_the_flights_job_is_found_as_a_resource(name: str) -> None:
    """The example's data and job file are read through importlib.resources."""
    assert resources.files("tablebay.examples.flights").joinpath(name).is_file()


def test_the_distribution_names_its_commands_and_version() -> None:
    """The metadata has the version of the code, and every command is there."""
    distribution = metadata.distribution("tablebay")
    assert distribution.version == tablebay.__version__
    commands = {entry.name for entry in distribution.entry_points if entry.group == "console_scripts"}
    assert commands == set(SCRIPTS)
    for name in SCRIPTS:
        assert Path(sys.executable).with_name(name).is_file()


def test_importing_tablebay_loads_nothing_heavy() -> None:
    """`import tablebay` loads neither numpy, grpc, protobuf nor pydantic."""
    loaded = loaded_after("import tablebay; tablebay.__version__; dir(tablebay)")
    assert loaded & {"numpy", "grpc", "google.protobuf", "pydantic", "typer", "rich"} == set()


def test_the_operator_loads_neither_numpy_nor_the_native_core() -> None:
    """Neither starting the operator nor checking a job file loads numpy or tablebay.native."""
    job = resources.files("tablebay.examples.flights").joinpath("job.yaml")
    loaded = loaded_after(
        f"from tablebay.operator.main import main; assert main(['check', {str(job)!r}]) == 0"
    )
    assert "tablebay.client.job" in loaded
    assert loaded & {"numpy", "tablebay.native", "tablebay.native._core", "tablebay.ps_server"} == set()


def test_every_public_name_is_there() -> None:
    """Each name of tablebay.__all__ resolves, dir() lists it, and an unknown one is an AttributeError."""
    for name in tablebay.__all__:
        assert getattr(tablebay, name) is not None
        assert name in dir(tablebay)
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        tablebay.nothing_of_the_kind  # noqa: B018


def test_every_error_of_the_tree_is_public() -> None:
    """Each class of tablebay.errors that descends from TablebayError is a name of tablebay."""
    tree = {
        name
        for name, value in vars(tablebay.errors).items()
        if isinstance(value, type) and issubclass(value, tablebay.TablebayError)
    }
    assert tree <= set(tablebay.__all__)


def test_a_native_part_of_another_version_is_refused_with_both_versions() -> None:
    """Importing the native core of another version says both versions and what to do."""
    ended = python(OTHER_CORE + "import tablebay.native")
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert re.match(
        rf"ImportError: .* version {re.escape(tablebay.__version__)} .* version 9\.9\.9; .*", last
    )


@pytest.mark.parametrize(
    "start",
    [
        "from tablebay.ps_server.main import main; sys.exit(main([]))",
        "from tablebay.client.cli.commands import main; sys.exit(main(['version']))",
    ],
)
def test_commands_say_a_mismatch_of_versions_on_one_line(start: str) -> None:
    """tablebay-server and tablebay end with 1 and a line that has both versions, without a traceback."""
    ended = python(OTHER_CORE + start)
    assert ended.returncode == 1
    (line,) = ended.stderr.strip().splitlines()
    assert tablebay.__version__ in line
    assert "9.9.9" in line


def test_the_operator_says_its_version() -> None:
    """`tablebay-operator --version` prints one line."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("tablebay-operator"), "--version"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, f"tablebay-operator {tablebay.__version__}\n")


def test_the_operator_without_a_command_is_wrong_usage() -> None:
    """`tablebay-operator` alone exits with 2 and says what it wants."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("tablebay-operator")], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "wanted a command" in ended.stderr


def test_the_operator_lists_what_is_wrong_with_a_job(tmp_path: Path) -> None:
    """`tablebay-operator check` exits with 1 and names each bad field, the value found and the value wanted."""
    job = tmp_path / "job.yaml"
    good = resources.files("tablebay.examples.flights").joinpath("job.yaml").read_text("utf-8")
    job.write_text(
        good.replace("dim: 9 ", "dim: -4 ").replace("servers: {replicas: 2}", "servers: {replicas: 0}")
    )
    ended = subprocess.run(
        [Path(sys.executable).with_name("tablebay-operator"), "check", job], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert f"{job}: 2 problems" in ended.stderr
    assert "spec.tables[0].dim: found -4, wanted " in ended.stderr
    assert "spec.servers.replicas: found 0, wanted " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_operator_says_which_job_file_is_missing(tmp_path: Path) -> None:
    """A path without a file is one problem, not a traceback."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("tablebay-operator"), "check", tmp_path / "none.yaml"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "none.yaml" in ended.stderr
    assert "Traceback" not in ended.stderr
