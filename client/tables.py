"""What a table is: its name, width, element type, optimizer and initializer.

One model for the job file, the server's start and the SDK. From Python: `Adagrad(0.05)`; from YAML and JSON:
`{type: Adagrad, learningRate: 0.05}`. The update rules are in native/src/optimizer.cc, the initial values in
native/src/table.cc; the ranges here are the ones that the native core checks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from tablebay.client.errors import BadRequest

if TYPE_CHECKING:
    from tablebay.client.proto import tablebay_pb2

TABLE_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9_]*[a-z0-9])?$"
TABLE_NAME_CHARACTERS_MAX = 63
DIM_MAX = 65536

_CONFIG = ConfigDict(
    alias_generator=to_camel,
    populate_by_name=True,
    extra="forbid",
    allow_inf_nan=False,
)
_Float = Annotated[float, Field(strict=True)]
_Positive = Annotated[float, Field(strict=True, ge=0.0, le=1e30)]
# Up to here Adam's bias corrections reach 1 within four million steps of a row, which is what the core keeps.
_Beta = Annotated[float, Field(strict=True, ge=0.0, le=0.999995)]

_Class = TypeVar("_Class", bound=type)


def _bad_request(cls: _Class) -> _Class:
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


def _parameters(value: Any) -> dict[str, float]:
    return {
        field.name: float(getattr(value, field.name))
        for field in dataclass_fields(value)
        if field.name != "type"
    }


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class SGD:
    """w -= learning_rate * g."""

    learning_rate: _Positive = 0.01
    type: Literal["SGD"] = Field(default="SGD", kw_only=True, repr=False)

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Adagrad:
    """G += g²; w -= learning_rate * g / (√G + epsilon), element by element. Duchi, Hazan, Singer 2011.

    G begins as `initial_accumulator`.
    """

    learning_rate: _Positive = 0.05
    initial_accumulator: _Positive = 0.1
    epsilon: _Positive = 1e-8
    type: Literal["Adagrad"] = Field(default="Adagrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.initial_accumulator == 0.0 and self.epsilon == 0.0:
            raise ValueError(
                "initial_accumulator and epsilon are both 0, so a zero gradient would divide 0 by 0"
            )
        return self

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Adam:
    """Adam with bias correction by a step count of each row. Kingma, Ba 2015, algorithm 1, with PyTorch's
    epsilon.

    Lazy: the moments of a row that a push does not name stay as they are.
    """

    learning_rate: _Positive = 0.001
    beta1: _Beta = 0.9
    beta2: _Beta = 0.999
    epsilon: _Positive = 1e-8
    type: Literal["Adam"] = Field(default="Adam", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.epsilon == 0.0:
            raise ValueError("epsilon is 0, so a zero gradient would divide 0 by 0; wanted more than 0")
        return self

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Add:
    """w += g. The one optimizer of int64 tables, whose sums wrap; it has no learning rate."""

    type: Literal["Add"] = Field(default="Add", kw_only=True, repr=False)

    def parameters(self) -> dict[str, float]:
        """Nothing."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Zeros:
    """New rows are 0."""

    type: Literal["Zeros"] = Field(default="Zeros", kw_only=True, repr=False)

    def parameters(self) -> dict[str, float]:
        """Nothing."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Constant:
    """New rows are `value`."""

    value: _Float
    type: Literal["Constant"] = Field(default="Constant", kw_only=True, repr=False)

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Uniform:
    """New rows are drawn from [low, high), by (seed, table, key, column) alone."""

    low: _Float = -0.05
    high: _Float = 0.05
    type: Literal["Uniform"] = Field(default="Uniform", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}; wanted low <= high")
        return self

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        return _parameters(self)


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class Normal:
    """New rows are drawn from a normal distribution, by (seed, table, key, column) alone."""

    stddev: _Positive = 0.01
    mean: _Float = 0.0
    type: Literal["Normal"] = Field(default="Normal", kw_only=True, repr=False)

    def parameters(self) -> dict[str, float]:
        """What the native core wants, by its snake_case names."""
        return _parameters(self)


Optimizer = SGD | Adagrad | Adam | Add
Initializer = Zeros | Constant | Uniform | Normal
Dtype = Literal["float32", "int64"]
NonFinite = Literal["Reject", "Zero", "Allow"]

_OPTIMIZERS: dict[str, type[Any]] = {cls.__name__: cls for cls in (SGD, Adagrad, Adam, Add)}
_INITIALIZERS: dict[str, type[Any]] = {cls.__name__: cls for cls in (Zeros, Constant, Uniform, Normal)}


@_bad_request
@dataclass(frozen=True, config=_CONFIG)
class TableSpec:
    """One table.

    Without `optimizer` and `initializer` a float32 table has Adagrad() and Normal(), an int64 table Add() and
    Zeros().
    non_finite: what a gradient with NaN or infinity gets: the push is refused, or the row's gradient counts
        as 0,
    or it is applied.
    """

    name: Annotated[str, Field(pattern=TABLE_NAME_PATTERN, max_length=TABLE_NAME_CHARACTERS_MAX)]
    dim: Annotated[int, Field(strict=True, ge=1, le=DIM_MAX)]
    dtype: Dtype = "float32"
    optimizer: Annotated[Optimizer, Field(discriminator="type")] = Field(default_factory=Adagrad)
    initializer: Annotated[Initializer, Field(discriminator="type")] = Field(default_factory=Normal)
    seed: Annotated[int, Field(strict=True, ge=0, le=2**64 - 1)] = 0
    non_finite: NonFinite = "Reject"

    @model_validator(mode="before")
    @classmethod
    def _integer_defaults(cls, value: Any) -> Any:
        """An int64 table has other defaults than a float32 one."""
        if isinstance(value, ArgsKwargs):
            names = [field.name for field in dataclass_fields(cls)]
            if len(value.args) > len(names):
                return value
            value = {**dict(zip(names, value.args, strict=False)), **(value.kwargs or {})}
        if isinstance(value, dict) and value.get("dtype") == "int64":
            return {"optimizer": Add(), "initializer": Zeros(), **value}
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.dtype == "int64":
            if not isinstance(self.optimizer, Add):
                raise ValueError(
                    f"dtype is int64 and optimizer is {self.optimizer.type}; an int64 table wants Add"
                )
            if not isinstance(self.initializer, Zeros):
                raise ValueError(
                    f"dtype is int64 and initializer is {self.initializer.type}; an int64 table wants Zeros"
                )
        return self

    def message(self) -> tablebay_pb2.TableSpec:
        """This spec as the wire has it."""
        # Imported here: the job file's model needs no protobuf.
        from tablebay.client.proto import tablebay_pb2

        return tablebay_pb2.TableSpec(
            name=self.name,
            dim=self.dim,
            dtype=self.dtype,
            optimizer=self.optimizer.type,
            optimizer_parameters=self.optimizer.parameters(),
            initializer=self.initializer.type,
            initializer_parameters=self.initializer.parameters(),
            seed=self.seed,
            non_finite=self.non_finite,
        )

    def with_learning_rate(self, value: float) -> TableSpec:
        """The same but for the learning rate, where its optimizer has one."""
        if "learning_rate" not in self.optimizer.parameters():
            return self
        # Every optimizer with that parameter has a field of its name.
        optimizer: Any = self.optimizer
        return replace(self, optimizer=replace(optimizer, learning_rate=value))

    @classmethod
    def from_message(cls, message: tablebay_pb2.TableSpec) -> TableSpec:
        """The spec that a message holds; a field that it leaves empty has its default. Raises BadRequest."""
        values: dict[str, Any] = {"name": message.name, "dim": message.dim, "seed": message.seed}
        if message.dtype:
            values["dtype"] = message.dtype
        if message.non_finite:
            values["non_finite"] = message.non_finite
        if message.optimizer:
            values["optimizer"] = _by_name(
                "optimizer", _OPTIMIZERS, message.optimizer, message.optimizer_parameters
            )
        if message.initializer:
            values["initializer"] = _by_name(
                "initializer", _INITIALIZERS, message.initializer, message.initializer_parameters
            )
        return cls(**values)


def _by_name(what: str, classes: Mapping[str, type[Any]], name: str, parameters: Mapping[str, float]) -> Any:
    if name not in classes:
        raise BadRequest(f"{what} is '{name}', wanted one of {', '.join(classes)}")
    return classes[name](**dict(parameters))


def differences(found: TableSpec, wanted: TableSpec, fields: Collection[str] | None = None) -> list[str]:
    """Each field in which two specs differ, as `dim: found 16, wanted 32`. fields: those to look at."""
    result = []
    for field in dataclass_fields(found):
        if fields is not None and field.name not in fields:
            continue
        left, right = getattr(found, field.name), getattr(wanted, field.name)
        if left == right:
            continue
        if isinstance(left, Optimizer | Initializer) and left.type == right.type:
            old, new = left.parameters(), right.parameters()
            result += [
                f"{field.name}.{name}: found {old[name]}, wanted {new[name]}"
                for name in old
                if old[name] != new[name]
            ]
        else:
            result.append(f"{field.name}: found {left!r}, wanted {right!r}")
    return result


_TABLES = TypeAdapter(list[TableSpec])


def dump_tables(tables: list[TableSpec]) -> str:
    """Table specs as the JSON of TABLEBAY_TABLES, in the camelCase of the job file."""
    return _TABLES.dump_json(tables, by_alias=True).decode()


def load_tables(text: str) -> list[TableSpec]:
    """The table specs of a JSON text such as TABLEBAY_TABLES. Raises BadRequest naming each wrong field."""
    try:
        tables = _TABLES.validate_json(text)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise BadRequest(f"tables: {'; '.join(problems)}") from None
    names = [table.name for table in tables]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BadRequest(f"tables: {', '.join(repeated)} named more than once; wanted each name once")
    return tables
