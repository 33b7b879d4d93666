"""What the classes of optimizers, initializers and tables have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from functools import wraps
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tablebay.client.errors import BadRequest

CONFIG = ConfigDict(
    alias_generator=to_camel,
    populate_by_name=True,
    extra="forbid",
    allow_inf_nan=False,
)
Float = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, ge=0.0, le=1e30)]
Unit = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
# Up to here Adam's bias corrections reach 1 within four million steps of a row, which is what the core keeps.
Beta = Annotated[float, Field(strict=True, ge=0.0, le=0.999995)]

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
    python_names = {to_camel(name): name for name in names}
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        path = list(problem["loc"])
        if path and isinstance(path[0], int):
            path[0] = names[path[0]] if path[0] < len(names) else f"argument {path[0] + 1}"
        where = ".".join(python_names.get(str(part), str(part)) for part in path)
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("missing", "missing_argument"):
            problems.append(f"{where} is missing")
        elif where:
            problems.append(f"{where} is {problem['input']!r}: {text}")
        else:
            problems.append(text)
    return "; ".join(problems)


class Named:
    """An optimizer or an initializer: `type`, and parameters."""

    # Parts of an optimizer's state of which a row has one number, not one for each weight.
    OF_A_ROW: ClassVar[tuple[str, ...]] = ()

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        value: Any = self
        return {
            field.name: float(getattr(value, field.name))
            for field in dataclass_fields(value)
            if field.name != "type"
        }
