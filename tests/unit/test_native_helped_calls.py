"""Large calls, which idle processors help with: the same rows and answers, each step once, alone after a fork."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.native import _core

DIM = 4
KEYS = 20_000  # of a call: enough to be helped with
TRIES = 300  # until a helper, which has to be woken, has come while there was something to do


@pytest.fixture(autouse=True)
def _idle_processors_again() -> Iterator[None]:
    yield
    _core.use_processors(0)


def until_helped(work: Callable[[], None], processors: int = 4) -> None:
    """Do it, on so many processors, until a helper has come."""
    _core.use_processors(processors)
    for _ in range(TRIES):
        before = _core.jobs_helped()
        work()
        if _core.jobs_helped() > before:
            return
    pytest.fail(f"no helper came in {TRIES} tries")


def make(dtype: str = "float32", *, clients: int = 1) -> tuple[Any, int]:
    """A store with one table, which knows clients (1, 0), (2, 0) and so on."""
    store = _core.Store()
    if dtype == "float32":
        adagrad = {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}
        normal = {"mean": 0.0, "stddev": 0.01}
        table = store.create_table("t", DIM, dtype, "Adagrad", adagrad, "Normal", normal, 7, "Reject")
    else:
        table = store.create_table("t", 1, dtype, "Add", {}, "Zeros", {}, 0, "Reject")
    for client in range(1, clients + 1):
        store.hello(client, 0, 1)
    return store, table


def push(store: Any, table: int, step: int, keys: Any, rows: Any, client: int = 1) -> bytes:
    """One push; the answer's bytes."""
    request = messages.PushRequest(
        sender=messages.Sender(client_high=client, client_low=0, incarnation=1),
        step=step,
        oldest_step=step,
        part=messages.Part(table_id=table, dim=rows.shape[1], keys=keys.tobytes(), rows=rows.tobytes()),
    )
    answer: bytes = store.handle_push(request.SerializeToString())
    return answer


def pull(store: Any, table: int, keys: Any, dim: int = DIM) -> bytes:
    """Rows, made where there are none; the answer's bytes."""
    request = messages.PullRequest(part=messages.Part(table_id=table, dim=dim, keys=keys.tobytes()))
    answer: bytes = store.handle_pull(request.SerializeToString())
    return answer


def scanned(store: Any, table: int) -> list[tuple[bytes, bytes]]:
    """All keys and rows, in the table's order."""
    found = []
    position = 0
    while True:
        keys, rows, position = store.scan(table, position, 100_000)
        found.append((keys, rows))
        if position == 0:
            return found


@pytest.mark.parametrize("seed", range(3))
def test_a_helped_call_does_what_one_thread_does(seed: int) -> None:
    """Bit for bit: rows, their order in the table, and answers, in whichever order threads took the stripes."""
    random = np.random.default_rng(seed)
    ours, table = make()
    alone, _ = make()
    space = random.integers(0, 2**64, 60_000, dtype=np.uint64)
    for step in range(TRIES):
        where = f"seed {seed}, step {step}"
        keys = random.choice(space, KEYS, replace=False)
        rows = random.standard_normal((KEYS, DIM)).astype(np.float32)
        answers = []
        for store, processors in ((ours, 4), (alone, 1)):
            _core.use_processors(processors)
            pulled = pull(store, table, keys) if step % 2 == 0 else b""
            answers.append((pulled, push(store, table, step, keys, rows)))
        assert answers[0] == answers[1], where
        if step >= 10 and ours.counters()["calls_helped"] > 0:
            break
    assert scanned(ours, table) == scanned(alone, table), f"seed {seed}"
    assert alone.counters()["calls_helped"] == 0
    helped = ours.counters()
    assert helped.pop("calls_helped") > 0, f"seed {seed}"
    assert {**helped, "calls_helped": 0} == alone.counters(), f"seed {seed}"


def test_large_calls_at_once_are_each_applied_once() -> None:
    """G1, of an int64 table that adds up: four clients, each sends every step twice, while others pull."""
    clients, steps = 4, 12
    _core.use_processors(3)
    store, table = make("int64", clients=clients)
    keys = np.random.default_rng(1).integers(0, 2**64, KEYS, dtype=np.uint64)
    ones: NDArray[np.int64] = np.ones((KEYS, 1), np.int64)

    def work(client: int) -> None:
        for step in range(steps):
            for _ in range(2):
                push(store, table, step, keys, ones, client)
            pull(store, table, keys, dim=1)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(1, clients + 1)))
    out = np.zeros((KEYS, 1), np.int64)
    store.pull(table, keys, out, False)
    assert (out == clients * steps).all()
    counters = store.counters()
    assert (counters["pushes_applied"], counters["duplicates"]) == (clients * steps, clients * steps)


@pytest.mark.parametrize("repeated", [0, 1, KEYS // 2])
def test_repeated_keys_are_found_wherever_they_are(repeated: int) -> None:
    """One push in this process, of which some keys repeat, one, or none: each row's gradients are added up once."""
    random = np.random.default_rng(repeated)
    keys = random.integers(0, 2**64, KEYS, dtype=np.uint64)
    if repeated:
        keys[-repeated:] = keys[:repeated]
        keys[1:-1] = random.permutation(keys[1:-1])
    rows = random.integers(-1000, 1000, (KEYS, 1))
    store, table = make("int64")
    pushes = 0

    def work() -> None:
        nonlocal pushes
        store.push(table, keys, rows, False)
        pushes += 1

    until_helped(work)
    out = np.zeros((KEYS, 1), np.int64)
    store.pull(table, keys, out, False)
    unique, inverse = np.unique(keys, return_inverse=True)
    assert len(unique) == KEYS - repeated
    sums = np.bincount(inverse, weights=rows[:, 0]).astype(np.int64)
    assert np.array_equal(out[:, 0], pushes * sums[inverse])


def test_a_key_that_comes_again_far_behind_has_one_update() -> None:
    """Adagrad's, of the sum of both gradients, as a push of that sum to the key makes it."""
    random = np.random.default_rng(4)
    keys = random.integers(0, 2**64, KEYS, dtype=np.uint64)
    rows = random.standard_normal((KEYS, DIM)).astype(np.float32)
    keys[-1] = keys[0]
    summed = rows[:-1].copy()
    summed[0] += rows[-1]
    found = []
    for pushed, gradients in ((keys, rows), (keys[:-1].copy(), summed)):
        store, table = make()
        store.push(table, pushed, gradients, False)
        out = np.zeros((KEYS, DIM), np.float32)
        store.pull(table, keys, out, False)
        found.append(out)
    assert np.array_equal(*found)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("dim", [16, 5])
def test_requests_and_answers_are_those_of_one_thread(dim: int, repeats: bool, kept: bool) -> None:
    """Bit for bit, with their checksums and what is kept of them; and the rows of an answer come where they belong."""
    random = np.random.default_rng(dim)
    router = _core.Router((np.arange(_core.SHARDS) % 2).astype(np.uint16), 2)
    keys = random.integers(0, 2**64, 3 * KEYS, dtype=np.uint64)
    if repeats:
        keys = random.choice(keys, len(keys))
    rows = random.standard_normal((len(keys), dim)).astype(np.float32)
    memory = _core.ReplayMemory(1 << 20)

    def exchange() -> tuple[list[bytes], list[bytes], NDArray[np.float32]]:
        plan = router.plan(keys)
        out = np.zeros((len(keys), dim), np.float32)
        call = _core.Call(
            "Step", [(1, dim, 4 * dim, 0, plan, out)], [(1, dim, 4 * dim, 0, plan, rows)], 10**8
        )
        requests, copies = [], []
        for server in range(2):
            keep = _core.KeptRequest(memory) if kept else None
            requests.append(call.request(server, 0, 1, 2, 3, 4, 5, 6, 5, b"", keep))
            copies.append(bytes(keep) if keep is not None else b"")
            pushed = messages.StepRequest.FromString(requests[-1]).pushes[0]
            assert pushed.crc32c == _core.crc32c_portable(pushed.keys + pushed.rows)
            answer = messages.StepResponse(epoch=5, shard_map_version=4, step=6)
            answer.pulled.append(pushed.rows)
            call.accept(server, 0, answer.SerializeToString())
        call.finish()
        return requests, copies, out

    _core.use_processors(1)
    requests, copies, out = exchange()
    assert copies == (requests if kept else [b"", b""])
    if not repeats:
        assert np.array_equal(out, rows)

    def again() -> None:
        found = exchange()
        assert found[:2] == (requests, copies)
        assert np.array_equal(found[2], out)

    until_helped(again)


def test_of_several_rows_that_are_not_finite_the_first_is_named() -> None:
    """Whoever comes upon another one first. They lie in the second half, so that there is something to do before."""
    random = np.random.default_rng(2)
    rows = np.zeros((KEYS, 128), np.float32)

    def work() -> None:
        bad = np.sort(KEYS // 2 + random.choice(KEYS // 2, 5, replace=False))
        rows[bad, random.integers(0, 128, 5)] = [np.nan, np.inf, -np.inf, np.nan, np.inf]
        assert _core.first_nonfinite(rows) == bad[0]
        rows[bad] = 0

    for _ in range(20):
        until_helped(work)
    assert _core.first_nonfinite(np.zeros((KEYS, 128), np.float32)) is None


def test_what_a_helper_finds_wrong_is_the_calls_error() -> None:
    """A push of an incarnation that is no more is fenced, whoever takes the stripe, changes nothing, and is over."""
    _core.use_processors(4)
    store, table = make()
    random = np.random.default_rng(0)
    keys = random.integers(0, 2**64, KEYS, dtype=np.uint64)
    rows = random.standard_normal((KEYS, DIM)).astype(np.float32)
    push(store, table, 0, keys, rows)
    before = scanned(store, table)
    store.hello(1, 0, 2)
    for step in range(1, 60):
        with pytest.raises(_core.StatusError, match="Fenced"):
            push(store, table, step, keys, rows)
    assert scanned(store, table) == before
    assert len(pull(store, table, keys)) > KEYS * DIM * 4


FORK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tablebay.native import _core
from test_native_helped_calls import DIM, KEYS, make, push, pull
_core.use_processors(4)
store, table = make()
keys = np.random.default_rng(0).integers(0, 2**64, KEYS, dtype=np.uint64)
rows = np.ones((KEYS, DIM), np.float32)
step = 0
while store.counters()["calls_helped"] == 0:
    push(store, table, step, keys, rows)
    step += 1
child = os.fork()
if child == 0:
    before = store.counters()["calls_helped"]
    push(store, table, step, keys, rows)
    assert store.counters()["calls_helped"] == before
    del store
    os._exit(0)
_, status = os.waitpid(child, 0)
push(store, table, step, keys, rows)
sys.exit(status != 0)
"""


def test_a_forked_child_works_alone() -> None:
    """It has none of the threads that would help: its calls end, its store goes, and the parent goes on."""
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", FORK, folder], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 2**32 - 1),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2**32 - 1),
        ({}, 2**32 - 1),
    ],
)
def test_a_pods_cpu_limit_bounds_the_helpers(tmp_path: Path, files: dict[str, str], processors: int) -> None:
    """By the files of either version of control groups; none, or no number in them, is no limit."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _core.processors_of_quota(str(tmp_path)) == processors
