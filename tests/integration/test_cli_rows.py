"""`tablebay rows` against a server process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tablebay as tb
from tablebay.client.cli import main


def test_rows_shows_what_a_server_holds_and_makes_none(
    start_server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """By key in decimal and hexadecimal, by hashed id, or any; a key without a row says so."""
    address = start_server().address
    hashed = tb.hash_ids(["UA"], "carrier").view(np.uint64)
    with tb.connect(address) as client:
        table = client.table("carriers", dim=3, optimizer=tb.SGD(1.0), initializer=tb.Constant(0.5))
        table.pull(np.array([7, 2**64 - 1, *hashed], np.uint64))
    given = ["rows", "carriers", "--servers", address]
    assert main([*given, "7", "0x7", "8", str(2**64 - 1)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "carriers: 3 rows of 3 float32",
        "7  0.5 0.5 0.5",
        "0x7  0.5 0.5 0.5",
        "8  no row",
        f"{2**64 - 1}  0.5 0.5 0.5",
    ]
    assert main([*given, "UA", "AA", "--hashed", "carrier", "-o", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["rows"] == 3, "a look makes no row"
    assert [(one["present"], one["row"]) for one in content["found"]] == [(True, [0.5] * 3), (False, [])]
    assert content["found"][0]["key"] == str(int(hashed[0]))
    assert main([*given, "--limit", "2", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["found"]) == 2
    assert main(["rows", "nope", "--servers", address, "-o", "json"]) == 1
    assert "existing tables: carriers" in json.loads(capsys.readouterr().out)["error"]


def test_rows_without_a_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 with the address, no traceback."""
    assert main(["rows", "t", "--servers", "127.0.0.1:1", "--timeout", "0.5"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Hello to server 0 at 127.0.0.1:" in line


def test_the_shell_shows_what_left(
    start_server: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`tablebay rows TABLE --evicted`, as text and as JSON; --cursor goes on."""
    address = start_server().address
    with tb.connect(address) as client:
        table = client.table("t", dim=2, eviction=tb.Eviction(min_count=1, grace_seconds=1, every_seconds=1))
        table.pull(np.arange(3, dtype=np.uint64))
        while len(table):
            table.evict()
    given = ["rows", "t", "--servers", address, "--evicted"]
    assert main([*given, "-o", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["complete"] is True
    assert sorted(one["key"] for one in content["evicted"]) == ["0", "1", "2"]
    assert {one["reason"] for one in content["evicted"]} == {"count"}
    assert main([*given, "--cursor", content["cursor"]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "t: 0 rows left",
        f"go on with --cursor {content['cursor']}",
    ]
    assert main(["rows", "t", "--servers", address, "--cursor", "1-2"]) == 2
    assert main([*given, "7"]) == 2
