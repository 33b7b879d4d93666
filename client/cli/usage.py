"""What commands share: how a result is printed, and wrong usage."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

# typer has a copy of click in it, or stands on click, by its version; this finds the class without asking
# which.
UsageError: Any = typer.BadParameter.__mro__[1]


class Output(StrEnum):
    """How a result is written to standard output."""

    table = "table"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]


def takes_no_arguments(context: typer.Context) -> None:
    """Refuse words after `--`."""
    if context.obj:
        raise UsageError(
            f"found {' '.join(context.obj)!r} after --, which this command does not take", context
        )
