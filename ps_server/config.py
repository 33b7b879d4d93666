"""A server's settings: arguments first, then TABLEBAY_* variables, then defaults."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tablebay.client import environment as names
from tablebay.client.errors import BadRequest
from tablebay.client.tables import TableSpec, load_tables
from tablebay.ps_server import memory, telemetry

MIB = 1024 * 1024
USAGE_EXIT = 2

# Nobody else is let in unless the operator of the server says so.
DEFAULT_HOST = "127.0.0.1"
DEFAULT_JOB = "local"
DEFAULT_MESSAGE_BYTES_MAX = 64 * MIB
DEFAULT_KEYS_MAX = 16 * MIB
DEFAULT_CLIENTS_MAX = 1024
DEFAULT_REQUESTS_MAX = 1024
DEFAULT_GRACE_S = 20.0
DEFAULT_EVERY_S = 600.0
DEFAULT_FULL_EVERY = 12
DEFAULT_RETAIN_LAST = 5
DEFAULT_CHECKPOINT_TIMEOUT_S = 600.0
# What --restore-from may say beside a directory.
LATEST, NEVER = "Latest", "Never"
RESTORE_POLICIES = ("IfExists", "Required")

_JOB = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HOST = re.compile(r"[0-9A-Za-z_.:%-]{1,253}")


class BadSetting(Exception):
    """A setting that cannot be used: its name, the value found, the value wanted."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where checkpoints go, and when they are made. Seconds; 0 of every_s, every_steps: not by this.

    full_every: that many links make a chain, the first of them full. restore_from: LATEST, NEVER or a directory.
    """

    destination: str
    every_s: float
    every_steps: int
    full_every: int
    retain_last: int
    timeout_s: float
    restore_from: str
    restore_required: bool


@dataclass(frozen=True, kw_only=True)
class Config:
    """host: address or name to listen on. servers: data addresses of all servers, this one's at `index`.

    message_bytes_max: of one message, either way. memory_limit_bytes: of rows, indexes and step windows; 0 is
        none.
    keys_max: of one part of a call. clients_max: anonymous clients known at once. threads: data calls handled
        at once.
    requests_max: calls that may be under way on a port; more are refused. grace_s: from SIGTERM to the end of
        calls, and of the last checkpoint. checkpoint: None where none are made. tls_dir: of the server's certificate;
        "" is plain.
    """

    host: str
    data_port: int
    index: int
    servers: tuple[str, ...]
    job: str
    generation: int
    tables: tuple[TableSpec, ...]
    message_bytes_max: int
    memory_limit_bytes: int
    keys_max: int
    clients_max: int
    threads: int
    requests_max: int
    grace_s: float
    log_level: str
    log_format: str
    exit_with_parent: bool
    checkpoint: CheckpointConfig | None
    tls_dir: str = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        self.exit(USAGE_EXIT, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(program: str) -> argparse.ArgumentParser:
    """The command line. An option that takes a value may be a variable: TABLEBAY_DATA_PORT."""
    result = _Parser(
        prog=program,
        allow_abbrev=False,
        description="Hold rows of a job's tables. The HTTP port is the data port + 1, the control port + 2.",
        epilog="Each option may be given as a variable instead, such as TABLEBAY_DATA_PORT for --data-port. "
        "Exit codes: 0 ended by SIGTERM or SIGINT, 1 failed, 2 wrong usage, 3 no checkpoint that can be used, or "
        "another life of this server has taken over.",
    )
    for option, metavar, text in (
        ("--host", "HOST", f"address to listen on ({DEFAULT_HOST}); 0.0.0.0 or :: is open to the network"),
        ("--data-port", "PORT", f"data port ({names.DATA_PORT})"),
        ("--index", "NUMBER", "this server's place among --servers, from 0 (0)"),
        (
            "--servers",
            "PATTERN",
            "data addresses of all servers, such as ps-{0..3}.ps:7070 (this server alone)",
        ),
        ("--job", "NAME", f"the job that the rows belong to ({DEFAULT_JOB})"),
        ("--generation", "NUMBER", "the job's generation (0)"),
        ("--tables", "JSON", "list of tables to make at start (none)"),
        ("--message-bytes-max", "BYTES", f"largest message, either way ({DEFAULT_MESSAGE_BYTES_MAX})"),
        (
            "--memory-limit-bytes",
            "BYTES",
            "memory for rows, 0 for no limit (0.85 of the control group's limit)",
        ),
        ("--keys-max", "NUMBER", f"keys of one table in one call ({DEFAULT_KEYS_MAX})"),
        ("--clients-max", "NUMBER", f"anonymous clients known at once ({DEFAULT_CLIENTS_MAX})"),
        ("--threads", "NUMBER", "data calls handled at once (twice the cores, at least 8)"),
        ("--requests-max", "NUMBER", f"calls under way on a port; more are refused ({DEFAULT_REQUESTS_MAX})"),
        ("--grace-seconds", "SECONDS", f"how long SIGTERM waits for calls under way ({DEFAULT_GRACE_S:g})"),
        ("--checkpoint", "DIRECTORY", "where checkpoints go, seen by all servers of the job (none are made)"),
        ("--checkpoint-every-seconds", "SECONDS", f"0 for never ({DEFAULT_EVERY_S:g})"),
        ("--checkpoint-every-steps", "NUMBER", "steps of the farthest worker, 0 for never (0)"),
        (
            "--checkpoint-full-every",
            "NUMBER",
            f"every such one is full, the others are deltas ({DEFAULT_FULL_EVERY})",
        ),
        ("--checkpoint-retain-last", "NUMBER", f"complete checkpoints to keep ({DEFAULT_RETAIN_LAST})"),
        (
            "--checkpoint-timeout-seconds",
            "SECONDS",
            f"how long one may take ({DEFAULT_CHECKPOINT_TIMEOUT_S:g})",
        ),
        (
            "--restore-from",
            "SOURCE",
            f"{LATEST}, {NEVER}, or the directory of another job's checkpoints, for a new job ({LATEST})",
        ),
        (
            "--restore-policy",
            "POLICY",
            f"{RESTORE_POLICIES[1]}: refuse to start without a checkpoint ({RESTORE_POLICIES[0]})",
        ),
        (
            "--tls-dir",
            "DIRECTORY",
            "tls.key, tls.crt and ca.crt: TLS, and only peers with certificates (plain)",
        ),
        ("--log-level", "LEVEL", f"{', '.join(telemetry.LEVELS)} (info)"),
        ("--log-format", "FORMAT", f"{' or '.join(telemetry.FORMATS)} (text on a terminal, else json)"),
    ):
        result.add_argument(option, metavar=metavar, help=text)
    result.add_argument(
        "--exit-with-parent", action="store_true", help="die with the process that started this one"
    )
    result.add_argument("--version", action="version", version=f"tablebay {names.VERSION}")
    return result


def read_config(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, *, program: str = "tablebay-server"
) -> Config:
    """The settings that arguments and environment give. Raises BadSetting; SystemExit on --help, usage."""
    arguments = parser(program).parse_args(argv)
    settings = _Settings(vars(arguments), os.environ if environment is None else environment)
    host = settings.host()
    data_port = settings.number("data_port", 1, names.DATA_PORT_MAX, names.DATA_PORT)
    servers = settings.servers(f"{f'[{host}]' if ':' in host else host}:{data_port}")
    index = settings.number("index", 0, names.SERVERS_MAX - 1, 0)
    if index >= len(servers):
        raise BadSetting(
            f"{settings.source('index')} is {index}, wanted 0 to {len(servers) - 1}: {len(servers)} servers"
        )
    return Config(
        host=host,
        data_port=data_port,
        index=index,
        servers=servers,
        job=settings.job(),
        generation=settings.number("generation", 0, 2**32 - 1, 0),
        tables=settings.tables(),
        message_bytes_max=settings.number(
            "message_bytes_max", 64 * 1024, 2**31 - 1, DEFAULT_MESSAGE_BYTES_MAX
        ),
        memory_limit_bytes=settings.number("memory_limit_bytes", 0, 2**63 - 1, None),
        keys_max=settings.number("keys_max", 1, 2**32 - 1, DEFAULT_KEYS_MAX),
        clients_max=settings.number("clients_max", 1, 1_000_000, DEFAULT_CLIENTS_MAX),
        threads=settings.number("threads", 1, 4096, max(8, 2 * len(os.sched_getaffinity(0)))),
        requests_max=settings.number("requests_max", 1, 16_384, DEFAULT_REQUESTS_MAX),
        grace_s=settings.seconds("grace_seconds", DEFAULT_GRACE_S),
        log_level=settings.choice("log_level", tuple(telemetry.LEVELS), "info"),
        log_format=settings.choice(
            "log_format", telemetry.FORMATS, "text" if sys.stderr.isatty() else "json"
        ),
        exit_with_parent=bool(arguments.exit_with_parent),
        checkpoint=_checkpoint(settings),
        tls_dir=settings.directory("tls_dir", "the absolute path of a directory"),
    )


def _checkpoint(settings: _Settings) -> CheckpointConfig | None:
    destination = settings.directory("checkpoint")
    if not destination:
        for name in (
            "checkpoint_every_seconds",
            "checkpoint_every_steps",
            "checkpoint_full_every",
            "checkpoint_retain_last",
            "checkpoint_timeout_seconds",
            "restore_from",
            "restore_policy",
        ):
            if settings.text(name):
                raise BadSetting(
                    f"{settings.source(name)} is {settings.text(name)[:200]!r}, and --checkpoint is not given; "
                    "wanted both or neither"
                )
        return None
    source = settings.text("restore_from")
    return CheckpointConfig(
        destination=destination,
        every_s=settings.seconds("checkpoint_every_seconds", DEFAULT_EVERY_S, 31_536_000.0),
        every_steps=settings.number("checkpoint_every_steps", 0, 2**62, 0),
        full_every=settings.number("checkpoint_full_every", 1, 10_000, DEFAULT_FULL_EVERY),
        retain_last=settings.number("checkpoint_retain_last", 1, 10_000, DEFAULT_RETAIN_LAST),
        timeout_s=settings.seconds("checkpoint_timeout_seconds", DEFAULT_CHECKPOINT_TIMEOUT_S),
        restore_from=source if source in (LATEST, NEVER) else settings.directory("restore_from") or LATEST,
        restore_required=settings.choice("restore_policy", RESTORE_POLICIES, RESTORE_POLICIES[0])
        == "Required",
    )


class _Settings:
    """Texts by the name of their setting, each with where it came from."""

    def __init__(self, arguments: Mapping[str, str | None], environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment

    def source(self, name: str) -> str:
        """What to name in a message."""
        if self._arguments.get(name) is not None:
            return "--" + name.replace("_", "-")
        return f"TABLEBAY_{name.upper()}"

    def text(self, name: str) -> str:
        """The text found; empty when there is none."""
        given = self._arguments.get(name)
        return self._environment.get(f"TABLEBAY_{name.upper()}", "") if given is None else given

    def refuse(self, name: str, wanted: str) -> NoReturn:
        """Raise BadSetting for what was found."""
        text = self.text(name)
        shown = text if len(text) <= 200 else f"{text[:200]}…"
        raise BadSetting(f"{self.source(name)} is {shown!r}, wanted {wanted}")

    def number(self, name: str, low: int, high: int, default: int | None) -> int:
        """A whole number. default: None for the memory's, which is looked up only where it is needed."""
        text = self.text(name)
        if not text:
            return memory.default_limit() if default is None else default
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not low <= int(text) <= high:
            self.refuse(name, f"a whole number from {low} to {high}")
        return int(text)

    def directory(
        self, name: str, wanted: str = "the absolute path of a directory; object stores are not there yet"
    ) -> str:
        """An absolute path; empty where none is given."""
        text = self.text(name)
        path = text.removeprefix("file://")
        if text and (not path.startswith("/") or "\0" in path or "/../" in f"{path}/"):
            self.refuse(name, wanted)
        return path

    def seconds(self, name: str, default: float, high: float = 86_400.0) -> float:
        """Seconds, 0 or more."""
        text = self.text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= high:
            self.refuse(name, f"seconds from 0 to {high:g}")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """One of a few words."""
        text = self.text(name) or default
        for word in allowed:
            if word.lower() == text.lower():
                return word
        return self.refuse(name, " or ".join(allowed))

    def host(self) -> str:
        """An address or a name, an IPv6 address without brackets."""
        text = self.text("host") or DEFAULT_HOST
        bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        if not _HOST.fullmatch(bare):
            self.refuse("host", "an address or a name, such as 127.0.0.1")
        return bare

    def job(self) -> str:
        """A name such as Kubernetes takes."""
        text = self.text("job") or DEFAULT_JOB
        if not _JOB.fullmatch(text):
            self.refuse("job", "lower-case letters, digits, '-' and '.', at most 253")
        return text

    def servers(self, alone: str) -> tuple[str, ...]:
        """The data addresses of all servers."""
        text = self.text("servers")
        if not text:
            return (alone,)
        try:
            return tuple(names.expand_pattern(text))
        except BadRequest as error:
            raise BadSetting(f"{self.source('servers')}: {error}") from None

    def tables(self) -> tuple[TableSpec, ...]:
        """The tables that the job declares."""
        text = self.text("tables")
        if not text:
            return ()
        try:
            return tuple(load_tables(text))
        except BadRequest as error:
            raise BadSetting(f"{self.source('tables')}: {error}") from None
