"""What a table is: its name, width, element type, optimizer and initializer.

One model for the job file, the server's start and the SDK. From Python: `Adagrad(0.05)`; from YAML and JSON:
`{type: Adagrad, learningRate: 0.05}`. The update rules are in native/src/optimizer.cc, the initial values in
native/src/table.cc; the ranges here are the ones that the native core checks again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from tablebay.client.errors import BadRequest
from tablebay.client.eviction import Eviction
from tablebay.client.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, Add, Optimizer
from tablebay.client.options import CONFIG, Float, Named, Positive, bad_request

if TYPE_CHECKING:
    from tablebay.client.proto import tablebay_pb2

# What other modules, and tests, know by this one's name too.
__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Add",
    "Constant",
    "Eviction",
    "Initializer",
    "Normal",
    "Optimizer",
    "TableSpec",
    "TruncatedNormal",
    "Uniform",
    "Xavier",
    "Zeros",
]

# What may change of an optimizer while its table is used.
LIVE_OPTIONS = ("learning_rate", "weight_decay")
TABLE_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9_]*[a-z0-9])?$"
TABLE_NAME_CHARACTERS_MAX = 63
SIGHTINGS_SUFFIX = "--sightings"
DAYS_SUFFIX = "--days"
# Of a table of days: the last epoch, and how many days that makes.
DAYS_DIM = 2
DIM_MAX = 65536


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Zeros(Named):
    """New rows are 0."""

    type: Literal["Zeros"] = Field(default="Zeros", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Constant(Named):
    """New rows are `value`."""

    value: Float
    type: Literal["Constant"] = Field(default="Constant", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Uniform(Named):
    """New rows are drawn from [low, high), by (seed, table, key, column) alone."""

    low: Float = -0.05
    high: Float = 0.05
    type: Literal["Uniform"] = Field(default="Uniform", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}; wanted low <= high")
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Normal(Named):
    """New rows are drawn from a normal distribution, by (seed, table, key, column) alone."""

    stddev: Positive = 0.01
    mean: Float = 0.0
    type: Literal["Normal"] = Field(default="Normal", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class TruncatedNormal(Named):
    """As Normal, but no number is further than two standard deviations from the mean. As TensorFlow's.

    Drawn through the distribution's inverse, not again until it fits: so by (seed, table, key, column) alone too.
    """

    stddev: Positive = 0.01
    mean: Float = 0.0
    type: Literal["TruncatedNormal"] = Field(default="TruncatedNormal", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Xavier(Named):
    """Uniform within ±√(6 / (fan_in + dim)). Glorot, Bengio 2010, formula 16.

    fan_in: inputs of the layer that the rows feed as weights; the table's dim unless given, which makes ±√(3 / dim).
    """

    fan_in: Annotated[int, Field(strict=True, ge=1, le=2**53)] | None = Field(default=None, kw_only=True)
    type: Literal["Xavier"] = Field(default="Xavier", kw_only=True, repr=False)


Initializer = Zeros | Constant | Uniform | Normal | TruncatedNormal | Xavier
Dtype = Literal["float32", "bfloat16", "float16", "int64"]
WEIGHT_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8}
NonFinite = Literal["Reject", "Zero", "Allow"]
PushMissing = Literal["Create", "Drop"]
AdmitAt = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
AdmitProbability = Annotated[float, Field(strict=True, gt=0.0, le=1.0)]
AdmitFilterKeys = Annotated[int, Field(strict=True, ge=0, le=10**12)]
# Fields that say which keys get rows, and keep them.
ADMISSION = ("push_missing", "admit_at", "admit_probability", "admit_filter_keys", "eviction")
# A filter's rows of 4-bit counters.
FILTER_DIM = 32
FILTER_COUNT_MAX = 15

INITIALIZERS: dict[str, type[Any]] = {cls.__name__: cls for cls in get_args(Initializer)}


@bad_request
@dataclass(frozen=True, config=CONFIG)
class TableSpec:
    """One table.

    Without `optimizer` and `initializer` a float32 table has Adagrad() and Normal(), an int64 table Add() and
    Zeros().
    dtype: what the server keeps a row's weights as. float32 and int64 are what calls have, too; of bfloat16 and float16
        rows and gradients are float32 in calls, as are optimizer slots, and an update rounds the weights up or down by
        chance, from (seed, table, key, column, the row's "step") alone, so that their mean is what float32 would
        have. First and assigned rows are rounded to the nearest.
    non_finite: what a push gets whose gradient (repeats summed) has NaN or infinity: it is refused, naming key and
        position, and changes nothing (Reject); these elements count as 0 (Zero); it is applied (Allow).
    push_missing: what a push does with a key that has no row: it makes the row, or drops the gradient. Both are
        counted. `assign` makes rows either way.
    admit_at: a row is made by the N-th push that names its key, and that push is its first update; until then gradients
        are dropped, and counted, pulls make no row and answer what the row would begin with. The counts are in the
        table `sightings`, of this one's name and "--sightings".
    admit_probability: below 1, a push that names a key without a row makes it with this chance, drawn from (seed, name,
        key, the client's step) alone; otherwise its gradient is dropped, and counted. Pulls as with admit_at.
    admit_filter_keys: above 0, pushes are counted in a filter made for so many keys, of some 7 bytes each, rather than
        key by key: a row is made by the N-th push at the latest, and, while no more keys were ever counted, earlier
        for at most 1 of 100. N, admit_at, is 2 to 15 then.
    eviction: which rows leave by themselves; none without it. A row that left is as one deleted: its memory goes
        back to the system, no checkpoint brings it back, and its key is as one that never had a row.
    """

    name: Annotated[str, Field(pattern=TABLE_NAME_PATTERN, max_length=TABLE_NAME_CHARACTERS_MAX)]
    dim: Annotated[int, Field(strict=True, ge=1, le=DIM_MAX)]
    dtype: Dtype = "float32"
    optimizer: Annotated[Optimizer, Field(discriminator="type")] = Field(default_factory=Adagrad)
    initializer: Annotated[Initializer, Field(discriminator="type")] = Field(default_factory=Normal)
    seed: Annotated[int, Field(strict=True, ge=0, le=2**64 - 1)] = 0
    non_finite: NonFinite = "Reject"
    push_missing: PushMissing = "Create"
    admit_at: AdmitAt = 1
    admit_probability: AdmitProbability = 1.0
    admit_filter_keys: AdmitFilterKeys = 0
    eviction: Eviction | None = None

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
        if self.admit_at > 1 and self.push_missing == "Drop":
            raise ValueError(
                f"admit_at is {self.admit_at} and push_missing is Drop, so no key would ever have a row; wanted Create"
            )
        if self.admit_probability < 1.0 and (self.admit_at > 1 or self.push_missing == "Drop"):
            raise ValueError(
                f"admit_probability is {self.admit_probability} beside admit_at {self.admit_at} and push_missing "
                f"{self.push_missing}; wanted it with neither"
            )
        if self.admit_filter_keys and not 2 <= self.admit_at <= FILTER_COUNT_MAX:
            raise ValueError(
                f"admit_filter_keys is set and admit_at is {self.admit_at}; wanted 2 to {FILTER_COUNT_MAX} with it"
            )
        if self.dtype == "int64" and self.eviction is not None and self.eviction.min_norm:
            raise ValueError(
                "dtype is int64 beside eviction.min_norm, which is of weights; wanted one of the two"
            )
        longest = TABLE_NAME_CHARACTERS_MAX - len(SIGHTINGS_SUFFIX)
        if self.admit_at > 1 and len(self.name) > longest:
            raise ValueError(f"name has {len(self.name)} characters, wanted at most {longest} with admit_at")
        longest = TABLE_NAME_CHARACTERS_MAX - len(DAYS_SUFFIX)
        if self.counts_shows and len(self.name) > longest:
            raise ValueError(
                f"name has {len(self.name)} characters, wanted at most {longest} with shows and clicks"
            )
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

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what older versions do not know, where it is as they have it."""
        found: dict[str, Any] = whole(self)
        silent: set[str] = set()
        if self.push_missing == "Create":
            silent |= {"push_missing", "pushMissing"}
        if self.admit_at == 1:
            silent |= {"admit_at", "admitAt"}
        if self.admit_probability == 1.0:
            silent |= {"admit_probability", "admitProbability"}
        if self.admit_filter_keys == 0:
            silent |= {"admit_filter_keys", "admitFilterKeys"}
        if self.eviction is None:
            silent.add("eviction")
        return {name: value for name, value in found.items() if name not in silent}

    @property
    def call_dtype(self) -> Literal["float32", "int64"]:
        """What rows and gradients are in calls."""
        return "int64" if self.dtype == "int64" else "float32"

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
            admit_at=0 if self.admit_at == 1 else self.admit_at,
            admit_probability=0.0 if self.admit_probability == 1.0 else self.admit_probability,
            admit_filter_keys=self.admit_filter_keys,
            push_missing="" if self.push_missing == "Create" else self.push_missing,
            eviction={} if self.eviction is None else self.eviction.parameters(),
        )

    def arguments(self) -> tuple[Any, ...]:
        """What the native core's create_table takes, in its order."""
        return (
            self.name,
            self.dim,
            self.dtype,
            self.optimizer.type,
            self.optimizer.parameters(),
            self.initializer.type,
            self.initializer.parameters(),
            self.seed,
            self.non_finite,
            self.push_missing,
            self.admit_at,
            self.admit_probability,
            self.admit_filter_keys,
            {} if self.eviction is None else self.eviction.rules(),
        )

    def sightings(self) -> TableSpec | None:
        """The table that counts the pushes of keys that have no row yet, where this one wants more than one."""
        if self.admit_at == 1:
            return None
        return TableSpec(
            f"{self.name}{SIGHTINGS_SUFFIX}", FILTER_DIM if self.admit_filter_keys else 1, "int64"
        )

    @property
    def counts_shows(self) -> bool:
        """Whether rows have shows and clicks."""
        return self.eviction is not None and self.eviction.counts_shows

    def days(self) -> TableSpec | None:
        """The table that counts days, where rows have shows and clicks: a row for each shard."""
        return TableSpec(f"{self.name}{DAYS_SUFFIX}", DAYS_DIM, "int64") if self.counts_shows else None

    def companions(self) -> list[TableSpec]:
        """The tables that are made with this one, before it."""
        return [spec for spec in (self.sightings(), self.days()) if spec is not None]

    def live_options(self) -> dict[str, float]:
        """The optimizer's options that may change while the table is used."""
        optimizer = self.optimizer
        return {name: float(getattr(optimizer, name)) for name in LIVE_OPTIONS if hasattr(optimizer, name)}

    def with_options(self, values: Mapping[str, float]) -> TableSpec:
        """The same but for these of its live options; those that its optimizer has not are left out."""
        known = self.live_options()
        # Every optimizer with that parameter has a field of its name.
        optimizer: Any = self.optimizer
        changes = {name: value for name, value in values.items() if name in known}
        return replace(self, optimizer=replace(optimizer, **changes)) if changes else self

    @classmethod
    def from_message(cls, message: tablebay_pb2.TableSpec) -> TableSpec:
        """The spec that a message holds; a field that it leaves empty has its default. Raises BadRequest."""
        values: dict[str, Any] = {"name": message.name, "dim": message.dim, "seed": message.seed}
        if message.dtype:
            values["dtype"] = message.dtype
        if message.non_finite:
            values["non_finite"] = message.non_finite
        if message.admit_at:
            values["admit_at"] = message.admit_at
        if message.admit_probability:
            values["admit_probability"] = message.admit_probability
        if message.admit_filter_keys:
            values["admit_filter_keys"] = message.admit_filter_keys
        if message.push_missing:
            values["push_missing"] = message.push_missing
        if message.eviction:
            values["eviction"] = Eviction.from_parameters(message.eviction)
        if message.optimizer:
            values["optimizer"] = _by_name(
                "optimizer", OPTIMIZERS, message.optimizer, message.optimizer_parameters
            )
        if message.initializer:
            values["initializer"] = _by_name(
                "initializer", INITIALIZERS, message.initializer, message.initializer_parameters
            )
        return cls(**values)


def _by_name(what: str, classes: Mapping[str, type[Any]], name: str, parameters: Mapping[str, float]) -> Any:
    if name not in classes:
        raise BadRequest(f"{what} is '{name}', wanted one of {', '.join(classes)}")
    return classes[name].from_parameters(parameters)


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
            old, new = left.values(), right.values()
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
