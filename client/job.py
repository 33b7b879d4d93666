"""The job file: the one owner of what a TrainingJob may say, for the local runner, the operator and the CRD.

Every bound stands in a `Field`, so that the CRD's schema can be generated from this model. Field names are
camelCase in YAML. What is not here does not exist yet and is refused as an unknown field.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from tablebay.client import strict_yaml
from tablebay.client.environment import DISTRIBUTED, LOG_FORMAT, LOG_LEVEL
from tablebay.client.errors import JobInvalid
from tablebay.client.problems import Problem, problems_of
from tablebay.client.quantity import parse_quantity
from tablebay.client.tables import (
    DIM_MAX,
    TABLE_NAME_PATTERN,
    Dtype,
    Initializer,
    NonFinite,
    Optimizer,
    TableSpec,
)

API_VERSION = "tablebay.dev/v1alpha1"
KIND = "TrainingJob"
FILE_BYTES_MAX = 64 * 1024
TABLES_MAX = 256
PROBLEMS_SHOWN_MAX = 20
# A server owns at least one of the 1,024 shards.
SERVERS_MAX = 1024
WORKERS_MAX = 10_000
WORKER_CONTAINER = "worker"
# 63 characters of a DNS label, less what children add: "-worker-9999-abcde" (18), and a controller's hash.
JOB_NAME_CHARACTERS_MAX = 40

# Of the variables that begin with TABLEBAY_, those that belong to the user; all others tell a process who it
# is.
# The last seven are settings of tablebay-server.
OWN_VARIABLES = frozenset(
    {
        LOG_LEVEL,
        LOG_FORMAT,
        "TABLEBAY_CLIENTS_MAX",
        "TABLEBAY_GRACE_SECONDS",
        "TABLEBAY_KEYS_MAX",
        "TABLEBAY_MEMORY_LIMIT_BYTES",
        "TABLEBAY_MESSAGE_BYTES_MAX",
        "TABLEBAY_REQUESTS_MAX",
        "TABLEBAY_THREADS",
    }
)

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_LABEL_WORDS = (
    "lower-case letters, digits and '-', with a letter or digit at both ends, at most 63 characters"
)

# The table model says its pattern alone.
_PATTERN_WORDS = {
    TABLE_NAME_PATTERN: "lower-case letters, digits, '-' and '_', with a letter or digit at both ends, "
    "at most 63 characters"
}


def _wants(words: str) -> dict[str, Any]:
    """Words for the error message of a field whose pattern says little to a reader."""
    return {"x-wanted": words}


Label = Annotated[
    str, Field(min_length=1, max_length=63, pattern=_DNS_LABEL, json_schema_extra=_wants(_DNS_LABEL_WORDS))
]
JobName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=JOB_NAME_CHARACTERS_MAX,
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        json_schema_extra=_wants(
            "a lower-case letter, then letters, digits and '-', no '-' at the end, "
            f"at most {JOB_NAME_CHARACTERS_MAX} characters (so that the names of its pods fit 63)"
        ),
    ),
]
# host:port/path/name:tag@digest, without a space; the registry is the judge of the rest.
_IMAGE = r"^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9])?$"
_IMAGE_WORDS = "the name of an image such as registry/train:1.2, without spaces"
Image = Annotated[
    str, Field(min_length=1, max_length=1024, pattern=_IMAGE, json_schema_extra=_wants(_IMAGE_WORDS))
]
LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        json_schema_extra=_wants(
            "letters, digits, '-', '_' and '.', with a letter or digit at both ends, at most 63 characters"
        ),
    ),
]
VariableName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=256,
        pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$",
        json_schema_extra=_wants(
            "the name of an environment variable: letters, digits, '_', '-' and '.', no digit first"
        ),
    ),
]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_AnyNamed = TypeVar("_AnyNamed", bound=_Named)


def _named_once(things: list[_AnyNamed]) -> list[_AnyNamed]:
    repeated = [name for name, count in Counter(thing.name for thing in things).items() if count > 1]
    if repeated:
        raise ValueError(f"found {', '.join(repeated)} more than once, wanted each name once")
    return things


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("found a NUL character, wanted text without one")
    return value


def _quantity(value: str | int | float) -> str | int | float:
    parse_quantity(value)
    return value


Text = Annotated[str, AfterValidator(_no_nul)]
Quantity = Annotated[
    str | int | float,
    AfterValidator(_quantity),
    Field(json_schema_extra=_wants("a quantity such as 500m, 2 or 1.5Gi")),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


class _PodModel(BaseModel):
    """Below a pod template any field is let through: the API server is the one that knows them all."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, alias_generator=to_camel)


class Metadata(_Model):
    """The job's name and namespace, and the user's own labels and annotations."""

    name: JobName
    namespace: Label | None = None
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class EnvironmentVariable(_PodModel):
    """One variable of a container. `valueFrom` is for a cluster alone."""

    name: VariableName
    value: Text | None = None
    value_from: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> EnvironmentVariable:
        if self.value is not None and self.value_from is not None:
            raise ValueError(f"variable {self.name} has both value and valueFrom; wanted one of them")
        reserved = self.name.startswith("TABLEBAY_") and self.name not in OWN_VARIABLES
        if reserved or self.name in DISTRIBUTED:
            raise ValueError(f"found {self.name}, which Tablebay sets itself; wanted another name, or none")
        return self


class Resources(_PodModel):
    """Requests and limits by resource name; no request may be above its limit."""

    requests: dict[str, Quantity] = Field(default_factory=dict)
    limits: dict[str, Quantity] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _requests_fit_limits(self) -> Resources:
        for name, request in self.requests.items():
            limit = self.limits.get(name)
            if limit is not None and parse_quantity(request) > parse_quantity(limit):
                raise ValueError(
                    f"found requests.{name} {request} above limits.{name} {limit}; wanted at most the limit"
                )
        return self


class Container(_PodModel):
    """A container of a pod template, as far as the local runner and the operator look into it."""

    name: Label
    image: Image | None = None
    command: list[Text] = Field(default_factory=list)
    args: list[Text] = Field(default_factory=list)
    env: Annotated[list[EnvironmentVariable], AfterValidator(_named_once)] = Field(default_factory=list)
    resources: Resources = Field(default_factory=Resources)


class PodSpec(_PodModel):
    """The containers of a pod; any other field goes to the cluster as it is."""

    containers: list[Container] = Field(default_factory=list)
    init_containers: list[Container] = Field(default_factory=list)

    @model_validator(mode="after")
    def _all_containers_are_named_once(self) -> PodSpec:
        _named_once([*self.containers, *self.init_containers])
        return self


class PodTemplate(_PodModel):
    """Any pod template."""

    metadata: dict[str, Any] = Field(default_factory=dict)
    spec: PodSpec = Field(default_factory=PodSpec)


class Servers(_Model):
    """The processes that hold the rows."""

    replicas: int = Field(ge=1, le=SERVERS_MAX)
    image: Annotated[
        str, Field(max_length=1024, pattern=rf"{_IMAGE}|^$", json_schema_extra=_wants(_IMAGE_WORDS))
    ] = ""
    template: PodTemplate | None = None


class Workers(_Model):
    """The processes that train: `replicas` copies of the container named worker, or of the only one."""

    replicas: int = Field(ge=1, le=WORKERS_MAX)
    template: PodTemplate

    @model_validator(mode="after")
    def _one_container_trains(self) -> Workers:
        names = [container.name for container in self.template.spec.containers]
        if not names:
            raise ValueError("template.spec.containers is empty; wanted the container that trains")
        if len(names) > 1 and WORKER_CONTAINER not in names:
            raise ValueError(
                f"found containers {', '.join(names)} in template.spec, "
                f"wanted one of them named {WORKER_CONTAINER}"
            )
        return self

    @property
    def container(self) -> Container:
        """The container that trains."""
        containers = self.template.spec.containers
        return next((one for one in containers if one.name == WORKER_CONTAINER), containers[0])


class FailurePolicy(_Model):
    """maxRestarts: restarts of workers in the whole job before it fails."""

    max_restarts: int = Field(default=3, ge=0, le=1_000_000)


class RunPolicy(_Model):
    """activeDeadlineSeconds: from the job's start; then it fails."""

    active_deadline_seconds: int | None = Field(default=None, ge=1, le=2**31 - 1)
    failure_policy: FailurePolicy = Field(default_factory=FailurePolicy)


class TableDefaults(_Model):
    """What each table has unless it sets that field itself: a TableSpec less its name."""

    dim: Annotated[int, Field(ge=1, le=DIM_MAX)] | None = None
    dtype: Dtype | None = None
    optimizer: Annotated[Optimizer, Field(discriminator="type")] | None = None
    initializer: Annotated[Initializer, Field(discriminator="type")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    non_finite: NonFinite | None = None


class Spec(_Model):
    """What the job asks for."""

    image: Image | None = None
    table_defaults: TableDefaults | None = None
    tables: Annotated[list[TableSpec], AfterValidator(_named_once)] = Field(
        default_factory=list, max_length=TABLES_MAX
    )
    servers: Servers
    workers: Workers
    run_policy: RunPolicy = Field(default_factory=RunPolicy)

    @model_validator(mode="before")
    @classmethod
    def _tables_take_defaults(cls, value: Any) -> Any:
        return with_table_defaults(value)


class TrainingJob(_Model):
    """A whole job file."""

    api_version: Literal["tablebay.dev/v1alpha1"]
    kind: Literal["TrainingJob"]
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        """The job's name."""
        return self.metadata.name


def with_table_defaults(spec: Any) -> Any:
    """`spec` with tableDefaults in each table that does not set the field itself: whole fields, not parts."""
    if not isinstance(spec, Mapping):
        return spec
    defaults, tables = spec.get("tableDefaults"), spec.get("tables")
    if not isinstance(defaults, Mapping) or not isinstance(tables, list):
        return spec
    merged = [{**defaults, **table} if isinstance(table, Mapping) else table for table in tables]
    return {**spec, "tables": merged}


def load_job(path: str | os.PathLike[str]) -> TrainingJob:
    """Read a job file. Raises JobInvalid with every problem: field path, value found, value wanted."""
    source = os.fspath(path)
    try:
        document = strict_yaml.parse(_read(Path(source)))
    except strict_yaml.YamlProblem as error:
        raise JobInvalid([str(error)], source=source) from None
    return parse_job(document.value, source=source, lines=document.lines)


def parse_job(
    value: Any, *, source: str = "", lines: Mapping[tuple[str | int, ...], int] | None = None
) -> TrainingJob:
    """The job that `value` (of dict, list, str, int, float, bool, None) describes. Raises JobInvalid."""
    if not isinstance(value, Mapping):
        raise JobInvalid(
            ["the file: wanted a mapping with apiVersion, kind, metadata and spec"], source=source
        )
    merged = {**value, "spec": with_table_defaults(value["spec"])} if "spec" in value else dict(value)
    try:
        # By alias alone: in a job file `learning_rate` is an unknown field, though Python code may say it.
        return TrainingJob.model_validate(merged, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = problems_of(TrainingJob, error, merged, lines=lines or {}, patterns=_PATTERN_WORDS)
        raise JobInvalid(
            _first([problem.text for problem in _without_echoes(problems, value)]), source=source
        ) from None


def _first(problems: list[str]) -> list[str]:
    more = len(problems) - PROBLEMS_SHOWN_MAX
    return problems if more <= 0 else [*problems[:PROBLEMS_SHOWN_MAX], f"and {more} more"]


def _without_echoes(problems: list[Problem], value: Mapping[str, Any]) -> list[Problem]:
    """Less what a bad default says again in each table that took it."""
    bad = {
        problem.path[2]
        for problem in problems
        if problem.path[:2] == ("spec", "tableDefaults") and problem.path[2:]
    }
    kept = []
    for problem in problems:
        if problem.path[:2] == ("spec", "tables") and len(problem.path) > 3:
            table = value["spec"]["tables"][problem.path[2]]
            if problem.path[3] in bad and problem.path[3] not in table:
                continue
        kept.append(problem)
    return kept


def _read(path: Path) -> str:
    """The file's text, of at most FILE_BYTES_MAX bytes. Raises JobInvalid."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _unreadable(path, "not a regular file; wanted a job file")
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise _unreadable(path, "no such file; wanted a job file") from None
    except IsADirectoryError:
        raise _unreadable(path, "a directory; wanted a job file") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from None
    if len(content) > FILE_BYTES_MAX:
        raise _unreadable(path, f"more than {FILE_BYTES_MAX} bytes; wanted at most 64 KiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(
            path,
            f"line {line}: found the byte 0x{content[error.start]:02x} at position {error.start}, "
            "wanted UTF-8",
        ) from None
    if not text.strip():
        raise _unreadable(path, "the file is empty; wanted a job file")
    return text


def _open_without_waiting(path: str, flags: int) -> int:
    # A FIFO without a writer would hold the plain open for ever.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _unreadable(path: Path, problem: str) -> JobInvalid:
    return JobInvalid([problem], source=os.fspath(path))
