"""`/healthz` of the operator: what makes the kubelet start it anew, asked as the kubelet asks."""

from __future__ import annotations

import asyncio
import http.client
from types import SimpleNamespace
from typing import Any, cast

import pytest
from unit.operator_world import config_of

from tablebay.operator import informers, probes, projections
from tablebay.operator.cluster import PODS, ApiError, Cluster
from tablebay.operator.informers import Informer
from tablebay.operator.jobcache import JobCache
from tablebay.operator.run import QUEUE_AGE_MAX_S, SILENT_MAX_S, STALE_MAX_S, _Operator
from tablebay.operator.workqueue import WorkQueue


class Silent(Informer[Any]):
    """A watch of which nothing comes, not even a refusal."""

    def _run(self, scope: str | None) -> None:
        pass


class Lasting:
    """An API server with a job of which kopf tells nothing, and that cannot be read either."""

    async def names(self, *_: object) -> dict[tuple[str, str], str]:
        return {("ads", "flights"): "u-1"}

    async def get(self, *_: object) -> None:
        raise ApiError(503, "Unavailable", "503: away")


class Probed:
    """An operator with a clock of the test's, and its answers over HTTP."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(informers, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.operator = _Operator(config_of())
        self.queue = self.operator._queue = WorkQueue(clock=lambda: self.now)
        self.jobs = self.operator._jobs = JobCache(self.queue.add, clock=lambda: self.now)

    async def healthz(self) -> tuple[int, str]:
        """Status and text."""
        registry = self.operator._metrics.registry
        runner = await probes.serve(0, registry, alive=self.operator._wrong, ready=self.operator._not_ready)
        try:
            # Of the two kinds of addresses, each with a port of its own.
            (port,) = (one[1] for one in runner.addresses if len(one) == 2)
            return await asyncio.to_thread(_ask, port)
        finally:
            await runner.cleanup()


def _ask(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    text = answer.read().decode().strip()
    connection.close()
    return answer.status, text


def test_f13_a_watch_that_stays_silent_is_told_by_healthz(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three minutes are borne; after them it fails, and names the kind."""

    async def life() -> None:
        probed = Probed(monkeypatch)
        probed.operator._informers["Pod"] = Silent(
            cast("Cluster", None),
            PODS,
            projections.pod,
            selector="",
            namespaces=(),
            changed=probed.queue.add,
        )
        assert await probed.healthz() == (200, "ok")
        probed.now += SILENT_MAX_S
        assert await probed.healthz() == (200, "ok")
        probed.now += 1
        assert await probed.healthz() == (503, "the watch of pods has been silent for 181 s")

    asyncio.run(life())


def test_a_view_of_the_jobs_that_stays_wrong_is_told_by_healthz(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf does not tell of a job, and reading it does not mend that."""

    async def life() -> None:
        probed = Probed(monkeypatch)
        cluster = cast("Cluster", Lasting())
        while probed.jobs.stale_s <= STALE_MAX_S:
            assert await probed.healthz() == (200, "ok")
            probed.now += 60
            await probed.jobs.compare(cluster, ())
        status, text = await probed.healthz()
        assert (status, text) == (503, "kopf's view of TrainingJobs has been wrong for 300 s")

    asyncio.run(life())


def test_a_job_that_nobody_looks_at_is_told_by_healthz(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five minutes in the queue are borne; a job that is looked at is no longer in it."""

    async def life() -> None:
        probed = Probed(monkeypatch)
        probed.queue.add(("ads", "flights"))
        probed.now += QUEUE_AGE_MAX_S
        assert await probed.healthz() == (200, "ok")
        probed.now += 1
        assert await probed.healthz() == (503, "a job has waited 301 s to be looked at")
        await probed.queue.get()
        assert await probed.healthz() == (200, "ok")

    asyncio.run(life())
