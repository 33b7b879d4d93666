"""Every optimizer on servers: the same rows and state, bit for bit, as a table in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.optimizers import OPTIMIZERS

DIM = 6
EVERYTHING: dict[str, Any] = {
    "clip_value": 1.5,
    "clip_norm": 2.0,
    "weight_bound": 0.5,
    "weight_decay": 0.1,
    "schedule": "Exponential",
    "schedule_steps": 9,
    "schedule_to": 0.5,
    "warmup_steps": 4,
}


@pytest.mark.parametrize("beside", ["alone", "everything"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_on_servers_is_that_in_this_process(name: str, beside: str) -> None:
    """Pushes with repeats, an assignment, a deletion, a push of nothing, and a live change of rate and decay.

    With everything on, learning rates go by the step, so the two must number their steps alike.
    """
    seed = 4
    random = np.random.default_rng(seed)
    fields = OPTIMIZERS[name]().values()
    given = (
        {key: value for key, value in EVERYTHING.items() if key in fields} if beside == "everything" else {}
    )
    spec: dict[str, Any] = {"dim": DIM, "optimizer": OPTIMIZERS[name](**given), "initializer": tb.Normal(0.1)}
    table_name = f"{name.lower()}-{beside}"
    with tb.local(servers=2) as client:
        remote, alone = client.table(table_name, **spec), tb.Table(name=table_name, **spec)
        for step in range(25):
            keys = random.integers(0, 60, 20).astype(np.uint64)
            gradients = random.standard_normal((20, DIM)).astype(np.float32)
            for table in (remote, alone):
                if step == 8:
                    table.assign(keys, gradients)
                elif step == 12:
                    table.delete(keys[:5])
                elif step == 14:
                    table.push(keys[:0], gradients[:0])
                else:
                    table.push(keys, gradients)
                if step == 16 and name != "Add":
                    table.set(
                        learning_rate=0.02, **({"weight_decay": 0.3} if "weight_decay" in fields else {})
                    )
        everyone = np.arange(61, dtype=np.uint64)
        where = f"{name} {beside}, seed {seed}"
        assert remote.pull(everyone).tobytes() == alone.pull(everyone).tobytes(), where
        found, wanted = remote.optimizer_state(everyone), alone.optimizer_state(everyone)
    assert list(found) == list(wanted)
    for part, values in wanted.items():
        whole = part in (*OPTIMIZERS[name].OF_A_ROW, "step")
        assert values.shape == found[part].shape == ((61,) if whole else (61, DIM))
        assert values.tobytes() == found[part].tobytes(), f"{where}, {part}"
