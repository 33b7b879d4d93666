"""Calls to the native core, whose errors become those of errors.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tablebay.client import errors
from tablebay.native import _core


def native(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """function(*args, **options). Raises TablebayError of the class that the core names."""
    try:
        return function(*args, **options)
    except _core.StatusError as error:
        kind, message = error.args
        raise errors.error_named(kind, message) from None
