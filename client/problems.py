"""Says what is wrong with a job file in its own words: field path, value found, value wanted, line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

Path = tuple[str | int, ...]
Schema = Mapping[str, Any]

_SHOWN_MAX = 60
_SNAKE = re.compile(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b")


@dataclass(frozen=True)
class Problem:
    """path: of the value. line: from 1, or 0 where unknown. text: the whole sentence with both."""

    path: Path
    line: int
    text: str


def problems_of(
    model: type[BaseModel],
    error: ValidationError,
    value: Any,
    *,
    lines: Mapping[Path, int],
    patterns: Mapping[str, str],
) -> list[Problem]:
    """One sentence for each thing that is wrong with `value`, in the order of the file, without repeats.

    lines: the line of each path, where known. patterns: words for what a regular expression wants.
    """
    walker = _Schemas(model.model_json_schema(by_alias=True, mode="validation"), patterns)
    found: list[Problem] = []
    for detail in error.errors(include_url=False):
        path = _path_of(detail["loc"], detail["type"], value)
        if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, str(detail["ctx"]["discriminator"]).strip("'"))
        line = _line_of(path, lines)
        where = path_text(path) or "the file"
        at = f" (line {line})" if line else ""
        found.append(Problem(path, line, f"{where}: {_words(detail, path, value, walker)}{at}"))
    return list(dict.fromkeys(sorted(found, key=lambda problem: problem.line)))


def path_text(path: Path) -> str:
    """`spec.tables[0].dim`; a key that is no plain word goes in brackets too."""
    text = ""
    for part in path:
        if isinstance(part, int) or not part.replace("_", "").isalnum():
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value as YAML would write it, cut short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        cut = value if len(value) <= _SHOWN_MAX else f"{value[:_SHOWN_MAX]}…"
        return f"{cut!r} ({len(value)} characters)" if cut is not value else repr(value)
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    return str(value)[:_SHOWN_MAX]


def _path_of(location: Sequence[str | int], kind: str, value: Any) -> Path:
    """The location less what pydantic adds to it: the tag or type of the member of a union that was tried."""
    path: list[str | int] = []
    here = value
    for index, part in enumerate(location):
        last = index == len(location) - 1
        is_entry = isinstance(here, Mapping) and part in here
        is_element = isinstance(here, Sequence) and isinstance(part, int) and part < len(here)
        if is_entry or is_element:
            here = here[part]
        elif not (last and kind == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _line_of(path: Path, lines: Mapping[Path, int]) -> int:
    """The line of the value, else that of the nearest thing around it; 0 where no lines are known."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 0


def _value_at(value: Any, path: Path) -> Any:
    for part in path:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and isinstance(part, int):
            value = value[part]
    return value


def _words(detail: Any, path: Path, value: Any, schemas: _Schemas) -> str:
    kind = detail["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_field(str(path[-1]), schemas.fields(path[:-1], value))
    if kind in ("value_error", "assertion_error"):
        text = str(detail["ctx"]["error"])
        # The models that Python code uses too speak of their fields by the names that Python has for them.
        in_table = path[:2] in (("spec", "tables"), ("spec", "tableDefaults")) and len(path) > 2
        return _SNAKE.sub(lambda name: to_camel(name[0]), text) if in_table else text
    wanted = schemas.wanted(path, value)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        wanted = f"one of {', '.join(schemas.tags(path[:-1], value))}"
    if kind == "union_tag_not_found" or kind == "missing":
        return f"a required field is missing; wanted {wanted}"
    found = _value_at(value, path)
    if kind in ("too_long", "too_short"):
        limit = detail["ctx"].get("max_length", detail["ctx"].get("min_length"))
        bound = "at most" if kind == "too_long" else "at least"
        return f"found {shown(found)}, wanted {bound} {limit}"
    return f"found {shown(found)}, wanted {wanted}"


def _unknown_field(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [field for field in known if field.lower() == name.replace("_", "").lower()]
    if near:
        return f"unknown field; did you mean {near[0]}?"
    return f"unknown field; known here: {', '.join(known)}" if known else "unknown field"


class _Schemas:
    """Finds the JSON schema of a path, and says in words what it wants."""

    def __init__(self, root: Schema, patterns: Mapping[str, str]) -> None:
        self._root = root
        self._patterns = patterns
        self._definitions: Mapping[str, Schema] = root.get("$defs", {})

    def fields(self, path: Path, value: Any) -> list[str]:
        """The names that the mapping at `path` may have."""
        schema = self._at(path, value)
        return list(schema.get("properties", {})) if schema else []

    def wanted(self, path: Path, value: Any) -> str:
        """What the field at `path` wants, in words."""
        schema = self._at(path, value)
        return _wanted(schema, self._patterns) if schema else "another value"

    def tags(self, path: Path, value: Any) -> list[str]:
        """The types that the mapping at `path` may say it is."""
        schema = self._at(path, value)
        return list(schema.get("x-tags", ())) if schema else []

    def _at(self, path: Path, value: Any) -> Schema | None:
        schema: Schema | None = self._resolved(self._root, value)
        for part in path:
            if schema is None:
                return None
            if isinstance(part, int):
                schema = schema.get("items")
            else:
                other = schema.get("additionalProperties")
                schema = schema.get("properties", {}).get(part, other if isinstance(other, Mapping) else None)
            value = _value_at(value, (part,))
            schema = self._resolved(schema, value) if schema is not None else None
        return schema

    def _resolved(self, schema: Schema, value: Any) -> Schema:
        """Follows a reference, and of a union the member that `value` says it is, else the first but null."""
        if "$ref" in schema:
            target = self._definitions[schema["$ref"].rsplit("/", 1)[1]]
            beside = {key: entry for key, entry in schema.items() if key != "$ref"}
            return self._resolved({**target, **beside}, value)
        if "discriminator" in schema:
            tag = value.get(schema["discriminator"]["propertyName"]) if isinstance(value, Mapping) else None
            mapping = schema["discriminator"].get("mapping", {})
            if tag in mapping:
                return self._resolved({"$ref": mapping[tag]}, value)
            words = f"a mapping with type: one of {', '.join(mapping)}"
            return {"type": "object", "x-wanted": words, "x-tags": list(mapping)}
        for union in ("anyOf", "oneOf"):
            members = [member for member in schema.get(union, ()) if member.get("type") != "null"]
            if members and "x-wanted" not in schema:
                beside = {
                    key: entry for key, entry in schema.items() if key not in (union, "title", "default")
                }
                return self._resolved({**members[0], **beside}, value)
        return schema


def _wanted(schema: Schema, patterns: Mapping[str, str]) -> str:
    if "x-wanted" in schema:
        return str(schema["x-wanted"])
    if schema.get("pattern") in patterns:
        return patterns[schema["pattern"]]
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _bounds(schema)
    if kind == "string":
        pattern = f" that matches {schema['pattern']}" if "pattern" in schema else ""
        longest = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
        return f"a string{longest}{pattern}"
    return {"array": "a list", "object": "a mapping", "boolean": "true or false"}.get(
        str(kind), "another value"
    )


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = [
        f"{text} {schema[name]}"
        for name, text in (
            ("minimum", "of at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "of at most"),
            ("exclusiveMaximum", "below"),
        )
        if name in schema
    ]
    return f" {' and '.join(words)}" if words else ""
