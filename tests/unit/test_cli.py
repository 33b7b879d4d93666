"""The command line: what it refuses, how it fails, and how quickly it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tablebay.client.cli import main

BAD_JOB = "apiVersion: tablebay.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: toy}\nspec: {worker: {}}\n"


def failed(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, with nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    (line,) = captured.err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "Missing command; see tablebay --help"),
        (["nope"], "No such command 'nope'; see tablebay --help"),
        (["--nope"], "No such option: --nope; see tablebay --help"),
        (["run"], "Missing argument 'JOB.YAML'; see tablebay run --help"),
        (["run", "job.yaml", "--nope"], "No such option: --nope"),
        (["run", "job.yaml", "--outptu", "json"], "No such option: --outptu"),
        (["run", "job.yaml", "--output"], "Option '--output' requires an argument"),
        (["run", "job.yaml", "--output", "xml"], "'xml' is not one of 'table', 'json'"),
        (["run", "job.yaml", "more"], "Got unexpected extra argument"),
        (["serve", "--", "more"], "found 'more' after --, which this command does not take"),
        (["serve", "--job-file"], "Option '--job-file' requires an argument"),
        (["serve", "--job-file", "j.yaml", "--tables", "[]"], "--job-file and --tables say the same thing"),
        (["serve", "--job=a", "--job-file=j.yaml"], "--job-file and --job say the same thing"),
        (["serve", "--nope"], "unrecognized arguments: --nope"),
        (["serve", "--data-port", "x"], "--data-port is 'x', wanted a whole number"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["rows", "t", "x"], "found the key 'x', wanted a whole number from 0 to 2^64 - 1"),
        (["rows", "t", "18446744073709551616"], "found the key '18446744073709551616'"),
        (["rows", "t", "--hashed", "c"], "found --hashed without an id"),
        (["rows"], "Missing argument 'TABLE'"),
        (["version", "--", "more"], "found 'more' after --, which this command does not take"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown flag, a missing value, two flags in conflict and an argument too many say what is wrong."""
    assert main(arguments) == 2
    assert wanted in failed(capsys)


def test_a_run_directory_that_is_a_file_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag's value is checked before the job is looked at."""
    (tmp_path / "file").write_text("")
    assert main(["run", "job.yaml", "--run-dir", str(tmp_path / "file")]) == 2
    assert "is a file" in failed(capsys)


def test_a_job_file_that_is_not_there_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command was right and what it was given was not."""
    path = tmp_path / "none.yaml"
    assert main(["run", str(path)]) == 1
    assert failed(capsys) == f"tablebay: error: {path}: no such file; wanted a job file"


def test_every_problem_of_a_job_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each, with field path and line, and no traceback."""
    path = tmp_path / "job.yaml"
    path.write_text(BAD_JOB)
    assert main(["run", str(path)]) == 1
    told = capsys.readouterr().err
    assert "spec.worker: unknown field; did you mean workers? (line 4)" in told
    assert "spec.servers: a required field is missing" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("asked", [["--output", "json"], ["--output=json"], ["-o", "json"], ["-ojson"]])
@pytest.mark.parametrize("rest", [["none.yaml"], ["none.yaml", "--nope"], []])
def test_an_error_is_valid_json_where_json_was_asked_for(
    asked: list[str], rest: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever parses standard output can, also after wrong usage."""
    assert main(["run", *asked, *rest]) == (1 if rest == ["none.yaml"] else 2)
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert content["error"]
    assert captured.err == f"tablebay: error: {content['error']}\n"


def test_the_problems_of_a_job_file_are_a_list_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program need not take the text apart."""
    path = tmp_path / "job.yaml"
    path.write_text(BAD_JOB)
    assert main(["run", str(path), "--output", "json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(problem.startswith("spec.worker: unknown field") for problem in problems)
    assert len(problems) == 3


@pytest.mark.parametrize("arguments", [["--debug", "run"], ["run", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before or after the command's name."""
    assert main([*arguments, str(tmp_path / "none.yaml")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug names its class and how to see more of it."""

    def broken(*, as_json: bool) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("tablebay.client.cli.version.show", broken)
    assert main(["version"]) == 1
    assert failed(capsys) == "tablebay: error: ZeroDivisionError: division by zero (--debug shows where)"


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it comes."""

    def interrupted(*, as_json: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tablebay.client.cli.version.show", interrupted)
    assert main(["version"]) == 130
    assert failed(capsys) == "tablebay: error: interrupted"


def test_version_says_which_tablebay_this_is(capsys: pytest.CaptureFixture[str]) -> None:
    """As lines for people and as JSON for programs, and --version alone."""
    assert main(["version", "--output", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"version", "commit", "python", "platform", "instruction_set"}
    assert main(["version"]) == 0
    assert content["version"] in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tablebay {content['version']}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_the_help_loads_nothing_that_it_does_not_need(arguments: list[str]) -> None:
    """The time to the help is that of what it imports: none of the heavy packages may be among it."""
    script = (
        "import sys\n"
        "from tablebay.client.cli import main\n"
        "main(sys.argv[1:])\n"
        "heavy = {'numpy', 'grpc', 'google.protobuf', 'yaml'}\n"
        "heavy |= {'tablebay.native', 'tablebay.client.job'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr == "[]\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """`tablebay version | head -0` ends quietly."""
    command = [sys.executable, "-m", "tablebay.client.cli", "version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_the_script_of_completion_completes_commands() -> None:
    """bash itself runs it, and offers the commands that begin so."""
    tablebay = Path(sys.executable).with_name("tablebay")
    script = (
        f'PATH="{tablebay.parent}:$PATH"; source <(tablebay completion bash)\n'
        "COMP_WORDS=(tablebay su); COMP_CWORD=1; _tablebay_completion tablebay; echo ${COMPREPLY[@]}\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["submit", "suspend"], done.stderr
    for shell in ("zsh", "fish"):
        done = subprocess.run([tablebay, "completion", shell], capture_output=True, text=True, timeout=60)
        assert f"_TABLEBAY_COMPLETE=complete_{shell}" in done.stdout


def test_doctor_looks_at_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """A push and a pull in this process; a half of another version is what is wrong."""
    assert main(["doctor", "--local", "--output", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["well"] is True
    assert {one["check"]: one["verdict"] for one in content["checks"]} == {"package": "ok", "table": "ok"}


def test_doctor_says_what_is_wrong_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and the cause in the check's line."""

    def broken() -> str:
        raise ImportError("libtablebay.so: cannot open shared object file")

    monkeypatch.setattr("tablebay.native.commit", broken)
    assert main(["doctor", "--local"]) == 1
    assert "cannot open shared object file; install it again" in capsys.readouterr().out
