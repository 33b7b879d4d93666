"""Errors as gRPC statuses and back."""

from __future__ import annotations

import pickle

import grpc
import pytest

from tablebay.client import errors
from tablebay.client.errors import TablebayError, error_named, status_code

CODES = {
    "Unavailable": "UNAVAILABLE",
    "DeadlineExceeded": "DEADLINE_EXCEEDED",
    "BadRequest": "INVALID_ARGUMENT",
    "BadType": "INVALID_ARGUMENT",
    "NonFinite": "INVALID_ARGUMENT",
    "NotRegistered": "NOT_FOUND",
    "TableMismatch": "FAILED_PRECONDITION",
    "Fenced": "FAILED_PRECONDITION",
    "ServerLost": "FAILED_PRECONDITION",
    "WrongShard": "FAILED_PRECONDITION",
    "VersionMismatch": "FAILED_PRECONDITION",
    "ResourceExhausted": "RESOURCE_EXHAUSTED",
    "OutOfRange": "OUT_OF_RANGE",
    "CorruptMessage": "DATA_LOSS",
    "CheckpointFailed": "INTERNAL",
    "CheckpointInvalid": "DATA_LOSS",
    "CheckpointMismatch": "FAILED_PRECONDITION",
    "Unimplemented": "UNIMPLEMENTED",
    "Unauthenticated": "UNAUTHENTICATED",
    "PermissionDenied": "PERMISSION_DENIED",
    "TablebayError": "INTERNAL",
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_an_error_has_its_code_and_comes_back_by_its_name(name: str, code: str) -> None:
    """The class's name on the wire gives the class again; the code is one that gRPC has."""
    cls = getattr(errors, name)
    assert status_code(cls) == status_code(cls("text")) == code
    assert grpc.StatusCode[code]
    back = error_named(name, "text")
    assert type(back) is cls
    assert str(back) == "text"


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError, MemoryError(), KeyboardInterrupt, errors.Closed("x")]
)
def test_any_other_error_is_internal(error: BaseException | type[BaseException]) -> None:
    """A fault in the server is not the caller's argument."""
    assert status_code(error) == "INTERNAL"


@pytest.mark.parametrize("kind", ["NoSuchError", "JobInvalid", "Exception", "", "status_code", "Sequence"])
def test_a_name_that_is_no_error_of_the_wire_is_a_plain_error(kind: str) -> None:
    """A newer server's error is still an error, and a name is never looked up among other things."""
    error = error_named(kind, "text")
    assert type(error) is TablebayError
    assert str(error) == f"{kind}: text"


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    """A wrong value is a ValueError, a wrong type a TypeError too, and a deadline is a way to be unavailable."""
    assert issubclass(errors.BadRequest, ValueError)
    assert issubclass(errors.BadType, TypeError)
    assert issubclass(errors.NonFinite, errors.BadRequest)
    assert issubclass(errors.DeadlineExceeded, errors.Unavailable)
    assert issubclass(errors.JobInvalid, ValueError)
    public = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert all(issubclass(cls, TablebayError) for cls in public)
    assert all(cls.__doc__ for cls in public)


def test_an_error_crosses_process_borders_whole() -> None:
    """A pool of processes hands errors on by pickling them; the text and the problems stay."""
    plain = pickle.loads(pickle.dumps(errors.NonFinite("text")))
    assert type(plain) is errors.NonFinite
    assert str(plain) == "text"
    job = pickle.loads(pickle.dumps(errors.JobInvalid(["a: b", "c: d"], source="job.yaml")))
    assert job.problems == ["a: b", "c: d"]
    assert str(job).startswith("job.yaml: a: b")
