"""Tables that servers hold, through servers in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tablebay.client.client import Client, client_over
from tablebay.client.errors import (
    BadRequest,
    BadType,
    Closed,
    NonFinite,
    NotRegistered,
    ResourceExhausted,
    TableMismatch,
)
from tablebay.client.inprocess import InProcessTransport, local, services
from tablebay.client.local_table import Table
from tablebay.client.tables import SGD, Adagrad, Adam, Add, Constant, Normal, TableSpec, Uniform, Zeros

SERVER_COUNTS = [1, 2, 5]
EDGE_KEYS = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1], np.uint64)


@pytest.fixture(params=SERVER_COUNTS)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of 1, 2 and 5 servers."""
    with local(servers=request.param) as client:
        yield client


def test_a_table_is_made_once_and_opened_by_name(client: Client) -> None:
    """What was declared comes back, from the same client and from another."""
    made = client.table(
        "user", dim=8, optimizer=Adagrad(0.05), initializer=Uniform(-1.0, 1.0), seed=2**64 - 1
    )
    assert made.spec == TableSpec("user", 8, "float32", Adagrad(0.05), Uniform(-1.0, 1.0), 2**64 - 1)
    assert client.table("user") is made
    assert client.table("user", dim=8, seed=2**64 - 1) is made
    assert (made.name, made.dim, made.dtype) == ("user", 8, np.float32)
    other = client_over(client_transport(client))
    assert other.table("user").spec == made.spec


def client_transport(client: Client) -> Any:
    """The transport of a client, for a second client of the same servers."""
    return client.table("user").session.transport


def test_an_unknown_table_is_named_with_those_that_exist(client: Client) -> None:
    """NotRegistered, unless the arguments say how to make it."""
    with pytest.raises(NotRegistered, match="table 'user' does not exist.*existing tables: none"):
        client.table("user")
    client.table("item", dim=1)
    client.table("country", dim=1)
    with pytest.raises(NotRegistered, match="existing tables: country, item"):
        client.table("user")
    with pytest.raises(NotRegistered):
        client.table("user", optimizer=SGD())


def test_a_mismatch_lists_each_difference(client: Client) -> None:
    """Only of the arguments given; for an open table and for one opened anew."""
    user = client.table("user", dim=8, optimizer=Adagrad(0.05), initializer=Normal(0.01))
    wanted = {"dim": 16, "optimizer": Adagrad(0.1), "initializer": Zeros()}
    for one in (client, client_over(user.session.transport)):
        with pytest.raises(TableMismatch) as raised:
            one.table("user", **wanted)  # type: ignore[arg-type]
        message = str(raised.value)
        assert "table 'user'" in message
        assert "dim: found 8, wanted 16" in message
        assert "optimizer.learning_rate: found 0.05, wanted 0.1" in message
        assert "initializer: found Normal(stddev=0.01, mean=0.0), wanted Zeros()" in message
        with pytest.raises(TableMismatch, match="dtype: found 'float32', wanted 'int64'$"):
            one.table("user", dtype="int64")
        with pytest.raises(BadRequest, match="dim is 0"):
            one.table("user", dim=0)


def test_a_live_learning_rate_does_not_keep_others_out(client: Client) -> None:
    """`set` changes what pushes do, not what was declared: a worker that starts again opens its table."""
    user = client.table("user", dim=1, optimizer=SGD(1.0), initializer=Zeros())
    user.set(learning_rate=0.25)
    again = client_over(user.session.transport).table("user", dim=1, optimizer=SGD(1.0))
    assert again.spec == user.spec
    keys = np.arange(100)
    again.push(keys, np.ones((100, 1), np.float32))
    assert (again.pull(keys) == -0.25).all()
    with pytest.raises(BadRequest, match="learning_rate is nan"):
        user.set(learning_rate=float("nan"))


@pytest.mark.parametrize(
    ("optimizer", "initializer"),
    [(SGD(0.1), Normal()), (Adagrad(0.1), Uniform()), (Adam(0.01), Normal(1.0)), (Add(), Constant(1.0))],
    ids=repr,
)
def test_rows_are_the_same_bit_for_bit_on_any_number_of_servers(optimizer: Any, initializer: Any) -> None:
    """Random calls give the same rows and state on 1, 2 and 5 servers and on a table in this process."""
    for seed in range(5):
        clients = [local(servers=servers) for servers in SERVER_COUNTS]
        tables: list[Any] = [
            client.table("user", dim=5, optimizer=optimizer, initializer=initializer, seed=seed)
            for client in clients
        ]
        tables.append(Table(5, optimizer, initializer, seed=seed, name="user"))
        for call in range(20):
            results = [play(table, np.random.default_rng([seed, call])) for table in tables]
            for result in results[1:]:
                assert (result == results[0]).all(), f"seed {seed}, call {call}"
        keys = np.arange(300)
        states = [table.optimizer_state(keys) for table in tables]
        for state in states[1:]:
            for name, values in states[0].items():
                assert (state[name] == values).all(), f"seed {seed}, {name}"
        assert len({len(table) for table in tables}) == 1, f"seed {seed}"


def play(table: Any, draw: np.random.Generator) -> Any:
    """One random call on a table, and rows to compare."""
    keys = draw.integers(0, 300, draw.integers(0, 400)).astype(np.uint64)
    keys = keys.reshape(-1, 2) if keys.size % 2 == 0 else keys
    kind = draw.integers(0, 5)
    if kind == 0:
        table.assign(keys, draw.normal(size=(*keys.shape, 5)).astype(np.float32))
    elif kind == 1:
        table.delete(keys[: len(keys) // 4])
    elif kind >= 3:
        table.push(keys, draw.normal(size=(*keys.shape, 5)).astype(np.float32))
    return table.pull(keys, create=bool(draw.integers(0, 2)))


def test_every_64_bit_value_is_a_key(client: Client) -> None:
    """Signed and unsigned arrays reach the same rows."""
    sums = client.table("sums", dim=1, dtype="int64")
    sums.push(EDGE_KEYS, np.arange(1, 7).reshape(6, 1))
    sums.push(EDGE_KEYS.view(np.int64), np.arange(1, 7).reshape(6, 1))
    assert sums.pull(EDGE_KEYS).ravel().tolist() == [2, 4, 6, 8, 10, 12]
    assert len(sums) == 6


def test_rows_keep_the_shape_of_the_keys(client: Client) -> None:
    """keys.shape + (dim,); also filled in place, and without keys."""
    user = client.table("user", dim=3)
    for shape in ((), (4,), (2, 3), (0,), (2, 0, 3)):
        keys = np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(shape)
        rows = user.pull(keys)
        assert rows.shape == (*shape, 3)
        out = np.empty((*shape, 3), np.float32)
        assert user.pull(keys, out=out) is out
        assert (out == rows).all()
        assert user.contains(keys).shape == shape
        user.push(keys, np.zeros((*shape, 3), np.float32))


def test_push_of_repeated_keys_equals_push_of_their_sum(client: Client) -> None:
    """The optimizer runs once for each key, on the sum in order of occurrence."""
    repeated = client.table("repeated", dim=3, optimizer=Adagrad(0.1), initializer=Zeros())
    summed = client.table("summed", dim=3, optimizer=Adagrad(0.1), initializer=Zeros())
    for seed in range(10):
        draw = np.random.default_rng(seed)
        keys = draw.integers(0, 50, 500).astype(np.uint64)
        gradients = draw.normal(size=(500, 3)).astype(np.float32)
        repeated.push(keys, gradients)
        sums: dict[int, Any] = {}
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            sums[key] = sums[key] + gradient if key in sums else gradient
        summed.push(list(sums), np.stack(list(sums.values())))
        assert (repeated.pull(list(range(50))) == summed.pull(list(range(50)))).all(), f"seed {seed}"


def test_a_push_after_the_keys_changed_in_place_goes_to_the_new_keys(client: Client) -> None:
    """The plan that a pull leaves for the push is not used for other keys in the same array."""
    sums = client.table("sums", dim=1, dtype="int64")
    keys = np.arange(10, dtype=np.uint64)
    sums.pull(keys)
    keys += np.uint64(5)
    sums.push(keys, np.ones((10, 1), np.int64))
    assert sums.pull(np.arange(20), create=False).ravel().tolist() == [0] * 5 + [1] * 10 + [0] * 5


def test_contains_assign_delete_and_len_work_across_servers(client: Client) -> None:
    """Rows are counted once, wherever they are."""
    user = client.table("user", dim=2, optimizer=Adagrad(0.1, 0.5), initializer=Constant(1.0))
    keys = np.arange(500, dtype=np.int64)
    assert not user.contains(keys).any()
    user.push(keys, np.ones((500, 2), np.float32))
    assert user.contains(keys).all()
    assert len(user) == 500
    user.assign(keys[:100], np.full((100, 2), 9, np.float32))
    assert (user.pull(keys[:100]) == 9).all()
    assert (user.optimizer_state(keys)["accumulator"] == 1.5).all()
    assert user.delete(keys[50:]) is None
    assert user.contains(keys).tolist() == [True] * 50 + [False] * 450
    assert len(user) == 50
    assert (user.optimizer_state(keys[50:])["accumulator"] == 0.5).all()
    assert (user.pull(keys[50:], create=False) == 0).all()
    assert len(user) == 50


def test_items_gives_each_row_once(client: Client) -> None:
    """From all servers, in batches of at most the size asked for."""
    user = client.table("user", dim=3)
    keys = np.arange(1000, dtype=np.uint64) * 977
    rows = user.pull(keys)
    for batch in (7, 100_000):
        seen: dict[int, Any] = {}
        for found, values in user.items(batch=batch):
            assert 0 < found.size <= batch
            seen.update(zip(found.tolist(), values, strict=True))
        assert set(seen) == set(keys.tolist())
        assert all((seen[int(key)] == row).all() for key, row in zip(keys, rows, strict=True))
    assert list(client.table("empty", dim=3).items()) == []


def test_a_call_larger_than_a_message_is_split() -> None:
    """300 keys and more under a limit of a few KiB give the rows that one message would have given."""
    limited = client_over(InProcessTransport(services(2, message_bytes_max=4096)))
    whole = local(servers=2)
    keys = np.random.default_rng(3).integers(0, 2**63, 2000).astype(np.uint64)
    gradients = np.random.default_rng(4).normal(size=(2000, 4)).astype(np.float32)
    tables = [client.table("user", dim=4, optimizer=Adam(0.1)) for client in (limited, whole)]
    for _ in range(3):
        for table in tables:
            table.push(keys, gradients)
    assert (tables[0].pull(keys) == tables[1].pull(keys)).all()
    assert (tables[0].optimizer_state(keys)["step"] == 3).all()
    sent = [sum(stats.counters["pushes"] for stats in client.stats()) for client in (limited, whole)]
    assert sent[0] >= 3 * 2000 * 24 / 4096
    assert sent[1] == 6
    with limited.step() as step:
        (rows,) = step.pull({tables[0]: keys[:300]})
        step.push({tables[0]: (keys[:300], gradients[:300])})
    assert (rows == tables[1].pull(keys[:300])).all()
    assert sum(values.shape[0] for _, values in tables[0].items()) == len(tables[0])
    with pytest.raises(ResourceExhausted, match="do not fit in a message of 4096 bytes"):
        limited.table("wide", dim=2000).pull([1])


def test_gradients_that_are_not_finite_change_nothing(client: Client) -> None:
    """They are refused before anything is sent, and take no step."""
    user = client.table("user", dim=2)
    gradients = np.ones((300, 2), np.float32)
    gradients[217, 1] = np.inf
    with pytest.raises(NonFinite, match="table 'user': gradients of key 217 at position 217"):
        user.push(np.arange(300), gradients)
    with pytest.raises(NonFinite, match="table 'user': rows of key 217"):
        user.assign(np.arange(300), gradients)
    assert len(user) == 0
    assert client.next_step == 0


def test_a_sum_that_overflows_is_refused_by_the_server(client: Client) -> None:
    """Each gradient is finite, their sum is not: NonFinite, and the client goes on."""
    user = client.table("user", dim=1, optimizer=SGD(1.0), initializer=Zeros())
    with pytest.raises(NonFinite, match="table 'user'.*key 7"):
        user.push([7, 7], np.full((2, 1), 3e38, np.float32))
    user.push([7], np.ones((1, 1), np.float32))
    assert user.pull([7]).tolist() == [[-1.0]]


def test_wrong_arguments_take_no_step(client: Client) -> None:
    """Nothing is sent; the next push has the number that it would have had."""
    user = client.table("user", dim=4)
    with pytest.raises(BadType, match="table 'user': gradients: found float64, wanted float32"):
        user.push([1], np.ones((1, 4)))
    with pytest.raises(BadRequest, match=r"found shape \(1, 3\), wanted \(1, 4\)"):
        user.push([1], np.ones((1, 3), np.float32))
    with pytest.raises(BadType, match="table 'user': keys: found float64"):
        user.delete(np.zeros(3))
    assert client.next_step == 0
    assert len(user) == 0


def test_threads_lose_no_push(client: Client) -> None:
    """Eight threads add to the same int64 rows through one client; the sums are exact."""
    sums = client.table("sums", dim=2, dtype="int64")

    def add(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(40):
            sums.push(draw.integers(0, 40, 100), np.ones((100, 2), np.int64))

    threads = [threading.Thread(target=add, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = np.zeros(40, np.int64)
    for seed in range(8):
        draw = np.random.default_rng(seed)
        for _ in range(40):
            np.add.at(wanted, draw.integers(0, 40, 100), 1)
    assert (sums.pull(np.arange(40)) == wanted[:, None]).all()
    assert client.next_step == 320


def test_a_closed_client_says_so(client: Client) -> None:
    """Every call after close() is Closed; closing twice is not."""
    user = client.table("user", dim=1)
    client.close()
    client.close()
    for call in (
        lambda: user.pull([1]),
        lambda: user.push([1], np.ones((1, 1), np.float32)),
        lambda: user.contains([1]),
        lambda: user.set(learning_rate=1.0),
        lambda: len(user),
        lambda: list(user.items()),
        lambda: client.table("user"),
        lambda: client.prefetch({user: [1]}),
        lambda: client.report(loss=1.0),
        lambda: client.barrier("end"),
        client.stats,
        lambda: client.step().__enter__(),
    ):
        with pytest.raises(Closed, match="has been closed"):
            call()


def test_reports_and_barriers_reach_server_0(client: Client) -> None:
    """Examples add up, other values keep the latest; pull latencies travel with the report."""
    user = client.table("user", dim=1)
    user.pull([1, 2, 3])
    client.report(loss=0.5, examples=100, step=np.int64(1))
    client.report(loss=0.25, examples=50)
    (worker,) = client.progress()
    assert dict(worker.values) == {"loss": 0.25, "examples": 150.0, "step": 1.0}
    assert len(worker.pull_latency) == 1024
    assert client.pull_latency().count == 1
    client.barrier("end", timeout=5.0)
    with pytest.raises(BadType, match="report: loss: found str, wanted a number"):
        client.report(loss="0.5")  # type: ignore[arg-type]


def test_stats_name_the_tables_of_each_server(client: Client) -> None:
    """One answer a server; rows add up to len()."""
    user = client.table("user", dim=1)
    user.pull(np.arange(100))
    stats = client.stats()
    assert len(stats) == len(client.addresses)
    assert sum(table.rows for answer in stats for table in answer.tables) == len(user) == 100
