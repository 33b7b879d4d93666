"""The operator's Events, as an API server on loopback receives them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.test_operator_cluster import Api, refusal, serving, use

from tablebay.operator.cluster import Cluster
from tablebay.operator.plans import Happened
from tablebay.operator.recorder import QUIET_S, Recorder


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names."""
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


class Recorded:
    """A recorder and its clock."""

    def __init__(self, api: Api) -> None:
        self.now = 0.0
        self.api = api
        self.recorder = Recorder(Cluster(), "replica-1", clock=lambda: self.now)

    def say(self, reason: str, message: str = "words", *, uid: str = "u-1", name: str = "flights") -> None:
        asyncio.run(self.recorder.record("ads", name, uid, Happened("Warning", reason, message)))

    @property
    def reasons(self) -> list[str]:
        """Of the Events that are there, in the order in which they came."""
        bodies = [body for (plural, _, _), body in self.api.objects.items() if plural == "events"]
        return [body["reason"] for body in bodies]


def test_an_event_names_the_job_and_who_says_it(api: Api) -> None:
    """So that `kubectl describe` of the job shows it."""
    recorded = Recorded(api)
    recorded.say("ServerLost", "x" * 5000)
    (body,) = api.objects.values()
    assert body["involvedObject"] == {
        "apiVersion": "tablebay.dev/v1alpha1",
        "kind": "TrainingJob",
        "namespace": "ads",
        "name": "flights",
        "uid": "u-1",
    }
    assert (body["type"], body["reason"], body["count"]) == ("Warning", "ServerLost", 1)
    assert body["message"] == "x" * 1024, "Kubernetes takes no longer one"
    assert body["metadata"]["name"].startswith("flights.")
    assert body["metadata"]["namespace"] == "ads"
    assert (body["reportingComponent"], body["reportingInstance"]) == ("tablebay-operator", "replica-1")
    assert body["firstTimestamp"] == body["lastTimestamp"]


def test_of_a_reason_there_is_one_event_a_minute(api: Api) -> None:
    """Of each job and each reason; the words may differ."""
    recorded = Recorded(api)
    recorded.say("NameConflict")
    recorded.say("NameConflict", "other words")
    recorded.now = QUIET_S - 1
    recorded.say("NameConflict")
    assert recorded.reasons == ["NameConflict"]
    recorded.say("Training")
    recorded.say("NameConflict", uid="u-2")
    assert recorded.reasons == ["NameConflict", "Training", "NameConflict"]
    recorded.now = QUIET_S + 1
    recorded.say("NameConflict")
    assert len(recorded.reasons) == 4


def test_nothing_is_kept_of_what_was_said_long_ago(api: Api) -> None:
    """Thousands of jobs come and go."""
    recorded = Recorded(api)
    for number in range(20):
        recorded.say("Training", uid=f"u-{number}")
        recorded.now += QUIET_S / 2
    assert len(recorded.recorder._said) <= 3


def test_an_event_that_is_refused_holds_nothing_up(api: Api) -> None:
    """In a namespace that ends, no Event can be made."""
    api.fault = lambda method, path, query: refusal(403, "Forbidden", "the namespace is being terminated")
    recorded = Recorded(api)
    recorded.say("Completed")
    assert recorded.reasons == []
    api.fault = lambda method, path, query: None
    recorded.say("Training")
    assert recorded.reasons == ["Training"]
