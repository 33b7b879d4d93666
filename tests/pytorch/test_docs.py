"""docs/pytorch.md and docs/own-data.md: what they show runs as it stands."""

from __future__ import annotations

import json
import random
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


def test_fifteen_lines_train_a_job_on_a_csv_file(tmp_path: Path) -> None:
    """The files and the command of docs/own-data.md, on a file made here: every id gets a row, every batch a push."""
    text = PAGE.with_name("own-data.md").read_text("utf-8")
    train, job, command = (match[1] for match in re.finditer(r"```\w*\n(.*?)```", text, re.DOTALL))
    assert len((train + job + command).splitlines()) <= 15
    generator = random.Random(1)
    lines = ["user,item,clicked"]
    for _ in range(2000):
        user, item = generator.randrange(50), generator.randrange(20)
        lines.append(f"u{user},i{item},{int(generator.random() < (user + item) / 70)}")
    for name, content in (("train.py", train), ("job.yaml", job), ("clicks.csv", "\n".join(lines) + "\n")):
        (tmp_path / name).write_text(content, "utf-8")
    words = command.split()
    words[0] = str(Path(sys.executable).with_name(words[0]))
    ended = subprocess.run(
        [*words, "--run-dir", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["rows"] == 50 + 20
    assert report["pushes_applied"] == 2 * 5 * 4
