# Written from the built core by native/stubs.py; change native/src/bindings.cc instead.
"""
Tablebay's tables, wire format and client-side routing in C++.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['ASSIGN', 'CONTAINS', 'Call', 'Cut', 'DELETE', 'EVICTION_REASONS', 'Figures', 'FrozenRows', 'Http2Call', 'Http2Port', 'Http2Server', 'KeptRequest', 'LoadFile', 'Loader', 'Plan', 'READ_ONLY', 'ReplayMemory', 'Router', 'SHARDS', 'SHOWS', 'STATE', 'STRIPES', 'StatusError', 'Store', 'TlsContext', 'UNIQUE', 'commit', 'crc32c', 'crc32c_portable', 'first_nonfinite', 'hash_keys', 'idle_processors', 'instruction_set', 'instruction_sets', 'jobs_helped', 'processors_of_quota', 'read_http2_answer', 'read_http2_requests', 'readdress', 'shard_keys', 'shards_of', 'status_code', 'sum_bag_gradients', 'table_id', 'time_buckets', 'tls_missing', 'use_instruction_set', 'use_processors', 'version']
class StatusError(Exception):
    pass
class Figures:
    """
    Requests of a server, counted and timed by method: Pull, Push and Step have the numbers 0 to 2, and are counted by handle_pull and its like. Safe in threads.
    """
    def __init__(self) -> None:
        ...
    def begin(self, method: int, received_bytes: int) -> None:
        ...
    def end(self, method: int, seconds: float, code: str, sent_bytes: int) -> None:
        """
        code: the name of a gRPC status.
        """
    def in_flight(self, method: int) -> int:
        """
        Calls of the method that have begun and not ended.
        """
    def read(self, method: int) -> tuple:
        """
        (in_flight, calls by code, calls by bucket of time, seconds, received_bytes, sent_bytes)
        """
class Cut:
    """
    What a store held at one moment, read out as a checkpoint's files. Layouts are (row_bytes, step, weights, weight_bytes, slots, slot_bytes).
    """
    def abandon(self) -> None:
        """
        It is not; the next one is full.
        """
    def commit(self) -> None:
        """
        It is in a complete checkpoint.
        """
    def figures(self, table_id: int | None) -> tuple[int, int, int, int]:
        """
        (rows, deleted keys, CRC-32C of the footer's payload, bytes read) so far.
        """
    def read(self, table_id: int | None, out: typing.Any) -> int:
        """
        Fills `out` (at least 1 MiB + 16 bytes) with whole blocks of a table's file, or with None of the steps'; how many bytes, 0 at the end.
        """
    @property
    def aligned(self) -> bool:
        ...
    @property
    def clients(self) -> list[tuple[int, int, int | None, int, bytes]]:
        """
        (client_high, client_low, rank, the lowest step not applied, the cursor of the step before) of each.
        """
    @property
    def full(self) -> bool:
        ...
    @property
    def pause_s(self) -> float:
        ...
    @property
    def tables(self) -> list[tuple[int, tuple[int, int, int, int, int, int]]]:
        ...
class LoadFile:
    """
    The blocks of one file of a checkpoint, as they come.
    """
    def feed(self, bytes: typing.Any) -> int:
        """
        Takes the whole blocks at the beginning; how many bytes those are.
        """
    def join(self, rest: LoadFile) -> None:
        ...
    def rest(self, start: int) -> LoadFile:
        """
        Its blocks from byte `start` on, for another thread; join puts them behind these.
        """
    @property
    def crc(self) -> int:
        ...
    @property
    def deleted(self) -> int:
        ...
    @property
    def ended(self) -> bool:
        ...
    @property
    def rows(self) -> int:
        ...
class Loader:
    """
    Tables read from a checkpoint, beside those of a store until finish().
    """
    def begin(self, table_id: int | None, layout: tuple[int, int, int, int, int, int] | None, delta: bool, weights_only: bool = False, start: int = 0, rows: int = 0) -> LoadFile:
        """
        A file of a table's rows, or with None of steps.
        """
    def create_table(self, name: str, dim: int, dtype: str, optimizer: str, optimizer_parameters: collections.abc.Mapping[str, float], initializer: str, initializer_parameters: collections.abc.Mapping[str, float], seed: int, non_finite: str, push_missing: str = 'Create', admit_at: int = 1, admit_probability: float = 1.0, admit_filter_keys: int = 0, eviction: collections.abc.Mapping[str, float] = {}) -> int:
        ...
    def finish(self) -> None:
        """
        Puts all tables in the store.
        """
    def layout(self, table_id: int) -> tuple[int, int, int, int, int, int]:
        ...
    @property
    def rows(self) -> int:
        ...
class FrozenRows:
    """
    Rows of a table of a checkpoint, read where its files lie in memory.
    """
    def __init__(self, layout: tuple[int, int, int, int, int, int], dtype: str) -> None:
        ...
    def __len__(self) -> int:
        ...
    def add(self, file: typing.Any, start: int) -> None:
        """
        The blocks of a file that lie from `start` on, in place; the object is kept.
        """
    def contains(self, keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.bool]:
        ...
    def read(self, keys: numpy.typing.NDArray[numpy.uint64], out: numpy.ndarray[typing.Any, numpy.dtype[typing.Any]]) -> None:
        """
        out: contiguous, of the table's rows.
        """
    def scan(self, position: int, most: int) -> tuple[numpy.typing.NDArray[numpy.uint64], bytes, int]:
        ...
class Store:
    """
    The tables of one server, or of a table in this process. Safe in threads.
    """
    def __init__(self, *, epoch: int = 1, memory_limit: int = 0, keys_max: int = 0, message_bytes_max: int = 0, threads: int = 0) -> None:
        ...
    def assign(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64], rows: numpy.ndarray[typing.Any, numpy.dtype[typing.Any]]) -> None:
        ...
    def contains(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.bool]:
        ...
    def counters(self) -> dict:
        ...
    def create_table(self, name: str, dim: int, dtype: str, optimizer: str, optimizer_parameters: collections.abc.Mapping[str, float], initializer: str, initializer_parameters: collections.abc.Mapping[str, float], seed: int, non_finite: str, push_missing: str = 'Create', admit_at: int = 1, admit_probability: float = 1.0, admit_filter_keys: int = 0, eviction: collections.abc.Mapping[str, float] = {}) -> int:
        ...
    def decay(self, table_id: int, epoch: int) -> bool:
        """
        Days end until that epoch, on the shards of this server: whether any did.
        """
    def delete(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64]) -> int:
        ...
    def evict(self, table_id: int, stripe: int, seconds: float) -> tuple[int, int, int]:
        """
        Removes the rows that leave, from that stripe on, for about so many seconds: (rows looked at, rows evicted, the stripe to go on from; 64 is the end).
        """
    def evicted(self, table_id: int, position: int, most: int) -> tuple[int, bytes, bytes, bytes]:
        """
        The rows that left, by number, from that one or the oldest that is kept on: (number of the first, keys u64, Unix times u32, reasons u8: places in EVICTION_REASONS).
        """
    def forget(self, client_high: int, client_low: int) -> None:
        ...
    def handle_pull(self, request: typing.Any) -> bytes:
        ...
    def handle_push(self, request: typing.Any) -> bytes:
        ...
    def handle_step(self, request: typing.Any) -> bytes:
        ...
    def hello(self, client_high: int, client_low: int, incarnation: int, rank: int | None = None) -> tuple[int, bytes, int]:
        """
        Makes a client known or raises its incarnation: the lowest step not applied for it, the cursor kept with the step before, and the step below which all is in a committed checkpoint.
        """
    def highest_step(self) -> int:
        ...
    def hold(self, seconds: float) -> list[tuple[int, int, int]]:
        """
        Begins no step of a ranked client for so long: (client_high, client_low, the highest step begun + 1) of each.
        """
    def index_probes(self, table_id: int) -> float:
        """
        How many buckets of the index a search for a row looks at, on average.
        """
    def load(self, owned: collections.abc.Sequence[int]) -> Loader:
        """
        A Loader of tables into this store; of rows and steps of the shards given.
        """
    def now(self) -> int:
        """
        Unix time that eviction goes by.
        """
    def pull(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64], out: numpy.ndarray[typing.Any, numpy.dtype[typing.Any]], create: bool) -> None:
        ...
    def push(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64], gradients: numpy.ndarray[typing.Any, numpy.dtype[typing.Any]], unique: bool = False, counts: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None = None) -> None:
        ...
    def release(self) -> None:
        """
        Ends a hold.
        """
    def scan(self, table_id: int, position: int, rows_max: int) -> tuple[bytes, bytes, int]:
        ...
    def set_learning_rate(self, table_id: int, value: float) -> None:
        ...
    def set_now(self, seconds: int) -> None:
        """
        Unix time that eviction goes by from now on, 0 for the system's.
        """
    def set_shard_map(self, owners: numpy.typing.NDArray[numpy.uint16], index: int, version: int) -> None:
        ...
    def set_weight_decay(self, table_id: int, value: float) -> None:
        ...
    def shows(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Shows and clicks of each key, float32 (n, 2).
        """
    def state(self, table_id: int, keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.uint8]:
        ...
    def table_info(self, table_id: int) -> dict:
        ...
    def take(self, limits: collections.abc.Sequence[tuple[int, int, int]], wait_s: float, full: bool) -> Cut:
        """
        Lets steps below the limits through, waits until they are whole but no longer than wait_s, and cuts.
        """
    @property
    def epoch(self) -> int:
        ...
    @property
    def figures(self) -> Figures:
        ...
    @property
    def must_be_full(self) -> bool:
        ...
class Plan:
    """
    Unique keys of a call in order of (server, shard), and where each given key went.
    """
    def intersect(self, keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.uint32]:
        """
        Plan positions whose key is among `keys`, ascending.
        """
    def inverse(self) -> numpy.typing.NDArray[numpy.uint32]:
        ...
    def is_of(self, keys: numpy.typing.NDArray[numpy.uint64]) -> bool:
        """
        Whether it was made of these keys, in this order.
        """
    def keys(self) -> numpy.typing.NDArray[numpy.uint64]:
        ...
    @property
    def count(self) -> int:
        ...
    @property
    def unique(self) -> int:
        ...
class Router:
    """
    Which server has which shard.
    """
    def __init__(self, owners: numpy.typing.NDArray[numpy.uint16], servers: int) -> None:
        ...
    def plan(self, keys: numpy.typing.NDArray[numpy.uint64]) -> Plan:
        ...
class ReplayMemory:
    """
    Memory of requests that are kept, which is used over and over. Safe in threads.
    """
    def __init__(self, bytes_max: int) -> None:
        ...
    @property
    def bytes(self) -> int:
        """
        Taken from the system.
        """
class KeptRequest:
    """
    A request's bytes, whose memory is given back with it.
    """
    def __bytes__(self) -> bytes:
        ...
    def __init__(self, memory: ReplayMemory) -> None:
        ...
    def __len__(self) -> int:
        ...
    def write(self, content: bytes) -> None:
        """
        Keep these bytes, and none that were kept before.
        """
class Call:
    """
    One call to all servers: its requests, its answers, the rows gathered from them.
    """
    def __init__(self, kind: str, pulls: list, pushes: list, message_bytes_max: int, cut_into: int = 1) -> None:
        """
        cut_into: how many requests a large share of a server is at least.
        """
    def accept(self, server: int, piece: int, response: bytes) -> tuple:
        """
        (epoch, shard_map_version, applied_shards, duplicate_shards, durable_next) of an answer, which is kept for finish().
        """
    def finish(self) -> None:
        ...
    def pieces(self, server: int) -> int:
        """
        How many requests a server's share is.
        """
    def request(self, server: int, piece: int, client_high: int, client_low: int, incarnation: int, shard_map_version: int, epoch: int, step: int, oldest_step: int, cursor: bytes, keep: KeptRequest | None = None) -> typing.Any:
        """
        Bytes; the same are put in `keep`.
        """
    def servers(self) -> list[int]:
        ...
class TlsContext:
    """
    What one end of connections shows and asks for: its key and certificate, and whom it trusts.
    """
    def __init__(self, *, server: bool, key: bytes, certificate: bytes, authorities: bytes) -> None:
        """
        PEM texts. Raises StatusError for what is no key, certificate or authority.
        """
class Http2Call:
    """
    A call whose request has been sent.
    """
    def cancel(self) -> None:
        """
        Wakes who waits for the result.
        """
    def result(self) -> tuple:
        """
        Waits for (gRPC code, message, the error's class as the server names it or None, answer or None).
        """
class Http2Server:
    """
    Connections to one gRPC server.
    """
    def __init__(self, host: str, port: int, user_agent: str, message_bytes_max: int, tls: TlsContext | None = None) -> None:
        ...
    def call(self, path: str, request: bytes, timeout_s: float) -> Http2Call:
        """
        Sends a request; what comes of it, failures to connect included, is the call's result().
        """
    def drop(self, for_good: bool) -> None:
        """
        Ends every connection, and calls under way with them; later calls fail too if it is for good.
        """
class Http2Port:
    """
    Answers unary gRPC calls on a listening socket, whose number is this object's now.
    """
    def __init__(self, fd: int, handler: collections.abc.Callable, *, message_bytes_max: int, calls_max: int, connections_max: int, streams_max: int, metadata_bytes_max: int, tls: typing.Any = None) -> None:
        """
        handler: of a path, a request's bytes, which it must not keep, and the caller's certificate in PEM, empty without TLS; returns the answer's bytes, or (gRPC code, message, the error's class). tls: gives the TlsContext of a new connection.
        """
    def start(self) -> None:
        ...
    def stop(self, grace_s: float) -> bool:
        """
        Refuses new calls, waits for those under way, and ends all connections; whether all had ended in time.
        """
def commit() -> str:
    ...
def crc32c(data: typing.Any, initial: int = 0) -> int:
    ...
def crc32c_portable(data: typing.Any, initial: int = 0) -> int:
    """
    The way without instructions of the CPU; for tests.
    """
def first_nonfinite(rows: numpy.typing.NDArray[numpy.float32]) -> int | None:
    """
    Index of the first row of float32 (n, dim) with a NaN or an infinity.
    """
def hash_keys(keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.uint64]:
    ...
def idle_processors() -> int:
    """
    How many would help with a large call now.
    """
def instruction_set() -> str:
    ...
def instruction_sets() -> list[str]:
    """
    Those this CPU can use, best last.
    """
def jobs_helped() -> int:
    """
    Parts of this process's large calls that idle processors helped with.
    """
def processors_of_quota(folder: str) -> int:
    """
    How many whole processors' time a control group's folder allows; 2^32 - 1 where it sets no limit. For tests.
    """
def read_http2_answer(data: bytes, piece: int, message_bytes_max: int) -> typing.Any:
    """
    What a call makes of the bytes that its server sends, given in pieces; None while it has no result. For tests.
    """
def read_http2_requests(data: bytes, piece: int, message_bytes_max: int) -> tuple:
    """
    What a port makes of the bytes that a client sends, given in pieces: the calls (stream, path, message) and the frames it owes. For tests.
    """
def readdress(request: bytes, epoch: int) -> bytes:
    """
    The request, with another epoch of the server in it.
    """
def shard_keys() -> numpy.typing.NDArray[numpy.uint64]:
    """
    A key of each shard, under which a table of days has the shard's row.
    """
def shards_of(keys: numpy.typing.NDArray[numpy.uint64]) -> numpy.typing.NDArray[numpy.uint16]:
    ...
def status_code(kind: str) -> str:
    """
    The gRPC status that a StatusError of that kind is counted as.
    """
@typing.overload
def sum_bag_gradients(rows: numpy.typing.NDArray[numpy.int64], begins: numpy.typing.NDArray[numpy.int64], gradients: numpy.typing.NDArray[numpy.float32], out: numpy.typing.NDArray[numpy.float32], mean: bool, padding: int = -1) -> None:
    """
    Writes to out, (n, dim), for each row the sum of the gradients, (bags, dim), of the bags that it is in, in order. The rows of bag b are rows[begins[b]:begins[b + 1]]; `mean`: divided by how many they are; `padding`: a row that does not count.
    """
@typing.overload
def sum_bag_gradients(rows: numpy.typing.NDArray[numpy.int64], begins: numpy.typing.NDArray[numpy.int64], gradients: numpy.typing.NDArray[numpy.float64], out: numpy.typing.NDArray[numpy.float64], mean: bool, padding: int = -1) -> None:
    """
    Writes to out, (n, dim), for each row the sum of the gradients, (bags, dim), of the bags that it is in, in order. The rows of bag b are rows[begins[b]:begins[b + 1]]; `mean`: divided by how many they are; `padding`: a row that does not count.
    """
def table_id(name: str) -> int:
    ...
def time_buckets() -> list[float]:
    """
    Upper bounds in seconds of the buckets of Figures.read; the last bucket is what lies beyond.
    """
def tls_missing() -> str:
    """
    Why the native core can speak no TLS here; empty where it can.
    """
def use_instruction_set(name: str) -> None:
    ...
def use_processors(processors: int) -> None:
    """
    On how many processors large calls run at once, whatever else runs on them; 0, as it begins: on those that are idle.
    """
def version() -> str:
    ...
ASSIGN: int = 4
CONTAINS: int = 32
DELETE: int = 8
EVICTION_REASONS: tuple = ('ttl', 'count', 'norm', 'score', 'unseen', 'lru', 'lfu')
READ_ONLY: int = 2
SHARDS: int = 1024
SHOWS: int = 64
STATE: int = 16
STRIPES: int = 64
UNIQUE: int = 1
