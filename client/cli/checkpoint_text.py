"""Checkpoints as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.export import export
from tablebay.client.checkpoint.manifest import Manifest
from tablebay.client.checkpoint.restore import choose
from tablebay.client.checkpoint.storage import NotThere
from tablebay.client.checkpoint.verify import verify
from tablebay.client.errors import CheckpointInvalid

_COLUMNS = ("NUMBER", "KIND", "CREATED", "SERVERS", "TABLES", "ROWS WRITTEN", "BYTES WRITTEN", "STEP")
_GAP = "   "


def show_list(directory: str, *, as_json: bool) -> None:
    """A line for each manifest; a damaged one says so. Fences are left out, but not of the JSON."""
    source = Destination.open_source(directory)
    found: list[dict[str, Any]] = []
    for number in source.numbers():
        try:
            found.append(_summary(source.manifest(number)))
        except (CheckpointInvalid, NotThere) as error:
            found.append({"number": number, "kind": "Damaged", "problem": str(error)})
    if as_json:
        print(json.dumps({"job": source.job, "checkpoints": found}, indent=2))
        return
    lines: list[Sequence[str]] = [_COLUMNS]
    for one in found:
        if one["kind"] == "Damaged":
            lines.append((str(one["number"]), "Damaged"))
        elif one["kind"] != "Fence":
            step = "" if one["step"] is None else str(one["step"])
            names = ("number", "kind", "created", "servers", "tables", "rows", "bytes")
            lines.append((*(str(one[name]) for name in names), step))
    print(f"job {source.job}")
    _print_aligned(lines)
    for one in found:
        if one["kind"] == "Damaged":
            print(f"damaged: {one['problem']}")


def _summary(manifest: Manifest) -> dict[str, Any]:
    """Rows and bytes are those that this checkpoint wrote, not those of the links before. step: the lowest."""
    newest = [file for server in manifest.servers for link in server.chain[-1:] for file in link.files]
    return {
        "number": manifest.number,
        "kind": manifest.kind,
        "created": manifest.created,
        "version": manifest.version,
        "generation": manifest.generation,
        "aligned": manifest.aligned,
        "servers": len(manifest.servers),
        "tables": len(manifest.tables),
        "rows": sum(file.rows for file in newest),
        "bytes": sum(file.bytes for file in newest),
        "step": min((worker.next_step for worker in manifest.workers), default=None),
    }


def show(directory: str, number: int | None, *, as_json: bool) -> None:
    """A checkpoint's parts. Raises TablebayError."""
    source = Destination.open_source(directory)
    manifest = choose(source, number)
    if as_json:
        print(json.dumps(manifest.to_json(), indent=2))
        return
    facts = {
        "job": manifest.job,
        "number": str(manifest.number),
        "kind": manifest.kind,
        "created": manifest.created,
        "version": manifest.version,
        "generation": str(manifest.generation),
        "run": manifest.run,
        "aligned": "yes" if manifest.aligned else "no: ranked clients' steps may be on some servers only",
    }
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    tables: list[Sequence[str]] = [("TABLE", "DIM", "DTYPE", "OPTIMIZER", "BYTES A ROW")]
    tables += [
        (
            table.spec.name,
            str(table.spec.dim),
            table.spec.dtype,
            table.spec.optimizer.type,
            str(table.layout.row_bytes),
        )
        for table in manifest.tables
    ]
    servers: list[Sequence[str]] = [("SERVER", "EPOCH", "SHARDS", "LINKS", "FILES", "BYTES")]
    for server in manifest.servers:
        files = [file for link in server.chain for file in link.files]
        links = ",".join(str(link.number) for link in server.chain)
        total = sum(file.bytes for file in files)
        servers.append(
            (
                str(server.index),
                str(server.epoch),
                str(len(server.owners)),
                links or "none",
                str(len(files)),
                str(total),
            )
        )
    workers: list[Sequence[str]] = [("RANK", "NEXT STEP", "STATE", "STATE'S STEP")]
    for worker in manifest.workers:
        state = ", ".join(f"{name} ({entry.bytes} bytes)" for name, entry in worker.state.items())
        workers.append(
            (
                str(worker.rank),
                str(worker.next_step),
                state or "none",
                str(worker.state_step) if state else "",
            )
        )
    for part in (tables, servers, workers):
        if len(part) > 1:
            print()
            _print_aligned(part)


def show_verified(directory: str, number: int | None, *, timed: bool, as_json: bool) -> bool:
    """Whether all is whole. Raises TablebayError."""
    source = Destination.open_source(directory)
    found = verify(source, choose(source, number))
    if as_json:
        content: dict[str, Any] = {
            "number": found.manifest.number,
            "whole": not found.problems,
            "problems": found.problems,
            "files": found.files,
            "bytes": found.bytes,
            "rows": found.rows,
        }
        if timed:
            content["seconds"] = round(found.seconds, 6)
        print(json.dumps(content, indent=2))
        return not found.problems
    for problem in found.problems:
        print(f"damaged: {problem}")
    what = f"{found.files} files, {found.bytes} bytes, {found.rows} rows"
    verdict = f"{len(found.problems)} damaged" if found.problems else "whole"
    print(f"checkpoint {found.manifest.number}: {what}: {verdict}")
    if timed:
        rate = found.bytes / max(found.seconds, 1e-9) / 1e6
        print(f"read in {found.seconds:.3f} s, {rate:.0f} MB/s")
    return not found.problems


def export_table(
    directory: str, number: int | None, table: str, to: Path, *, int8: bool, as_json: bool
) -> None:
    """Write a table's rows into a file. Raises TablebayError."""
    source = Destination.open_source(directory)
    manifest = choose(source, number)
    rows = export(source, manifest, table, to, int8=int8)
    if as_json:
        print(
            json.dumps({"number": manifest.number, "table": table, "rows": rows, "file": str(to)}, indent=2)
        )
    else:
        print(f"{rows} rows of '{table}', checkpoint {manifest.number}, written to {to}")


def _print_aligned(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        print(_GAP.join(cells).rstrip())
