"""Processes of a local run: their lines, their ends, and that none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from tablebay.client.local.processes import LINE_BYTES_MAX, Process, ProcessGroup

MARK = "RUNNER_TEST_MARK"
DEADLINE_S = 30.0


class Watched:
    """A group of processes of which the lines and the ends are remembered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.lines: list[tuple[str, str]] = []
        self.group = ProcessGroup(lambda process, text: self.lines.append((process.name, text)))

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a command that carries the mark."""
        return self.group.start(
            name, 0, command, {**os.environ, MARK: self.mark}, self.folder / f"{name}.log"
        )

    def wait(self, count: int) -> list[Process]:
        """The first `count` processes to end."""
        ended: list[Process] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(ended) < count:
            assert time.monotonic() < deadline, f"{len(ended)} of {count} processes ended in {DEADLINE_S} s"
            ended += self.group.poll(0.05)
        return ended


def living(mark: str) -> list[int]:
    """The processes that carry a mark in their environment, those that are dead but not reaped left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not dead and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: object, what: str) -> None:
    """Wait until a callable is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what}: not after {DEADLINE_S} s"
        time.sleep(0.02)


def test_lines_and_codes_come_from_each_process(tmp_path: Path) -> None:
    """Lines of both streams, the unfinished last one too, come under the process's name and are logged."""
    watched = Watched(tmp_path)
    with watched.group:
        watched.start("a", ["sh", "-c", "echo one; echo two >&2; printf three; exit 3"])
        (ended,) = watched.wait(1)
    assert (ended.name, ended.code) == ("a", 3)
    assert watched.lines == [("a", "one"), ("a", "two"), ("a", "three")]
    assert (tmp_path / "a.log").read_text() == "one\ntwo\nthree"


def test_a_signal_is_a_code_below_zero(tmp_path: Path) -> None:
    """A process that was killed says by which signal."""
    watched = Watched(tmp_path)
    with watched.group:
        watched.start("a", ["sh", "-c", "kill -9 $$"])
        assert watched.wait(1)[0].code == -signal.SIGKILL


@pytest.mark.parametrize(("command", "code"), [("/nowhere/at/all", 127), ("/", 126)])
def test_a_command_that_cannot_start_says_so_and_ends(tmp_path: Path, command: str, code: int) -> None:
    """It is a process that failed, with the reason in its lines, not an error of the runner."""
    watched = Watched(tmp_path)
    with watched.group:
        watched.start("a", [command])
        assert watched.wait(1)[0].code == code
    assert f"cannot start {command!r}" in watched.lines[0][1]


def test_a_line_without_end_is_cut_in_pieces(tmp_path: Path) -> None:
    """A megabyte without a line's end does not stay in memory, and none of it is lost."""
    watched = Watched(tmp_path)
    with watched.group:
        watched.start("a", [sys.executable, "-c", "import sys; sys.stdout.write('x' * 2**20)"])
        watched.wait(1)
    assert sum(len(text) for _, text in watched.lines) == 2**20
    assert max(len(text) for _, text in watched.lines) <= 2 * LINE_BYTES_MAX


def test_bytes_that_are_no_text_are_shown_and_kept(tmp_path: Path) -> None:
    """The log has the bytes as they came, the line a mark in their place; of a progress bar, its last state."""
    watched = Watched(tmp_path)
    with watched.group:
        watched.start("a", ["sh", "-c", r"printf '\377ok\n10%%\r20%%\n'"])
        watched.wait(1)
    assert [text for _, text in watched.lines] == ["�ok", "20%"]
    assert (tmp_path / "a.log").read_bytes() == b"\xffok\n10%\r20%\n"


def test_what_a_process_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    """A child in the background does not outlive the command that started it."""
    watched = Watched(tmp_path)
    with watched.group:
        watched.start("a", ["sh", "-c", "sleep 600 & exit 0"])
        assert watched.wait(1)[0].code == 0
        wait_for(lambda: len(living(watched.mark)) == 0, "the background child ends")


def test_leaving_the_block_ends_every_process(tmp_path: Path) -> None:
    """Also those that ignore SIGTERM, and also when the block is left by an error."""
    watched = Watched(tmp_path)

    def fails() -> None:
        with watched.group:
            watched.start("a", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
            watched.start("b", ["sleep", "600"])
            wait_for(lambda: watched.group.poll(0.05) == [] and watched.lines, "the first line")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert living(watched.mark) == []


def test_a_process_that_ends_on_sigterm_is_not_killed(tmp_path: Path) -> None:
    """Within its grace a process may say its last words."""
    watched = Watched(tmp_path)
    with watched.group:
        process = watched.start(
            "a", ["sh", "-c", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"]
        )
        wait_for(lambda: watched.group.poll(0.05) == [] and watched.lines, "the first line")
        watched.group.end([process], grace_s=DEADLINE_S)
    assert process.code == 0
    assert watched.lines[-1] == ("a", "bye")


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    """Grace is bounded, and ends at once when there is a reason to hurry."""
    watched = Watched(tmp_path)
    with watched.group:
        for name, grace_s, hurry in (("slow", 0.3, False), ("hurried", 600.0, True)):
            process = watched.start(
                name, ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]
            )
            wait_for(lambda: watched.group.poll(0.05) == [] and watched.lines, "the first line")
            watched.lines.clear()
            watched.group.end([process], grace_s=grace_s, hurry=lambda: hurry)  # noqa: B023
            assert process.code == -signal.SIGKILL


def test_nothing_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    """After SIGKILL of the process that holds the group, none of its processes and their children is left."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from tablebay.client.local.processes import ProcessGroup\n"
        "with ProcessGroup(lambda process, text: print(text, flush=True)) as group:\n"
        "    group.start('a', 0, ['sh', '-c', 'echo up; sleep 600; true'], os.environ, Path(sys.argv[1]))\n"
        "    two = 'sleep 600 & sleep 600 & echo up; wait'\n"
        "    group.start('b', 1, ['sh', '-c', two], os.environ, Path(sys.argv[2]))\n"
        "    while True:\n"
        "        group.poll(0.1)\n"
    )
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a.log"), str(tmp_path / "b.log")],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout is not None
        assert [runner.stdout.readline(), runner.stdout.readline()] == ["up\n", "up\n"]
        # The runner, its warden, two shells and their three children.
        wait_for(lambda: len(living(mark)) == 7, "every process is up")
        runner.kill()
    wait_for(lambda: living(mark) == [], "every process is gone")
