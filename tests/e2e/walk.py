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


_RULE = {"name": "one", "action": "Ignore", "target": "Any"}
# What stands around a field of a list's item, for a field that has its place in no other.
_AROUND: dict[str, dict[str, Any]] = {
    "onExitCodes": {**_RULE, "onExitCodes": {"operator": "In", "values": [42]}},
    "onPodConditions": {**_RULE, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    "onReasons": {**_RULE, "onReasons": ["OOMKilled"]},
}
# Beside a field's values, what its rules want of others.
_BESIDE: dict[str, dict[str, Any]] = {
    "workers.replicas": {"minReplicas": 1, "maxReplicas": 10_000},
    "workers.minReplicas": {"replicas": 10_000, "maxReplicas": 10_000},
    "workers.maxReplicas": {"replicas": 1, "minReplicas": 1},
    "runPolicy.failurePolicy.backoff.initialSeconds": {"maxSeconds": 86_400},
    "runPolicy.failurePolicy.backoff.maxSeconds": {"initialSeconds": 1},
    "scheduling.queue": {"gang": "Volcano"},
}
# The same by the field's own name, of a table's and of the defaults'.
_BESIDE_NAMED: dict[str, dict[str, Any]] = {
    "scheduleTo": {"schedule": "Linear", "scheduleSteps": 100},
    "admitFilterKeys": {"admitAt": 2},
    "showWeight": {"minScore": 0.5, "decay": 0.5},
    "clickWeight": {"minScore": 0.5, "decay": 0.5},
}


@dataclass(frozen=True)
class Field:
    """A field: its path, its table's index in it as a number, and values that the schema takes.

    ends: the least, the most, the longest text. beyond: one further than each, and a word that is none of the list.
    """

    path: Path
    values: tuple[Any, ...]
    ends: tuple[Any, ...] = ()
    beyond: tuple[Any, ...] = ()

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
        yield Field(path, _WHOLES[name], *_length(part))
    elif "properties" in part:
        for child, below in part["properties"].items():
            yield from _walk(below, (*path, child))
    else:
        yield Field(path, _values(part, name), *_ends(part, name))


def items() -> list[Field]:
    """The fields of the items of lists, one level deeper than `fields` goes."""
    rules: Path = ("runPolicy", "failurePolicy", "rules")
    part: Any = _SPEC
    for name in rules:
        part = part["properties"][name]
    modes = _SPEC["properties"]["checkpoint"]["properties"]["claim"]["properties"]["accessModes"]
    when = _SPEC["properties"]["checkpoint"]["properties"]["when"]
    return [
        *_items(part["items"], (*rules, 0)),
        Field(("checkpoint", "claim", "accessModes", 0), *_of_item(modes["items"], "accessModes")),
        Field(("checkpoint", "when", 0), *_of_item(when["items"], "when")),
    ]


def _items(part: dict[str, Any], path: Path) -> Iterator[Field]:
    name = next((str(one) for one in reversed(path) if isinstance(one, str)), "")
    if part.get("type") == "array":
        yield Field(path, (), *_length(part))
        yield from _items(part["items"], (*path, 0))
    elif "properties" in part:
        for child, below in part["properties"].items():
            yield from _items(below, (*path, child))
    else:
        yield Field(path, *_of_item(part, name))


def _of_item(part: dict[str, Any], name: str) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    values = tuple(part["enum"]) if "enum" in part else ()
    return (values, *_ends(part, name))


def with_item(spec: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """The spec with a value in an item of a list, and around it what such an item needs."""
    if path[0] == "checkpoint":
        return with_value(with_value(spec, path[:-1], ["ReadWriteMany"]), path, value)
    kind = str(path[4]) if len(path) > 4 else "onReasons"
    rule = _AROUND["onReasons" if kind not in _AROUND else kind]
    result = with_value(spec, path[:3], [rule])
    return with_value(result, path, value)


def asked_for(spec: dict[str, Any], field: Field, value: Any) -> Iterator[dict[str, Any]]:
    """Specs of new jobs with a value of a field, beside it what its rules want: to be tried until one is taken."""
    if field.path[0] == "runPolicy" and "rules" in field.path[:-1]:
        yield with_item(spec, field.path, value)
        return
    if isinstance(field.path[-1], int):
        yield with_item(spec, field.path, value)
        return
    around, name = field.path[:-1], str(field.path[-1])
    part = str(around[-1]) if around else ""
    kinds: list[dict[str, Any]] = [{}]
    if part == "eviction":
        kinds = [{"ttlSeconds": 60}, {"minCount": 2, "graceSeconds": 60, "maxRows": 100, "decay": 0.5}]
    elif part in ("optimizer", "initializer") and name != "type":
        # Another one has it, if this one has not.
        kinds += [{"type": "Adagrad", "schedule": "Linear"}] if name == "scheduleSteps" else []
        kinds += [{"type": type, **({"value": 1.0} if type == "Constant" else {})} for type in _types(part)]
    for kind in kinds:
        result = with_value(spec, around, kind) if "type" in kind else spec
        for other, beside in {**kind, **_BESIDE.get(field.name, {}), **_BESIDE_NAMED.get(name, {})}.items():
            result = with_value(result, (*around, other), beside)
        if "storage" in around:
            result = with_value(result, ("servers", "storage", "size"), "1Gi")
        yield with_value(result, field.path, value)


def _types(part: str) -> list[str]:
    table = _SPEC["properties"]["tables"]["items"]["properties"]
    found: list[str] = table[part]["properties"]["type"]["enum"]
    return found


def _ends(part: dict[str, Any], name: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The ends of what a field's schema takes, and what is one beyond each."""
    if "enum" in part:
        return (), ("Neither",)
    if part.get("type") == "boolean":
        return (), ("yes",)
    if part.get("x-kubernetes-int-or-string"):
        return (1, "1", str(2**63 - 2)), (0, -1, "0", "-1Gi", str(2**63 - 1), "1" * (part["maxLength"] + 1))
    if part.get("type") in ("integer", "number"):
        step = 1 if part["type"] == "integer" else 0.5
        ends = tuple(part[bound] for bound in ("minimum", "maximum") if bound in part)
        low = (part["minimum"] - step,) if "minimum" in part else ()
        high = (
            (part["maximum"] + step if part["maximum"] < 1e15 else part["maximum"] * 2,)
            if "maximum" in part
            else ()
        )
        return ends, (*low, *high)
    longest = part["maxLength"]
    begin = "pvc://walk/" if name in ("destination", "from") else ""
    # A label of a name in Kubernetes has 63 characters at most, and a name more of them with dots between.
    text = begin + ("a" * longest)[: longest - len(begin)]
    short = ("",) if part.get("minLength") else ()
    return (text,), (text + "a", *short)


def _length(part: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Of a list: one with an item too many."""
    if part.get("type") != "array":
        return (), ()
    item, most = part["items"], part["maxItems"]
    if "enum" in item:
        many: list[Any] = [item["enum"][number % len(item["enum"])] for number in range(most + 1)]
    elif item.get("type") == "integer":
        many = list(range(1, most + 2))
    elif item.get("type") == "string":
        many = [f"Reason{number}" for number in range(most + 1)]
    elif "action" in item["properties"]:
        many = [{**_AROUND["onReasons"], "name": f"rule-{number}"} for number in range(most + 1)]
    else:
        many = [{"type": f"Type{number}", "status": "True"} for number in range(most + 1)]
    ends = () if "enum" in item else (many[:-1],)
    return ends, (many, *(([],) if part.get("minItems") else ()))


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
