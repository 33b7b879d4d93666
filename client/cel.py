"""Rules of the CRD in CEL, as dictionaries."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


class Code(str):
    """CEL, which YAML's quotes would make hard to read."""


def rule(code: str, message: str, *, says: str = "", field: str = "", reason: str = "") -> Schema:
    """A CEL rule. says: an expression for the message, with the value found, in place of one that is always the same.

    Never both: the API server shows but one, and the definition is to stay small.
    """
    found: Schema = {"rule": Code(code)}
    if says:
        found["messageExpression"] = Code(says)
    else:
        found["message"] = message
    if field:
        found["fieldPath"] = field
    if reason:
        found["reason"] = reason
    return found


def quoted(words: str) -> str:
    """Words as they stand within '…' in CEL."""
    return words.replace("\\", "\\\\").replace("'", "\\'")


def put(schema: Schema, rules: list[Schema]) -> None:
    """Add rules to a part of the schema."""
    schema.setdefault("x-kubernetes-validations", []).extend(rules)
