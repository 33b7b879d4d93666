"""One optimizer for a model's dense parameters and its tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tablebay.client import errors
from tablebay.client.session import PushPart, Session
from tablebay.client.step import Step
from tablebay.client.table import RemoteTable
from tablebay.client.torch.devices import Sent
from tablebay.client.torch.rows import Keys, Rows, rows_of


class Optimizer:
    """A torch optimizer for the dense parameters, and the tables' own for the rows.

    dense: any torch.optim.Optimizer over the model's parameters, or None where all of them are rows. Rows among them
    are taken out: how they learn is the table's `optimizer`, which the servers apply.
    model: its tables are pushed by `step()`.

    `param_groups` has the rows too, so that GradScaler unscales them before they are pushed. Learning rate schedulers
    take `dense`; a table's rate is changed with `table.set(learning_rate=…)`.

    ahead: `step()` does not wait for its push, which goes on while the model computes; one is under way at a time, and
    whatever else is asked of the client waits for it.
    """

    def __init__(self, dense: torch.optim.Optimizer | None, model: nn.Module, *, ahead: bool = False) -> None:
        if dense is not None and not isinstance(dense, torch.optim.Optimizer):
            raise errors.BadType(
                f"dense: found {type(dense).__name__}, wanted a torch.optim.Optimizer or None"
            )
        if not isinstance(model, nn.Module):
            raise errors.BadType(f"model: found {type(model).__name__}, wanted a torch.nn.Module")
        self.dense = dense
        self.ahead = ahead
        self.rows: list[Rows] = [one for one in model.parameters() if isinstance(one, Rows)]
        if not self.rows:
            raise errors.BadRequest("the model has no layer of tb.torch; wanted one that looks up a table")
        if dense is not None:
            for group in dense.param_groups:
                group["params"] = [one for one in group["params"] if not isinstance(one, Rows)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The dense optimizer's groups, and one of all rows."""
        return [*(self.dense.param_groups if self.dense is not None else ()), {"params": list(self.rows)}]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those of rows too."""
        if self.dense is not None:
            self.dense.zero_grad(set_to_none=set_to_none)
        for rows in self.rows:
            rows.clear()

    def step(self, closure: Callable[[], float] | None = None, *, cursor: bytes = b"") -> None:
        """Push the rows' gradients, then take the dense optimizer's step.

        All tables of a client are pushed as one step of it, which is all or nothing on each shard; a client's step
        is used also where there is nothing to push, so that calls and steps have the same numbers. Gradients stay
        until zero_grad(), but those of rows, which are pushed once. cursor: at most 1 KiB, kept with the step.
        Raises what a push raises; then the dense step was not taken. After Unavailable the client has the rows'
        gradients, and sends them again before anything else: do not compute them again. With `ahead` the next call
        of the client, a lookup say, raises it once, and has done nothing then; the dense step was taken.
        """
        if closure is not None:
            raise errors.BadRequest("closure: found one, wanted None: rows are pushed once a step")
        sessions: dict[Session, dict[RemoteTable, tuple[Keys, Sent]]] = {}
        local: list[tuple[Rows, tuple[Keys, Sent]]] = []
        for rows in self.rows:
            update = rows.update()
            if isinstance(rows.table, RemoteTable):
                updates = sessions.setdefault(rows.table.session, {})
                if update is not None:
                    updates[rows.table] = update
            elif update is not None:
                local.append((rows, update))
        if cursor and not sessions:
            raise errors.BadRequest("cursor: the model has no table of servers to keep it; wanted b''")
        for session, updates in sessions.items():
            if self.ahead:
                session.push_later(partial(_parts, updates), cursor)
                continue
            try:
                with Step(session) as step:
                    step.push(
                        {table: (keys, _array(sent)) for table, (keys, sent) in updates.items()}, cursor
                    )
            except errors.Unavailable:
                for table in updates:
                    rows_of(table).clear()
                raise
        for rows, (keys, sent) in local:
            rows.table.push(keys, _array(sent))
        for rows in self.rows:
            rows.clear()
        if self.dense is not None:
            self.dense.step()

    def state_dict(self) -> dict[str, Any]:
        """The dense optimizer's. What the tables' optimizers know is with the rows."""
        return self.dense.state_dict() if self.dense is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of an optimizer with the same dense parameters."""
        if self.dense is not None:
            self.dense.load_state_dict(state_dict)
        elif state_dict:
            raise errors.BadRequest("state_dict: found a dense optimizer's, and this one has none; wanted {}")


def _parts(updates: dict[RemoteTable, tuple[Keys, Sent]]) -> list[PushPart]:
    return [table.push_part(keys, _array(sent)) for table, (keys, sent) in updates.items()]


def _array(sent: Sent) -> NDArray[Any]:
    return np.ascontiguousarray(sent.wait().numpy())
