"""`tablebay run`: real servers, real worker processes, and every way in which a run may end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tablebay.client.errors import JobFailed
from tablebay.client.job import parse_job
from tablebay.client.local import ports
from tablebay.client.local.report import Figures
from tablebay.client.local.runner import RunOptions, run_job

DEADLINE_S = 60.0
MARK = "RUNNER_TEST_MARK"

PUSHES = """
import numpy as np, tablebay as tb

with tb.connect() as client:
    table = client.table("fields")
    keys = np.arange(100, dtype=np.uint64) + 1000 * client.rank
    for step in range(5):
        table.pull(keys)
        table.push(keys, np.ones((100, 2), np.float32))
    client.barrier("all")
    client.report(examples=500, train_seconds=2.0)
    if client.rank == 0:
        client.report(auc=0.75, loss=0.5)
"""
FAILS_TWICE = """
import os, sys
from pathlib import Path

tries = Path(os.environ["FOLDER"]) / f"tries-{os.environ['TABLEBAY_RANK']}"
with open(tries, "a") as file:
    file.write("x")
sys.exit(1 if os.environ["TABLEBAY_RANK"] == "1" and tries.stat().st_size <= 2 else 0)
"""
FAILS = "import sys; print('about to fail'); sys.exit(7)"
HANGS = "import time; print('hanging', flush=True); time.sleep(600)"
HANGS_AND_IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HANGS
HANGS_WITH_A_CHILD = "import subprocess; child = subprocess.Popen(['sleep', '600']); " + HANGS
SAYS_WHO_IT_IS = """
import json, os, sys
names = ["MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "GREETING"]
names += [name for name in os.environ if name.startswith("TABLEBAY_")]
print("ME", json.dumps({name: os.environ[name] for name in names if name in os.environ}))
print("ARGS", json.dumps(sys.argv[1:]))
"""


def job_of(
    script: str, *, workers: int = 2, servers: int = 2, variables: dict[str, str] | None = None, **policy: Any
) -> Any:
    """A job whose workers run a script. policy: of spec.runPolicy."""
    container = {
        "name": "worker",
        "command": ["python", "-c", script],
        "env": [{"name": name, "value": value} for name, value in (variables or {}).items()],
    }
    return {
        "apiVersion": "tablebay.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "toy"},
        "spec": {
            "tables": [{"name": "fields", "dim": 2, "optimizer": {"type": "SGD"}}],
            "servers": {"replicas": servers},
            "workers": {"replicas": workers, "template": {"spec": {"containers": [container]}}},
            "runPolicy": policy,
        },
    }


@dataclass
class Runner:
    """A `tablebay run` under way: its process, and the mark that all its processes carry."""

    process: subprocess.Popen[str]
    mark: str
    run_dir: Path

    def wait_for_log(self, name: str, text: str) -> None:
        """Wait until a process's log has a text."""
        log = self.run_dir / "logs" / f"{name}.log"
        wait_for(lambda: log.exists() and text in log.read_text(), f"{text!r} in {log.name}", self.process)

    def pids(self, *words: str) -> list[int]:
        """The processes of the run whose command line has all these words."""
        return [pid for pid in living(self.mark) if all(word in command_line(pid) for word in words)]

    def end(self) -> tuple[int, str, str]:
        """Exit code, standard output, standard error. Nothing that it started may be left."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert living(self.mark) == [], "processes are left"
        return self.process.returncode, out, err


@contextmanager
def running(folder: Path, job: Any, *arguments: str) -> Iterator[Runner]:
    """Run a job in a folder of its own."""
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "tablebay.client.cli", "run", "job.yaml", "--run-dir", "run", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Runner(process, mark, folder / "run")
    finally:
        for pid in living(mark):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


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


def command_line(pid: int) -> str:
    """A process's command, "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition is true, while a process runs."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {DEADLINE_S} s"
        assert process is None or process.poll() is None, (
            f"{what}: the runner ended first: {process.communicate()}"
        )
        time.sleep(0.05)


@dataclass
class Heard:
    """A view that remembers."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: list[Figures] = field(default_factory=list)

    def line(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, found: Figures, *, restarts: int) -> None:
        self.found.append(found)


def test_workers_that_push_end_in_a_report(tmp_path: Path) -> None:
    """What workers reported and servers counted is in report.json and in the summary."""
    with running(tmp_path, job_of(PUSHES)) as runner:
        code, out, err = runner.end()
    assert code == 0, err
    report = json.loads((runner.run_dir / "report.json").read_text())
    assert report["rows"] == 200
    # Each rank's five steps, on the servers and shards where its keys live; a step that has none there is
    # empty.
    assert report["pushes_applied"] > 0
    assert report["duplicates"] == 0
    assert (report["auc"], report["logloss"]) == (0.75, None)
    assert (report["train_seconds"], report["examples_per_second"]) == (2.0, 500.0)
    assert (report["job"], report["servers"], report["workers"], report["restarts"]) == ("toy", 2, 2, 0)
    assert 0 < report["pull_p50_ms"] <= report["pull_p99_ms"]
    assert report["version"]
    assert report["commit"]
    assert out.splitlines()[0] == "toy: done, 2 servers, 2 workers"
    assert out.splitlines()[-1] == f"report: {Path('run') / 'report.json'}"


def test_the_report_is_json_on_standard_output_when_asked_for(tmp_path: Path) -> None:
    """Nothing else is on it, and it equals the file."""
    with running(tmp_path, job_of("print('noise')", servers=1, workers=1), "--output", "json") as runner:
        code, out, err = runner.end()
    assert code == 0, err
    assert json.loads(out) == json.loads((runner.run_dir / "report.json").read_text())
    assert "worker-0  | noise" in err


def test_a_failed_worker_is_started_again_with_its_rank(tmp_path: Path) -> None:
    """Rank 1 fails twice, then works: the job ends well, with two restarts, and rank 0 ran once."""
    with running(tmp_path, job_of(FAILS_TWICE, variables={"FOLDER": str(tmp_path)})) as runner:
        code, _, err = runner.end()
    assert code == 0, err
    assert json.loads((runner.run_dir / "report.json").read_text())["restarts"] == 2
    assert ((tmp_path / "tries-0").read_text(), (tmp_path / "tries-1").read_text()) == ("x", "xxx")
    assert "worker 1 exited with code 1; starting it again in 0.2 s (restart 1 of 3)" in err


def test_a_job_fails_with_its_cause_when_no_restart_is_left(tmp_path: Path) -> None:
    """One line has the worker, its exit code and last line, the restarts used, the log; no report is left."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    job = job_of(FAILS, workers=1, failurePolicy={"maxRestarts": 1})
    with running(tmp_path, job, "--output", "json") as runner:
        code, out, err = runner.end()
    cause = (
        "worker 0 exited with code 7 (about to fail) and no restart is left (1 of 1 used); "
        "its log is run/logs/worker-0.log"
    )
    assert code == 1
    assert err.splitlines()[-1] == f"tablebay: error: {cause}"
    assert json.loads(out) == {"error": cause}
    assert (tmp_path / "run/logs/worker-0.log").read_text() == "about to fail\n" * 2
    assert not (runner.run_dir / "report.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_with_code_130(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, a polite kill and a closed terminal leave no process, and servers end by themselves."""
    with running(tmp_path, job_of(HANGS_WITH_A_CHILD)) as runner:
        runner.wait_for_log("worker-0", "hanging")
        runner.process.send_signal(number)
        code, out, err = runner.end()
    assert code == 130
    assert out == ""
    assert f"interrupted by {number.name}; ending every process" in err
    assert "Traceback" not in err


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    """A worker that ignores SIGTERM holds the runner for its grace only until the user insists."""
    with running(tmp_path, job_of(HANGS_AND_IGNORES_SIGTERM, workers=1, servers=1)) as runner:
        runner.wait_for_log("worker-0", "hanging")
        began = time.monotonic()
        runner.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        runner.process.send_signal(signal.SIGINT)
        assert runner.end()[0] == 130
    assert time.monotonic() - began < RunOptions(run_dir=tmp_path).worker_grace_s


def test_nothing_outlives_a_killed_runner(tmp_path: Path) -> None:
    """After SIGKILL of the runner its servers, its workers and their children are gone within seconds."""
    with running(tmp_path, job_of(HANGS_WITH_A_CHILD)) as runner:
        runner.wait_for_log("worker-0", "hanging")
        runner.wait_for_log("worker-1", "hanging")
        # Runner, warden, 2 servers, 2 workers, their 2 children.
        assert len(living(runner.mark)) == 8
        runner.process.kill()
        wait_for(lambda: living(runner.mark) == [], "every process is gone")


def test_a_killed_server_fails_the_job_and_says_why(tmp_path: Path) -> None:
    """Without checkpoints its rows are lost, so the job ends at once, whatever restarts are left."""
    with running(tmp_path, job_of(HANGS)) as runner:
        runner.wait_for_log("worker-1", "hanging")
        servers = runner.pids("tablebay.ps_server.main")
        assert len(servers) == 2
        os.kill(servers[0], signal.SIGKILL)
        code, _, err = runner.end()
    assert code == 1
    assert "was killed by SIGKILL; without checkpoints its rows are lost" in err.splitlines()[-1]


def test_a_server_that_cannot_start_fails_the_job_with_its_last_lines(tmp_path: Path) -> None:
    """A wrong setting of the servers is no reason to wait for the deadline."""
    job = job_of(HANGS)
    server = {"name": "server", "env": [{"name": "TABLEBAY_LOG_LEVEL", "value": "loudly"}]}
    job["spec"]["servers"]["template"] = {"spec": {"containers": [server]}}
    with running(tmp_path, job) as runner:
        code, _, err = runner.end()
    assert code == 1
    assert "before it was ready; its log is run/logs/server-" in err.splitlines()[-1]
    assert "loudly" in err


def test_the_deadline_of_the_job_ends_it(tmp_path: Path) -> None:
    """A job that hangs fails after activeDeadlineSeconds, and the cause names the field."""
    with running(tmp_path, job_of(HANGS, activeDeadlineSeconds=3)) as runner:
        code, _, err = runner.end()
    assert code == 1
    wanted = "the job ran longer than spec.runPolicy.activeDeadlineSeconds, which is 3"
    assert err.splitlines()[-1] == f"tablebay: error: {wanted}"


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two runs would write each other's logs and report; the first goes on undisturbed."""
    with running(tmp_path, job_of(HANGS, workers=1, servers=1)) as runner:
        runner.wait_for_log("worker-0", "hanging")
        command = [sys.executable, "-m", "tablebay.client.cli", "run", "job.yaml", "--run-dir", "run"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S)
        assert second.returncode == 1
        assert "another run uses the run directory run" in second.stderr
        assert runner.process.poll() is None
        assert (tmp_path / "run/logs/worker-0.log").read_text() == "hanging\n"


def test_a_worker_has_the_environment_of_a_pod(tmp_path: Path) -> None:
    """Tablebay's names, those of DistributedDataParallel, the container's own, and the arguments given."""
    job = job_of(
        SAYS_WHO_IT_IS, variables={"GREETING": "hello $(TABLEBAY_LOG_LEVEL)", "TABLEBAY_LOG_LEVEL": "info"}
    )
    with running(tmp_path, job, "--", "--seed", "3") as runner:
        code, _, err = runner.end()
    assert code == 0, err
    for rank in range(2):
        lines = (tmp_path / f"run/logs/worker-{rank}.log").read_text().splitlines()
        me = json.loads(next(line for line in lines if line.startswith("ME "))[3:])
        assert me.pop("TABLEBAY_SERVERS").startswith("127.0.0.1:{")
        assert me.pop("TABLEBAY_LOG_FORMAT") == "text"
        assert me == {
            "TABLEBAY_JOB": "toy",
            "TABLEBAY_ROLE": "worker",
            "TABLEBAY_RANK": str(rank),
            "TABLEBAY_WORKERS": "2",
            "TABLEBAY_GENERATION": "0",
            "TABLEBAY_LOG_LEVEL": "info",
            "MASTER_ADDR": "127.0.0.1",
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
            "GREETING": "hello $(TABLEBAY_LOG_LEVEL)",
        }
        assert 'ARGS ["--seed", "3"]' in lines


def test_what_only_a_cluster_gives_is_said(tmp_path: Path) -> None:
    """A job file with an image and resources runs here, and the user is told what is left out."""
    job = job_of("pass", workers=1, servers=1)
    job["spec"]["image"] = "registry/train:1"
    job["spec"]["workers"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": 4}}
    with running(tmp_path, job) as runner:
        code, _, err = runner.end()
    assert code == 0, err
    where = "spec.workers.template.spec.containers[worker].resources"
    assert f"only a cluster gives spec.image, {where}: this run does without" in err


def test_another_block_is_taken_when_a_port_is_busy(tmp_path: Path) -> None:
    """Somebody takes a port between look and bind: the servers start again elsewhere, and the job runs."""
    blocks: list[int] = []
    with socket.socket() as busy:
        busy.bind((ports.HOST, 0))
        busy.listen()

        def block(count: int) -> int | None:
            # The second server's data port is the busy one, the first time.
            free = ports.free_block(count, randomness=random.Random())
            blocks.append(busy.getsockname()[1] - 3 if not blocks else free or 0)
            return blocks[-1]

        view = Heard()
        report = run_job(
            parse_job(job_of("pass", workers=1)), RunOptions(run_dir=tmp_path, free_block=block), view
        )
    assert len(blocks) == 2
    assert report["restarts"] == 0
    assert any(note.startswith(f"a port from {blocks[0]} on was taken") for note in view.notes)


def test_a_machine_without_free_ports_is_told_so(tmp_path: Path) -> None:
    """The error says how many ports in a row were wanted."""
    options = RunOptions(run_dir=tmp_path, free_block=lambda count: None)
    with pytest.raises(JobFailed, match="found no 7 free ports in a row on"):
        run_job(parse_job(job_of("pass")), options, Heard())


def test_progress_is_seen_while_workers_train(tmp_path: Path) -> None:
    """Figures come from the servers about once a second."""
    script = """
import time, tablebay as tb
with tb.connect() as client:
    client.report(step=7, examples=100, loss=0.25)
    time.sleep(3)
"""
    view = Heard()
    run_job(parse_job(job_of(script, workers=1, servers=1)), RunOptions(run_dir=tmp_path), view)
    assert any((found.step, found.examples, found.loss) == (7, 100, 0.25) for found in view.found)


COUNTS = """
import time
import numpy as np, tablebay as tb

keys = np.arange(50, dtype=np.uint64)
with tb.connect() as client:
    sums = client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
    for step in range(client.next_step, 40):
        sums.push(keys, np.ones((50, 1), np.int64))
        print("step", step, "done", flush=True)
        time.sleep(0.05)
    client.barrier("all")
    if client.rank == 0:
        print("sums", sorted(set(sums.pull(keys)[:, 0].tolist())), flush=True)
"""

GOES_ON = "going on from the newest checkpoint in run/volumes; delete that folder to begin anew"
BEGINS_ANEW = (
    "the run before this one has ended well: this one begins anew, and the checkpoints of the one before are in "
    "run/volumes-before"
)


def durable_job(**fields: Any) -> Any:
    """Two workers that add 1 to each row at each of 40 steps, with checkpoints."""
    job = job_of(COUNTS)
    job["spec"]["checkpoint"] = {"destination": "pvc://rows/run", "everySeconds": 3600, **fields}
    return job


def test_a_killed_server_comes_back_where_there_are_checkpoints(tmp_path: Path) -> None:
    """kill -9 in the middle: it is started again, no worker is, and every push is in the rows once."""
    with running(tmp_path, durable_job()) as runner:
        runner.wait_for_log("worker-0", "step 10 done")
        os.kill(runner.pids("tablebay.ps_server.main")[0], signal.SIGKILL)
        code, out, err = runner.end()
    assert code == 0, err
    assert "sums [80]" in err
    assert (
        "was killed by SIGKILL; it is started again and restores its rows (server restart 1 of this run)"
        in err
    )
    report = json.loads((runner.run_dir / "report.json").read_text())
    assert (report["restarts"], report["server_restarts"]) == (0, 1)
    assert "server restarts" in out


def test_an_interrupted_run_goes_on_and_one_that_ended_begins_anew(tmp_path: Path) -> None:
    """Ctrl-C makes a last checkpoint; the next run takes it up; the one after a good end does not."""
    with running(tmp_path, durable_job()) as runner:
        runner.wait_for_log("worker-0", "step 10 done")
        runner.process.send_signal(signal.SIGINT)
        assert runner.end()[0] == 130
    for note, first in ((GOES_ON, False), (BEGINS_ANEW, True)):
        with running(tmp_path, durable_job()) as runner:
            code, _, err = runner.end()
        assert code == 0, err
        assert note in err
        assert "sums [80]" in err
        assert ("step 5 done" in (tmp_path / "run/logs/worker-0.log").read_text()) == first
    # As on a cluster, where the same job given again goes on from its end.
    (tmp_path / "run/volumes/finished").unlink()
    with running(tmp_path, durable_job()) as runner:
        code, _, err = runner.end()
    assert code == 0, err
    assert "sums [80]" in err
    assert "done" not in (tmp_path / "run/logs/worker-0.log").read_text()


def test_a_run_whose_checkpoints_are_all_damaged_says_so_at_once(tmp_path: Path) -> None:
    """The first server that finds it is not started again; file and byte are on the last line."""
    with running(tmp_path, durable_job()) as runner:
        runner.wait_for_log("worker-0", "step 10 done")
        runner.process.send_signal(signal.SIGINT)
        assert runner.end()[0] == 130
    for path in (tmp_path / "run/volumes/rows/run/attempts").glob("*/*-rows-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with running(tmp_path, durable_job()) as runner:
        code, _, err = runner.end()
    assert code == 1
    last = err.splitlines()[-1]
    assert "cannot use its checkpoints (tablebay-server: " in last
    assert "none of 1 checkpoints is whole" in last
