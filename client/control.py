"""The control calls of a job's servers, as typed methods. No numpy, no native code: the operator and the CLI
use it.

Every call here may be sent again, and is, while the server cannot be reached and the deadline allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import DecodeError, Message

from tablebay.client import errors
from tablebay.client.proto import tablebay_pb2
from tablebay.client.retry import Deadline, Pace
from tablebay.client.tls import Source
from tablebay.client.transport import GrpcTransport, Transport

TIMEOUT_S = 10.0

_Response = TypeVar("_Response", bound=Message)


class Control:
    """Safe in threads.

    transport: one, or addresses to make a gRPC transport for, which close() then closes.
    timeout: seconds for a call with its retries, unless the call gives its own. tls: for addresses; None is plain.
    """

    def __init__(
        self,
        transport: Transport | str | Sequence[str],
        *,
        timeout: float = TIMEOUT_S,
        pace: Pace | None = None,
        tls: Source | None = None,
    ) -> None:
        self._own: GrpcTransport | None = None
        if isinstance(transport, str):
            transport = [transport]
        if isinstance(transport, list | tuple):
            transport = self._own = GrpcTransport(transport, tls=tls)
        self._transport: Transport = transport  # type: ignore[assignment]
        self._timeout = timeout
        self._pace = pace or Pace()
        self.retries = 0

    @property
    def servers(self) -> int:
        """How many."""
        return len(self._transport.addresses)

    def hello(
        self, servers: Iterable[int], request: tablebay_pb2.HelloRequest, timeout: float | None = None
    ) -> list[tablebay_pb2.HelloResponse]:
        """Introduce a client to some servers at once."""
        return self._many(servers, "Hello", request, tablebay_pb2.HelloResponse, self._deadline(timeout))

    def create_table(
        self, spec: tablebay_pb2.TableSpec, timeout: float | None = None
    ) -> list[tablebay_pb2.Table]:
        """Make a table on every server; one that exists with the same spec is answered.

        Server 0 is asked first, so that of two clients that differ one fails before it has changed anything.
        Raises TableMismatch.
        """
        request = tablebay_pb2.CreateTableRequest(spec=spec)
        deadline = self._deadline(timeout)
        first = self._many([0], "CreateTable", request, tablebay_pb2.Table, deadline)
        return first + self._many(
            range(1, self.servers), "CreateTable", request, tablebay_pb2.Table, deadline
        )

    def create_table_on(
        self, server: int, spec: tablebay_pb2.TableSpec, timeout: float | None = None
    ) -> tablebay_pb2.Table:
        """Make a table on one server, which came back without it."""
        request = tablebay_pb2.CreateTableRequest(spec=spec)
        return self._one(server, "CreateTable", request, tablebay_pb2.Table, timeout)

    def update_table(
        self, name: str, optimizer_parameters: Mapping[str, float], timeout: float | None = None
    ) -> list[tablebay_pb2.Table]:
        """Change what may change live (learning_rate, weight_decay), on every server."""
        request = tablebay_pb2.UpdateTableRequest(name=name, optimizer_parameters=optimizer_parameters)
        return self._all("UpdateTable", request, tablebay_pb2.Table, timeout)

    def describe(self, timeout: float | None = None) -> list[list[tablebay_pb2.Table]]:
        """The tables of each server."""
        request = tablebay_pb2.DescribeTablesRequest()
        answers = self._all("DescribeTables", request, tablebay_pb2.DescribeTablesResponse, timeout)
        return [list(answer.tables) for answer in answers]

    def shard_map(self, timeout: float | None = None) -> tablebay_pb2.ShardMap:
        """The shard map, from server 0."""
        request = tablebay_pb2.GetShardMapRequest()
        return self._one(0, "GetShardMap", request, tablebay_pb2.ShardMap, timeout)

    def scan(
        self, server: int, table: str, position: int, rows_max: int, timeout: float | None = None
    ) -> tablebay_pb2.ScanResponse:
        """Some rows of a table on one server, and the position to go on from; 0 is the end."""
        request = tablebay_pb2.ScanRequest(table=table, position=position, rows_max=rows_max)
        return self._one(server, "Scan", request, tablebay_pb2.ScanResponse, timeout)

    def evict(
        self, server: int, table: str, stripe: int, timeout: float | None = None
    ) -> tablebay_pb2.EvictResponse:
        """Sweep some of a table on one server, and say the stripe to go on from; 64 is the end."""
        request = tablebay_pb2.EvictRequest(table=table, stripe=stripe)
        return self._one(server, "Evict", request, tablebay_pb2.EvictResponse, timeout)

    def evicted(
        self,
        server: int,
        table: str,
        epoch: int,
        position: int,
        events_max: int,
        timeout: float | None = None,
    ) -> tablebay_pb2.EvictedResponse:
        """Rows that left one server's table, from that number of that life of the server on."""
        request = tablebay_pb2.EvictedRequest(
            table=table, epoch=epoch, position=position, events_max=events_max
        )
        return self._one(server, "Evicted", request, tablebay_pb2.EvictedResponse, timeout)

    def barrier(
        self, request: tablebay_pb2.BarrierRequest, timeout: float | None = None
    ) -> tablebay_pb2.BarrierResponse:
        """Say that a client has come to a barrier, and ask whether all have."""
        return self._one(0, "Barrier", request, tablebay_pb2.BarrierResponse, timeout)

    def report(
        self, request: tablebay_pb2.ReportRequest, timeout: float | None = None
    ) -> tablebay_pb2.ReportResponse:
        """Say what a worker has to report."""
        return self._one(0, "Report", request, tablebay_pb2.ReportResponse, timeout)

    def progress(self, timeout: float | None = None) -> list[tablebay_pb2.WorkerProgress]:
        """What each worker last reported."""
        request = tablebay_pb2.ProgressRequest()
        return list(self._one(0, "Progress", request, tablebay_pb2.ProgressResponse, timeout).workers)

    def set_workers(self, workers: int, timeout: float | None = None) -> None:
        """Say how many workers the job has from now on: for whom its barriers wait."""
        request = tablebay_pb2.SetWorkersRequest(workers=workers)
        self._one(0, "SetWorkers", request, tablebay_pb2.SetWorkersResponse, timeout)

    def stats(self, timeout: float | None = None) -> list[tablebay_pb2.StatsResponse]:
        """Each server's tables and counters."""
        return self._all("Stats", tablebay_pb2.StatsRequest(), tablebay_pb2.StatsResponse, timeout)

    def server_stats(self, server: int, timeout: float | None = None) -> tablebay_pb2.StatsResponse:
        """One server's tables and counters."""
        return self._one(server, "Stats", tablebay_pb2.StatsRequest(), tablebay_pb2.StatsResponse, timeout)

    def checkpoint(
        self,
        *,
        begin: bool = False,
        full: bool = False,
        client: tuple[int, int] = (0, 0),
        state: str = "",
        timeout: float | None = None,
    ) -> tablebay_pb2.CheckpointResponse:
        """How checkpoints stand, of server 0; begin: and let another begin. It does not wait for its end.

        client, state: the client whose state of that name, sent by put_state, goes with it.
        """
        request = tablebay_pb2.CheckpointRequest(
            begin=begin, full=full, client_high=client[0], client_low=client[1], state=state
        )
        return self._one(0, "Checkpoint", request, tablebay_pb2.CheckpointResponse, timeout)

    def put_state(self, request: tablebay_pb2.PutStateRequest, timeout: float | None = None) -> None:
        """A part of a worker's state, kept by server 0 for the checkpoint that names it."""
        self._one(0, "PutState", request, tablebay_pb2.PutStateResponse, timeout)

    def get_state(
        self, request: tablebay_pb2.GetStateRequest, timeout: float | None = None
    ) -> tablebay_pb2.GetStateResponse:
        """A part of a worker's state, of the newest checkpoint."""
        return self._one(0, "GetState", request, tablebay_pb2.GetStateResponse, timeout)

    def restore(
        self, request: tablebay_pb2.RestoreRequest, timeout: float | None = None
    ) -> list[tablebay_pb2.RestoreResponse]:
        """Begin, or ask after, reading rows of another checkpoint on every server."""
        return self._all("Restore", request, tablebay_pb2.RestoreResponse, timeout)

    def drain(self, timeout: float | None = None) -> list[tablebay_pb2.DrainResponse]:
        """Ask every server to take no more data calls; each answers how many it still handles."""
        return self._all("Drain", tablebay_pb2.DrainRequest(), tablebay_pb2.DrainResponse, timeout)

    def close(self) -> None:
        """Close the connections made for this object."""
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout: float | None) -> Deadline:
        return self._pace.deadline(self._timeout if timeout is None else timeout)

    def _one(
        self, server: int, method: str, request: Message, response: type[_Response], timeout: float | None
    ) -> _Response:
        return self._many([server], method, request, response, self._deadline(timeout))[0]

    def _all(
        self, method: str, request: Message, response: type[_Response], timeout: float | None
    ) -> list[_Response]:
        return self._many(range(self.servers), method, request, response, self._deadline(timeout))

    def _many(
        self,
        servers: Iterable[int],
        method: str,
        request: Message,
        response: type[_Response],
        deadline: Deadline,
    ) -> list[_Response]:
        """The same request to several servers at once, each sent again until it is answered or time is up."""
        content = request.SerializeToString()
        answers = dict.fromkeys(servers, b"")
        waiting = list(answers)
        attempt = 0
        while waiting:
            calls = [
                (server, self._transport.call(server, method, content, deadline.remaining()))
                for server in waiting
            ]
            cause: errors.Unavailable | None = None
            waiting = []
            for server, call in calls:
                try:
                    answers[server] = call.result()
                except errors.Unavailable as error:
                    cause = error
                    waiting.append(server)
            if cause is not None:
                if not deadline.pause(attempt):
                    raise cause
                attempt += 1
                self.retries += len(waiting)
        return [
            _parse(response, answers[server], method, self._transport.addresses[server]) for server in answers
        ]


def _parse(response: type[_Response], content: bytes, method: str, address: str) -> _Response:
    parse: Callable[[bytes], _Response] = response.FromString
    try:
        return parse(content)
    except DecodeError as error:
        raise errors.CorruptMessage(f"{method} to {address} answered what cannot be read: {error}") from None
