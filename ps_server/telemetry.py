"""Logs: one event a line on standard error, in the past tense, its facts as key=value or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("text", "json")
# A value longer than this says nothing more; a client may have sent it.
_VALUE_CHARACTERS_MAX = 2000


class Events:
    """Writes events under one logger's name."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **facts: object) -> None:
        """Something only a developer asks for."""
        self._write(logging.DEBUG, event, facts)

    def info(self, event: str, **facts: object) -> None:
        """Something that happens now and then in a good life."""
        self._write(logging.INFO, event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Something that somebody may want to look at."""
        self._write(logging.WARNING, event, facts)

    def failure(self, event: str, error: BaseException, **facts: object) -> None:
        """Something that should not have happened, and where."""
        facts = {"error": f"{type(error).__name__}: {error}", **facts}
        facts["traceback"] = "".join(traceback.format_exception(error))
        self._write(logging.ERROR, event, facts)

    def _write(self, level: int, event: str, facts: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"facts": facts})


def configure(*, level: str, style: str, context: Mapping[str, object]) -> None:
    """Send every log of this process to standard error. context: facts on each line, such as the job."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(context) if style == "json" else TextLines(context))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])


def add_context(**facts: object) -> None:
    """Facts for each line from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, TextLines | JsonLines):
            handler.formatter.context.update(facts)


def _facts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event of a record and its facts; a record of another library becomes one too."""
    facts = getattr(record, "facts", None)
    if isinstance(facts, dict):
        return record.getMessage(), facts
    found: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
    if record.exc_info and record.exc_info[1] is not None:
        found["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
    return "library.logged", found


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS_MAX else f"{text[:_VALUE_CHARACTERS_MAX]}…"


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO server.started job=flights index=0 ...`"""

    def __init__(self, context: Mapping[str, object]) -> None:
        super().__init__()
        self.context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the values hold."""
        event, facts = _facts(record)
        pairs = [f"{name}={_word(value)}" for name, value in {**facts, **self.context}.items()]
        return " ".join([_time(record), record.levelname, _word(event), *pairs])


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, context: Mapping[str, object]) -> None:
        super().__init__()
        self.context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        """One line: JSON escapes what would break it."""
        event, facts = _facts(record)
        head = {"time": _time(record), "level": record.levelname.lower(), "event": event}
        values = {name: _plain(value) for name, value in {**self.context, **facts}.items()}
        return json.dumps({**head, **values}, ensure_ascii=True)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(str(value))


def _word(value: object) -> str:
    """The value as one word: quoted and escaped if need be, so that no client can forge a line."""
    text = _cut(str(value))
    if text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text)
