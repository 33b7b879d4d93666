"""What the classes of optimizers, initializers and tables have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from functools import wraps
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from tablebay.client.errors import BadRequest

CONFIG = ConfigDict(
    alias_generator=to_camel,
    populate_by_name=True,
    extra="forbid",
    allow_inf_nan=False,
)
Float = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, ge=0.0, le=1e30)]
STEPS_MAX = 2**53
Steps = Annotated[int, Field(strict=True, ge=0, le=STEPS_MAX)]
Unit = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
# Up to here Adam's bias corrections reach 1 within four million steps of a row, which is what the core keeps.
Beta = Annotated[float, Field(strict=True, ge=0.0, le=0.999995)]

# Words that are parameters: the core has their places.
SCHEDULES = ("Constant", "Linear", "Cosine", "Exponential", "Staircase")
CLOCKS = ("Row", "Global", "LazyDecay")
POLICIES = ("LRU", "LFU")
_WORDS = {"schedule": SCHEDULES, "clock": CLOCKS, "policy": POLICIES}

_Class = TypeVar("_Class", bound=type)


def bad_request(cls: _Class) -> _Class:
    """Make a constructor raise BadRequest, by the field's Python name, not pydantic's ValidationError."""
    validate: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @wraps(validate)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise BadRequest(f"{cls.__name__}: {_problems(error, cls)}") from None

    cls.__init__ = construct  # type: ignore[misc]
    return cls


def _problems(error: ValidationError, cls: Any) -> str:
    names = [field.name for field in dataclass_fields(cls)]
    positional = [field.name for field in dataclass_fields(cls) if not field.kw_only]
    python_names = {to_camel(name): name for name in names}
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        path = list(problem["loc"])
        if path and isinstance(path[0], int):
            path[0] = positional[path[0]] if path[0] < len(positional) else f"argument {path[0] + 1}"
        where = ".".join(python_names.get(str(part), str(part)) for part in path)
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("missing", "missing_argument"):
            problems.append(f"{where} is missing")
        elif where:
            problems.append(f"{where} is {problem['input']!r}: {text}")
        else:
            problems.append(text)
    return "; ".join(problems)


@dataclass(frozen=True, config=CONFIG, repr=False)
class Named:
    """An optimizer or an initializer: `type`, and parameters.

    Those that are given by name alone have a default at which nothing is done; they are said where they differ from
    it, and nowhere else: so that what older versions wrote, and read, is what is written where they are not used.
    """

    # Parts of an optimizer's state of which a row has one number, not one for each weight.
    OF_A_ROW: ClassVar[tuple[str, ...]] = ()

    def parameters(self) -> dict[str, float]:
        """What the native core wants: numbers, by its snake_case names."""
        found = {}
        for field in self._said():
            value = getattr(self, field.name)
            found[field.name] = float(_WORDS[field.name].index(value) if field.name in _WORDS else value)
        return found

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> Self:
        """The one with these parameters. Raises BadRequest."""
        values: dict[str, Any] = dict(parameters)
        for name, value in parameters.items():
            if name in _WORDS and value in range(len(_WORDS[name])):
                values[name] = _WORDS[name][int(value)]
            elif name == "decoupled" and value in (0.0, 1.0):
                values[name] = bool(value)
            elif name.endswith(("_steps", "fan_in")) and float(value).is_integer():
                values[name] = int(value)
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """All fields but the type, by name."""
        return {field.name: getattr(self, field.name) for field in self._fields()}

    def _fields(self) -> list[dataclasses.Field[Any]]:
        return [field for field in dataclasses.fields(self) if field.name != "type"]

    def _said(self) -> list[dataclasses.Field[Any]]:
        """What is said of it: positional fields, in their order, and others that are not at their default."""
        return [
            *(field for field in self._fields() if not field.kw_only),
            *(
                field
                for field in self._fields()
                if field.kw_only and getattr(self, field.name) != _default(field)
            ),
        ]

    def __repr__(self) -> str:
        said = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in self._said())
        return f"{type(self).__name__}({said})"

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        silent = {field.name for field in self._fields()} - {field.name for field in self._said()}
        return {name: value for name, value in whole(self).items() if not {name, _snake(name)} & silent}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default.default if isinstance(field.default, FieldInfo) else field.default


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
