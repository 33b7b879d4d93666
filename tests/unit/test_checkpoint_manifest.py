"""Manifests: what goes out comes back, and nothing hostile or damaged comes in."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from checkpoint_world import ITEM, USER
from hypothesis import given
from hypothesis import strategies as st

from tablebay.client.checkpoint.files import HEADER_BYTES, Header
from tablebay.client.checkpoint.manifest import (
    MANIFEST_BYTES_MAX,
    File,
    Layout,
    Link,
    Manifest,
    ServerEntry,
    StateEntry,
    TableEntry,
    WorkerEntry,
    canonical_crc,
    new_run,
)
from tablebay.client.errors import CheckpointInvalid
from tablebay.client.tables import TableSpec
from tablebay.native import _core

FIRST, SECOND = "1-" + "a" * 32, "2-" + "b" * 32
ROWS_FILE = File("0-rows", "Rows", _core.table_id("user"), 100, 5, 1, 0)
STEPS_FILE = File("0-steps", "Steps", None, 100, 6, 0, 0)


def manifest() -> Manifest:
    return Manifest(
        number=2,
        kind="Delta",
        job="toy",
        generation=1,
        created="2026-11-23T11:00:00.000+00:00",
        version="0.3.0",
        aligned=True,
        servers=(
            ServerEntry(
                0,
                3,
                (*range(512), 700),
                (Link(1, FIRST, None, (ROWS_FILE,)), Link(2, SECOND, 1, (ROWS_FILE, STEPS_FILE))),
            ),
            ServerEntry(1, 1, (*range(512, 700), *range(701, 1024)), (Link(1, FIRST, None, (STEPS_FILE,)),)),
        ),
        tables=(TableEntry(_core.table_id("user"), USER, Layout(32, 0, 12, 8, 20, 8)),),
        workers=(
            WorkerEntry(0, 7, b"\0cursor", {"model": StateEntry(f"attempts/{FIRST}/state-0-0", 10, 3)}, 6),
        ),
        run=new_run(),
    )


def signed(content: dict[str, Any]) -> bytes:
    """With the crc that its fields have."""
    content["crc"] = canonical_crc(content)
    return json.dumps(content).encode()


def refused(content: bytes) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        Manifest.parse(content, "manifests/0000000002.json")
    text = str(caught.value)
    assert text.startswith("manifests/0000000002.json: ")
    assert len(text) < 1000
    return text


def test_a_manifest_comes_back_as_it_was() -> None:
    """All of its parts, ranges of shards and bytes included."""
    one = manifest()
    assert Manifest.parse(one.pack(), "f") == one
    assert one.servers[0].to_json()["owners"] == "0-511,700"
    assert one.attempts() == {FIRST, SECOND}
    for kind in ("Empty", "Fence"):
        other = Manifest(
            number=0, kind=kind, job="", generation=0, created=one.created, version="", aligned=False
        )
        assert Manifest.parse(other.pack(), "f") == other
        assert other.complete == (kind == "Empty")


Change = Callable[[dict[str, Any]], Any]


def at(*path: Any, value: Any) -> Change:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return change


LINK = ("servers", 0, "chain", 1)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (at("format", value=2), "format: found 2, wanted at most 1; a newer Tablebay wrote it"),
        (at("format", value=10**4000), "format: found a number of 13288 bits"),
        (at("format", value=True), "format: found True"),
        (at("format", value="1"), "format: found '1'"),
        (at("more", value=1), "more: found an unknown field"),
        (at("number", value=-1), "number: found -1, wanted a whole number from 0"),
        (at("number", value=1.0), "number: found 1.0"),
        (at("number", value=True), "number: found True"),
        (at("number", value=10**40), "number: found a number of 133 bits"),
        (at("kind", value="Half"), "kind: found 'Half', wanted one of Empty, Full"),
        (at("kind", value=["Full"]), "kind: found a list of 1"),
        (at("kind", value="Empty"), "servers[0].chain: found a link, wanted none"),
        (at("aligned", value=1), "aligned: found 1, wanted true or false"),
        (at("created", value="yesterday"), "created: found 'yesterday'"),
        (at("created", value="2026-11-23T11:00:00"), "created:"),
        (at("shards", value=512), "shards: found 512, wanted 1024"),
        (at("run", value="x"), "run: found 'x', wanted 32 hex digits"),
        (at("job", value=None), "job: found None"),
        (at("job", value="j" * 5000), "job: found 'jjj"),
        (at("servers", value={}), "servers: found an object of 0, wanted a list"),
        (at("servers", 0, value=7), "servers[0]: found 7, wanted an object"),
        (at("servers", 0, "index", value=1), "servers[0].index: found 1, wanted 0"),
        (at("servers", 0, "owners", value="0-511"), "servers: found 1 shards of no server and 0 of two"),
        (at("servers", 1, "owners", value="0-1023"), "of two"),
        (at("servers", 0, "owners", value="0-99999999"), "owners: found '0-99999999'"),
        (at("servers", 0, "owners", value="5,4"), "owners: found '4'"),
        (at("servers", 0, "owners", value="0-1024"), "owners: found '0-1024'"),
        (at("servers", 0, "owners", value="٣"), "owners:"),
        (at("servers", 0, "chain", value=[]), "servers[0].chain: found no link"),
        (at(*LINK, "parent", value=None), "chain[1].parent: found None, wanted 1"),
        (at(*LINK, "number", value=1), "attempt: found"),
        (at(*LINK, "attempt", value="../../etc"), "chain[1].attempt: found '../../etc', wanted 2-<32"),
        (at(*LINK, "attempt", value=FIRST), "chain[1].attempt"),
        (at(*LINK, "attempt", value="02-" + "b" * 32), "chain[1].attempt"),
        (at(*LINK, "files", 0, "name", value="../x"), "files[0].name: found '../x', wanted letters"),
        (at(*LINK, "files", 0, "name", value="a/b"), "files[0].name"),
        (at(*LINK, "files", 0, "name", value="a..b"), "files[0].name"),
        (at(*LINK, "files", 0, "name", value=".hidden"), "files[0].name"),
        (at(*LINK, "files", 0, "name", value="a\0"), "files[0].name"),
        (at(*LINK, "files", 0, "name", value="a\n"), "files[0].name"),
        (at(*LINK, "files", 0, "name", value=""), "files[0].name"),
        (at(*LINK, "files", 0, "name", value="0-steps"), "files: found name '0-steps' twice"),
        (at(*LINK, "files", 0, "kind", value="Steps"), "files[0].table"),
        (at(*LINK, "files", 0, "table", value=9), "files of tables [9]"),
        (at(*LINK, "files", 0, "table", value=None), "files[0].table: found None"),
        (at(*LINK, "files", 0, "bytes", value=2**64), "files[0].bytes"),
        (at(*LINK, "files", 0, "crc", value=2**32), "files[0].crc"),
        (at(*LINK, "files", value=[]), "0 of kind Steps, wanted one in the last link"),
        (at("servers", 0, "chain", 0, "parent", value=0), "chain[0].parent: found 0, wanted None"),
        (at("tables", 0, "id", value=1), "tables[0].id: found 1, wanted"),
        (at("tables", 0, "spec", value=None), "tables[0].spec: found None"),
        (at("tables", 0, "spec", "dim", value=10**9), "tables[0].spec: "),
        (at("tables", 0, "spec", "surprise", value=1), "tables[0].spec: "),
        (at("tables", 0, "spec", "name", value="../x"), "tables[0].spec: "),
        (at("tables", 0, "layout", "weight_bytes", value=12), "weight_bytes: found 12, wanted 8"),
        (at("tables", 0, "layout", "weights", value=28), "layout.weights"),
        (at("tables", 0, "layout", "weights", value=4), "layout.weights"),
        (at("tables", 0, "layout", "slots", value=28), "layout.slots"),
        (at("tables", 0, "layout", "step", value=8), "layout.step"),
        (at("tables", 0, "layout", "row_bytes", value=2**31), "layout.row_bytes"),
        (at("workers", 0, "cursor", value="!"), "cursor: found '!', wanted base64"),
        (at("workers", 0, "state", "model", "path", value="/etc/passwd"), "path: found '/etc/passwd'"),
        (at("workers", 0, "state", "model", "path", value=f"attempts/{FIRST}/.."), ".path"),
        (at("workers", 0, "state", "model", "path", value="attempts/../x"), ".path"),
        (at("workers", 0, "state", value={"a\nb": {}}), "state: found "),
        (at("workers", 0, "rank", value=2**32 - 1), "workers[0].rank"),
    ],
)
def test_a_field_that_is_not_right_is_named(change: Change, wanted: str) -> None:
    """With its path, what was found, and what was wanted. The crc is right, as whoever means harm makes it."""
    content = manifest().to_json()
    change(content)
    assert wanted in refused(signed(content)).replace("\\x00", "\0")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "found no JSON"),
        (b"\xff", "at byte 0: found what is not UTF-8"),
        (b"[]", "found a list of 0, wanted an object"),
        (b"null", "found None, wanted an object"),
        (b'{"format": 1, "format": 1}', "format: found twice in an object"),
        (b'{"format": NaN}', "found NaN, wanted a finite number"),
        (b'{"format": -Infinity}', "found -Infinity"),
        (b'{"format": 1e999}', "found 1e999, wanted a finite number"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "found what cannot be read"),
        (b"[" * 200_000, "found what cannot be read: RecursionError"),
        (b'{"format": 1}', "no such field"),
        (b" " * (MANIFEST_BYTES_MAX + 1), f"wanted at most {MANIFEST_BYTES_MAX}"),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes, wanted: str) -> None:
    """Neither half a file nor one made to use up memory or the stack."""
    assert wanted in refused(content)


def test_a_missing_field_is_named() -> None:
    """Each of them, at the top."""
    whole = manifest().to_json()
    for name in whole:
        content = copy.deepcopy(whole)
        del content[name]
        assert name in refused(json.dumps(content).encode())


def test_the_crc_is_of_the_fields_not_of_the_text() -> None:
    """Another writer may order and indent as it likes; another value is found."""
    one = manifest()
    content = one.to_json()
    assert Manifest.parse(json.dumps(dict(reversed(content.items())), indent=7).encode(), "f") == one
    content["generation"] = 2
    assert "crc: found" in refused(json.dumps(content).encode())


def test_more_workers_or_tables_of_one_name_are_refused() -> None:
    """Which one would count?"""
    content = manifest().to_json()
    content["workers"] *= 2
    assert "workers: found rank 0 twice" in refused(signed(content))
    content = manifest().to_json()
    content["tables"] *= 2
    assert "tables: found id" in refused(signed(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(value=JSON, data=st.data())
def test_any_value_in_any_place_is_taken_or_refused_and_nothing_else(value: Any, data: st.DataObject) -> None:
    """No other error leaves the parser, whatever stands where; what it takes it writes as it reads it."""
    content: Any = manifest().to_json()
    place, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1)
        )
    place[key] = value
    try:
        packed = signed(content)
    except CheckpointInvalid:
        return
    try:
        taken = Manifest.parse(packed, "f")
    except CheckpointInvalid:
        return
    assert Manifest.parse(json.dumps(taken.to_json()).encode(), "f") == taken


@given(st.sets(st.integers(0, 1023)))
def test_owners_come_back(owners: set[int]) -> None:
    """As ranges and single ones."""
    entry = ServerEntry(0, 1, tuple(sorted(owners)), ())
    assert ServerEntry.from_json(entry.to_json()) == entry


def test_every_kind_of_table_goes_through() -> None:
    """Optimizers and initializers with their parameters; floats bit by bit."""
    for spec, layout in (
        (USER, Layout(32, 0, 12, 8, 20, 8)),
        (ITEM, Layout(24, 0, 12, 12, 24, 0)),
        (TableSpec(name="n", dim=1, dtype="int64"), Layout(24, 0, 12, 8, 20, 0)),
    ):
        entry = TableEntry(_core.table_id(spec.name), spec, layout)
        assert TableEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    worker = WorkerEntry(3, 9, bytes(range(256)))
    assert base64.b64decode(worker.to_json()["cursor"]) == bytes(range(256))
    assert WorkerEntry.from_json(worker.to_json()) == worker


def header() -> Header:
    return Header(
        kind="Rows",
        delta=True,
        number=2,
        attempt=SECOND,
        index=1,
        epoch=9,
        table=5,
        layout=Layout(32, 0, 12, 8, 20, 8),
    )


def test_a_header_comes_back_and_each_flipped_bit_is_found() -> None:
    """By the file's name and the byte."""
    content = header().pack()
    assert len(content) == HEADER_BYTES
    assert Header.parse(content, "f") == header()
    steps = Header(kind="Steps", delta=False, number=2, attempt=SECOND, index=1, epoch=9)
    assert Header.parse(steps.pack(), "f") == steps
    for byte in range(HEADER_BYTES):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[byte] ^= 1 << bit
            with pytest.raises(CheckpointInvalid, match="^f: at byte "):
                Header.parse(bytes(damaged), "f")
    with pytest.raises(CheckpointInvalid, match="f: at byte 95: found the end in the header"):
        Header.parse(content[:95], "f")


def test_a_header_of_another_file_is_refused_by_what_differs() -> None:
    """Its own crc is right. Whose life wrote it does not matter: a chain may be of several."""
    wanted = header()
    for change, text in (
        ({"number": 3, "attempt": "3-" + "b" * 32}, "at byte 24: found the number 3, wanted 2"),
        ({"delta": False}, "at byte 20: found the delta False, wanted True"),
        ({"index": 0}, "at byte 48: found the index 0, wanted 1"),
        ({"table": 6}, "at byte 64: found the table 6"),
        ({"layout": Layout(40, 0, 12, 8, 20, 16)}, "at byte 68"),
    ):
        found = dataclasses.replace(wanted, **change)  # type: ignore[arg-type]
        with pytest.raises(CheckpointInvalid, match=text):
            found.require(wanted, "f")
    dataclasses.replace(wanted, epoch=10).require(wanted, "f")
