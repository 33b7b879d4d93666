"""`tablebay-operator`: which version it is, and whether a job file would be accepted.

Neither numpy nor the native core is loaded here: the operator's image may lack both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

DONE, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (sys.argv's when None) and return its exit status; 2 is wrong usage."""
    parser = argparse.ArgumentParser(
        prog="tablebay-operator",
        description="The operator of Tablebay's TrainingJobs.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    check_parser = commands.add_parser("check", help="say whether a job file is accepted, and if not, why")
    check_parser.add_argument("job", metavar="job.yaml", help="the job file")
    options = parser.parse_args(arguments)
    if options.version:
        from tablebay import __version__

        print(f"tablebay-operator {__version__}")
        return DONE
    if options.command is None:
        parser.error("wanted a command: check; or --version")
    return check(options.job)


def check(path: str) -> int:
    """Print one line about the job in the file at `path`, or what is wrong with it, each problem on a line."""
    from tablebay.client.errors import JobInvalid
    from tablebay.client.job import load_job

    try:
        job = load_job(path)
    except JobInvalid as error:
        count = len(error.problems)
        print(f"{path}: {count} problem{'' if count == 1 else 's'}", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        return FAILED
    spec = job.spec
    print(
        f"{path}: job {job.name} is valid: tables={len(spec.tables)} servers={spec.servers.replicas} "
        f"workers={spec.workers.replicas}"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
