"""The operator's cache of TrainingJobs, and its comparison with an API server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.test_operator_cluster import Api, refusal, serving, thing, use

from tablebay.operator.cluster import TRAINING_JOBS, Cluster
from tablebay.operator.jobcache import JobCache
from tablebay.operator.workqueue import Key

A, B = ("ads", "a"), ("ads", "b")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names."""
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


class Cached:
    """A cache, the jobs it told of, and its clock."""

    def __init__(self) -> None:
        self.told: list[Key] = []
        self.now = 1000.0
        self.cache = JobCache(self.told.append, clock=lambda: self.now)

    def compare(self, *namespaces: str) -> None:
        """A minute later, hold it against the API server."""
        self.now += 60
        asyncio.run(self.cache.compare(Cluster(), namespaces))


def body(name: str = "a", version: int = 1, uid: str = "u-1", **content: Any) -> dict[str, Any]:
    """A TrainingJob as kopf hands it on."""
    made = thing(name, **content)
    made["metadata"] |= {"uid": uid, "resourceVersion": str(version)}
    return made


def test_what_kopf_tells_is_kept_and_handed_on() -> None:
    """What was there before (None), what came, changed and went."""
    cached = Cached()
    cached.cache.event(None, body("a"))
    cached.cache.event("ADDED", body("b"))
    cached.cache.event("MODIFIED", body("b", 2))
    assert len(cached.cache) == 2
    assert cached.cache.get(B) == body("b", 2)
    cached.cache.event("DELETED", body("b", 3))
    assert cached.cache.get(B) is None
    assert cached.told == [A, B, B, B]
    assert cached.cache.bodies() == [body("a")]


def test_what_a_write_answered_is_kept_and_told_to_nobody() -> None:
    """Or each status written would bring another look."""
    cached = Cached()
    cached.cache.event("ADDED", body())
    cached.cache.remember(body(version=2))
    assert cached.cache.get(A) == body(version=2)
    assert cached.told == [A]


def test_what_is_not_there_is_dropped_in_silence() -> None:
    """Of what nobody knew nobody needs to be told."""
    cached = Cached()
    cached.cache.drop(A)
    assert cached.told == []


def test_a_job_deleted_unseen_is_found_at_the_second_comparison(api: Api) -> None:
    """Once may be a delay; twice is a fault. Its key is handed on, so that what is known of it goes too."""
    cached = Cached()
    cached.cache.event("ADDED", body())
    cached.compare()
    assert cached.told == [A]
    assert cached.cache.stale_s > 0
    cached.compare()
    assert cached.told == [A, A]
    assert cached.cache.get(A) is None
    cached.compare()
    assert cached.cache.stale_s == 0


def test_a_job_that_came_unseen_is_read_at_the_second_comparison(api: Api) -> None:
    """And one that was made anew under its name."""
    made = api.put(TRAINING_JOBS, thing("a"))
    again = api.put(TRAINING_JOBS, thing("b"))
    cached = Cached()
    cached.cache.event("ADDED", body("b", uid="of the one before"))
    cached.compare()
    assert cached.cache.get(A) is None
    cached.compare()
    assert cached.cache.get(A) == made
    assert cached.cache.get(B) == again
    assert sorted(cached.told) == [A, B, B]
    cached.compare()
    assert cached.cache.stale_s == 0


def test_while_both_agree_nothing_is_read_or_told(api: Api) -> None:
    """One list of names in each namespace."""
    made = api.put(TRAINING_JOBS, thing("a"))
    api.put(TRAINING_JOBS, thing("z", namespace="else"))
    cached = Cached()
    cached.cache.event(None, made)
    api.requests.clear()
    for _ in range(3):
        cached.compare("ads", "news")
    assert cached.told == [A]
    assert cached.cache.stale_s == 0
    paths = [path for _, path, _ in api.requests]
    root = "/apis/tablebay.dev/v1alpha1/namespaces"
    assert paths == [f"{root}/ads/trainingjobs", f"{root}/news/trainingjobs"] * 3


def test_an_api_server_in_trouble_says_nothing_about_kopf(api: Api) -> None:
    """Nothing is dropped, and the cache is not called stale for it."""
    cached = Cached()
    cached.cache.event("ADDED", body())
    api.fault = lambda method, path, query: refusal(503, "ServiceUnavailable")
    for _ in range(5):
        cached.compare()
    assert cached.cache.get(A) == body()
    assert cached.cache.stale_s == 0


def test_a_fault_that_lasts_makes_the_cache_stale(api: Api) -> None:
    """The same difference over and over: kopf no longer watches, and the probe must say so."""
    cached = Cached()
    for number in range(6):
        # Kopf tells of none of them, and each that is mended is followed by another that it missed.
        api.put(TRAINING_JOBS, thing(f"missed-{number}"))
        cached.compare()
    assert cached.cache.stale_s >= 240


def test_bug_an_api_server_in_trouble_while_a_missed_job_is_read_ends_nothing(api: Api) -> None:
    """compare() raises nothing: its task is one of those whose end ends the operator (operator/run.py)."""
    api.put(TRAINING_JOBS, thing("a"))
    cached = Cached()
    cached.compare()
    api.fault = lambda method, path, query: (
        refusal(503, "ServiceUnavailable") if path.endswith("/trainingjobs/a") else None
    )
    cached.compare()
    api.fault = lambda method, path, query: None
    cached.compare()
    cached.compare()
    assert cached.cache.get(A) is not None


def test_bug_what_a_write_answered_does_not_hide_a_newer_event() -> None:
    """The user changes the spec while the answer to our status patch is on its way: kopf tells of it first.

    If the older body replaced the newer one, nothing would ever bring the newer one back: the next status patch
    would be a conflict, and so would all after it.
    """
    cached = Cached()
    cached.cache.event("MODIFIED", body(version=12, spec={"new": True}))
    cached.cache.remember(body(version=11))
    assert cached.cache.get(A) == body(version=12, spec={"new": True})


def test_bug_what_a_write_answered_does_not_bring_back_a_deleted_job() -> None:
    """It was deleted while the answer was on its way; for its successor only its own body counts."""
    cached = Cached()
    cached.cache.event("ADDED", body(version=10))
    cached.cache.event("DELETED", body(version=12))
    cached.cache.event("ADDED", body(version=13, uid="u-2"))
    cached.cache.remember(body(version=11))
    found = cached.cache.get(A)
    assert found is not None
    assert found["metadata"]["uid"] == "u-2"


def test_bug_the_end_of_a_job_is_not_that_of_its_successor() -> None:
    """kopf hands events on in order for each uid, not for each name: an old job's end may come after the new one."""
    cached = Cached()
    cached.cache.event("ADDED", body(uid="old", version=1))
    cached.cache.event("ADDED", body(uid="new", version=3))
    cached.cache.event("DELETED", body(uid="old", version=2))
    found = cached.cache.get(A)
    assert found is not None
    assert found["metadata"]["uid"] == "new"


def test_bug_jobs_that_come_and_go_all_the_time_do_not_make_the_cache_stale(api: Api) -> None:
    """Each comparison meets another job that kopf will tell of in a moment: no fault, and no restart by the probe."""
    cached = Cached()
    for number in range(10):
        made = api.put(TRAINING_JOBS, thing(f"new-{number}"))
        cached.compare()
        cached.cache.event("ADDED", made)
    assert cached.cache.stale_s < 240
