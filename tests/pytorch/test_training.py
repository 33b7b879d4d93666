"""What people do in a training loop, done with tb.torch and with torch.nn's own layers: the results are the same."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.servers import Servers
from faults.workers import leave
from numpy.typing import NDArray
from torch import nn

import tablebay as tb
from tablebay.client.prefetch import Prefetch

KEYS, DIM, BATCH = 30, 4, 8
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
RATE = 0.3


class Model(nn.Module):
    """A bag of keys, and dense layers."""

    def __init__(self, bag: nn.Module, hidden: nn.Module | None = None) -> None:
        super().__init__()
        self.bag = bag
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.dense = nn.Sequential(nn.Linear(DIM, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, keys: torch.Tensor) -> Any:
        return self.dense(self.bag(keys))[:, 0]


class Pair:
    """The same model over a table of two servers, and over nn.EmbeddingBag, with the same optimizers."""

    def __init__(self, client: Any) -> None:
        self.table = client.table("user", dim=DIM, optimizer=tb.SGD(RATE), initializer=tb.Normal(1.0))
        weight = torch.from_numpy(self.table.pull(np.arange(KEYS)))
        self.ours = Model(tb.torch.EmbeddingBag(self.table, mode="sum"))
        self.theirs = Model(nn.EmbeddingBag(KEYS, DIM, mode="sum", _weight=weight))
        self.opt: Any = tb.torch.Optimizer(torch.optim.SGD(self.ours.parameters(), RATE), self.ours)
        self.reference_opt: Any = torch.optim.SGD(self.theirs.parameters(), RATE)

    def both(self) -> tuple[tuple[Model, Any], tuple[Model, Any]]:
        return (self.ours, self.opt), (self.theirs, self.reference_opt)

    def require_equal(self) -> None:
        rows = torch.from_numpy(self.table.pull(np.arange(KEYS)))
        torch.testing.assert_close(rows, self.theirs.bag.weight.detach(), **CLOSE)
        for mine, wanted in zip(self.ours.dense.parameters(), self.theirs.dense.parameters(), strict=True):
            torch.testing.assert_close(mine, wanted, **CLOSE)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tb.local(servers=2) as client:
        yield Pair(client)


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, KEYS, (BATCH, 3), generator=generator), torch.randn(BATCH, generator=generator))
        for _ in range(count)
    ]


def loss_of(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    keys, labels = batch
    return ((model(keys) - labels) ** 2).mean()


@pytest.mark.parametrize("passes", [2, 3])
def test_gradients_accumulate_over_several_passes(pair: Pair, passes: int) -> None:
    """Several backward() before one step(), push one sum a key."""
    first = pair.table.session.ledger.next
    for begin in range(0, 12, passes):
        for model, opt in pair.both():
            opt.zero_grad()
            for batch in batches(12)[begin : begin + passes]:
                (loss_of(model, batch) / passes).backward()
            opt.step()
    pair.require_equal()
    assert pair.table.session.ledger.next - first == 12 // passes


def test_norms_are_clipped_over_dense_parameters_and_rows_together(pair: Pair) -> None:
    """clip_grad_norm_ finds the norm that torch alone finds, after two passes, and what is pushed is clipped."""
    clipped = 0
    for begin in range(0, 20, 2):
        norms = []
        for model, opt in pair.both():
            opt.zero_grad()
            for batch in batches(20)[begin : begin + 2]:
                loss_of(model, batch).backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            opt.step()
        torch.testing.assert_close(*norms, **CLOSE)
        clipped += bool(norms[0] > 0.5)
    assert clipped > 2
    pair.require_equal()


def test_a_grad_scaler_unscales_rows_before_they_are_pushed(pair: Pair) -> None:
    """With a scale of 2^16, and clipping in between, rows learn what they learn without."""
    scalers = [torch.amp.GradScaler("cpu") for _ in range(2)]
    for number, batch in enumerate(batches(10)):
        for (model, opt), scaler in zip(pair.both(), scalers, strict=True):
            opt.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            if number % 2:
                scaler.unscale_(opt)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**16
    pair.require_equal()


@pytest.mark.parametrize("where", ["rows", "dense"])
def test_a_grad_scaler_that_finds_infinity_pushes_nothing(pair: Pair, where: str) -> None:
    """Infinity in the rows' gradients, or in the dense ones alone: neither is changed, and the scale halves."""
    scaler = torch.amp.GradScaler("cpu")
    before = pair.table.pull(np.arange(KEYS))
    dense = [one.detach().clone() for one in pair.ours.dense.parameters()]
    pair.opt.zero_grad()
    scaler.scale(loss_of(pair.ours, batches(1)[0])).backward()
    gradient = pair.ours.bag.rows.grad if where == "rows" else pair.ours.dense[0].weight.grad
    gradient[0, 0] = math.inf
    scaler.step(pair.opt)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert np.array_equal(pair.table.pull(np.arange(KEYS)), before)
    assert all(torch.equal(*pair_) for pair_ in zip(pair.ours.dense.parameters(), dense, strict=True))
    pair.opt.zero_grad()
    for model, opt in pair.both():
        opt.zero_grad()
        loss_of(model, batches(1)[0]).backward()
        opt.step()
    pair.require_equal()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_dense_layers_learn_the_same(pair: Pair, backend: str) -> None:
    """torch.compile of the dense part, whole: by the default backend, which compiles C++, and by eager."""
    pair.ours.dense = torch.compile(pair.ours.dense, backend=backend, fullgraph=True)
    for batch in batches(5):
        for model, opt in pair.both():
            opt.zero_grad()
            loss_of(model, batch).backward()
            opt.step()
    pair.require_equal()


# What a server counts of calls that only read.
READ = {"pulls", "keys_pulled", "keys_missing", "sent_bytes", "received_bytes"}


@pytest.mark.parametrize("how", ["eval", "no_grad", "frozen"])
def test_reading_moves_no_counter_of_learning(how: str) -> None:
    """Not a server's, not the client's step, and not the count of pushes that a key is admitted by."""
    with tb.local(servers=2) as client:
        table = client.table("user", DIM, optimizer=tb.SGD(RATE), initializer=tb.Normal(1.0), admit_at=3)
        layer = tb.torch.EmbeddingBag(table, mode="sum")
        opt = tb.torch.Optimizer(None, layer)
        keys = torch.arange(KEYS).reshape(-1, 3)

        def learn() -> None:
            layer(keys).sum().backward()
            opt.step()

        def counted() -> Any:
            found = [dict(one.counters) for one in table.session.stats()]
            return [{name: value for name, value in one.items() if name not in READ} for one in found]

        learn()
        before, step = counted(), client.next_step
        if how == "eval":
            layer.eval()
        layer.requires_grad_(how != "frozen")
        with torch.set_grad_enabled(how != "no_grad"):
            for _ in range(5):
                assert not layer(keys).any()
        assert counted() == before
        assert client.next_step == step
        layer.train().requires_grad_(True)
        learn()
        assert len(table) == 0
        learn()
        assert len(table) == KEYS


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batches for a DataLoader."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return batches(8)[index]


def test_a_data_loader_may_fork_its_workers_after_connecting(tmp_path: Path) -> None:
    """num_workers=2, forked after gRPC has been used: the loader's processes load, and the model learns."""
    with Servers(tmp_path, 2) as servers, tb.connect(servers.addresses, job="faults") as client:
        pair = Pair(client)
        loader = torch.utils.data.DataLoader(
            Pairs(), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        for _ in range(2):
            for batch in loader:
                for model, opt in pair.both():
                    opt.zero_grad()
                    loss_of(model, batch).backward()
                    opt.step()
        pair.require_equal()


@pytest.mark.parametrize("pushes", ["waited for", "ahead"])
@pytest.mark.parametrize("ahead", [1, 3])
def test_prefetching_changes_nothing_for_one_worker(
    pair: Pair, ahead: int, pushes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows pushed meanwhile are pulled again: the same rows as without, and no other pull."""
    pair.opt.ahead = pushes == "ahead"
    session = pair.table.session
    pulls = []
    monkeypatch.setattr("tablebay.client.torch.rows._pull_remote", lambda *arguments: pulls.append(arguments))
    found = tb.torch.prefetch(batches(20), lambda batch: {pair.ours.bag: batch[0]}, ahead=ahead)
    for number, batch in enumerate(found):
        assert torch.equal(batch[0], batches(20)[number][0])
        for model, opt in pair.both():
            opt.zero_grad()
            loss_of(model, batch).backward()
            opt.step()
    assert number == 19
    assert pulls == []
    assert session.prefetches == 0
    pair.require_equal()


def test_a_prefetch_that_is_not_used_is_given_up(pair: Pair) -> None:
    """Other keys are a pull of their own; leaving the loop early leaves no prefetch behind."""
    for number, (keys, _) in enumerate(
        tb.torch.prefetch(batches(200), lambda batch: {pair.ours.bag: batch[0]})
    ):
        assert pair.ours.bag(keys[:1]).shape == (1, DIM)
        if number == 150:
            break
    assert pair.table.session.prefetches == 0
    assert pair.ours.bag.rows.fetched == []
    with pytest.raises(tb.BadRequest, match="ahead is 0, wanted 1 to 16"):
        tb.torch.prefetch([], dict, ahead=0)
    with pytest.raises(tb.BadType, match="lookup: found str as a key"):
        next(tb.torch.prefetch([1], lambda batch: {"user": batch}))
    with pytest.raises(tb.BadType, match="refresh: found int, wanted bool"):
        tb.torch.prefetch([], dict, refresh=1)


@pytest.mark.parametrize("refresh", [True, False])
def test_rows_that_did_not_come_are_asked_for_again_by_the_lookup(
    pair: Pair, refresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server answers the prefetch in time: the lookup asks by itself, and learns what it should."""
    asked = []

    def receive(self: Prefetch) -> None:
        asked.append(self)
        raise tb.Unavailable("not now")

    monkeypatch.setattr(Prefetch, "receive", receive)
    for batch in tb.torch.prefetch(batches(8), lambda batch: {pair.ours.bag: batch[0]}, refresh=refresh):
        for model, opt in pair.both():
            opt.zero_grad()
            loss_of(model, batch).backward()
            opt.step()
    assert len(asked) == 8
    assert pair.table.session.prefetches == 0
    pair.require_equal()


def test_rows_that_are_not_refreshed_are_as_they_were_when_asked_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch has the same keys: each but the first reads rows that lack at least the push before it."""
    keys, labels = batches(1)[0]
    came = threading.Semaphore(0)
    receive = Prefetch.receive
    monkeypatch.setattr(Prefetch, "receive", lambda self: (receive(self), came.release()))
    seen: list[torch.Tensor] = []
    for number, batch in enumerate(
        tb.torch.prefetch([keys] * 6, lambda batch: {pair.ours.bag: batch}, refresh=False)
    ):
        # The rows of the next batch come before this one is pushed.
        for _ in range((number == 0) + (number < 5)):
            assert came.acquire(timeout=60)
        pair.opt.zero_grad()
        now = torch.from_numpy(pair.table.pull(batch.numpy())).sum(1)
        found = pair.ours.bag(batch)
        assert torch.allclose(found, now, rtol=1e-5, atol=1e-6) == (not seen)
        seen.append(found.detach())
        ((pair.ours.dense(found)[:, 0] - labels) ** 2).mean().backward()
        pair.opt.step()
    assert len(seen) == 6


def test_what_follows_a_push_that_goes_on_waits_for_it(pair: Pair) -> None:
    """A pull, a checkpoint of the rows' number of steps, a push: each finds the rows that step() handed over."""
    pair.opt.ahead = True
    session = pair.table.session
    for number, batch in enumerate(batches(30)):
        for model, opt in pair.both():
            opt.zero_grad()
            loss_of(model, batch).backward()
            opt.step()
        assert session.ledger.next == number + 1
        if number % 3 == 0:
            pair.require_equal()
    session.settle()
    assert session.open_steps == 0
    pair.require_equal()


def test_what_became_of_a_push_that_goes_on_is_raised_by_the_next_call(pair: Pair) -> None:
    """Once; that call has done nothing and may be made again. The step's number is that of the next push."""
    pair.opt.ahead = True
    table, first, second = pair.table, *batches(2)
    before = table.pull(np.arange(KEYS))
    loss_of(pair.ours, first).backward()
    pair.ours.bag.rows.grad[0, 0] = torch.nan
    pair.opt.step()
    pair.opt.zero_grad()
    with pytest.raises(tb.NonFinite, match="table 'user'"):
        loss_of(pair.ours, second)
    assert np.array_equal(table.pull(np.arange(KEYS)), before)
    assert table.session.ledger.next == 0
    loss_of(pair.ours, second).backward()
    pair.opt.step()
    assert not np.array_equal(table.pull(np.arange(KEYS)), before)


def learn_ahead(client: Any, kill: Any = None) -> NDArray[np.float32]:
    """Rows after 60 steps whose pushes go on beside the next batch, with `kill` called in the middle."""
    table = client.table("user", dim=DIM, optimizer=tb.SGD(RATE), initializer=tb.Normal(1.0))
    model = Model(tb.torch.EmbeddingBag(table, mode="sum"))
    opt = tb.torch.Optimizer(torch.optim.SGD(model.parameters(), RATE), model, ahead=True)
    for number, batch in enumerate(
        tb.torch.prefetch(batches(60), lambda batch: {model.bag: batch[0]}, ahead=2)
    ):
        opt.zero_grad()
        loss_of(model, batch).backward()
        opt.step()
        if number == 25 and kill is not None:
            kill()
    return np.asarray(table.pull(np.arange(KEYS)))


def test_a_server_killed_under_pushes_that_go_on_loses_and_doubles_none(tmp_path: Path) -> None:
    """kill -9 right after a push was handed over; the rows are bit for bit those of servers that stayed."""
    with tb.local(servers=2) as client:
        wanted = learn_ahead(client)
    with Servers(tmp_path / "servers", 2, "--checkpoint-every-seconds", "3600") as servers:
        with tb.connect(servers.addresses, rank=0, job="faults", timeout=60.0) as client:
            found = learn_ahead(client, lambda: servers.kill(1))
        assert servers.killed[1] == 1
    assert np.array_equal(found, wanted)


def dropping(client: Any) -> tuple[Model, Any, Any]:
    """A model with random dropout, Adam, Adagrad and a scaler: all that must come back."""
    table = client.table("user", dim=DIM, optimizer=tb.Adagrad(0.1), initializer=tb.Normal(1.0))
    model = Model(tb.torch.EmbeddingBag(table, mode="sum"))
    model.dense.insert(1, nn.Dropout(0.3))
    model.dense.insert(1, nn.BatchNorm1d(6))
    opt = tb.torch.Optimizer(torch.optim.Adam(model.parameters(), 0.01), model)
    return model, opt, torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=7)


def train(client: Any, last: int, checkpoint_at: int | None = None) -> tuple[Any, ...]:
    """Steps from where the rank stopped until `last`; all that was learnt."""
    model, opt, scaler = dropping(client)
    tb.torch.load_state(client.state(), model, opt, scaler)
    for number, batch in client.resume(batches(last)):
        opt.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        scaler.step(opt)
        scaler.update()
        if number + 1 == checkpoint_at:
            client.checkpoint(state=tb.torch.state(model, opt, scaler))
    parameters = [value.clone() for name, value in model.state_dict().items() if "rows" not in name]
    return parameters, client.table("user").pull(np.arange(KEYS)), scaler.state_dict()


def test_all_killed_and_started_again_one_worker_learns_bit_for_bit_the_same(tmp_path: Path) -> None:
    """A checkpoint at step 12, all killed after 20, begun again: as a run of 40 steps that nothing stopped."""
    with Servers(tmp_path / "whole", 2, "--checkpoint-every-seconds", "3600") as servers:
        torch.manual_seed(9)
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            wanted = train(client, 40)
    with Servers(tmp_path / "killed", 2, "--checkpoint-every-seconds", "3600", restart=False) as servers:
        torch.manual_seed(9)
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            train(client, 20, checkpoint_at=12)
            for index in range(2):
                servers.kill(index)
            leave(client)
        for index in range(2):
            servers.start(index)
        servers.wait_until_ready()
        torch.manual_seed(1000)
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            assert client.next_step == 12
            found = train(client, 40)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[0], wanted[0], strict=True))
    assert np.array_equal(found[1], wanted[1])
    assert found[2] == wanted[2]


def test_a_table_of_a_checkpoint_serves_inference(tmp_path: Path) -> None:
    """tb.open()'s tables in a layer: the same scores as in eval(), in train() too; nothing can be pushed."""
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", "3600") as servers:
        with tb.connect(servers.addresses, rank=0, job="faults") as client:
            model, opt, _ = dropping(client)
            for batch in batches(5):
                loss_of(model, batch).backward()
                opt.step()
            client.checkpoint()
            keys = torch.cat((batches(1)[0][0], torch.tensor([[777, 777, 778]])))
            wanted = model.eval().bag(keys)
        (manifests,) = {path.parent.parent for path in tmp_path.rglob("manifests/*.json")}
        frozen = Model(tb.torch.EmbeddingBag(tb.open(manifests)["user"], mode="sum"))
        assert torch.equal(frozen.bag(keys), wanted)
        assert not frozen.bag(keys).requires_grad


def test_state_has_every_kind_of_value_and_refuses_others() -> None:
    """Shapes, dtypes, nesting and odd floats come back; an object, and a sparse tensor, are named with their place."""
    layer = tb.torch.Embedding(tb.Table(dim=2, name="user"))

    class Kept:
        """Anything with a state_dict."""

        def __init__(self, value: Any) -> None:
            self.value = value

        def state_dict(self) -> Any:
            return self.value

        def load_state_dict(self, value: Any) -> None:
            self.value = value

    value = {
        "a": [1, 2.5, None, True, "x", math.inf, (0.1, -0.0)],
        7: {"bf16": torch.randn(3, 2).bfloat16(), "none": torch.empty(0, 4), "one": torch.tensor(5)},
        "view": torch.arange(12).reshape(3, 4).t(),
        "bools": torch.tensor([True, False]),
    }
    saved = tb.torch.state(layer, Kept(value))
    found = Kept(None)
    assert tb.torch.load_state(saved, layer, found)
    assert found.value["a"] == value["a"]
    assert isinstance(found.value["a"][-1], tuple)
    for name, tensor in value[7].items():
        assert found.value[7][name].dtype == tensor.dtype
        assert torch.equal(found.value[7][name], tensor)
    assert torch.equal(found.value["view"], value["view"])
    assert torch.equal(found.value["bools"], value["bools"])
    assert not tb.torch.load_state({}, layer)
    with pytest.raises(tb.BadType, match=r"state.optimizer.deep\[1\]: found object"):
        tb.torch.state(layer, Kept({"deep": [1, object()]}))
    with pytest.raises(
        tb.BadType, match=r"state.optimizer.x: found a tensor of torch.float32 torch.sparse_coo"
    ):
        tb.torch.state(layer, Kept({"x": torch.eye(2).to_sparse()}))
    with pytest.raises(tb.BadRequest, match="optimizer: the state has one, found none"):
        tb.torch.load_state(saved, layer)


@pytest.mark.parametrize("damage", ["empty", "magic", "short", "long", "json", "shape"])
def test_bytes_that_are_no_state_are_refused_and_change_nothing(damage: str) -> None:
    """Each is CheckpointInvalid, and the model is as it was."""
    model = nn.Linear(2, 1)
    content = tb.torch.state(model)["torch"]
    changed = {
        "empty": b"",
        "magic": b"PK" + content[2:],
        "short": content[:-1],
        "long": content + b"x",
        "json": content[:16] + b"}" + content[17:],
        "shape": content.replace(b'["float32", [1, 2]]', b'["float32", [9, 9]]').replace(
            b"[1, 2]", b"[8, 2]"
        ),
    }[damage]
    before = model.weight.detach().clone()
    with pytest.raises(tb.CheckpointInvalid, match="state 'torch': "):
        tb.torch.load_state({"torch": changed}, model)
    assert torch.equal(model.weight, before)
