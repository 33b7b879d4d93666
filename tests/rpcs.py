"""The service's methods, and calls of them that say whose they are."""

from __future__ import annotations

from tablebay.client.proto import tablebay_pb2
from tablebay.ps_server.members import ranked_high

DATA, CONTROL = (
    [method.name for method in tablebay_pb2.DESCRIPTOR.services_by_name[name].methods]
    for name in ("Data", "Control")
)
METHODS = [*DATA, *CONTROL]


def of_rank_0(job: str) -> dict[str, bytes]:
    """By method: a request in the name of rank 0 of `job`, for each method whose request says whose it is."""
    high = ranked_high(job)
    sender = tablebay_pb2.Sender(client_high=high, client_low=0)
    bearer = {"client_high": high, "client_low": 0}
    requests = {
        "Pull": tablebay_pb2.PullRequest(sender=sender),
        "Push": tablebay_pb2.PushRequest(sender=sender),
        "Step": tablebay_pb2.StepRequest(sender=sender),
        "Hello": tablebay_pb2.HelloRequest(rank=0),
        "Barrier": tablebay_pb2.BarrierRequest(**bearer),
        "Report": tablebay_pb2.ReportRequest(**bearer),
        "Checkpoint": tablebay_pb2.CheckpointRequest(**bearer),
        "PutState": tablebay_pb2.PutStateRequest(**bearer),
    }
    return {name: request.SerializeToString() for name, request in requests.items()}
