"""Workers that meet over MASTER_ADDR, as torch.distributed does: an image with torch is too large for these tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2e.jobs import Job
from e2e.kube import items, kubectl, until

STEPS = 60
# Rank 0 listens at MASTER_PORT of MASTER_ADDR, and in each step adds up what all ranks send it: an all-reduce. Who
# loses the others ends with 1, as with a broken process group, and goes on at its next step in another pod.
WORKER = """
import os, socket, sys, time
import numpy as np
import tablebay as tb

def receive(peer):
    found = b""
    while not found.endswith(b"\\n"):
        part = peer.recv(64)
        if not part:
            raise SystemExit("a worker of the group is gone")
        found += part
    return int(found)

def send(peer, value):
    peer.sendall(b"%d\\n" % value)

def meet(rank, world, where):
    if rank == 0:
        listener = socket.create_server(("", where[1]))
        return [listener.accept()[0] for _ in range(world - 1)]
    for _ in range(600):
        try:
            return [socket.create_connection(where, 5)]
        except OSError:
            time.sleep(0.1)
    raise SystemExit("nobody at %s:%d" % where)

with tb.connect() as client:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    assert (rank, world) == (client.rank, client.workers), (client.rank, client.workers)
    peers = meet(rank, world, (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    for peer in peers:
        peer.settimeout(60)
    table = client.table("fields")
    print("rank", rank, "meets at step", client.next_step, flush=True)
    while True:
        if rank == 0:
            go_on = int(client.next_step < int(sys.argv[1]))
            total = sum(receive(peer) for peer in peers) + 1
            for peer in peers:
                send(peer, total * go_on)
        else:
            send(peers[0], rank + 1)
            total = receive(peers[0])
            go_on = bool(total)
        if not go_on:
            break
        assert total == world * (world + 1) // 2, total
        table.push(np.array([rank], np.uint64), np.ones((1, table.dim), np.float32))
        client.report(step=client.next_step)
        time.sleep(0.2)
    print("rank", rank, "is done at step", client.next_step, flush=True)
"""


def _change(workers: int) -> dict[str, Any]:
    container = {"name": "worker", "command": ["python", "-c", WORKER, str(STEPS)]}
    return {
        "servers": {"replicas": 1},
        "workers": {
            "replicas": workers,
            "template": {"spec": {"containers": [container], "terminationGracePeriodSeconds": 1}},
        },
        "runPolicy": {"failurePolicy": {"maxRestarts": 20}},
    }


def _uids_of_rank_0(job: Job) -> set[str]:
    """One, or none between two pods."""
    index = "batch.kubernetes.io/job-completion-index"
    found = [pod["metadata"] for pod in job.pods("worker").values()]
    return {meta["uid"] for meta in found if meta["labels"][index] == "0"}


@pytest.mark.deep
def test_workers_meet_over_master_addr_and_again_when_rank_0_is_replaced(
    job: Callable[..., Job], scenario: dict[str, Any]
) -> None:
    """Three ranks add up what they send rank 0; its pod is deleted; the ranks meet at its successor and go on."""
    flights = job(change=_change(3))
    step = flights.until_step(10)
    before = flights.uids("worker")
    gone = flights.worker(0)["metadata"]
    kubectl("-n", flights.namespace, "delete", "pod", gone["name"], "--grace-period=1", "--wait=false")
    until(lambda: _uids_of_rank_0(flights) - {gone["uid"]}, "another pod of rank 0", 90)
    body = flights.until_condition("Complete")
    # Nobody keeps what the group was: each rank came in another pod.
    scenario["restarts"] = body["status"]["restarts"]["total"]
    assert scenario["restarts"] >= 2
    selector = f"tablebay.dev/job={flights.name},tablebay.dev/role=worker"
    pods = items("pods", flights.namespace, selector)
    ended = {pod["metadata"]["uid"] for pod in pods if pod["status"]["phase"] == "Succeeded"}
    assert len(ended) == 3
    assert not ended & set(before.values())
    said = kubectl("-n", flights.namespace, "logs", "job/flights-worker", "--all-pods=true", "--tail=-1")
    met = [int(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "meets at step" in line]
    assert sum(one >= step for one in met) >= 3, said
    done = [int(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "is done at step" in line]
    assert len(done) == 3, said
    # A rank that had pushed its step when the group broke stays ahead by as much.
    assert min(done) >= STEPS - 3, said
