"""A virtual environment for each peer, with the versions that the figures are of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """packages: pinned. alone: installed without what they ask for. program: from the system's packages."""

    name: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    program: tuple[str, str] | None = None


OURS = Environment("tablebay")
# Without torchrec, which asks for fbgemm-gpu: its files for CUDA lie where those of fbgemm-gpu-cpu do.
TORCH = Environment("torch", ("torch==2.9.1", "numpy==2.4.6", "fbgemm-gpu-cpu==1.4.0"))
TENSORFLOW = Environment("tensorflow", ("tensorflow-cpu==2.20.0", "numpy==2.4.6"))
# Its wheel asks for the tensorflow package, and was built against 2.15.
TFRA = Environment(
    "tfra",
    ("tensorflow-cpu==2.15.1", "numpy==1.26.4", "typeguard==4.6.1", "packaging==26.4", "setuptools==80.10.2"),
    ("tensorflow-recommenders-addons==0.7.2",),
)
REDIS = Environment(
    "redis", ("redis==7.4.1", "hiredis==3.5.0", "numpy==2.4.6"), program=("redis-server", "redis-server")
)
PLOTS = Environment("plots", ("matplotlib==3.11.2",))


class NotInstalled(Exception):
    """Why a peer cannot take part."""


def python_of(environment: Environment, folder: Path) -> str:
    """The interpreter of an environment, made in the folder if it is not there. Raises NotInstalled."""
    if environment is OURS:
        return sys.executable
    if environment.program is not None:
        _require_program(*environment.program)
    home = folder / environment.name
    python = str(home / "bin" / "python")
    stamp = home / ".made"
    wanted = repr(environment)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = str(Path(sys.executable).parent / "uv")
    shutil.rmtree(home, ignore_errors=True)
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(home)])
    _run([uv, "pip", "install", "--quiet", "--python", python, *environment.packages])
    if environment.alone:
        _run([uv, "pip", "install", "--quiet", "--python", python, "--no-deps", *environment.alone])
    stamp.write_text(wanted)
    return python


def _require_program(program: str, package: str) -> None:
    if shutil.which(program) is None:
        _run(["apt-get", "install", "--yes", "--quiet", package])
        # The package starts a server of its own.
        subprocess.run(["service", program, "stop"], check=False, capture_output=True)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotInstalled(f"{command[0]} is not there") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise NotInstalled(f"{' '.join(command[:4])} ...: {' '.join(last)}") from None
