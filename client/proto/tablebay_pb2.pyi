from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reserved(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Part(_message.Message):
    __slots__ = ("table_id", "dim", "flags", "crc32c", "keys", "rows", "counts")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    dim: int
    flags: int
    crc32c: int
    keys: bytes
    rows: bytes
    counts: bytes
    def __init__(self, table_id: _Optional[int] = ..., dim: _Optional[int] = ..., flags: _Optional[int] = ..., crc32c: _Optional[int] = ..., keys: _Optional[bytes] = ..., rows: _Optional[bytes] = ..., counts: _Optional[bytes] = ...) -> None: ...

class Sender(_message.Message):
    __slots__ = ("client_high", "client_low", "incarnation", "shard_map_version", "epoch")
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SHARD_MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    client_high: int
    client_low: int
    incarnation: int
    shard_map_version: int
    epoch: int
    def __init__(self, client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., incarnation: _Optional[int] = ..., shard_map_version: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("sender", "part")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    part: Part
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., part: _Optional[_Union[Part, _Mapping]] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("epoch", "shard_map_version", "rows")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARD_MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    shard_map_version: int
    rows: bytes
    def __init__(self, epoch: _Optional[int] = ..., shard_map_version: _Optional[int] = ..., rows: _Optional[bytes] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("sender", "step", "oldest_step", "pieces", "cursor", "part", "piece")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OLDEST_STEP_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    step: int
    oldest_step: int
    pieces: int
    cursor: bytes
    part: Part
    piece: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., step: _Optional[int] = ..., oldest_step: _Optional[int] = ..., pieces: _Optional[int] = ..., cursor: _Optional[bytes] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., piece: _Optional[int] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("epoch", "shard_map_version", "step", "applied_shards", "duplicate_shards", "durable_next")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARD_MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_SHARDS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_NEXT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    shard_map_version: int
    step: int
    applied_shards: int
    duplicate_shards: int
    durable_next: int
    def __init__(self, epoch: _Optional[int] = ..., shard_map_version: _Optional[int] = ..., step: _Optional[int] = ..., applied_shards: _Optional[int] = ..., duplicate_shards: _Optional[int] = ..., durable_next: _Optional[int] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("sender", "step", "oldest_step", "pieces", "cursor", "pushes", "pulls", "piece")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OLDEST_STEP_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    PULLS_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    step: int
    oldest_step: int
    pieces: int
    cursor: bytes
    pushes: _containers.RepeatedCompositeFieldContainer[Part]
    pulls: _containers.RepeatedCompositeFieldContainer[Part]
    piece: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., step: _Optional[int] = ..., oldest_step: _Optional[int] = ..., pieces: _Optional[int] = ..., cursor: _Optional[bytes] = ..., pushes: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., pulls: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., piece: _Optional[int] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("epoch", "shard_map_version", "step", "applied_shards", "duplicate_shards", "durable_next", "pulled")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARD_MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_SHARDS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_NEXT_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    shard_map_version: int
    step: int
    applied_shards: int
    duplicate_shards: int
    durable_next: int
    pulled: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, epoch: _Optional[int] = ..., shard_map_version: _Optional[int] = ..., step: _Optional[int] = ..., applied_shards: _Optional[int] = ..., duplicate_shards: _Optional[int] = ..., durable_next: _Optional[int] = ..., pulled: _Optional[_Iterable[bytes]] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("job", "generation", "rank", "client_high", "client_low", "incarnation", "nonce", "protocol_major", "protocol_minor", "client_version", "rejoin")
    JOB_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    REJOIN_FIELD_NUMBER: _ClassVar[int]
    job: str
    generation: int
    rank: int
    client_high: int
    client_low: int
    incarnation: int
    nonce: int
    protocol_major: int
    protocol_minor: int
    client_version: str
    rejoin: bool
    def __init__(self, job: _Optional[str] = ..., generation: _Optional[int] = ..., rank: _Optional[int] = ..., client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., incarnation: _Optional[int] = ..., nonce: _Optional[int] = ..., protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., client_version: _Optional[str] = ..., rejoin: bool = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("job", "server_index", "server_count", "epoch", "client_high", "client_low", "incarnation", "next_step", "cursor", "shard_map", "message_bytes_max", "protocol_major", "protocol_minor", "server_version", "durable", "durable_next", "workers")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SERVER_INDEX_FIELD_NUMBER: _ClassVar[int]
    SERVER_COUNT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    SHARD_MAP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_NEXT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    job: str
    server_index: int
    server_count: int
    epoch: int
    client_high: int
    client_low: int
    incarnation: int
    next_step: int
    cursor: bytes
    shard_map: ShardMap
    message_bytes_max: int
    protocol_major: int
    protocol_minor: int
    server_version: str
    durable: bool
    durable_next: int
    workers: int
    def __init__(self, job: _Optional[str] = ..., server_index: _Optional[int] = ..., server_count: _Optional[int] = ..., epoch: _Optional[int] = ..., client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., incarnation: _Optional[int] = ..., next_step: _Optional[int] = ..., cursor: _Optional[bytes] = ..., shard_map: _Optional[_Union[ShardMap, _Mapping]] = ..., message_bytes_max: _Optional[int] = ..., protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., server_version: _Optional[str] = ..., durable: bool = ..., durable_next: _Optional[int] = ..., workers: _Optional[int] = ...) -> None: ...

class ShardMap(_message.Message):
    __slots__ = ("version", "servers", "owners")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    servers: int
    owners: bytes
    def __init__(self, version: _Optional[int] = ..., servers: _Optional[int] = ..., owners: _Optional[bytes] = ...) -> None: ...

class GetShardMapRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TableSpec(_message.Message):
    __slots__ = ("name", "dim", "dtype", "optimizer", "optimizer_parameters", "initializer", "initializer_parameters", "seed", "non_finite", "push_missing", "admit_at", "admit_probability", "admit_filter_keys", "eviction")
    class OptimizerParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class InitializerParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EvictionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    INITIALIZER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    PUSH_MISSING_FIELD_NUMBER: _ClassVar[int]
    ADMIT_AT_FIELD_NUMBER: _ClassVar[int]
    ADMIT_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FILTER_KEYS_FIELD_NUMBER: _ClassVar[int]
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    dtype: str
    optimizer: str
    optimizer_parameters: _containers.ScalarMap[str, float]
    initializer: str
    initializer_parameters: _containers.ScalarMap[str, float]
    seed: int
    non_finite: str
    push_missing: str
    admit_at: int
    admit_probability: float
    admit_filter_keys: int
    eviction: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., dtype: _Optional[str] = ..., optimizer: _Optional[str] = ..., optimizer_parameters: _Optional[_Mapping[str, float]] = ..., initializer: _Optional[str] = ..., initializer_parameters: _Optional[_Mapping[str, float]] = ..., seed: _Optional[int] = ..., non_finite: _Optional[str] = ..., push_missing: _Optional[str] = ..., admit_at: _Optional[int] = ..., admit_probability: _Optional[float] = ..., admit_filter_keys: _Optional[int] = ..., eviction: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("spec", "table_id", "rows", "bytes", "row_bytes", "state_bytes", "state_names")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_NAMES_FIELD_NUMBER: _ClassVar[int]
    spec: TableSpec
    table_id: int
    rows: int
    bytes: int
    row_bytes: int
    state_bytes: int
    state_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spec: _Optional[_Union[TableSpec, _Mapping]] = ..., table_id: _Optional[int] = ..., rows: _Optional[int] = ..., bytes: _Optional[int] = ..., row_bytes: _Optional[int] = ..., state_bytes: _Optional[int] = ..., state_names: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateTableRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: TableSpec
    def __init__(self, spec: _Optional[_Union[TableSpec, _Mapping]] = ...) -> None: ...

class UpdateTableRequest(_message.Message):
    __slots__ = ("name", "optimizer_parameters")
    class OptimizerParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    optimizer_parameters: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., optimizer_parameters: _Optional[_Mapping[str, float]] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("table", "stripe")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    table: str
    stripe: int
    def __init__(self, table: _Optional[str] = ..., stripe: _Optional[int] = ...) -> None: ...

class EvictResponse(_message.Message):
    __slots__ = ("looked_at", "evicted", "next_stripe")
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    NEXT_STRIPE_FIELD_NUMBER: _ClassVar[int]
    looked_at: int
    evicted: int
    next_stripe: int
    def __init__(self, looked_at: _Optional[int] = ..., evicted: _Optional[int] = ..., next_stripe: _Optional[int] = ...) -> None: ...

class EvictedRequest(_message.Message):
    __slots__ = ("table", "epoch", "position", "events_max")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_MAX_FIELD_NUMBER: _ClassVar[int]
    table: str
    epoch: int
    position: int
    events_max: int
    def __init__(self, table: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., events_max: _Optional[int] = ...) -> None: ...

class EvictedResponse(_message.Message):
    __slots__ = ("epoch", "first", "keys", "times", "reasons", "reason_names")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    REASON_NAMES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    first: int
    keys: bytes
    times: bytes
    reasons: bytes
    reason_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., first: _Optional[int] = ..., keys: _Optional[bytes] = ..., times: _Optional[bytes] = ..., reasons: _Optional[bytes] = ..., reason_names: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeTablesRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeTablesResponse(_message.Message):
    __slots__ = ("tables",)
    TABLES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    def __init__(self, tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("table", "position", "rows_max")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    table: str
    position: int
    rows_max: int
    def __init__(self, table: _Optional[str] = ..., position: _Optional[int] = ..., rows_max: _Optional[int] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("keys", "rows", "position")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    rows: bytes
    position: int
    def __init__(self, keys: _Optional[bytes] = ..., rows: _Optional[bytes] = ..., position: _Optional[int] = ...) -> None: ...

class BarrierRequest(_message.Message):
    __slots__ = ("name", "client_high", "client_low", "incarnation", "workers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    client_high: int
    client_low: int
    incarnation: int
    workers: int
    def __init__(self, name: _Optional[str] = ..., client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., incarnation: _Optional[int] = ..., workers: _Optional[int] = ...) -> None: ...

class BarrierResponse(_message.Message):
    __slots__ = ("released", "arrived", "workers")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    released: bool
    arrived: int
    workers: int
    def __init__(self, released: bool = ..., arrived: _Optional[int] = ..., workers: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("client_high", "client_low", "incarnation", "rank", "number", "values", "pull_latency", "retries")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PULL_LATENCY_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    client_high: int
    client_low: int
    incarnation: int
    rank: int
    number: int
    values: _containers.ScalarMap[str, float]
    pull_latency: bytes
    retries: int
    def __init__(self, client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., incarnation: _Optional[int] = ..., rank: _Optional[int] = ..., number: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., pull_latency: _Optional[bytes] = ..., retries: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: int
    def __init__(self, workers: _Optional[int] = ...) -> None: ...

class SetWorkersRequest(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: int
    def __init__(self, workers: _Optional[int] = ...) -> None: ...

class SetWorkersResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProgressRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerProgress(_message.Message):
    __slots__ = ("rank", "incarnation", "values", "pull_latency", "retries", "seconds_since_report")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PULL_LATENCY_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_SINCE_REPORT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    values: _containers.ScalarMap[str, float]
    pull_latency: bytes
    retries: int
    seconds_since_report: float
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., pull_latency: _Optional[bytes] = ..., retries: _Optional[int] = ..., seconds_since_report: _Optional[float] = ...) -> None: ...

class ProgressResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerProgress]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerProgress, _Mapping]]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("epoch", "tables", "counters", "version", "instruction_set")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SET_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    counters: _containers.ScalarMap[str, int]
    version: str
    instruction_set: str
    def __init__(self, epoch: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ..., counters: _Optional[_Mapping[str, int]] = ..., version: _Optional[str] = ..., instruction_set: _Optional[str] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("begin", "full", "client_high", "client_low", "state")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    begin: bool
    full: bool
    client_high: int
    client_low: int
    state: str
    def __init__(self, begin: bool = ..., full: bool = ..., client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("enabled", "ticket", "ended", "failures", "last_error", "last_error_ticket", "last", "destination", "epoch")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_TICKET_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    ticket: int
    ended: int
    failures: int
    last_error: str
    last_error_ticket: int
    last: CommittedCheckpoint
    destination: str
    epoch: int
    def __init__(self, enabled: bool = ..., ticket: _Optional[int] = ..., ended: _Optional[int] = ..., failures: _Optional[int] = ..., last_error: _Optional[str] = ..., last_error_ticket: _Optional[int] = ..., last: _Optional[_Union[CommittedCheckpoint, _Mapping]] = ..., destination: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class CommittedCheckpoint(_message.Message):
    __slots__ = ("number", "kind", "ticket", "created", "seconds", "pause_seconds", "bytes", "rows", "aligned")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: str
    ticket: int
    created: float
    seconds: float
    pause_seconds: float
    bytes: int
    rows: int
    aligned: bool
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[str] = ..., ticket: _Optional[int] = ..., created: _Optional[float] = ..., seconds: _Optional[float] = ..., pause_seconds: _Optional[float] = ..., bytes: _Optional[int] = ..., rows: _Optional[int] = ..., aligned: bool = ...) -> None: ...

class PutStateRequest(_message.Message):
    __slots__ = ("client_high", "client_low", "incarnation", "state", "name", "offset", "data", "crc32c", "step")
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    client_high: int
    client_low: int
    incarnation: int
    state: str
    name: str
    offset: int
    data: bytes
    crc32c: int
    step: int
    def __init__(self, client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., incarnation: _Optional[int] = ..., state: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class PutStateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("rank", "name", "offset", "bytes_max")
    RANK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    rank: int
    name: str
    offset: int
    bytes_max: int
    def __init__(self, rank: _Optional[int] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., bytes_max: _Optional[int] = ...) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("step", "entries", "data", "crc32c")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    step: int
    entries: _containers.RepeatedCompositeFieldContainer[StateEntry]
    data: bytes
    crc32c: int
    def __init__(self, step: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[StateEntry, _Mapping]]] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class StateEntry(_message.Message):
    __slots__ = ("name", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("ticket", "source", "tables", "rename", "optimizer_state", "number")
    class RenameEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TICKET_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    RENAME_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_STATE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ticket: str
    source: str
    tables: _containers.RepeatedScalarFieldContainer[str]
    rename: _containers.ScalarMap[str, str]
    optimizer_state: bool
    number: int
    def __init__(self, ticket: _Optional[str] = ..., source: _Optional[str] = ..., tables: _Optional[_Iterable[str]] = ..., rename: _Optional[_Mapping[str, str]] = ..., optimizer_state: bool = ..., number: _Optional[int] = ...) -> None: ...

class RestoreResponse(_message.Message):
    __slots__ = ("done", "number", "rows", "tables")
    DONE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    done: bool
    number: int
    rows: int
    tables: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, done: bool = ..., number: _Optional[int] = ..., rows: _Optional[int] = ..., tables: _Optional[_Iterable[str]] = ...) -> None: ...

class CutRequest(_message.Message):
    __slots__ = ("phase", "number", "attempt", "coordinator_epoch", "full", "limits")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    number: int
    attempt: str
    coordinator_epoch: int
    full: bool
    limits: _containers.RepeatedCompositeFieldContainer[ClientStep]
    def __init__(self, phase: _Optional[str] = ..., number: _Optional[int] = ..., attempt: _Optional[str] = ..., coordinator_epoch: _Optional[int] = ..., full: bool = ..., limits: _Optional[_Iterable[_Union[ClientStep, _Mapping]]] = ...) -> None: ...

class ClientStep(_message.Message):
    __slots__ = ("client_high", "client_low", "next")
    CLIENT_HIGH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_LOW_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    client_high: int
    client_low: int
    next: int
    def __init__(self, client_high: _Optional[int] = ..., client_low: _Optional[int] = ..., next: _Optional[int] = ...) -> None: ...

class CutResponse(_message.Message):
    __slots__ = ("epoch", "begun", "aligned", "pause_seconds", "written", "link", "changed")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    begun: _containers.RepeatedCompositeFieldContainer[ClientStep]
    aligned: bool
    pause_seconds: float
    written: bool
    link: str
    changed: bool
    def __init__(self, epoch: _Optional[int] = ..., begun: _Optional[_Iterable[_Union[ClientStep, _Mapping]]] = ..., aligned: bool = ..., pause_seconds: _Optional[float] = ..., written: bool = ..., link: _Optional[str] = ..., changed: bool = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("in_flight",)
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    in_flight: int
    def __init__(self, in_flight: _Optional[int] = ...) -> None: ...
