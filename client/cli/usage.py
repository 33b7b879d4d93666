"""Wrong usage of a command."""

from __future__ import annotations

from typing import Any

import typer

# typer has a copy of click in it, or stands on click, by its version; this finds the class without asking
# which.
UsageError: Any = typer.BadParameter.__mro__[1]


def takes_no_arguments(context: typer.Context) -> None:
    """Refuse words after `--`."""
    if context.obj:
        raise UsageError(
            f"found {' '.join(context.obj)!r} after --, which this command does not take", context
        )
