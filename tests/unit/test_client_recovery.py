"""A client whose server comes back: what it sends again, what it believes, and when it gives up (G3, G9)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.client import Client, client_over
from tablebay.client.inprocess import InProcessTransport
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.client.transport import Answer
from tablebay.ps_server.checkpoint.coordinator import Schedule
from tablebay.ps_server.durability import Durability, Settings
from tablebay.ps_server.service import Service

COUNT = 2
KEYS = np.arange(40, dtype=np.uint64)


class Job:
    """Servers with one destination in this process, as a transport. Checkpoints are made when they are asked for.

    old_lives: lives of servers that still answer data calls in their successor's place, by index.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._durable: list[Durability] = []
        self._services: list[Service] = []
        self.old_lives: dict[int, Service] = {}
        for index in range(COUNT):
            self._durable.append(self._durability(index))
            self._services.append(self._service(index))
            self._durable[index].start()

    def _durability(self, index: int) -> Durability:
        return Durability(
            Settings(destination=str(self._root), schedule=Schedule(every_s=0.0)),
            servers=self.addresses,
            index=index,
            job="local",
            generation=0,
            fenced=lambda: None,
            peers=self,
        )

    def _service(self, index: int) -> Service:
        return Service(index=index, servers=COUNT, durability=self._durable[index])

    def life(self, index: int) -> Service:
        """The newest life of a server."""
        return self._services[index]

    def restart(self, index: int) -> None:
        """The server's next life, from the newest checkpoint."""
        self._durable[index].close()
        self._durable[index] = self._durability(index)
        self._services[index] = self._service(index)
        self._durable[index].start()

    def close(self) -> None:
        """For threads."""
        for one in self._durable:
            one.close()

    # -- as Peers --

    def cut(self, request: messages.CutRequest, timeout_s: float) -> list[messages.CutResponse]:
        return [one.cut(request) for one in self._durable]

    def greet(self, timeout_s: float) -> None:
        """Nothing to do."""

    # -- as Transport --

    @property
    def addresses(self) -> list[str]:
        return [f"in-process:{index}" for index in range(COUNT)]

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        services = list(self._services)
        if method in ("Pull", "Push", "Step") and server in self.old_lives:
            services[server] = self.old_lives[server]
        return InProcessTransport(services).call(server, method, request, timeout, wait)

    def rebuild(self) -> None:
        """There are no connections."""


@pytest.fixture
def job(tmp_path: Path) -> Any:
    made = Job(tmp_path)
    yield made
    made.close()


def connect(job: Job) -> tuple[Client, Any]:
    """A ranked client, and a table that adds up."""
    client = client_over(job, rank=0, timeout=10.0)
    return client, client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())


def push(table: Any, amount: int) -> None:
    table.push(KEYS, np.full((len(KEYS), 1), amount, np.int64))


def test_a_server_that_comes_back_is_sent_what_it_lacks(job: Job) -> None:
    """G3: every step since the committed checkpoint, in order and once; what the checkpoint has is sent no more."""
    client, sums = connect(job)
    push(sums, 1)
    push(sums, 10)
    client.checkpoint()
    push(sums, 100)
    push(sums, 1000)
    job.restart(1)
    push(sums, 10_000)
    assert np.all(sums.pull(KEYS) == 11_111)
    counters = job.life(1).counters
    assert counters["pushes_applied"] == 3
    assert counters["duplicates_changed"] == 0
    job.restart(0)
    assert np.all(sums.pull(KEYS) == 11_111)
    client.close()


def test_g3_half_a_step_that_an_older_life_had_is_sent_again_with_the_rest(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server comes back between two of a step's requests, and another thread is the first to notice."""
    client, sums = connect(job)
    push(sums, 1)
    # A few rows to a request.
    client._session.message_bytes_max = 2300
    call = job.call
    sent: list[tuple[int, int]] = []

    def meddle(server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        if method != "Push":
            return call(server, method, request, timeout, wait)
        piece = messages.PushRequest.FromString(request).piece
        if server == 1:
            sent.append((piece, client._session._epochs[1]))
        if server == 1 and piece == 1 and len(sent) == 2:
            return _Lost(threading.Thread(target=come_back))
        return call(server, method, request, timeout, wait)

    def come_back() -> None:
        job.restart(1)
        sums.pull(KEYS, create=False)

    monkeypatch.setattr(job, "call", meddle)
    push(sums, 10)
    pieces = max(piece for piece, _ in sent) + 1
    assert pieces > 1
    first, second = sent[0][1], sent[-1][1]
    assert first < second, sent
    assert {piece for piece, epoch in sent if epoch == second} == set(range(pieces)), sent
    assert np.all(sums.pull(KEYS) == 11)
    client.close()


class _Lost:
    """An answer that does not come; something happens while it is waited for."""

    def __init__(self, meanwhile: threading.Thread) -> None:
        self._meanwhile = meanwhile

    def result(self) -> bytes:
        self._meanwhile.start()
        self._meanwhile.join()
        raise tb.Unavailable("lost")

    def cancel(self) -> None:
        """Nothing to do."""


def test_an_answer_of_an_older_life_counts_for_nothing(job: Job) -> None:
    """G9: a life that was replaced and still answers is not believed, so no push is kept by it alone."""
    client, sums = connect(job)
    push(sums, 1)
    before = job.life(1)
    job.restart(1)
    push(sums, 10)
    # It takes requests of any life, as one that was stopped before it looked at them would answer them late.
    job.old_lives[1] = _Deaf(before)  # type: ignore[assignment]
    healed = threading.Timer(0.3, job.old_lives.clear)
    healed.start()
    push(sums, 100)
    healed.join()
    assert np.all(sums.pull(KEYS) == 111)
    assert job.life(1).counters["pushes_applied"] == 3
    client.close()


class _Deaf:
    """A life of a server that does not hear for which life a request is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handle(self, method: str, request: bytes) -> bytes:
        kinds = {"Pull": messages.PullRequest, "Push": messages.PushRequest, "Step": messages.StepRequest}
        message = kinds[method].FromString(request)
        message.sender.epoch = self._service.epoch
        return self._service.handle(method, message.SerializeToString())


def test_a_hole_is_never_passed_over(job: Job, tmp_path: Path) -> None:
    """G3: a server that comes back without what it had announced to be durable is lost, and so says each call."""
    client, sums = connect(job)
    push(sums, 1)
    client.checkpoint()
    push(sums, 10)
    push(sums, 100)
    (newest,) = (tmp_path / "manifests").glob("*1.json")
    newest.unlink()
    job.restart(1)
    with pytest.raises(tb.ServerLost, match="the steps between are lost"):
        push(sums, 1000)
    with pytest.raises(tb.ServerLost, match="the steps between are lost"):
        sums.pull(KEYS)


def restarted(job: Job) -> Any:
    """What the sums are once each server has come back, to a client that pushed none of them."""
    for index in range(COUNT):
        job.restart(index)
    with client_over(job, timeout=10.0) as reader:
        return reader.table("sums").pull(KEYS)


def test_g4_what_a_client_had_pushed_when_it_was_closed_outlives_the_servers(job: Job) -> None:
    """After close nobody is left who could send it again."""
    client, sums = connect(job)
    push(sums, 1)
    push(sums, 10)
    client.close()
    assert np.all(restarted(job) == 11)


def test_g4_a_client_that_is_closed_looks_for_servers_that_came_back_unnoticed(job: Job) -> None:
    """Nothing was called since; the first checkpoint after it lacks what that server had not kept."""
    client, sums = connect(job)
    push(sums, 1)
    job.restart(1)
    client.close()
    assert np.all(restarted(job) == 1)


def test_g4_a_checkpoint_holds_what_a_server_that_came_back_unnoticed_had_lost(job: Job) -> None:
    """It is made once more, when that server has been given its steps."""
    client, sums = connect(job)
    push(sums, 1)
    job.restart(1)
    client.checkpoint()
    assert np.all(restarted(job) == 1)


def test_a_client_is_closed_after_a_push_that_a_server_refused(job: Job) -> None:
    """Its number is used, and no checkpoint waits for it."""
    client, sums = connect(job)
    weights = client.table("weights", dim=1, optimizer=tb.SGD(0.1))
    push(sums, 1)
    bad = np.zeros((len(KEYS), 1), np.float32)
    bad[3] = np.nan
    with pytest.raises(tb.TablebayError, match="weights"):
        weights.push(KEYS, bad)
    push(sums, 10)
    client.close()
    assert np.all(restarted(job) == 11)


def test_closing_without_a_checkpoint_in_time_says_what_is_at_risk(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends the connections all the same."""
    client = client_over(job, rank=0, timeout=0.5)
    sums = client.table("sums", dim=1, dtype="int64", optimizer=tb.Add(), initializer=tb.Zeros())
    push(sums, 1)

    def cut(request: messages.CutRequest, timeout_s: float) -> list[messages.CutResponse]:
        raise tb.CheckpointFailed("the disk is full")

    monkeypatch.setattr(job, "cut", cut)
    with pytest.raises(
        tb.Unavailable, match="bytes of this client's pushes are in no checkpoint yet.*disk is full"
    ):
        client.close()
    client.close()
    with pytest.raises(tb.Closed):
        sums.pull(KEYS)


def test_a_control_call_goes_on_when_server_0_is_lost_while_it_is_told_what_it_lacks(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost a second time, between its greeting and the first step that it is sent again."""
    client, sums = connect(job)
    push(sums, 1)
    job.restart(0)
    call = job.call
    lost = []

    def meddle(server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        if method == "Push" and server == 0 and not lost:
            lost.append(request)
            job.restart(0)
        return call(server, method, request, timeout, wait)

    monkeypatch.setattr(job, "call", meddle)
    client.barrier("done")
    assert lost
    assert np.all(sums.pull(KEYS) == 1)
    client.close()
