"""The job file: the one owner of what a TrainingJob may say, for the local runner, the operator and the CRD.

Every bound stands in a `Field`, so that the CRD's schema can be generated from this model. Field names are
camelCase in YAML. What is not here does not exist yet and is refused as an unknown field.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from tablebay.client import strict_yaml
from tablebay.client.environment import DISTRIBUTED, LOG_FORMAT, LOG_LEVEL
from tablebay.client.errors import JobInvalid
from tablebay.client.model import SUBDOMAIN, Label, MaybeObjectName, Model, ObjectName, wants
from tablebay.client.placement import Monitoring, Network, Scheduling
from tablebay.client.policies import RunPolicy
from tablebay.client.problems import Problem, problems_of
from tablebay.client.quantity import parse_quantity
from tablebay.client.tables import (
    DIM_MAX,
    TABLE_NAME_PATTERN,
    AdmitAt,
    AdmitFilterKeys,
    AdmitProbability,
    Dtype,
    Eviction,
    Initializer,
    NonFinite,
    Optimizer,
    PushMissing,
    TableSpec,
)

API_VERSION = "tablebay.dev/v1alpha1"
KIND = "TrainingJob"
FILE_BYTES_MAX = 64 * 1024
# Of a spec as compact JSON. The API server takes larger ones: no bound of its schema sees the whole of a template.
SPEC_BYTES_MAX = 64 * 1024
TABLES_MAX = 256
PROBLEMS_SHOWN_MAX = 20
# A server owns at least one of the 1,024 shards.
SERVERS_MAX = 1024
WORKERS_MAX = 10_000
WORKER_CONTAINER = "worker"
# JSON readers, the API server among them, keep larger whole numbers only roughly.
SEED_MAX = 2**53 - 1
# 63 characters of a DNS label, less what children add: "-worker-9999-abcde" (18), and a controller's hash.
JOB_NAME_CHARACTERS_MAX = 40

DESTINATION_CHARACTERS_MAX = 1024
OBJECT_STORES = ("s3", "gs", "az", "abfs", "hdfs", "http", "https", "file")
_MODES_TO_COME = ("wal", "replicated")
DESTINATION_WORDS = (
    "pvc://CLAIM/FOLDER such as pvc://checkpoints/run: a claim's name and a folder in it, of letters, digits, "
    "'-', '_', '.' and '/', no part of it beginning with '.'"
)

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

# The table model says its pattern alone.
_PATTERN_WORDS = {
    TABLE_NAME_PATTERN: "lower-case letters, digits, '-' and '_', with a letter or digit at both ends, "
    "at most 63 characters"
}


JobName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=JOB_NAME_CHARACTERS_MAX,
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        json_schema_extra=wants(
            "a lower-case letter, then letters, digits and '-', no '-' at the end, "
            f"at most {JOB_NAME_CHARACTERS_MAX} characters (so that the names of its pods fit 63)"
        ),
    ),
]
# host:port/path/name:tag@digest, without a space; the registry is the judge of the rest.
_IMAGE = r"^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9])?$"
_IMAGE_WORDS = "the name of an image such as registry/train:1.2, without spaces"
Image = Annotated[
    str, Field(min_length=1, max_length=1024, pattern=_IMAGE, json_schema_extra=wants(_IMAGE_WORDS))
]
LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        json_schema_extra=wants(
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
        json_schema_extra=wants(
            "the name of an environment variable: letters, digits, '_', '-' and '.', no digit first"
        ),
    ),
]


_Word = TypeVar("_Word", bound=str)


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


def _size(value: str | int) -> str | int:
    try:
        fits = 1 <= parse_quantity(value) < 2**63 - 1
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"found {str(value)[:60]!r}, wanted a quantity above 0 such as 10Gi")
    return value


Text = Annotated[str, AfterValidator(_no_nul)]
Quantity = Annotated[
    str | int | float,
    AfterValidator(_quantity),
    Field(json_schema_extra=wants("a quantity such as 500m, 2 or 1.5Gi")),
]
# Of a volume.
Size = Annotated[
    Annotated[str, Field(max_length=64)] | int,
    AfterValidator(_size),
    Field(json_schema_extra={**wants("a quantity above 0 such as 10Gi"), "x-quantity": True}),
]
DESTINATION = rf"pvc://{SUBDOMAIN}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"


class _PodModel(BaseModel):
    """Below a pod template any field is let through: the API server is the one that knows them all."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, alias_generator=to_camel)


class Metadata(Model):
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


# What would give a job's pods more than a job needs. Whoever may write a TrainingJob need not be one who may
# do that.
Never = Annotated[Literal[False] | None, Field(json_schema_extra=wants("false, or no such field"))]
Always = Annotated[Literal[True] | None, Field(json_schema_extra=wants("true, or no such field"))]
NotRoot = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(json_schema_extra=wants("the number of a user other than root, or no such field")),
]
OwnAccount = Annotated[
    Literal[""] | None,
    Field(json_schema_extra=wants("no such field: the pods of a job have an account without rights")),
]


class Capabilities(_PodModel):
    """Linux capabilities: some may be dropped, none added."""

    add: Annotated[list[str], Field(max_length=0)] | None = None


class PodSecurity(_PodModel):
    """The security context of a pod."""

    run_as_user: NotRoot = None
    run_as_non_root: Always = None


class ContainerSecurity(PodSecurity):
    """The security context of a container."""

    privileged: Never = None
    allow_privilege_escalation: Never = None
    capabilities: Capabilities | None = None


class Port(_PodModel):
    """A port of a container, not of its node."""

    host_port: Annotated[Literal[0] | None, Field(json_schema_extra=wants("no such field"))] = None


class Volume(_PodModel):
    """A volume of a pod, not of its node."""

    host_path: Annotated[None, Field(json_schema_extra=wants("another kind of volume"))] = None


class Container(_PodModel):
    """A container of a pod template, as far as the local runner and the operator look into it."""

    name: Label
    image: Image | None = None
    command: list[Text] = Field(default_factory=list)
    args: list[Text] = Field(default_factory=list)
    env: Annotated[list[EnvironmentVariable], AfterValidator(_named_once)] = Field(default_factory=list)
    resources: Resources = Field(default_factory=Resources)
    ports: list[Port] | None = None
    security_context: ContainerSecurity | None = None


class PodSpec(_PodModel):
    """The containers of a pod, and what no pod of a job may have; any other field goes to the cluster as it
    is."""

    containers: list[Container] = Field(default_factory=list)
    init_containers: list[Container] = Field(default_factory=list)
    volumes: list[Volume] | None = None
    security_context: PodSecurity | None = None
    host_network: Never = None
    host_pid: Annotated[Never, Field(alias="hostPID")] = None
    host_ipc: Annotated[Never, Field(alias="hostIPC")] = None
    service_account_name: OwnAccount = None
    service_account: OwnAccount = None

    @model_validator(mode="after")
    def _all_containers_are_named_once(self) -> PodSpec:
        _named_once([*self.containers, *self.init_containers])
        return self


class PodTemplate(Model):
    """A pod template: its metadata and its spec, as in Kubernetes."""

    metadata: dict[str, Any] = Field(default_factory=dict)
    spec: PodSpec = Field(default_factory=PodSpec)


class Retention(Model):
    """What becomes of the servers' volumes."""

    when_deleted: Literal["Delete", "Retain"] = Field(
        default="Delete", description="What happens to the volumes when the job is deleted."
    )


class Storage(Model):
    """A volume of its own for each server, kept when the server's pod is replaced."""

    size: Size = Field(description="The size of each server's volume, such as 10Gi.")
    storage_class_name: ObjectName | None = Field(
        default=None, description="The storage class; the cluster's default one if not given."
    )
    retention: Retention = Field(default_factory=Retention)


class ServersBudget(Model):
    """How many servers may be evicted at a time."""

    max_unavailable: int = Field(
        ge=0,
        le=SERVERS_MAX,
        description="So many servers may be evicted at a time; more than 0 wants a checkpoint.",
    )


class Servers(Model):
    """The processes that hold the rows."""

    replicas: int = Field(ge=1, le=SERVERS_MAX, description="How many servers.")
    image: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=rf"{_IMAGE}|^$",
            description="The servers' image; the chart's if not given, or empty.",
            json_schema_extra=wants(_IMAGE_WORDS),
        ),
    ] = ""
    template: PodTemplate | None = None
    storage: Storage | None = None
    on_finish: Literal["Delete", "Retain"] = Field(
        default="Delete", description="What happens to the servers when the job has ended."
    )
    pod_disruption_budget: ServersBudget | None = None


class Workers(Model):
    """The processes that train: `replicas` copies of the container named worker, or of the only one."""

    replicas: int = Field(ge=1, le=WORKERS_MAX, description="How many workers.")
    min_replicas: int | None = Field(
        default=None, ge=1, le=WORKERS_MAX, description="With maxReplicas: replicas may change, to no fewer."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, le=WORKERS_MAX, description="With minReplicas: replicas may change, to no more."
    )
    template: PodTemplate

    @model_validator(mode="after")
    def _replicas_are_within_bounds(self) -> Workers:
        if (self.min_replicas is None) != (self.max_replicas is None):
            raise ValueError("found one of minReplicas and maxReplicas; wanted both or neither")
        low, high = self.min_replicas, self.max_replicas
        if low is not None and high is not None and not low <= self.replicas <= high:
            raise ValueError(
                f"found replicas {self.replicas} beside minReplicas {low} and maxReplicas {high}; wanted "
                "minReplicas <= replicas <= maxReplicas"
            )
        return self

    @property
    def elastic(self) -> bool:
        """Whether workers may come and go while the job trains."""
        return self.min_replicas is not None

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


def _destination(value: str) -> str:
    scheme = value.partition("://")[0]
    if scheme in OBJECT_STORES:
        raise ValueError(f"found '{_shown(value)}': {scheme}:// is not there yet, wanted {DESTINATION_WORDS}")
    if not re.fullmatch(DESTINATION, value, re.ASCII):
        raise ValueError(f"found '{_shown(value)}', wanted {DESTINATION_WORDS}")
    return value


def _source(value: str) -> str:
    return value if value in ("Latest", "Never") else _destination(value)


def _mode(value: Any) -> Any:
    if value in _MODES_TO_COME:
        raise ValueError(f"found '{value}', which is not there yet; wanted none or checkpoint")
    return value


def _shown(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"


# Of a claim that `claim` is in, a folder.
Destination = Annotated[
    str,
    Field(max_length=DESTINATION_CHARACTERS_MAX),
    AfterValidator(_destination),
    Field(json_schema_extra={"x-destination": []}),
]
Source = Annotated[
    str,
    Field(max_length=DESTINATION_CHARACTERS_MAX),
    AfterValidator(_source),
    Field(json_schema_extra={"x-destination": ["Latest", "Never"]}),
]
AccessMode = Literal["ReadWriteMany", "ReadWriteOnce"]
Occasion = Literal["Delete", "Suspend"]


def _once(values: list[_Word]) -> list[_Word]:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"found {', '.join(repeated)} more than once, wanted each once")
    return values


class Claim(Model):
    """The claim of the destination, which the operator makes where there is none of its name."""

    size: Size = Field(description="The size of the volume, such as 10Gi.")
    storage_class_name: MaybeObjectName = Field(
        default="", description="The storage class; the cluster's default one if not given, or empty."
    )
    access_modes: Annotated[
        list[AccessMode],
        AfterValidator(_once),
        Field(
            default_factory=lambda: ["ReadWriteMany"],
            min_length=1,
            max_length=2,
            description="ReadWriteMany if not given. With ReadWriteOnce all servers run on one node.",
        ),
    ]


class CheckpointRetention(Model):
    """How many checkpoints are kept."""

    last: int = Field(
        default=5, ge=1, le=10_000, description="So many complete checkpoints are kept; 5 if not given."
    )


class Checkpoint(Model):
    """Where the servers' rows are kept beyond their processes' lives, and when."""

    destination: Destination = Field(
        description="pvc://CLAIM/FOLDER: a folder of a claim that every server sees, for this job alone."
    )
    claim: Claim | None = None
    every_seconds: int | None = Field(
        default=None, ge=1, le=31_536_000, description="From one checkpoint's beginning to the next one's."
    )
    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=2**53 - 1,
        description="A checkpoint after so many steps of the farthest worker.",
    )
    full_every: int = Field(
        default=12,
        ge=1,
        le=10_000,
        description="Every such checkpoint writes all rows, the others what changed; 12 if not given.",
    )
    # Not `on`, which kubectl's YAML reads as a key `true`.
    when: Annotated[
        list[Occasion],
        AfterValidator(_once),
        Field(
            default_factory=lambda: ["Suspend"],
            max_length=2,
            description="When the job waits for a last checkpoint; Suspend if not given.",
        ),
    ]
    timeout_seconds: int = Field(
        default=600, ge=1, le=86_400, description="How long a checkpoint may take; 600 if not given."
    )
    retain: CheckpointRetention = Field(default_factory=CheckpointRetention)

    @model_validator(mode="after")
    def _at_some_time(self) -> Checkpoint:
        if self.every_seconds is None and self.every_steps is None:
            raise ValueError("found neither everySeconds nor everySteps; wanted one of them, or both")
        return self

    @property
    def one_node(self) -> bool:
        """Whether the claim can be seen from one node alone."""
        return self.claim is not None and "ReadWriteMany" not in self.claim.access_modes


class Durability(Model):
    """What a server's death costs."""

    mode: Annotated[
        Literal["none", "checkpoint"] | None,
        BeforeValidator(_mode),
        Field(
            description="checkpoint: a server comes back with its rows; none: the job fails. checkpoint if "
            "spec.checkpoint is there, else none."
        ),
    ] = None


class Restore(Model):
    """What the rows are when the job begins."""

    from_: Annotated[
        Source,
        Field(
            alias="from",
            description="Latest (if not given): the job's own newest checkpoint. Never: nothing. "
            "pvc://CLAIM/FOLDER: another job's, while this one has none.",
        ),
    ] = "Latest"
    policy: Literal["IfExists", "Required"] = Field(
        default="IfExists",
        description="Required: refuse to begin without a checkpoint; IfExists if not given.",
    )

    @model_validator(mode="after")
    def _one_mind(self) -> Restore:
        if self.policy == "Required" and self.from_ == "Never":
            raise ValueError("found policy Required beside from Never; wanted IfExists, or another from")
        return self


class TableDefaults(Model):
    """What each table has unless it sets that field itself: a TableSpec less its name."""

    dim: Annotated[int, Field(ge=1, le=DIM_MAX)] | None = None
    dtype: Dtype | None = None
    optimizer: Annotated[Optimizer, Field(discriminator="type")] | None = None
    initializer: Annotated[Initializer, Field(discriminator="type")] | None = None
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] | None = None
    non_finite: NonFinite | None = None
    push_missing: PushMissing | None = None
    admit_at: AdmitAt | None = None
    admit_probability: AdmitProbability | None = None
    admit_filter_keys: AdmitFilterKeys | None = None
    eviction: Eviction | None = None


class Spec(Model):
    """What the job asks for."""

    image: Image | None = Field(default=None, description="The workers' image.")
    table_defaults: TableDefaults | None = None
    tables: Annotated[list[TableSpec], AfterValidator(_named_once)] = Field(
        default_factory=list, max_length=TABLES_MAX
    )
    servers: Servers
    workers: Workers
    run_policy: RunPolicy = Field(default_factory=RunPolicy)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    network: Network = Field(default_factory=Network)
    suspend: bool = Field(
        default=False,
        description="Ends the job's pods and keeps its data; false lets it go on. False if not given.",
    )
    checkpoint: Checkpoint | None = None
    durability: Durability = Field(default_factory=Durability)
    restore: Restore = Field(default_factory=Restore)

    @property
    def durable(self) -> bool:
        """Whether a server that dies comes back with its rows."""
        return self.checkpoint is not None

    @model_validator(mode="after")
    def _durability_is_whole(self) -> Spec:
        if self.checkpoint is None:
            if self.durability.mode == "checkpoint":
                raise ValueError(
                    "found durability.mode checkpoint without checkpoint; wanted both or neither"
                )
            if self.restore != Restore():
                raise ValueError("found restore without checkpoint; wanted both or neither")
            budget = self.servers.pod_disruption_budget
            if budget is not None and budget.max_unavailable:
                raise ValueError(
                    f"found servers.podDisruptionBudget.maxUnavailable {budget.max_unavailable} without checkpoint: "
                    "the eviction of a server would end the job; wanted 0, or a checkpoint"
                )
            restarted = next(
                (rule for rule in self.run_policy.failure_policy.rules if rule.action == "RestartServer"),
                None,
            )
            if restarted is not None:
                raise ValueError(
                    f"found action RestartServer in failurePolicy rule {restarted.name} without checkpoint, and so "
                    "without the server's rows; wanted both or neither"
                )
        elif self.durability.mode == "none":
            raise ValueError(
                "found durability.mode none beside checkpoint; wanted mode checkpoint, or no checkpoint"
            )
        elif self.restore.from_ == self.checkpoint.destination:
            raise ValueError(
                f"found {_shown(self.restore.from_)} in restore.from and in checkpoint.destination; wanted Latest "
                "for the job's own checkpoints"
            )
        return self

    @model_validator(mode="after")
    def _kueue_has_a_fixed_number_of_workers(self) -> Spec:
        if self.scheduling.gang == "Kueue":
            found = "minReplicas" if self.workers.elastic else ""
            if self.run_policy.failure_policy.backoff is not None:
                found = "failurePolicy.backoff"
            if found:
                raise ValueError(
                    f"found {found} beside scheduling.gang Kueue, which stops a Job whose parallelism changes; wanted "
                    "one of the two"
                )
        return self

    @model_validator(mode="after")
    def _every_server_sees_the_destination(self) -> Spec:
        template = self.servers.template
        if (
            self.checkpoint is None
            or not self.checkpoint.one_node
            or self.servers.replicas == 1
            or template is None
        ):
            return self
        apart = _kept_apart(template.spec)
        if apart:
            raise ValueError(
                "found checkpoint.claim.accessModes [ReadWriteOnce], which one node alone can mount, and "
                f"servers.template.spec.{apart}, which may keep {self.servers.replicas} servers on several; "
                "wanted ReadWriteMany, one server, or no such field"
            )
        return self

    @model_validator(mode="after")
    def _seeds_survive_json(self) -> Spec:
        for index, table in enumerate(self.tables):
            if table.seed > SEED_MAX:
                raise ValueError(
                    f"found {table.seed} in tables[{index}].seed, wanted an integer from 0 to {SEED_MAX}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _tables_take_defaults(cls, value: Any) -> Any:
        return with_table_defaults(value)


def _kept_apart(pod: PodSpec) -> str:
    """The field of a pod's spec that may put pods of one kind on several nodes, or ""."""
    given = pod.model_extra or {}
    affinity = given.get("affinity")
    if isinstance(affinity, Mapping) and affinity.get("podAntiAffinity"):
        return "affinity.podAntiAffinity"
    return "topologySpreadConstraints" if given.get("topologySpreadConstraints") else ""


class TrainingJob(Model):
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
    compact = json.dumps(value.get("spec"), ensure_ascii=False, separators=(",", ":"))
    size = len(compact.encode(errors="surrogatepass"))
    if size > SPEC_BYTES_MAX:
        problem = f"spec: found {size} bytes of JSON, wanted at most {SPEC_BYTES_MAX}"
        raise JobInvalid([problem], source=source)
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
