"""Jobs, pods and events out of the API server's objects, and what the command line makes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit import api_server
from unit.api_server import COMPLETE, FAILED, training

from tablebay.client.cli import cluster_text
from tablebay.client.jobs.model import event_of, job_of, pod_of, words

NOW = datetime(2026, 1, 2, 3, 14, 5, tzinfo=UTC)
METADATA = {"name": "toy", "namespace": "ads", "uid": "u", "creationTimestamp": api_server.CREATED}

FIELDS = (
    *("conditions", "servers", "workers", "restarts", "progress", "firstFailure", "containerStatuses"),
    *("containers", "metadata", "status", "spec", "count"),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def manifest(status: Any) -> dict[str, Any]:
    return {**api_server.job(), "metadata": METADATA, "status": status}


def test_the_table_has_a_line_for_each_job() -> None:
    """In columns; what nobody has reported is a dash."""
    jobs = [job_of(manifest(training(1200))), job_of(manifest({}))]
    assert cluster_text.table(jobs, namespaces=False, now=NOW) == (
        "NAME   READY     STATE      SERVERS   WORKERS   STEP    RESTARTS   AGE\n"
        "toy    True      Training   2/2       2/2       1,200   1          10m\n"
        "toy    Unknown   Pending    0/2       0/2       -       0          10m"
    )
    assert cluster_text.table(jobs, namespaces=True, now=NOW).splitlines()[1].startswith("ads         toy")


def test_a_watch_says_only_what_is_new() -> None:
    """A job that is as it was has no line; one that is deleted says so."""
    rows = cluster_text.Rows(namespaces=False)
    header = rows.header()
    first = rows.row(job_of(manifest(training(1))))
    assert first is not None
    assert first.index("Training") == header.index("STATE")
    assert rows.row(job_of(manifest(training(1)))) is None
    assert rows.row(job_of(manifest(training(2)))) is not None
    assert "Deleted" in str(rows.row(job_of(manifest(training(2))), deleted=True))


def test_a_change_is_one_line() -> None:
    """State, servers, workers, and the figures that somebody reported."""
    assert cluster_text.line(job_of(manifest({}))) == "toy: Pending  servers 0/2  workers 0/2"
    assert cluster_text.line(job_of(manifest(COMPLETE))) == (
        "toy: Completed  servers 2/2  workers 2/2  step 1,200  loss 0.4100  auc 0.7900"
    )


def test_the_description_shows_all_that_is_known() -> None:
    """Conditions, first failure, the pods that are not ready and why, the last events, and what is not known."""
    pods = [
        pod_of(api_server.pod("toy-server-0", "server", 0)),
        pod_of(api_server.pod("done", "worker", 3, phase="Succeeded", state={"terminated": {"exitCode": 0}})),
        pod_of(api_server.pod("w-new", "worker", 0, created="2026-01-02T00:00:00Z")),
        pod_of(api_server.pod("w-old", "worker", 0, phase="Failed", state={"terminated": {"exitCode": 1}})),
        pod_of(
            api_server.pod(
                "w-1",
                "worker",
                1,
                phase="Pending",
                state={"waiting": {"reason": "ErrImagePull", "message": "no\nsuch"}},
            )
        ),
    ]
    events = [
        event_of(
            {
                "lastTimestamp": api_server.CREATED,
                "type": "Warning",
                "reason": "R",
                "message": "M",
                "count": 3,
            }
        )
    ]
    text = cluster_text.description(job_of(manifest(FAILED)), pods, events, ["not permitted to x"], now=NOW)
    assert text.splitlines() == [
        "name:       toy",
        "namespace:  ads",
        "age:        10m",
        "state:      Failed",
        "servers:    2/2",
        "workers:    2/2",
        "restarts:   1",
        "progress:   step 900  loss 0.4100  auc 0.7900  logloss 0.4000  examples/s 12,346",
        "failure:    pod toy-worker-1-x, container worker, exit code 137, OOMKilled: no memory",
        "",
        "conditions:",
        "  TYPE     STATUS   REASON             SINCE   MESSAGE",
        "  Ready    False    Failed             10m",
        "  Failed   True     RestartsExceeded   10m     4 restarts, of 3 allowed",
        "",
        "pods not ready:",
        "  POD   PHASE     RESTARTS   WHY",
        "  w-1   Pending   0          worker: ErrImagePull: no such",
        "",
        "events:",
        "  AGE   TYPE      REASON   MESSAGE",
        "  10m   Warning   R        M (x3)",
        "unknown:    not permitted to x",
    ]


def test_a_description_of_many_pods_is_bounded() -> None:
    """The first 20 that are not ready, and how many more there are."""
    waiting = {"waiting": {"reason": "ContainerCreating"}}
    pods = [pod_of(api_server.pod(f"w-{number}", "worker", number, state=waiting)) for number in range(25)]
    text = cluster_text.description(job_of(manifest({})), pods, [], now=NOW)
    assert text.endswith("and 5 more")
    assert len(text.splitlines()) == 8 + 3 + 20 + 1


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"state": {"running": {}}}, ""),
        ({"state": {"waiting": {"reason": "PodInitializing"}}}, ""),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 3}},
            },
            "worker: CrashLoopBackOff (last exit code 3)",
        ),
        (
            {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
            "worker: exit code 137, OOMKilled",
        ),
        ({"state": {"terminated": {"exitCode": 1}}}, "worker: exit code 1"),
        ({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}, ""),
    ],
)
def test_a_pod_says_why_it_does_not_run(status: dict[str, Any], why: str) -> None:
    """What it waits for, or how it ended."""
    assert pod_of({"status": {"containerStatuses": [{"name": "worker", **status}]}}).why == why


def test_a_pod_that_has_no_node_says_why() -> None:
    """That comes before what its containers say, and an evicted pod has its reason in its own status."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    assert pod_of({"status": {"conditions": [condition]}}).why == "Unschedulable: 0/1 nodes"
    assert (
        pod_of({"status": {"reason": "Evicted", "message": "low on memory"}}).why == "Evicted: low on memory"
    )


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(-5, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")]
)
def test_an_age_has_one_unit(seconds: int, wanted: str) -> None:
    """As kubectl has it; a clock that is behind makes no age below zero."""
    then = datetime.fromtimestamp(NOW.timestamp() - seconds, UTC)
    assert cluster_text.age(then.isoformat(), NOW) == wanted
    assert cluster_text.age("", NOW) == cluster_text.age("2026-01-02", NOW) == "-"


def test_no_control_character_reaches_a_terminal() -> None:
    """A message of a cluster is text on one line, whatever is in it."""
    assert words("a\x1b[31m\n\tb\u202e\x00") == "a [31m b"


@given(status=st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_no_status_is_too_odd_to_be_shown(status: dict[str, Any]) -> None:
    """Whoever wrote it, and of whatever types: it is shown as if what does not fit were not there."""
    job = job_of(manifest(status))
    pod = pod_of({"metadata": METADATA, "spec": status, "status": status})
    assert cluster_text.line(job).startswith("toy: ")
    assert "\n" not in cluster_text.line(job)
    cluster_text.description(job, [pod], [event_of(status)], now=NOW)
    job_of(status)
