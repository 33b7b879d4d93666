"""A model's dense part as bytes, of which nothing is run: names, dtypes, shapes and raw bytes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tablebay.client import errors

NAME = "torch"
VERSION = 1
_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"TBTS"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def state(model: nn.Module, optimizer: Any = None, scaler: Any = None) -> dict[str, bytes]:
    """What `client.checkpoint(state=…)` takes: dense parameters and buffers, optimizer, GradScaler, random numbers.

    model: of a DistributedDataParallel what it wraps. optimizer: a tb.torch.Optimizer or torch's. Rows are in the
    checkpoint itself; of a layer the table's name and dim are kept. All else must be tensors, numbers, strings, None,
    and lists, tuples and mappings of them; anything else is BadType.
    """
    parts: dict[str, Any] = {
        "model": _bare(model).state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }
    return {NAME: _encode(parts)}


def load_state(
    state: Mapping[str, bytes], model: nn.Module, optimizer: Any = None, scaler: Any = None
) -> bool:
    """Give back what `state` took, from `client.state()`. False, and nothing is changed, where there is none.

    Raises CheckpointInvalid for bytes that are no such state, BadRequest where it has an optimizer or a scaler and none
    is given, or the other way round, and what load_state_dict raises for another model.
    """
    if NAME not in state:
        return False
    parts = _decode(state[NAME])
    for name, found, wanted in (
        ("optimizer", parts["optimizer"], optimizer),
        ("scaler", parts["scaler"], scaler),
    ):
        if (found is None) != (wanted is None):
            has, gives = ("none", "one") if found is None else ("one", "none")
            raise errors.BadRequest(f"{name}: the state has {has}, found {gives}, wanted as it was saved")
    _bare(model).load_state_dict(parts["model"])
    if optimizer is not None:
        optimizer.load_state_dict(parts["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(parts["scaler"])
    torch.set_rng_state(parts["random"])
    if torch.cuda.is_available() and len(parts["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(parts["random_cuda"])
    return True


def group_state(client: Any) -> dict[str, bytes]:
    """The state that rank 0 gave with the newest checkpoint, the same on every rank of the process group.

    For load_state: where each rank took its own, one that died before it gave the last would go on from another
    optimizer's state than the rest, and their dense parameters would drift apart. All ranks must call it.
    """
    mine = client.state().get(NAME, b"") if distributed.get_rank() == 0 else b""
    # NCCL moves tensors of its own device alone.
    device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    length = torch.tensor([len(mine)], device=device)
    distributed.broadcast(length, 0)
    if not int(length):
        return {}
    content = torch.empty(int(length), dtype=torch.uint8, device=device)
    if mine:
        content.copy_(torch.from_numpy(np.frombuffer(mine, np.uint8).copy()))
    distributed.broadcast(content, 0)
    return {NAME: content.cpu().numpy().tobytes()}


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _encode(value: Any) -> bytes:
    """A head, a JSON text that has tensors by number, and their bytes one after the other, little-endian."""
    tensors: list[torch.Tensor] = []
    tree = _tree(value, "state", tensors)
    kinds = [[str(one.dtype).removeprefix("torch."), list(one.shape)] for one in tensors]
    text = json.dumps({"tensors": kinds, "tree": tree}).encode()
    content = [_bytes(one) for one in tensors]
    return b"".join((_HEAD.pack(_MAGIC, VERSION, len(text)), text, *content))


def _tree(value: Any, where: str, tensors: list[torch.Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        if str(value.dtype).removeprefix("torch.") not in _DTYPES or value.layout != torch.strided:
            found = f"{value.dtype} {value.layout}"
            raise errors.BadType(
                f"{where}: found a tensor of {found}, wanted a dense one of {', '.join(_DTYPES)}"
            )
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise errors.BadType(f"{where}: found {type(key).__name__} as a key, wanted str or int")
        return {"map": [[key, _tree(item, f"{where}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_tree(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise errors.BadType(
        f"{where}: found {type(value).__name__}, wanted a tensor, a number, a string, None, or a list, tuple or mapping"
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    content: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return content


def _decode(content: bytes) -> dict[str, Any]:
    try:
        magic, version, length = _HEAD.unpack_from(content)
        if magic != _MAGIC or version != VERSION:
            raise ValueError(
                f"begins with {magic!r}, version {version}, wanted {_MAGIC!r}, version {VERSION}"
            )
        begin = _HEAD.size + length
        header = json.loads(content[_HEAD.size : begin])
        tensors = []
        for name, shape in header["tensors"]:
            size = math.prod(shape) * _DTYPES[name].itemsize
            if min(shape, default=0) < 0 or begin + size > len(content):
                raise ValueError(f"{len(content)} bytes are too few")
            raw = torch.from_numpy(np.frombuffer(content, np.uint8, size, begin).copy())
            # A view with other elements wants a stride, which an empty array has not.
            one = raw.view(_DTYPES[name]) if size else torch.empty(0, dtype=_DTYPES[name])
            tensors.append(one.reshape(shape))
            begin += size
        if begin != len(content):
            raise ValueError(f"{len(content) - begin} bytes are left over")
        parts = _value(header["tree"], tensors)
        if set(parts) != {"model", "optimizer", "scaler", "random", "random_cuda"}:
            raise ValueError(f"it has the parts {', '.join(map(str, parts))}")
        return dict(parts)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, struct.error) as error:
        raise errors.CheckpointInvalid(f"state '{NAME}': {error}") from None


def _value(tree: Any, tensors: list[torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: _value(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_value(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    raise ValueError(f"found {kind}")
