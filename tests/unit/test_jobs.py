"""`tb.jobs` against a small API server on loopback."""

from __future__ import annotations

import copy
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit import api_server
from unit.api_server import COMPLETE, FAILED, JOBS, ApiServer, training

import tablebay as tb
from tablebay.client import jobs
from tablebay.client.job import parse_job
from tablebay.client.jobs import watch

pytest.importorskip("kubernetes")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server that the kubeconfig names."""
    with api_server.serving() as server:
        api_server.write_kubeconfig(tmp_path / "config", server.address)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield server


def later(seconds: float, what: Any, *arguments: Any) -> None:
    timer = threading.Timer(seconds, what, arguments)
    timer.daemon = True
    timer.start()


def test_jobs_are_a_part_of_the_sdk() -> None:
    """`tb.jobs` has the functions, and each error is a TablebayError."""
    assert tb.jobs is jobs
    errors = [
        value for value in vars(jobs).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(errors) == 9
    assert all(issubclass(error, tb.TablebayError) for error in errors)


@pytest.mark.parametrize("form", ["path", "dict", "model"])
def test_a_job_is_sent_as_it_was_written(api: ApiServer, tmp_path: Path, form: str) -> None:
    """From a file, a dict or a model: strictly validated there, and with no default filled in here."""
    written = api_server.job()
    if form == "path":
        path = tmp_path / "job.yaml"
        path.write_text(str(written).replace("'", '"'))
        job = jobs.submit(path)
    else:
        job = jobs.submit(written if form == "dict" else parse_job(written))
    (request,) = api.requests
    assert request[:2] == ("POST", f"{JOBS}/namespaces/default/trainingjobs")
    assert request[2]["fieldValidation"] == "Strict"
    assert request[3] == written
    assert (job.name, job.namespace, job.state, job.servers) == ("toy", "default", "Pending", "0/2")


def test_a_wrong_job_is_not_sent(api: ApiServer, tmp_path: Path) -> None:
    """Every problem is told, and the API server is not asked."""
    wrong = api_server.job()
    wrong["spec"]["servers"] = {"replicas": 0, "replcas": 1}
    with pytest.raises(tb.JobInvalid) as caught:
        jobs.submit(wrong)
    assert len(caught.value.problems) == 2
    with pytest.raises(tb.JobInvalid, match="no such file"):
        jobs.submit(tmp_path / "none.yaml")
    number = api_server.job()
    number["spec"]["workers"]["template"]["spec"]["x"] = float("nan")
    with pytest.raises(tb.JobInvalid, match="JSON cannot hold"):
        jobs.submit(number)
    with pytest.raises(tb.BadType, match="found a int"):
        jobs.submit(7)  # type: ignore[arg-type]
    assert api.requests == []


def test_the_same_job_again_changes_nothing(api: ApiServer) -> None:
    """Also where the cluster has filled in defaults; another spec is an error that says what to do."""
    first = jobs.submit(api_server.job())
    stored = copy.deepcopy(api.jobs[("default", "toy")])
    stored["spec"]["runPolicy"] = {"failurePolicy": {"maxRestarts": 3}}
    api.put(stored)
    assert jobs.submit(api_server.job()).uid == first.uid
    with pytest.raises(
        jobs.JobExists, match="another spec; delete it with: tablebay delete toy -n default, or"
    ):
        jobs.submit(api_server.job(servers=3))
    stored["spec"]["aFieldToCome"] = 1
    api.put(stored)
    with pytest.raises(jobs.JobExists, match="another spec"):
        jobs.submit(api_server.job())
    stored["metadata"]["deletionTimestamp"] = api_server.CREATED
    api.put(stored)
    with pytest.raises(jobs.JobExists, match="is being deleted"):
        jobs.submit(api_server.job())


def test_the_namespace_is_that_of_the_call_of_the_file_or_of_the_context(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order; two that differ are an error."""
    api_server.write_kubeconfig(tmp_path / "other", api.address, namespace="ctx")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "other"))
    assert jobs.submit(api_server.job("a")).namespace == "ctx"
    assert jobs.submit(api_server.job("a"), namespace="call").namespace == "call"
    written = api_server.job("b")
    written["metadata"]["namespace"] = "file"
    assert jobs.submit(written).namespace == "file"
    with pytest.raises(tb.BadRequest, match="metadata.namespace is file, wanted call"):
        jobs.submit(written, namespace="call")
    assert [job.namespace for job in jobs.list(all_namespaces=True)] == ["call", "ctx", "file"]
    assert [job.name for job in jobs.list("file")] == ["b"]


@pytest.mark.parametrize("name", ["", ".", "a/b", "../x", "A", "x" * 64, "a b", "-a"])
def test_a_name_that_can_be_none_is_not_sent(api: ApiServer, name: str) -> None:
    """An empty one would be all jobs to the API server, for which a delete is no small thing."""
    for call in (jobs.get, jobs.delete, jobs.wait, jobs.logs):
        with pytest.raises(tb.BadRequest, match="found the job name"):
            call(name)
    with pytest.raises(tb.BadRequest, match="found the namespace name"):
        jobs.get("toy", name)
    assert api.requests == []


def test_wait_returns_the_job_when_it_is_complete(api: ApiServer) -> None:
    """Through a watch that ends, one that breaks, and a version that is too old."""
    api.put(api_server.job())
    later(0.1, api.change, "toy", training(10))
    later(0.2, api.break_watches)
    later(0.3, api.break_watches, {"type": "ERROR", "object": {"code": 410}})
    later(0.5, api.change, "toy", COMPLETE)
    job = jobs.wait("toy", timeout=20)
    assert job.complete
    assert job.finished
    assert not job.failed
    assert (job.state, job.progress.step, job.progress.auc) == ("Completed", 1200, 0.79)


def test_wait_tells_of_the_first_failure(api: ApiServer) -> None:
    """On one line, also where the job failed before."""
    api.put({**api_server.job(), "status": FAILED})
    with pytest.raises(tb.JobFailed) as caught:
        jobs.wait("toy")
    assert str(caught.value) == (
        "toy: failed: RestartsExceeded: 4 restarts, of 3 allowed; first failure: "
        "pod toy-worker-1-x, container worker, exit code 137, OOMKilled: no memory"
    )


def test_wait_ends_when_its_time_is_up_or_the_job_is_gone(api: ApiServer) -> None:
    """Each with an error of its own; a job that another has replaced is gone too."""
    api.put(api_server.job())
    began = time.monotonic()
    with pytest.raises(jobs.WaitTimeout, match=r"not finished after 0.5 s, its state is Pending"):
        jobs.wait("toy", timeout=0.5)
    assert time.monotonic() - began < 5
    later(0.3, api.remove, "toy")
    with pytest.raises(jobs.JobNotFound, match="was deleted"):
        jobs.wait("toy", timeout=20)
    with pytest.raises(jobs.JobNotFound, match="no TrainingJob toy in namespace default"):
        jobs.wait("toy")


def test_wait_outlives_an_api_server_that_is_away_for_a_while(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks again; only when that takes too long does it give up."""
    monkeypatch.setattr(watch, "_AGAIN_S", 0.05)
    api.put(api_server.job())
    api.forced = [(200, api.jobs[("default", "toy")]), (503, "no"), (429, "no"), (500, "no")]
    later(0.4, api.change, "toy", COMPLETE)
    assert jobs.wait("toy", timeout=20).complete
    monkeypatch.setattr(watch, "PATIENCE_S", 0.2)
    api.change("toy", training(1))
    api.refused = {JOBS: (503, "no")}
    api.forced = [(200, api.jobs[("default", "toy")])]
    with pytest.raises(jobs.ClusterUnreachable, match="answered 503 Service Unavailable: no"):
        jobs.wait("toy", timeout=20)


def test_delete_waits_until_the_job_is_gone(api: ApiServer) -> None:
    """With a finalizer it takes its time; without there is nothing to wait for."""
    api.put(api_server.job())
    jobs.delete("toy", wait=True)
    assert api.jobs == {}
    with pytest.raises(jobs.JobNotFound):
        jobs.delete("toy")
    held = api.put(api_server.job())
    api.forced = [(200, held)]
    with pytest.raises(jobs.WaitTimeout, match="not gone after 0.1 s"):
        jobs.delete("toy", wait=True, timeout=0.1)
    api.forced = [(200, held)]
    later(0.2, api.remove, "toy")
    jobs.delete("toy", wait=True, timeout=20)


def test_logs_are_those_of_the_newest_pod_of_an_index(api: ApiServer) -> None:
    """The label of the index may be ours or Kubernetes' own; the log before is of the older pod or container."""
    old, new = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    indexed, ordinal = "batch.kubernetes.io/job-completion-index", "apps.kubernetes.io/pod-index"
    api.pods = [
        api_server.pod("toy-worker-0-new", "worker", 0, label=indexed, created=new),
        api_server.pod("toy-worker-0-old", "worker", 0, label=indexed, created=old),
        api_server.pod("toy-worker-1", "worker", 1),
        api_server.pod("toy-server-0", "server", 0, label=ordinal, restarts=1),
    ]
    api.logs = {
        (f"toy-{name}", False): f"{name}\nlast\n" for name in ("worker-0-new", "worker-0-old", "server-0")
    }
    api.logs[("toy-server-0", True)] = "before\n"
    assert jobs.logs("toy") == "worker-0-new\nlast\n"
    assert jobs.logs("toy", tail=1) == "last\n"
    assert jobs.logs("toy", previous=True) == "worker-0-old\nlast\n"
    assert jobs.logs("toy", role="server", previous=True) == "before\n"
    assert api.requests[-1][2] == {"container": "server", "previous": "true"}
    with pytest.raises(jobs.ClusterError, match="toy-worker-1: was not started again"):
        jobs.logs("toy", index=1, previous=True)
    with pytest.raises(jobs.ClusterError, match="waiting to start"):
        jobs.logs("toy", index=1)
    with pytest.raises(tb.BadRequest, match="found the role 'boss', wanted server or worker"):
        jobs.logs("toy", role="boss")
    api.put(api_server.job())
    with pytest.raises(jobs.JobNotFound, match="no pod of worker 5 .*the job's state: Pending"):
        jobs.logs("toy", index=5)


def test_a_followed_log_waits_for_its_container(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is still pulling its image is no error."""
    monkeypatch.setattr("tablebay.client.jobs.api._STARTED_EVERY_S", 0.05)
    api.pods = [api_server.pod("toy-worker-0", "worker", 0)]
    connection = jobs.Jobs()
    (log,) = connection.logs_of("toy")
    later(0.3, api.logs.update, {("toy-worker-0", False): "begun\n"})
    assert list(connection.lines(log, follow=True)) == ["begun"]


def test_long_lists_come_in_pages(api: ApiServer) -> None:
    """All of them, in order."""
    first, second = (api.put(api_server.job(name)) for name in ("b", "a"))
    api.forced = [
        (200, {"metadata": {"continue": "more"}, "items": [first]}),
        (200, {"metadata": {}, "items": [second]}),
    ]
    assert [job.name for job in jobs.list()] == ["a", "b"]
    assert [request[2].get("continue") for request in api.requests] == [None, "more"]


STRICT = 'strict decoding error: unknown field "spec.x"'
CAUSES = [
    {"field": "spec.servers.replicas", "message": "Invalid value: 0"},
    {"field": "spec.tables", "message": "Too long"},
]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (api_server.status(401, "Unauthorized", "x"), jobs.NotPermitted, "does not accept these credentials"),
        (
            api_server.status(403, "Forbidden", "User u cannot"),
            jobs.NotPermitted,
            "not permitted to create trainingjobs.tablebay.dev in namespace default: User u cannot",
        ),
        (
            (404, "404 page not found\n"),
            jobs.ChartMissing,
            "the chart is not installed; install it with: helm",
        ),
        (api_server.status(404, "NotFound", "no resource"), jobs.ChartMissing, "the chart is not installed"),
        (
            api_server.status(404, "NotFound", "x", name="default", kind="namespaces"),
            jobs.ClusterError,
            "namespace default does not exist; make it with: kubectl create namespace default",
        ),
        (
            api_server.status(400, "BadRequest", STRICT),
            jobs.JobRefused,
            "chart on the cluster is of another version",
        ),
        (
            api_server.status(422, "Invalid", "x", causes=CAUSES),
            jobs.JobRefused,
            "toy: spec.servers.replicas: Invalid value: 0\n  spec.tables: Too long",
        ),
        (api_server.status(409, "Conflict", "again"), jobs.ClusterError, "answered 409 Conflict: again"),
        ((500, "boom\nhere"), jobs.ClusterUnreachable, "answered 500 Internal Server Error: boom here"),
        ((302, ""), jobs.ClusterError, "answered 302 Found"),
        ((200, "<html>"), jobs.ClusterError, "is no Kubernetes API server"),
        ((200, "[" * 100_000), jobs.ClusterError, "is no Kubernetes API server"),
    ],
)
def test_each_refusal_is_an_error_of_its_own(
    api: ApiServer, answer: tuple[int, Any], kind: type[Exception], text: str
) -> None:
    """Its text names what was asked, and what to do about it where that is known."""
    api.forced = [answer]
    with pytest.raises(jobs.ClusterError) as caught:
        jobs.submit(api_server.job())
    assert type(caught.value) is kind
    assert text in str(caught.value)


def test_an_api_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, at once; where nobody answers, in less than 15 seconds."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        api_server.write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("tablebay.client.jobs.cluster.READ_S", 0.5)
        with pytest.raises(jobs.ClusterUnreachable) as caught:
            jobs.get("toy")
        assert (
            str(caught.value) == f"cannot reach the API server at http://127.0.0.1:{port}: no answer in time"
        )
    with pytest.raises(jobs.ClusterUnreachable) as caught:
        jobs.get("toy")
    assert str(caught.value).startswith(f"cannot reach the API server at http://127.0.0.1:{port}: ")
    assert "Connection refused" in str(caught.value)
    assert "object at" not in str(caught.value)


def test_connecting_and_reading_together_end_within_15_seconds() -> None:
    """The bound that users are told."""
    from tablebay.client.jobs import cluster

    assert cluster.CONNECT_S + cluster.READ_S < 15


def test_without_a_kubeconfig_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the file that was looked for; a file that is none is named too."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(jobs.NoCluster, match=r"no kubeconfig: .*/\.kube/config does not exist"):
        jobs.list()
    # Named, so it is meant, also in a pod.
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(jobs.NoCluster, match="no kubeconfig: .*/none does not exist"):
        jobs.list()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    for content in ("", ": [", "- 1", "a: 1", "contexts: [{name: a}]\ncurrent-context: a\n", "\0"):
        (tmp_path / "config").write_text(content)
        with pytest.raises(jobs.NoCluster, match="kubeconfig .*/config: "):
            jobs.list()
    api_server.write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1")
    with pytest.raises(jobs.NoCluster, match="no context there in .*; wanted one of here"):
        jobs.Jobs(context="there")


def test_without_the_kubernetes_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command that installs it."""
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with pytest.raises(jobs.NoCluster, match=r"pip install 'tablebay\[kubernetes\]'"):
        jobs.list()
