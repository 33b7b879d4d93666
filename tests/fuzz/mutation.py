"""Changes to bytes and to JSON, by a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

INPUT_BYTES_MAX = 64 * 1024
_EDGES = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 1023, 1024, 4096, 1 << 20, (1 << 20) + 1)
_EDGES = (*_EDGES, *(2**power + more for power in (31, 32, 63, 64) for more in (-1, 0)))
_WORDS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 1e308, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30),
    *("", "a", "..", "/", "\0", "Rows", "Steps", "Full", "Fence", "\ud800", "0-1023", "x" * 5000),
    *([], {}, [[]], [None], {"": None}),
)


def change_bytes(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to some changes. others: inputs of which a part may be taken."""
    changed = bytearray(data)
    for _ in range(1 + int(chance.expovariate(0.7))):
        _change_once(chance, changed, others)
    return bytes(changed[:INPUT_BYTES_MAX])


def _change_once(chance: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 2, 4, 8, 16, 64, 256)))
    match chance.randrange(8):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.randrange(256)
        case 2:
            width = chance.choice((1, 2, 4, 8))
            edge = (chance.choice(_EDGES) % 2 ** (8 * width)).to_bytes(width, "little")
            data[at : at + width] = edge
        case 3:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8, 17)))
        case 4:
            del data[at:end]
        case 5:
            data[at:at] = data[at:end] * chance.choice((1, 1, 2, 50))
        case 6:
            del data[at:]
        case _ if others:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            data[at:end] = other[begin : begin + chance.choice((4, 16, 64, 1024))]


def change_message(chance: random.Random, message: Any) -> None:
    """A protobuf message with some of its fields changed: what comes of it is a message still."""
    for _ in range(1 + int(chance.expovariate(0.7))):
        _change_field(chance, message)


def _change_field(chance: random.Random, message: Any) -> None:
    field = chance.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if field.message_type is not None and field.is_repeated:
        if value and chance.random() < 0.7:
            _change_field(chance, chance.choice(value))
        elif value and chance.random() < 0.5:
            del value[chance.randrange(len(value))]
        else:
            value.add().CopyFrom(chance.choice(value) if value else field.message_type._concrete_class())
    elif field.message_type is not None:
        _change_field(chance, value)
    elif field.is_repeated:
        value.append(change_bytes(chance, value[0] if value else b"", []))
    elif field.type == field.TYPE_BYTES:
        setattr(message, field.name, change_bytes(chance, value, []))
    elif field.type == field.TYPE_BOOL:
        setattr(message, field.name, not value)
    else:
        width = 64 if field.type in (field.TYPE_FIXED64, field.TYPE_UINT64) else 32
        setattr(
            message, field.name, chance.choice((*_EDGES, value + 1, 1 << chance.randrange(width))) % 2**width
        )


def change_json(chance: random.Random, value: Any) -> Any:
    """Another value with something in it replaced, left out, added or doubled. Changes `value` itself."""
    for _ in range(1 + int(chance.expovariate(1.0))):
        value = _change_json_once(chance, value)
    return value


def _change_json_once(chance: random.Random, value: Any) -> Any:
    place, parents = value, []
    while isinstance(place, dict | list) and place and (not parents or chance.random() < 0.85):
        key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        parents.append((place, key))
        place = place[key]
    if not parents:
        return copy.deepcopy(chance.choice(_WORDS))
    parent, key = parents[-1]
    match chance.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.append(parent[key])
        case 1:
            parent[chance.choice(("", "x", "number", "__class__"))] = parent[key]
        case 2 if isinstance(place, int):
            parent[key] = place + chance.choice((-1, 1, 2**32, -(2**63)))
        case 2 if isinstance(place, str):
            parent[key] = place[:-1] + chance.choice(("", "é", "0", "-", ","))
        case 3:
            parent[key] = [place] * chance.choice((1, 2, 300))
        case _:
            parent[key] = copy.deepcopy(chance.choice(_WORDS))
    return value
