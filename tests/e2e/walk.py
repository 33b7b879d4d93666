"""Every field of the TrainingJob's definition, with values to walk through; from the schema, so of new fields too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tablebay.client import schema

Path = tuple[str | int, ...]

_SPEC = schema.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
# Texts with a form of their own. Each field of text without a list of words must have two here.
_TEXTS: dict[str, tuple[Any, Any]] = {
    "destination": ("pvc://walk/one", "pvc://walk/two"),
    "from": ("Never", "pvc://other/run"),
    "image": ("registry/one:1", "registry/two:2"),
    "name": ("one", "two"),
    "priorityClassName": ("one", "two"),
    "queue": ("one", "two"),
    "schedulerName": ("one", "two"),
    "size": ("1Gi", "2Gi"),
    "storageClassName": ("one", "two"),
}
_WORKER = {"name": "worker", "command": ["true"]}
# Lists and templates are walked as a whole.
_WHOLES: dict[str, tuple[Any, Any]] = {
    "accessModes": (["ReadWriteMany"], ["ReadWriteOnce"]),
    "rules": (
        [{"name": "one", "onReasons": ["OOMKilled"], "action": "Ignore"}],
        [{"name": "two", "onReasons": ["Evicted"], "action": "Ignore"}],
    ),
    "template": (
        {"spec": {"containers": [_WORKER], "nodeSelector": {"walk": "one"}}},
        {"spec": {"containers": [_WORKER], "nodeSelector": {"walk": "two"}}},
    ),
    "when": (["Delete"], ["Suspend", "Delete"]),
}


@dataclass(frozen=True)
class Field:
    """A field: its path, its table's index in it as a number, and values that the schema takes."""

    path: Path
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """As documents write it: `checkpoint.retain.last`, `tables[].dim`."""
        return ".".join("[]" if isinstance(part, int) else part for part in self.path).replace(".[]", "[]")


def fields() -> list[Field]:
    """All of them, in the order of the schema."""
    return list(_walk(_SPEC, ()))


def _walk(part: dict[str, Any], path: Path) -> Iterator[Field]:
    name = str(path[-1]) if path else ""
    if path == ("tables",):
        yield from _walk(part["items"], (*path, 0))
    elif name in _WHOLES:
        yield Field(path, _WHOLES[name])
    elif "properties" in part:
        for child, below in part["properties"].items():
            yield from _walk(below, (*path, child))
    else:
        yield Field(path, _values(part, name))


def _values(part: dict[str, Any], name: str) -> tuple[Any, ...]:
    if "enum" in part:
        return tuple(part["enum"])
    kind = part.get("type")
    if kind == "boolean":
        return True, False
    low, high = part.get("minimum", 0), part.get("maximum", 2**31 - 1)
    if kind == "integer":
        return min(max(low, 1) + 1, high), min(max(low, 1) + 2, high)
    if kind == "number":
        return min(max(low, 0.25), high), min(max(low, 0.25) * 2, high)
    if name in _TEXTS:
        return _TEXTS[name]
    raise AssertionError(f"{name}: wanted two values of it in tests/e2e/walk.py; its schema is {part}")


def at(spec: dict[str, Any], path: Path) -> Any:
    """What stands at a path, or None."""
    found: Any = spec
    for part in path:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def with_value(spec: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """The spec with another value at a path; None takes the field away."""
    result = copy.deepcopy(spec)
    place: Any = result
    for part in path[:-1]:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    if value is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = copy.deepcopy(value)
    return result
