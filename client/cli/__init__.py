"""The command line, `tablebay`. A command imports what it needs when it runs, so that the help is quick."""

from __future__ import annotations

from tablebay.client.cli.commands import main

__all__ = ["main"]
