"""`tablebay checkpoint`: what lies in a directory of checkpoints, without any server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tablebay.client.cli.usage import Output, OutputOption, takes_no_arguments

DirectoryArgument = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="The destination, or a manifest in it: DIR/manifests/0000000012.json.",
        show_default=False,
    ),
]
NumberOption = Annotated[
    int | None,
    typer.Option("--number", min=0, help="Which checkpoint; the newest if not given.", show_default=False),
]

app = typer.Typer(
    name="checkpoint",
    help="List, inspect, verify and export checkpoints, without servers.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    parent.add_typer(app)


@app.command(name="list")
def list_checkpoints(
    context: typer.Context, directory: DirectoryArgument, output: OutputOption = Output.table
) -> None:
    """A line for each checkpoint, the newest last."""
    from tablebay.client.cli import checkpoint_text

    takes_no_arguments(context)
    checkpoint_text.show_list(directory, as_json=output is Output.json)


@app.command()
def inspect(
    context: typer.Context,
    directory: DirectoryArgument,
    number: NumberOption = None,
    output: OutputOption = Output.table,
) -> None:
    """What a checkpoint consists of: tables, servers, workers. With -o json the manifest itself."""
    from tablebay.client.cli import checkpoint_text

    takes_no_arguments(context)
    checkpoint_text.show(directory, number, as_json=output is Output.json)


@app.command()
def verify(
    context: typer.Context,
    directory: DirectoryArgument,
    number: NumberOption = None,
    time: Annotated[bool, typer.Option("--time", help="Say how long reading took.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Read a checkpoint to its last byte. Exit code 1 where something is damaged, which is then named."""
    from tablebay.client.cli import checkpoint_text

    takes_no_arguments(context)
    whole = checkpoint_text.show_verified(directory, number, timed=time, as_json=output is Output.json)
    raise typer.Exit(0 if whole else 1)


@app.command()
def export(
    context: typer.Context,
    directory: DirectoryArgument,
    table: Annotated[str, typer.Option("--table", help="Which table.", show_default=False)],
    to: Annotated[
        Path,
        typer.Option("--to", help="A new file, ending in .npz, .tsv or .parquet.", show_default=False),
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights as int8 with a scale for each row, into .npz.")
    ] = False,
    number: NumberOption = None,
    output: OutputOption = Output.table,
) -> None:
    """Write a table's keys and weights into a file. .parquet needs pip install 'tablebay[parquet]'."""
    from tablebay.client.cli import checkpoint_text

    takes_no_arguments(context)
    checkpoint_text.export_table(directory, number, table, to, int8=int8, as_json=output is Output.json)
