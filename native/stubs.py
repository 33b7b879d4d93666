"""Writes _core.pyi from the built core: ``python native/stubs.py [FILE]`` (make stubs)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULE = "tablebay.native._core"
_HEADER = "# Written from the built core by native/stubs.py; change native/src/bindings.cc instead.\n"
# Whatever converts to a number is taken; that the core's callers pass numbers is all that a reader must know.
_SHORTER = {
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
}


def stubs() -> str:
    """The text of _core.pyi. Needs the core built and pybind11-stubgen installed."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["-m", "pybind11_stubgen", MODULE, "--output-dir", directory, "--exit-code"]
        ended = subprocess.run(
            # The folder of this file holds no module that another one could mistake for its own; others may.
            [sys.executable, "-P", *command, "--numpy-array-use-type-var"],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise SystemExit(f"pybind11-stubgen ended with {ended.returncode}: {ended.stderr}")
        text = Path(directory, *MODULE.split(".")).with_suffix(".pyi").read_text()
    for long, short in _SHORTER.items():
        text = text.replace(long, short)
    return _HEADER + text


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "_core.pyi").write_text(stubs())
