"""docs/pytorch.md: its example runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pytorch.md"


def test_the_example_of_the_page_runs() -> None:
    """The first Python block, alone in a new process, prints two probabilities, and is short."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block is not None
    assert len(block[1].strip().splitlines()) <= 12
    ended = subprocess.run([sys.executable, "-Ic", block[1]], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert len(re.findall(r"0\.\d+", ended.stdout)) == 2
