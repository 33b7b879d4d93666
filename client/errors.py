"""The errors of Tablebay, in client and server. Standard library only.

TablebayError
├─ Unavailable            the one that is retried
│   └─ DeadlineExceeded
├─ BadRequest             (ValueError) a wrong shape, length, name or value
│   ├─ BadType            (TypeError) a wrong type or dtype
│   └─ NonFinite          gradients with NaN or infinity
├─ NotRegistered          no such table
├─ TableMismatch          a table differs from what was asked for
├─ Fenced                 a newer process has this rank, or a newer generation this job
├─ ServerLost             a server was restarted without its rows
├─ CheckpointFailed       a checkpoint was given up
├─ CheckpointInvalid      a checkpoint's bytes are not what they should be
├─ CheckpointMismatch     a checkpoint of another job, or with tables of another form
├─ WrongShard             a key's shard is another server's
├─ ResourceExhausted      a limit of memory, message size, keys or calls
├─ OutOfRange             a step outside the window
├─ VersionMismatch        client and server speak different protocols
├─ CorruptMessage         a checksum does not fit
├─ Unimplemented          the server has not this method
├─ Unauthenticated        the server does not take this process's certificate
├─ PermissionDenied       this process's certificate does not let it do this
├─ Forked                 a client used in another process than its own
├─ Closed                 a client used after close()
├─ JobInvalid             (ValueError) what is wrong with a job file
└─ JobFailed              a run that ended badly

On the wire an error is a gRPC status: its code as `status_code` says, its message the text, and the class's
name in the trailing metadata under ERROR_METADATA.
"""

from __future__ import annotations

from collections.abc import Sequence

ERROR_METADATA = "tablebay-error"


class TablebayError(Exception):
    """Any error raised on purpose. Its text names the thing, the value found and the value wanted."""


class Unavailable(TablebayError):
    """A server could not be reached, or takes no calls now. The client sends such calls again by itself."""


class DeadlineExceeded(Unavailable):
    """Time was up; whether the call was carried out is unknown."""


class BadRequest(TablebayError, ValueError):
    """A wrong shape, length, name or value. Sending it again would not help."""


class BadType(BadRequest, TypeError):
    """A wrong type or dtype."""


class NonFinite(BadRequest):
    """Gradients with NaN or infinity for a table that refuses them."""


class NotRegistered(TablebayError):
    """No table has this name."""


class TableMismatch(TablebayError):
    """A table exists, and differs from what was asked for; the text lists each difference."""


class Fenced(TablebayError):
    """A newer process has this rank, or the job has a newer generation. This process should end."""


class ServerLost(TablebayError):
    """A server was restarted and has not its rows, or does not know this client any more."""


class CheckpointFailed(TablebayError):
    """A checkpoint was given up; the text is the reason. The one before it stands."""


class CheckpointInvalid(TablebayError):
    """A checkpoint that is torn, corrupt or of a later version; the text has the file, and the byte or the field."""


class CheckpointMismatch(TablebayError):
    """A checkpoint of another job, or one whose tables differ from those wanted; the text says in what."""


class WrongShard(TablebayError):
    """A key's shard belongs to another server; the text has the shard map's version."""


class ResourceExhausted(TablebayError):
    """A limit was reached: memory, message size, keys of a call, or calls at once."""


class OutOfRange(TablebayError):
    """A step too far from the oldest one that its client has open."""


class VersionMismatch(TablebayError):
    """Client and server speak protocols of different major versions; the text has both."""


class CorruptMessage(TablebayError):
    """A message was damaged on the way."""


class Unimplemented(TablebayError):
    """The server has no such method."""


class Unauthenticated(TablebayError):
    """A certificate that names no process of a job, or that has expired."""


class PermissionDenied(TablebayError):
    """What a certificate's job, role or rank does not let its bearer do; the text has both."""


class Forked(TablebayError):
    """A client was used in another process than the one that made it."""


class Closed(TablebayError):
    """A client was used after close()."""


class JobInvalid(TablebayError, ValueError):
    """A job file that cannot be run. problems: each with its field's path. source: the file's name."""

    def __init__(self, problems: Sequence[str], source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        where = f"{source}: " if source else ""
        super().__init__(where + "\n  ".join(self.problems))

    def __reduce__(self) -> tuple[type[JobInvalid], tuple[list[str], str]]:
        return JobInvalid, (self.problems, self.source)


class JobFailed(TablebayError):
    """A run that ended badly; the text is its cause."""


# What a server may answer. INTERNAL is for everything else.
_CODES: dict[type[TablebayError], str] = {
    Unavailable: "UNAVAILABLE",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    BadRequest: "INVALID_ARGUMENT",
    NotRegistered: "NOT_FOUND",
    TableMismatch: "FAILED_PRECONDITION",
    Fenced: "FAILED_PRECONDITION",
    ServerLost: "FAILED_PRECONDITION",
    CheckpointInvalid: "DATA_LOSS",
    CheckpointMismatch: "FAILED_PRECONDITION",
    WrongShard: "FAILED_PRECONDITION",
    VersionMismatch: "FAILED_PRECONDITION",
    ResourceExhausted: "RESOURCE_EXHAUSTED",
    OutOfRange: "OUT_OF_RANGE",
    CorruptMessage: "DATA_LOSS",
    Unimplemented: "UNIMPLEMENTED",
    Unauthenticated: "UNAUTHENTICATED",
    PermissionDenied: "PERMISSION_DENIED",
}
_ON_THE_WIRE = {cls.__name__: cls for cls in (*_CODES, BadType, NonFinite, CheckpointFailed, TablebayError)}


def status_code(error: BaseException | type[BaseException]) -> str:
    """The name of the gRPC status code that an error, or a class of errors, becomes."""
    cls = error if isinstance(error, type) else type(error)
    for base in cls.__mro__:
        if base in _CODES:
            return _CODES[base]
    return "INTERNAL"


def error_named(kind: str, message: str) -> TablebayError:
    """An error of the class of that name; for an unknown name, a TablebayError that says it."""
    cls = _ON_THE_WIRE.get(kind)
    return cls(message) if cls is not None else TablebayError(f"{kind}: {message}")
