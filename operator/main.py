"""`tablebay-operator`: runs the operator, says its version, and whether a job file would be accepted.

Neither numpy nor the native core is loaded here: the operator's image may lack both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence

DONE, FAILED = 0, 1

_WORD = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PEERS = {"ipBlock", "namespaceSelector", "podSelector"}
_LABEL_NAME = re.compile(f"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_WORD}")
_LABEL_VALUE = re.compile(f"({_WORD})?")


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
    _add_run(commands.add_parser("run", help="watch TrainingJobs and bring them about"))
    options = parser.parse_args(arguments)
    if options.version:
        from tablebay import __version__

        print(f"tablebay-operator {__version__}")
        return DONE
    if options.command is None:
        parser.error("wanted a command: run, check; or --version")
    return run(options) if options.command == "run" else check(options.job)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--namespace", action="append", default=[], help="watch this namespace (all of them); may be repeated"
    )
    add("--server-image", required=True, help="image of servers, for jobs that name none")
    add("--server-pull-policy", default="IfNotPresent", choices=("Always", "IfNotPresent", "Never"))
    add(
        "--gang", default="", choices=("", "Volcano", "Coscheduling", "Kueue"), help="who places gangs (none)"
    )
    add(
        "--pod-monitor-label",
        action="append",
        type=_label,
        default=[],
        metavar="NAME=VALUE",
        help="on each job's PodMonitor (none); may be repeated",
    )
    add(
        "--metrics-from",
        type=_peers,
        default="[]",
        metavar="JSON",
        help="who may ask a job's pods for /metrics, as a NetworkPolicy's `from` (anybody)",
    )
    add("--lease-namespace", default="", help="where the lease is (the operator's own namespace)")
    add("--lease-name", default="tablebay-operator", help="its name (tablebay-operator)")
    add("--http-port", type=_number(0, 65535), default=8080, help="/metrics, /healthz, /readyz (8080)")
    add("--concurrency", type=_number(1, 256), default=8, help="jobs looked at side by side (8)")
    add("--qps", type=_number(1, 100_000), default=100, help="writes a second to the API server (100)")
    add(
        "--spread-seconds",
        type=_number(1, 86_400),
        default=300,
        help="how long a change of a Secret takes to reach every pod, at most (300)",
    )
    add("--burst", type=_number(1, 100_000), default=200, help="writes at once after a quiet time (200)")


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"found {text[:40]!r}, wanted a whole number from {low} to {high}"
            )
        return int(text)

    return number


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _LABEL_NAME.fullmatch(name) or not _LABEL_VALUE.fullmatch(value):
        raise argparse.ArgumentTypeError(f"found {text[:80]!r}, wanted NAME=VALUE as a label of Kubernetes")
    return name, value


def _peers(text: str) -> str:
    """The same list, of one form."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    known = isinstance(found, list) and all(
        isinstance(one, dict) and one and set(one) <= _PEERS for one in found
    )
    if not known:
        raise argparse.ArgumentTypeError(
            f"found {text[:80]!r}, wanted a list in JSON of {', '.join(sorted(_PEERS))}"
        )
    return json.dumps(found, sort_keys=True) if found else ""


def run(options: argparse.Namespace) -> int:
    """Run the operator until it is told to end."""
    try:
        from tablebay.operator.cluster import own_namespace
        from tablebay.operator.manifests import Defaults
        from tablebay.operator.run import Config
        from tablebay.operator.run import run as run_operator
        from tablebay.operator.telemetry import configure_logs
    except ImportError as error:
        print(f"tablebay-operator: {error}; pip install 'tablebay[operator]'", file=sys.stderr)
        return FAILED
    configure_logs(
        os.environ.get("TABLEBAY_LOG_LEVEL") or "info",
        os.environ.get("TABLEBAY_LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json"),
    )
    return run_operator(
        Config(
            namespaces=tuple(options.namespace),
            defaults=Defaults(
                options.server_image,
                options.server_pull_policy,
                own_namespace(),
                options.gang,
                tuple(options.pod_monitor_label),
                options.metrics_from,
            ),
            lease_namespace=options.lease_namespace or own_namespace(),
            lease_name=options.lease_name,
            http_port=options.http_port,
            concurrency=options.concurrency,
            qps=float(options.qps),
            burst=options.burst,
            spread_s=float(options.spread_seconds),
        )
    )


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
