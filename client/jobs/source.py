"""What is submitted: a job file, standard input, a dict or a TrainingJob, checked before anything is sent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tablebay.client import strict_yaml
from tablebay.client.errors import BadType, JobInvalid
from tablebay.client.job import FILE_BYTES_MAX, TrainingJob, load_job, parse_job

STANDARD_INPUT = "standard input"


def manifest_of(job: str | os.PathLike[str] | Mapping[str, Any] | TrainingJob) -> dict[str, Any]:
    """The object to send, as it was written: no default is filled in. Raises JobInvalid with every problem."""
    if isinstance(job, TrainingJob):
        return job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(job, Mapping):
        parse_job(job)
        return _as_json(job, "")
    if isinstance(job, str | os.PathLike):
        path = os.fspath(job)
        load_job(path)
        return _as_json(_parse(Path(path).read_bytes(), path).value, path)
    raise BadType(f"found a {type(job).__name__}, wanted the path of a job file, a dict or a TrainingJob")


def read_manifest(stream: BinaryIO) -> dict[str, Any]:
    """The same of a job file that comes in a stream."""
    content = stream.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise JobInvalid([f"more than {FILE_BYTES_MAX} bytes; wanted at most 64 KiB"], source=STANDARD_INPUT)
    document = _parse(content, STANDARD_INPUT)
    parse_job(document.value, source=STANDARD_INPUT, lines=document.lines)
    return _as_json(document.value, STANDARD_INPUT)


def _parse(content: bytes, name: str) -> strict_yaml.Document:
    try:
        return strict_yaml.parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobInvalid(
            [f"line {line}: found the byte 0x{content[error.start]:02x}, wanted UTF-8"], source=name
        ) from None
    except strict_yaml.YamlProblem as error:
        raise JobInvalid([str(error)], source=name) from None


def _as_json(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of `value` that JSON can hold."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise JobInvalid([f"found what JSON cannot hold: {error}"], source=name) from None
    return copy
