"""`tablebay submit`, `get`, `describe`, `logs` and `delete`, against a small API server on loopback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit import api_server
from unit.api_server import COMPLETE, FAILED, ApiServer, training

from tablebay.client import schema
from tablebay.client.cli import every_field, main
from tablebay.client.job import parse_job

pytest.importorskip("kubernetes")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server that the kubeconfig names."""
    with api_server.serving() as server:
        api_server.write_kubeconfig(tmp_path / "config", server.address)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        yield server


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(api_server.job()))
    return str(path)


def later(seconds: float, what: Any, *arguments: Any) -> None:
    timer = threading.Timer(seconds, what, arguments)
    timer.daemon = True
    timer.start()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["submit"], "Missing argument 'FILE'; see tablebay submit --help"),
        (["submit", "f", "--timeout", "3"], "found --timeout without --wait; wanted both, or neither"),
        (["submit", "f", "--wait", "--timeout", "0"], "found 0, wanted more than 0 seconds"),
        (["submit", "f", "--wait", "--timeout", "nan"], "found nan, wanted more than 0 seconds"),
        (["submit", "f", "--wait", "--timeout", "inf"], "found inf, wanted more than 0 seconds"),
        (["submit", "f", "-n", "A_B"], "found 'A_B', wanted lower-case letters, digits and '-'"),
        (["submit", "f", "--output", "xml"], "'xml' is not one of 'table', 'json', 'yaml'"),
        (["submit", "f", "--", "x"], "found 'x' after --, which this command does not take"),
        (["get", "a", "-A"], "found --all-namespaces and the name a; wanted one of them"),
        (["get", "-n", "a", "-A"], "found --all-namespaces and --namespace; wanted one of them"),
        (["get", ""], "found '', wanted lower-case letters"),
        (["describe"], "Missing argument 'NAME'"),
        (["describe", "a/b"], "found 'a/b', wanted lower-case letters"),
        (["logs", "a", "--role", "boss"], "'boss' is not one of 'worker', 'server'"),
        (["logs", "a", "--index", "-1"], "Invalid value for '--index'"),
        (["logs", "a", "--tail", "x"], "Invalid value for '--tail'"),
        (["logs", "a", "--follow", "--previous"], "found --follow and --previous, whose log has ended"),
        (["delete"], "Missing argument 'NAME'"),
        (["delete", "../x"], "found '../x', wanted lower-case letters"),
        (["delete", "a", "--timeout", "1"], "found --timeout without --wait"),
        (["suspend"], "Missing argument 'NAME'"),
        (["suspend", "a", "--timeout", "1"], "found --timeout without --wait"),
        (["resume", "a/b"], "found 'a/b', wanted lower-case letters"),
        (["doctor", "--local", "-n", "a"], "found --local beside --namespace or --context"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No cluster is asked, and the line says what is wrong."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert wanted in captured.err
    assert len(captured.err.splitlines()) == 1


def test_submit_says_what_became_of_the_job(
    api: ApiServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Created, unchanged, or an error."""
    assert main(["submit", job_file]) == 0
    assert capsys.readouterr().out == "toy: created in namespace default\n"
    assert main(["submit", job_file, "--output", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["result"] == "unchanged"
    assert content["job"]["metadata"]["name"] == "toy"
    assert "managedFields" not in content["job"]["metadata"]
    assert main(["submit", job_file, "-n", "ads", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["job"]["metadata"]["namespace"] == "ads"


def test_submit_reads_standard_input(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same checks, told under that name."""

    def given(content: bytes) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return main(["submit", "-"])

    assert given(yaml.safe_dump(api_server.job()).encode()) == 0
    assert capsys.readouterr().out == "toy: created in namespace default\n"
    for content, wanted in (
        (b"", "the file is empty"),
        (b"a: [", "line 1"),
        (b"kind: \xff", "line 1: found the byte 0xff, wanted UTF-8"),
        (b"#" * 70_000, "more than 65536 bytes"),
        (b"kind: Pod\n", "kind: found 'Pod', wanted TrainingJob (line 1)"),
    ):
        assert given(content) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("tablebay: error: standard input: ")
        assert wanted in captured.err


def test_a_wrong_file_is_told_in_full_and_not_sent(
    api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every problem, exit code 1, and no request; also without any cluster."""
    (tmp_path / "bad.yaml").write_text(
        "apiVersion: tablebay.dev/v1alpha1\nkind: TrainingJob\nspec: {worker: {}}\n"
    )
    assert main(["submit", str(tmp_path / "bad.yaml"), "-o", "json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["problems"]) == 4
    assert "Traceback" not in captured.err
    assert api.requests == []


def test_submit_wait_follows_the_job_to_its_end(
    api: ApiServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each change on standard error, and the end on standard output."""
    later(0.3, api.change, "toy", training(10))
    later(0.5, api.change, "toy", training(10))
    later(0.7, api.change, "toy", COMPLETE)
    assert main(["submit", job_file, "--wait", "--timeout", "20"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "toy: Pending  servers 0/2  workers 0/2",
        "toy: Training  servers 2/2  workers 2/2  step 10  loss 0.4100  auc 0.7900",
    ]
    assert captured.out.splitlines() == [
        "toy: created in namespace default",
        "toy: Completed  servers 2/2  workers 2/2  step 1,200  loss 0.4100  auc 0.7900",
    ]


def test_submit_wait_is_exit_code_1_when_the_job_fails(
    api: ApiServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first failure is in the one line of the error, and in the one object of JSON."""
    assert main(["submit", job_file]) == 0
    api.change("toy", FAILED)
    capsys.readouterr()
    assert main(["submit", job_file, "--wait", "-o", "json"]) == 1
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error.endswith("pod toy-worker-1-x, container worker, exit code 137, OOMKilled: no memory")
    assert captured.err.splitlines()[-1] == f"tablebay: error: {error}"
    api.change("toy", training(1))
    assert main(["submit", job_file, "--wait", "--timeout", "0.3"]) == 1
    assert "not finished after 0.3 s, its state is Training" in capsys.readouterr().err


def test_get_lists_jobs(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """One, those of a namespace, those of all; nothing to list is no error."""
    assert main(["get"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no jobs in namespace default\n")
    assert main(["get", "-A", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == []
    api.put(api_server.job("a"))
    api.put(api_server.job("b"), "ads")
    assert main(["get"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["NAME", "a"]
    assert main(["get", "-A"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["NAMESPACE", "NAME"],
        ["ads", "b"],
        ["default", "a"],
    ]
    assert main(["get", "b", "-n", "ads", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["name"] == "b"
    assert main(["get", "b", "-o", "json"]) == 1
    error = "no TrainingJob b in namespace default; tablebay get -A lists all"
    assert json.loads(capsys.readouterr().out) == {"error": error}


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_get_watch_goes_on_until_ctrl_c(api: ApiServer, form: str) -> None:
    """A line for each change, as it comes, and exit code 130."""
    api.put(api_server.job())
    command = [sys.executable, "-m", "tablebay.client.cli", "get", "--watch", "-o", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(2 if form == "table" else 1)]
        while not any(request[2].get("watch") for request in api.requests):
            time.sleep(0.02)
        api.change("toy", training(10))
        lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == "tablebay: error: interrupted\n"
    if form == "table":
        assert "Pending" in lines[1]
        assert "Training" in lines[2]
    if form == "json":
        assert [json.loads(line)["type"] for line in lines] == ["ADDED", "MODIFIED"]


def test_describe_shows_what_may_be_read(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Pods and events too; where they may not be read, the rest is still shown."""
    api.put({**api_server.job(), "status": training(10)})
    api.pods = [api_server.pod("toy-worker-0", "worker", 0, state={"waiting": {"reason": "ErrImagePull"}})]
    api.events = [
        {"metadata": {}, "lastTimestamp": api_server.CREATED, "reason": "Started", "message": "begun"}
    ]
    assert main(["describe", "toy"]) == 0
    text = capsys.readouterr().out
    assert "worker: ErrImagePull" in text
    assert "begun" in text
    assert main(["describe", "toy", "-o", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [pod["why"] for pod in content["pods"]] == ["worker: ErrImagePull"]
    api.refused = {"/api/v1": api_server.status(403, "Forbidden", "no")}
    assert main(["describe", "toy"]) == 0
    text = capsys.readouterr().out
    assert "state:      Training" in text
    assert "unknown:    not permitted to list pods in namespace default: no" in text
    assert "unknown:    not permitted to list events in namespace default: no" in text


def test_logs_of_several_have_names(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of one are as they were written; one that cannot be read hides no other."""
    api.pods = [api_server.pod(f"toy-worker-{index}", "worker", index) for index in range(2)]
    api.logs = {("toy-worker-0", False): "a\nb\n", ("toy-worker-1", False): "c\n"}
    assert main(["logs", "toy"]) == 0
    assert capsys.readouterr().out == "worker-0 | a\nworker-0 | b\nworker-1 | c\n"
    assert main(["logs", "toy", "--follow"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["worker-0 | a", "worker-0 | b", "worker-1 | c"]
    assert main(["logs", "toy", "--index", "0", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "b\n"
    del api.logs[("toy-worker-0", False)]
    assert main(["logs", "toy"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "worker-1 | c\n"
    assert "waiting to start" in captured.err
    api.pods = [api_server.pod(f"toy-worker-{index}", "worker", index) for index in range(51)]
    assert main(["logs", "toy", "-f"]) == 1
    assert "found 51 workers, wanted at most 50 to follow; choose --index" in capsys.readouterr().err


def test_delete_says_whether_the_job_is_gone(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --wait it is on its way."""
    api.put(api_server.job())
    assert main(["delete", "toy"]) == 0
    assert capsys.readouterr().out == "toy: deleting in namespace default\n"
    api.put(api_server.job())
    assert main(["delete", "toy", "--wait", "-o", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == {"result": "deleted", "name": "toy", "namespace": "default"}
    assert main(["delete", "toy"]) == 1
    assert "no TrainingJob toy" in capsys.readouterr().err


def test_suspend_and_resume_change_the_spec_and_can_wait(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One field is written; --wait believes no status of before the change, and resume --wait tells of a failure."""
    api.put({**api_server.job(), "status": {**training(10), "observedGeneration": 1}})
    assert main(["suspend", "toy"]) == 0
    assert capsys.readouterr().out == "toy: suspending in namespace default\n"
    assert api.requests[-1][0] == "PATCH"
    assert api.requests[-1][3]["spec"] == {"suspend": True}
    assert api.jobs["default", "toy"]["spec"]["suspend"] is True
    suspended = {"conditions": [api_server.condition("Suspended", "True", "Suspended")]}
    api.change("toy", {**suspended, "observedGeneration": 1})
    assert main(["suspend", "toy", "--wait", "--timeout", "0.3"]) == 1
    assert "after 0.3 s its state is" in capsys.readouterr().err
    later(0.3, api.change, "toy", {**suspended, "observedGeneration": 2})
    assert main(["suspend", "toy", "--wait", "--timeout", "20", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == "suspended"
    later(0.3, api.change, "toy", {**training(10), "observedGeneration": 3})
    assert main(["resume", "toy", "--wait", "--timeout", "20"]) == 0
    assert capsys.readouterr().out == "toy: training in namespace default\n"
    assert api.jobs["default", "toy"]["spec"]["suspend"] is False
    later(0.3, api.change, "toy", {**FAILED, "observedGeneration": 4})
    assert main(["suspend", "toy"]) == 0
    assert main(["resume", "toy", "--wait", "--timeout", "20"]) == 1
    assert "OOMKilled" in capsys.readouterr().err
    assert main(["suspend", "toy"]) == 1
    assert "has ended (Failed), so nothing is left to change" in capsys.readouterr().err


def test_scale_changes_the_number_of_workers_and_can_wait(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One field is written; with --wait it returns once all of them run."""
    api.put({**api_server.job(), "status": {**training(10), "observedGeneration": 1}})
    assert main(["scale", "toy", "--workers", "4"]) == 0
    assert capsys.readouterr().out == "toy: scaling to 4 workers in namespace default\n"
    assert api.requests[-1][0] == "PATCH"
    assert api.requests[-1][3]["spec"] == {"workers": {"replicas": 4}}
    assert main(["scale", "toy", "--workers", "1", "--wait", "--timeout", "0.3"]) == 1
    assert "after 0.3 s its state is" in capsys.readouterr().err
    run = {"conditions": [api_server.condition("WorkersReady", "True", "AllReady")]}
    later(0.3, api.change, "toy", {**run, "observedGeneration": 3})
    assert main(["scale", "toy", "--workers", "1", "--wait", "--timeout", "20", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == "scaled to 1 worker"
    assert main(["scale", "toy", "--workers", "0"]) == 2
    assert main(["scale", "toy"]) == 2


def test_a_job_that_cannot_be_suspended_says_why(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of the API server, with the field's path."""
    api.put(api_server.job())
    api.forced = [
        (200, api.jobs["default", "toy"]),
        api_server.status(
            422, "Invalid", "x", causes=[{"field": "spec.suspend", "message": "cannot be suspended"}]
        ),
    ]
    assert main(["suspend", "toy"]) == 1
    assert "spec.suspend: cannot be suspended" in capsys.readouterr().err


def test_doctor_says_what_is_amiss_on_the_cluster(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """No chart, an older chart, an operator that looks at nothing, no permission; well it exits with 0."""

    def checks(code: int) -> dict[str, tuple[str, str]]:
        assert main(["doctor", "-o", "json"]) == code
        content = json.loads(capsys.readouterr().out)
        assert content["well"] is (code == 0)
        return {one["check"]: (one["verdict"], one["text"]) for one in content["checks"]}

    found = checks(0)
    assert {name: verdict for name, (verdict, _) in found.items()} == {
        "package": "ok",
        "table": "ok",
        "cluster": "ok",
        "jobs": "ok",
        "chart": "ok",
        "operator": "unknown",
    }
    assert api.jobs == {}, "it is a dry run"
    api.put({**api_server.job(), "metadata": {"name": "toy", "generation": 2}})
    found = checks(1)
    assert found["operator"][0] == "wrong"
    assert "has not looked at toy for 60 s" in found["operator"][1]
    api.change("toy", {"observedGeneration": 2})
    assert checks(0)["operator"] == ("ok", "has looked at every job")
    words = "server 0 refuses to start: pvc://checkpoints/run holds checkpoints of job search"
    unusable = {"type": "Ready", "status": "False", "reason": "CheckpointUnusable", "message": words}
    api.change("toy", {"observedGeneration": 2, "conditions": [unusable]})
    assert checks(1)["job"] == ("wrong", f"toy: CheckpointUnusable: {words}")
    starting = {**unusable, "reason": "StartingServers", "message": "0 of 1 servers are ready"}
    api.change("toy", {"observedGeneration": 2, "conditions": [starting]})
    assert "job" not in checks(0)
    older = api_server.status(400, "BadRequest", 'strict decoding error: unknown field "spec.x"')
    api.forced = [(200, {"items": [], "metadata": {}}), older]
    found = checks(1)
    assert 'unknown field "spec.x"' in found["chart"][1]
    assert "helm upgrade" in found["chart"][1]
    api.forced = [api_server.status(404, "NotFound", "the server could not find the requested resource")]
    assert "helm install" in checks(1)["chart"][1]
    api.forced = [api_server.status(403, "Forbidden", "no"), api_server.status(403, "Forbidden", "no")]
    found = checks(1)
    assert found["jobs"][0] == "wrong"
    assert found["chart"][0] == "unknown"
    assert main(["doctor", "--local"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["package", "ok"],
        ["table", "ok"],
    ]


def _said(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of a schema that a value names, and the value there."""
    if "properties" in schema and isinstance(value, dict):
        for name, below in value.items():
            yield f"{path}.{name}", below
            yield from _said(schema["properties"][name], below, f"{path}.{name}")
    elif "items" in schema:
        for one in value:
            yield f"{path}[]", one
            yield from _said(schema["items"], one, f"{path}[]")


def _known(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Each field of a schema. What defaults of tables have, tables have too."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        if name != "tableDefaults":
            yield from _known(below, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]"
        yield from _known(schema["items"], f"{path}[]")


def test_doctor_asks_the_chart_for_every_field() -> None:
    """A field, an optimizer or an initializer of the schema that its job lacks fails here; and a job it must be."""
    job = every_field.job("tablebay-doctor")
    assert parse_job(job).name == "tablebay-doctor"
    spec = schema.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    said = list(_said(spec, job["spec"]))
    assert set(_known(spec)) - {path for path, _ in said} == set()
    for part in ("optimizer", "initializer"):
        path = f".tables[].{part}.type"
        words = spec["properties"]["tables"]["items"]["properties"][part]["properties"]["type"]["enum"]
        assert {value for where, value in said if where == path} == set(words)


@pytest.mark.parametrize("form", [[], ["-o", "json"]])
def test_no_cluster_is_one_line(
    form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, no traceback, and JSON if asked for."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for command in (["get"], ["describe", "toy"], ["delete", "toy"]):
        assert main([*command, *form]) == 1
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("tablebay: error: no kubeconfig: ")
        assert bool(captured.out) == bool(form)
        assert not form or json.loads(captured.out)["error"] in line


def test_kubectl_finds_the_same_commands(tmp_path: Path) -> None:
    """`kubectl tablebay submit` runs kubectl-tablebay, whose help has the words that were typed."""
    script = Path(sys.executable).with_name("kubectl-tablebay")
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, "submit"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "tablebay: error: Missing argument 'FILE'; see kubectl tablebay submit --help\n"


@pytest.mark.parametrize("command", [[], ["submit"], ["get"], ["logs"]])
def test_the_help_does_not_load_the_kubernetes_package(command: list[str]) -> None:
    """Only a command that talks to a cluster does."""
    script = (
        "import sys\nfrom tablebay.client.cli import main\n"
        "assert main([*sys.argv[1:], '--help']) == 0\n"
        "print(sorted({'kubernetes', 'urllib3', 'yaml', 'numpy'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "[]\n"
