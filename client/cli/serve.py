"""`tablebay serve`: one server in the foreground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Conflict(Exception):
    """Two options of which only one may be given."""


def serve(arguments: Sequence[str], *, job_file: Path | None) -> int:
    """Serve until a signal comes; the exit code. Raises Conflict, and JobInvalid for a bad job file."""
    from tablebay.ps_server.main import main

    if job_file is None:
        return main(arguments)
    for option in ("--tables", "--job"):
        if any(word == option or word.startswith(f"{option}=") for word in arguments):
            raise Conflict(f"--job-file and {option} say the same thing; wanted one of them")
    from tablebay.client.job import load_job
    from tablebay.client.tables import dump_tables

    job = load_job(job_file)
    return main([*arguments, "--job", job.name, "--tables", dump_tables(job.spec.tables)])
