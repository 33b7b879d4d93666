"""What processes of a job find in their environment: names, ports, addresses. Standard library only.

The local runner and the operator write these variables, servers and workers read them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tablebay import __version__
from tablebay.client.errors import BadRequest

VERSION = __version__
# Of the services in client/proto. Another major version is refused, another minor one is not.
PROTOCOL_MAJOR, PROTOCOL_MINOR = 1, 0

JOB = "TABLEBAY_JOB"
ROLE = "TABLEBAY_ROLE"
RANK = "TABLEBAY_RANK"
WORKERS = "TABLEBAY_WORKERS"
GENERATION = "TABLEBAY_GENERATION"
SERVERS = "TABLEBAY_SERVERS"
INDEX = "TABLEBAY_INDEX"
TABLES = "TABLEBAY_TABLES"
CHECKPOINT = "TABLEBAY_CHECKPOINT"
CHECKPOINT_EVERY_SECONDS = "TABLEBAY_CHECKPOINT_EVERY_SECONDS"
CHECKPOINT_EVERY_STEPS = "TABLEBAY_CHECKPOINT_EVERY_STEPS"
CHECKPOINT_FULL_EVERY = "TABLEBAY_CHECKPOINT_FULL_EVERY"
CHECKPOINT_RETAIN_LAST = "TABLEBAY_CHECKPOINT_RETAIN_LAST"
CHECKPOINT_TIMEOUT_SECONDS = "TABLEBAY_CHECKPOINT_TIMEOUT_SECONDS"
RESTORE_FROM = "TABLEBAY_RESTORE_FROM"
RESTORE_POLICY = "TABLEBAY_RESTORE_POLICY"
TLS_DIR = "TABLEBAY_TLS_DIR"
LOG_LEVEL = "TABLEBAY_LOG_LEVEL"
LOG_FORMAT = "TABLEBAY_LOG_FORMAT"
METRICS_PORT = "TABLEBAY_METRICS_PORT"
METRICS_HOST = "TABLEBAY_METRICS_HOST"
TRANSPORT = "TABLEBAY_TRANSPORT"

# Labels of a job's objects in a cluster.
JOB_LABEL, ROLE_LABEL = "tablebay.dev/job", "tablebay.dev/role"

# What torch.distributed reads.
DISTRIBUTED = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")

_IDENTITY = frozenset(
    {
        JOB,
        ROLE,
        RANK,
        WORKERS,
        GENERATION,
        SERVERS,
        INDEX,
        TABLES,
        METRICS_HOST,
        METRICS_PORT,
        CHECKPOINT,
        CHECKPOINT_EVERY_SECONDS,
        CHECKPOINT_EVERY_STEPS,
        CHECKPOINT_FULL_EVERY,
        CHECKPOINT_RETAIN_LAST,
        CHECKPOINT_TIMEOUT_SECONDS,
        RESTORE_FROM,
        RESTORE_POLICY,
        TLS_DIR,
        *DISTRIBUTED,
    }
)

# A server's HTTP port is one above its data port, its control port two above.
DATA_PORT, HTTP_PORT, CONTROL_PORT = 7070, 7071, 7072
PORTS_PER_SERVER = 3
# Of a server: starting it again changes nothing, since no checkpoint can be used or another life has taken over.
NO_CHECKPOINT_EXIT = 3
DATA_PORT_MAX = 65535 - (PORTS_PER_SERVER - 1)

# As many as there are shards.
SERVERS_MAX = 1024

_RANGE = re.compile(r"\{([^{}]*)\}")
_BOUNDS = re.compile(r"(0|[1-9]\d{0,9})\.\.(0|[1-9]\d{0,9})(?:\.\.([1-9]\d{0,9}))?")
_HOST = re.compile(r"\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]{}/@]+")


def is_identity(name: str) -> bool:
    """Whether a variable says which process of which job this is: not to be handed on to another job's."""
    return name in _IDENTITY


def http_port(data_port: int) -> int:
    """Where a server answers /metrics, /healthz and /readyz."""
    return data_port + 1


def control_port(data_port: int) -> int:
    """Where a server answers all but Pull, Push and Step."""
    return data_port + 2


def split_address(address: str) -> tuple[str, int]:
    """The host and data port of `host:port`. Raises BadRequest."""
    host, _, port = address.rpartition(":")
    if (
        not _HOST.fullmatch(host)
        or not port.isascii()
        or not port.isdecimal()
        or not 1 <= int(port) <= DATA_PORT_MAX
    ):
        raise BadRequest(
            f"address {_shown(address)}: wanted host:port with a data port of 1 to {DATA_PORT_MAX}, "
            "such as localhost:7070"
        )
    return host, int(port)


def expand_pattern(pattern: str) -> list[str]:
    """The servers' data addresses, in the order of their indices.

    pattern: `host:port`s separated by commas, each of which may hold the shell's `{first..last}` or
        `{first..last..step}`, such as `flights-server-{0..1}.flights-servers:7070`.
    Raises BadRequest.
    """
    addresses: list[str] = []
    for item in pattern.split(","):
        for address in _expand(item.strip(), pattern):
            host, port = split_address(address)
            addresses.append(f"{host}:{port}")
            if len(addresses) > SERVERS_MAX:
                raise BadRequest(
                    f"addresses {_shown(pattern)}: more than {SERVERS_MAX}, which is the most there can be"
                )
    seen: set[str] = set()
    for address in addresses:
        if address in seen:
            raise BadRequest(
                f"addresses {_shown(pattern)}: {address} is named twice, wanted each server once"
            )
        seen.add(address)
    return addresses


def _expand(text: str, pattern: str) -> Iterator[str]:
    brace = _RANGE.search(text)
    if brace is None:
        yield text
        return
    bounds = _BOUNDS.fullmatch(brace[1])
    if bounds is None or int(bounds[1]) > int(bounds[2]):
        raise BadRequest(
            f"addresses {_shown(pattern)}: found {_shown(brace[0])}, wanted {{first..last}} or "
            "{first..last..step} with first <= last"
        )
    for number in range(int(bounds[1]), int(bounds[2]) + 1, int(bounds[3] or 1)):
        yield from _expand(f"{text[: brace.start()]}{number}{text[brace.end() :]}", pattern)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def number(environment: Mapping[str, str], name: str, low: int, high: int, default: int | None) -> int | None:
    """The whole number that a variable holds, or `default` where it is unset or empty. Raises BadRequest."""
    text = environment.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not low <= int(text) <= high:
        raise BadRequest(f"{name} is {_shown(text)}, wanted a whole number from {low} to {high}")
    return int(text)


# Of a job whose workers come and go: at least this many, at most that.
_ELASTIC = re.compile(r"[1-9]\d{0,9}\.\.[1-9]\d{0,9}", re.ASCII)


@dataclass(frozen=True)
class WorkerEnvironment:
    """Who a worker is. servers: a pattern for `expand_pattern`. rank: None for no rank of the job.

    workers: how many; None of an elastic job, of which server 0 knows.
    """

    job: str
    rank: int | None
    workers: int | None
    generation: int
    servers: str

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> WorkerEnvironment:
        """What `environment` (this process's, if not given) says. Raises BadRequest naming the variable."""
        found = os.environ if environment is None else environment
        servers = found.get(SERVERS, "")
        if not servers:
            raise BadRequest(
                f"{SERVERS} is not set, so the servers are unknown: give connect() an address, such as "
                "'localhost:7070', or start this process with `tablebay run`"
            )
        rank = number(found, RANK, 0, 2**32 - 1, None)
        generation = number(found, GENERATION, 0, 2**32 - 1, 0) or 0
        job = found.get(JOB, "")
        if _ELASTIC.fullmatch(found.get(WORKERS, "")):
            return cls(job=job, rank=rank, workers=None, generation=generation, servers=servers)
        workers = number(found, WORKERS, 1, 2**32 - 1, 1 if rank is None else None)
        if workers is None:
            raise BadRequest(f"{WORKERS} is not set, but {RANK} is; wanted both")
        if rank is not None and rank >= workers:
            raise BadRequest(
                f"{RANK} is {rank} and {WORKERS} is {workers}, wanted a rank below the number of workers"
            )
        return cls(job=job, rank=rank, workers=workers, generation=generation, servers=servers)
