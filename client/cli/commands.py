"""The commands, their options, and the exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from tablebay.client.cli import checkpoint, cluster
from tablebay.client.cli.usage import Output, OutputOption, UsageError, takes_no_arguments

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
# Set by the script of `tablebay completion`, whose shell then reads what words may follow.
_NAME, _COMPLETE = "tablebay", "_TABLEBAY_COMPLETE"


class Shell(StrEnum):
    """A shell that can complete words."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


app = typer.Typer(
    name="tablebay",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunDirOption = Annotated[
    Path | None,
    typer.Option(
        "--run-dir", file_okay=False, help="Where report.json and logs/ go; .tablebay/JOB if not given."
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from tablebay import __version__

        typer.echo(f"tablebay {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def tablebay(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Tablebay, a parameter server for embedding models: on this machine, or on Kubernetes."""


@app.command()
def run(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job file.", show_default=False)],
    run_dir: RunDirOption = None,
    output: OutputOption = Output.table,
) -> None:
    """Run a job here, its servers and workers as processes.

    What follows `--` is appended to the workers' command: tablebay run JOB.YAML -- --seed 1
    """
    from tablebay.client.cli.run import run_file

    raise typer.Exit(run_file(job, arguments=context.obj, run_dir=run_dir, as_json=output is Output.json))


@app.command(short_help="Train a model on flights, data included.")
def quickstart(
    context: typer.Context,
    run_dir: RunDirOption = None,
    output: OutputOption = Output.table,
) -> None:
    """Train a factorization machine on 327,346 flights: 2 servers, 2 workers, data included."""
    from tablebay.client.cli.run import run_example

    raise typer.Exit(
        run_example("flights", arguments=context.obj, run_dir=run_dir, as_json=output is Output.json)
    )


@app.command(
    # What is not the command's own is the server's, which says so itself where it is nobody's.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[--job-file JOB.YAML] [OPTIONS OF tablebay-server]",
)
def serve(
    context: typer.Context,
    job_file: Annotated[
        Path | None,
        typer.Option(
            "--job-file", help="Make the tables that this job declares, under its name.", show_default=False
        ),
    ] = None,
    show_help: Annotated[
        bool, typer.Option("--help", "-h", help="Show this message and those of tablebay-server.")
    ] = False,
) -> None:
    """Run one server in the foreground, until Ctrl-C or SIGTERM.

    Every other option is one of tablebay-server, such as --data-port 7070 and --host 0.0.0.0.
    """
    from tablebay.client.cli.serve import Conflict
    from tablebay.client.cli.serve import serve as run_server

    if show_help:
        typer.echo(context.get_help() + "\n")
    takes_no_arguments(context)
    given = [*context.args, "--help"] if show_help else context.args
    try:
        raise typer.Exit(run_server(given, job_file=job_file))
    except Conflict as error:
        raise UsageError(str(error), context) from None


@app.command()
def certificates(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)],
    server: Annotated[
        list[str],
        typer.Option(
            "--server",
            metavar="NAMES",
            help="Names and addresses of a server: ps-0,10.0.0.7. One for each server.",
        ),
    ],
    workers: Annotated[int, typer.Option("--workers", min=0, max=10_000, help="How many workers.")] = 0,
    job: Annotated[str, typer.Option("--job", help="What the certificates are good for.")] = "local",
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="For how long.")] = 90,
) -> None:
    """Make certificates for servers, workers and clients outside Kubernetes: --tls-dir of tablebay serve."""
    from tablebay.client.cli.certificates import make

    takes_no_arguments(context)
    for made in make(folder, job=job, servers=server, workers=workers, days=days):
        typer.echo(made)


@app.command()
def rows(
    context: typer.Context,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The table's name.", show_default=False)],
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="Keys: 7 or 0x7; any rows if not given.", show_default=False),
    ] = None,
    servers: Annotated[
        str,
        typer.Option(
            "--servers", metavar="ADDRESSES", help="host:port, a pattern host-{0..3}:7070, or a comma list."
        ),
    ] = "127.0.0.1:7070",
    hashed: Annotated[
        str | None,
        typer.Option(
            "--hashed",
            metavar="COLUMN",
            help="The keys are ids of this column, as tb.hash_ids.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many rows where no key is given.")] = 10,
    evicted: Annotated[
        bool, typer.Option("--evicted", help="The rows that left by themselves, with reason and time.")
    ] = False,
    cursor: Annotated[
        str | None,
        typer.Option(
            "--cursor",
            help="With --evicted: what the call before gave; only what left since.",
            show_default=False,
        ),
    ] = None,
    tls_dir: Annotated[
        Path | None,
        typer.Option("--tls-dir", help="A folder with tls.key, tls.crt and ca.crt.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for each call.")] = 10.0,
    output: OutputOption = Output.table,
) -> None:
    """Show rows of a table on running servers, by key. Makes no row."""
    from tablebay.client.cli.rows import Question, show, show_evicted

    takes_no_arguments(context)
    if cursor is not None and not evicted:
        raise UsageError("found --cursor without --evicted; wanted both", context)
    if evicted:
        if keys or hashed is not None:
            raise UsageError("found keys or --hashed beside --evicted; wanted one of them", context)
        show_evicted(
            table, cursor, servers=servers, tls_dir=tls_dir, timeout=timeout, as_json=output is Output.json
        )
        return
    show(
        Question(table, tuple(keys or ()), hashed, limit),
        servers=servers,
        tls_dir=tls_dir,
        timeout=timeout,
        as_json=output is Output.json,
    )


@app.command()
def doctor(
    context: typer.Context,
    namespace: cluster.NamespaceOption = None,
    kube_context: cluster.ContextOption = None,
    local: Annotated[bool, typer.Option("--local", help="Look at this machine alone.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Look for what is amiss here and on the cluster, and say what to do. Exit code 1 where something is."""
    from tablebay.client.cli.doctor import examine, show

    takes_no_arguments(context)
    if local and (namespace or kube_context):
        raise UsageError("found --local beside --namespace or --context; wanted one of them", context)
    raise typer.Exit(
        show(
            examine(namespace=namespace, context=kube_context, cluster=not local),
            as_json=output is Output.json,
        )
    )


@app.command()
def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print a script that completes commands and options: source <(tablebay completion bash)."""
    takes_no_arguments(context)
    typer.echo(
        _completion().get_completion_script(prog_name=_NAME, complete_var=_COMPLETE, shell=shell.value)
    )


@app.command(short_help="Print which Tablebay this is.")
def version(context: typer.Context, output: OutputOption = Output.table) -> None:
    """Print which Tablebay this is: version, commit, Python, instruction set."""
    from tablebay.client.cli.version import show

    takes_no_arguments(context)
    show(as_json=output is Output.json)


cluster.register(app)
checkpoint.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. An error is one line on standard error, and JSON if asked for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Split here: click drops the `--`, after which ARGS and arguments too many would look the same.
    end = given.index("--") if "--" in given else len(given)
    own, passed_on = given[:end], tuple(given[end + 1 :])
    debug = "--debug" in own
    if _COMPLETE in os.environ:
        _completion().completion_init()
    try:
        code = app(
            [word for word in own if word != "--debug"],
            prog_name=_program(),
            standalone_mode=False,
            obj=passed_on,
        )
        sys.stdout.flush()
        if code == INTERRUPTED:
            # Some versions of typer make this code out of KeyboardInterrupt, others Abort.
            return _fail("interrupted", INTERRUPTED, own)
        return code if isinstance(code, int) else DONE
    except UsageError as error:
        return _fail(_usage(error), USAGE, own)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED, own)
    except BrokenPipeError:
        # Whoever read the output is gone. The interpreter would complain of the rest of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except SystemExit as error:
        # argparse, in tablebay-server, has said why.
        return error.code if isinstance(error.code, int) else FAILED
    except Exception as error:  # noqa: BLE001 - a user gets one line of any error, and the traceback on request
        if debug:
            traceback.print_exc()
        return _fail(_cause(error), FAILED, own, problems=getattr(error, "problems", None))


def _completion() -> Any:
    """typer's own, whose names it has always had there, and exports in some versions alone."""
    return importlib.import_module("typer.completion")


def _program() -> str:
    """What the user typed: kubectl runs kubectl-tablebay for `kubectl tablebay`."""
    return "kubectl tablebay" if Path(sys.argv[0]).name == "kubectl-tablebay" else "tablebay"


def _usage(error: Any) -> str:
    """What is wrong with the command line, and which help says how it should be."""
    path = error.ctx.command_path if error.ctx is not None else "tablebay"
    return f"{error.format_message().replace('Value error, ', '').rstrip('.')}; see {path} --help"


def _cause(error: Exception) -> str:
    from tablebay.client.errors import TablebayError

    if isinstance(error, TablebayError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _fail(text: str, code: int, arguments: list[str], *, problems: Any = None) -> int:
    print(f"tablebay: error: {text}", file=sys.stderr)
    if _asks_for_json(arguments):
        content: dict[str, Any] = {"error": text}
        if problems:
            content["problems"] = list(problems)
        print(json.dumps(content), flush=True)
    return code


def _asks_for_json(arguments: list[str]) -> bool:
    """Whether the result was to be JSON, or YAML, which JSON is, even where the command line is wrong."""
    forms = ("json", "yaml")
    return any(word in (f"--output={form}", f"-o{form}") for word in arguments for form in forms) or any(
        name in ("--output", "-o") and value in forms for name, value in pairwise(arguments)
    )
