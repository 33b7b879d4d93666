"""The commands for jobs on a cluster: submit, get, describe, logs, suspend, resume, scale, delete."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated

import typer

from tablebay.client.cli.usage import UsageError, takes_no_arguments

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Format(StrEnum):
    """How an object is written to standard output."""

    table = "table"
    json = "json"
    yaml = "yaml"


class Role(StrEnum):
    """What a pod does in its job."""

    worker = "worker"
    server = "server"


def _label(value: str | None) -> str | None:
    if value is not None and not _LABEL.fullmatch(value):
        raise typer.BadParameter(
            f"found {value!r}, wanted lower-case letters, digits and '-', at most 63 characters"
        )
    return value


def _seconds(value: float | None) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"found {value:g}, wanted more than 0 seconds")
    return value


NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", callback=_label, help="The job's name.", show_default=False)
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        callback=_label,
        help="The namespace; the context's if not given.",
        show_default=False,
    ),
]
ContextOption = Annotated[
    str | None, typer.Option("--context", help="The context of the kubeconfig.", show_default=False)
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", callback=_seconds, help="Seconds to wait at most.", show_default=False),
]
FormatOption = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (submit, get, describe, logs, suspend, resume, scale, delete):
        app.command()(command)


def submit(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The job file; - is standard input.", show_default=False)
    ],
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the job until it is complete or failed.")
    ] = False,
    timeout: TimeoutOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Check a job file here, then give it to the cluster. The same job again changes nothing."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    _needs_wait(context, timeout, wait)
    cluster_jobs.submit(
        file, namespace=namespace, context=kube_context, wait=wait, timeout=timeout, form=output.value
    )


def get(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", callback=_label, help="A job's name; all if not given.", show_default=False
        ),
    ] = None,
    namespace: NamespaceOption = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="The jobs of all namespaces.")
    ] = False,
    kube_context: ContextOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with a line for each change.")] = False,
    output: FormatOption = Format.table,
) -> None:
    """List jobs, or show one, with state, servers, workers and step."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    if all_namespaces and (name or namespace):
        other = f"the name {name}" if name else "--namespace"
        raise UsageError(f"found --all-namespaces and {other}; wanted one of them", context)
    cluster_jobs.get(
        name,
        namespace=namespace,
        all_namespaces=all_namespaces,
        context=kube_context,
        watch=watch,
        form=output.value,
    )


def describe(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Show a job: conditions, progress, first failure, pods that wait and why, last events."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    cluster_jobs.describe(name, namespace=namespace, context=kube_context, form=output.value)


def logs(
    context: typer.Context,
    name: NameArgument,
    role: Annotated[Role, typer.Option("--role", help="Whose logs.")] = Role.worker,
    index: Annotated[
        int | None,
        typer.Option("--index", min=0, help="Of one of them; all if not given.", show_default=False),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written.")] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Before the last restart.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="The last lines alone.", show_default=False)
    ] = None,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
) -> None:
    """Print what a job's workers, or its servers, have written."""
    from tablebay.client.cli import cluster_logs

    takes_no_arguments(context)
    if follow and previous:
        raise UsageError("found --follow and --previous, whose log has ended; wanted one of them", context)
    cluster_logs.logs(
        name,
        role=role.value,
        index=index,
        follow=follow,
        previous=previous,
        tail=tail,
        namespace=namespace,
        context=kube_context,
    )


def suspend(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when no pod is left.")] = False,
    timeout: TimeoutOption = None,
    output: FormatOption = Format.table,
) -> None:
    """End a job's pods after a last checkpoint, and keep its rows."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    _needs_wait(context, timeout, wait)
    cluster_jobs.suspend(
        name, namespace=namespace, context=kube_context, wait=wait, timeout=timeout, form=output.value
    )


def resume(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job trains.")] = False,
    timeout: TimeoutOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Let a suspended job go on from its last checkpoint."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    _needs_wait(context, timeout, wait)
    cluster_jobs.resume(
        name, namespace=namespace, context=kube_context, wait=wait, timeout=timeout, form=output.value
    )


def scale(
    context: typer.Context,
    name: NameArgument,
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many workers.", show_default=False)],
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all of them run.")] = False,
    timeout: TimeoutOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Give a job more or fewer workers, within its minReplicas and maxReplicas. The others train on."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    _needs_wait(context, timeout, wait)
    cluster_jobs.scale(
        name,
        workers,
        namespace=namespace,
        context=kube_context,
        wait=wait,
        timeout=timeout,
        form=output.value,
    )


def delete(
    context: typer.Context,
    name: NameArgument,
    namespace: NamespaceOption = None,
    kube_context: ContextOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job is gone.")] = False,
    timeout: TimeoutOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Delete a job with its servers and workers."""
    from tablebay.client.cli import cluster_jobs

    takes_no_arguments(context)
    _needs_wait(context, timeout, wait)
    cluster_jobs.delete(
        name, namespace=namespace, context=kube_context, wait=wait, timeout=timeout, form=output.value
    )


def _needs_wait(context: typer.Context, timeout: float | None, wait: bool) -> None:
    if timeout is not None and not wait:
        raise UsageError("found --timeout without --wait; wanted both, or neither", context)
