"""YAML of job files: safe, one document, no repeated key, bounded, with the line of every value.

Stricter than `yaml.safe_load` where that would lose what the user wrote (a repeated key) and closer to what
the API server reads where the two differ (`1e-8` is a number).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

# A job file of 64 KiB has a few thousand values. Aliases could make millions out of them ("billion laughs").
VALUES_MAX = 50_000
DEPTH_MAX = 64

Path = tuple[str | int, ...]


class YamlProblem(ValueError):
    """The text is not YAML that a job file may hold; the message has the line where there is one."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """value: of dict, list, str, int, float, bool and None. lines: the first line of each path, from 1."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without dates, which JSON has not, and with numbers such as 1e-8."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value: float = loader.construct_yaml_float(node)
    if math.isinf(value) and "inf" not in str(node.value).lower():
        problem = f"found the number {node.value}, wanted one below 1.8e308"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return value


_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse(text: str) -> Document:
    """Read one YAML document. Raises YamlProblem."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise YamlProblem("the file is empty; wanted one YAML document")
            lines: dict[Path, int] = {}
            _Walk(lines).visit(node, ())
            return Document(value=loader.construct_document(node), lines=lines)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise YamlProblem(f"found the character {_character(error)}, wanted text") from None
    except yaml.MarkedYAMLError as error:
        raise YamlProblem(_syntax(error)) from None
    except RecursionError:
        raise YamlProblem(f"values are nested too deeply; wanted at most {DEPTH_MAX} levels") from None
    except yaml.YAMLError as error:
        raise YamlProblem(" ".join(str(error).split())) from None
    except YamlProblem:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        # A constructor of PyYAML: `!!int x`, or a number of more digits than int() takes.
        raise YamlProblem(f"found a value that YAML cannot read: {error}") from None


class _Walk:
    """Visits every value in each place where it stands, so that what aliases multiply is counted in full."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self._lines = lines
        self._values = 0

    def visit(self, node: yaml.Node, path: Path) -> None:
        self._values += 1
        if self._values > VALUES_MAX:
            raise YamlProblem(f"more than {VALUES_MAX} values once aliases are followed; wanted fewer")
        if len(path) > DEPTH_MAX:
            raise YamlProblem(
                f"line {node.start_mark.line + 1}: values are nested too deeply; "
                f"wanted at most {DEPTH_MAX} levels"
            )
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self.visit(child, (*path, index))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> None:
        seen: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise YamlProblem(f"line {line}: found the merge key '<<'; wanted the fields written out")
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise YamlProblem(f"line {line}: found the key {_shown(key)}; wanted a string (quote it)")
            if key.value in seen:
                where = ".".join(str(part) for part in path)
                raise YamlProblem(
                    f"line {line}: the key {key.value!r} is given twice{f' in {where}' if where else ''}, "
                    f"first on line {seen[key.value]}; wanted it once"
                )
            seen[key.value] = line
            # A field's line is that of its name: an unknown field is found there, and the value may start
            # below.
            self._lines.setdefault((*path, key.value), line)
            self.visit(child, (*path, key.value))


def _shown(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "that is a list or a mapping"


def _character(error: yaml.reader.ReaderError) -> str:
    code = error.character if isinstance(error.character, int) else ord(error.character)
    return f"U+{code:04X} at position {error.position}"


def _syntax(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "not YAML"
    if problem == "but found another document":
        problem = "found a second document; wanted one job a file"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
