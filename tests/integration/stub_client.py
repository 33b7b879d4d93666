"""Speaks to servers with stubs generated from the .proto alone; run by test_generated_stubs.py, beside such stubs.

Arguments: the servers' data ports, the keys and the dim, as JSON. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import secrets
import struct
import sys
from typing import Any

import grpc
import tablebay_pb2 as pb
import tablebay_pb2_grpc as stubs

MASK = 2**64 - 1


def hashed(key: int) -> int:
    """As docs/wire.md gives it."""
    key ^= key >> 33
    key = key * 0xFF51AFD7ED558CCD & MASK
    key ^= key >> 33
    key = key * 0xC4CEB9FE1A85EC53 & MASK
    return key ^ key >> 33


def main(ports: list[int], keys: list[int], dim: int) -> dict[str, Any]:
    """Hello, CreateTable, Pull, the same Push twice, Pull; then a call that is wrong."""
    data = [stubs.DataStub(grpc.insecure_channel(f"127.0.0.1:{port}")) for port in ports]
    control = [stubs.ControlStub(grpc.insecure_channel(f"127.0.0.1:{port + 2}")) for port in ports]

    # Server 0 says who this client is; the others are told.
    hello = pb.HelloRequest(nonce=secrets.randbits(63) + 1, protocol_major=1, client_version="stubs")
    me = control[0].Hello(hello)
    hello.client_high, hello.client_low, hello.incarnation = me.client_high, me.client_low, me.incarnation
    answers = [me, *(server.Hello(hello) for server in control[1:])]
    owners = struct.unpack("<1024H", me.shard_map.owners)
    servers_of = {key: owners[hashed(key) >> 54] for key in keys}

    spec = pb.TableSpec(
        name="user",
        dim=dim,
        dtype="float32",
        optimizer="Adagrad",
        optimizer_parameters={"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8},
        initializer="Normal",
        initializer_parameters={"stddev": 0.01, "mean": 0.0},
        seed=7,
        non_finite="Reject",
    )
    tables = [server.CreateTable(pb.CreateTableRequest(spec=spec)) for server in control]

    def part(server: int, rows: dict[int, list[float]] | None = None) -> tuple[list[int], Any]:
        own = [key for key in keys if servers_of[key] == server]
        return own, pb.Part(
            table_id=tables[server].table_id,
            dim=dim,
            flags=1,
            keys=struct.pack(f"<{len(own)}Q", *own),
            rows=b"".join(struct.pack(f"<{dim}f", *rows[key]) for key in own) if rows else b"",
        )

    def sender(server: int) -> Any:
        return pb.Sender(
            client_high=me.client_high,
            client_low=me.client_low,
            incarnation=me.incarnation,
            shard_map_version=me.shard_map.version,
            epoch=answers[server].epoch,
        )

    def pull() -> list[list[float]]:
        found = {}
        for server, stub in enumerate(data):
            own, wanted = part(server)
            answer = stub.Pull(pb.PullRequest(sender=sender(server), part=wanted))
            for at, key in enumerate(own):
                found[key] = list(struct.unpack_from(f"<{dim}f", answer.rows, 4 * dim * at))
        return [found[key] for key in keys]

    before = pull()
    gradients = {key: [0.25 * (at + column + 1) for column in range(dim)] for at, key in enumerate(keys)}
    applied = duplicates = 0
    for _ in range(2):
        for server, stub in enumerate(data):
            _, pushed = part(server, gradients)
            answer = stub.Push(pb.PushRequest(sender=sender(server), step=0, oldest_step=0, part=pushed))
            applied += answer.applied_shards
            duplicates += answer.duplicate_shards
    after = pull()

    # A refused call says what kind of error it is in the trailing metadata.
    try:
        data[0].Pull(pb.PullRequest(part=pb.Part(table_id=1, dim=1)))
        refused = None
    except grpc.RpcError as error:
        refused = [error.code().name, dict(error.trailing_metadata())["tablebay-error"]]
    return {
        "before": before,
        "after": after,
        "gradients": [gradients[key] for key in keys],
        "servers": sorted(set(servers_of.values())),
        "shards": len({hashed(key) >> 54 for key in keys}),
        "applied": applied,
        "duplicates": duplicates,
        "refused": refused,
        "loaded": sorted(name for name in sys.modules if name.partition(".")[0] in ("tablebay", "numpy")),
    }


if __name__ == "__main__":
    print(json.dumps(main(*(json.loads(argument) for argument in sys.argv[1:]))))
