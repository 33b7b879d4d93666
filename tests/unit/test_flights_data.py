"""The flights data: what the file holds, and the keys, labels and splits made of it."""

from __future__ import annotations

import datetime
import hashlib
import io
import random
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import tablebay as tb
from tablebay.examples.flights import data

FOLDER = resources.files("tablebay.examples.flights")


@pytest.fixture(scope="module")
def examples() -> data.Examples:
    """All examples, loaded once."""
    return data.load()


def test_the_data_file_is_the_one_that_source_md_describes() -> None:
    """The sha256 and the size of flights.npz are those written beside it."""
    content = FOLDER.joinpath("flights.npz").read_bytes()
    text = FOLDER.joinpath("SOURCE.md").read_text("utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("| this file"))
    found = re.search(r"([\d,]+) bytes, sha256 `([0-9a-f]{64})`", row)
    assert found is not None, row
    assert len(content) == int(found[1].replace(",", ""))
    assert hashlib.sha256(content).hexdigest() == found[2]


def test_the_data_file_holds_327346_flights_in_compact_columns() -> None:
    """Ten columns of at most two bytes, 327,346 entries each; string codes use their whole vocabulary."""
    columns = data.columns()
    vocabularies = {name for name in columns if name.endswith("_names")}
    assert vocabularies == {"carrier_names", "tailnum_names", "origin_names", "dest_names"}
    assert set(columns) - vocabularies == {
        "month",
        "day",
        "hour",
        "carrier",
        "flight",
        "tailnum",
        "origin",
        "dest",
        "distance",
        "arr_delay",
    }
    for name in set(columns) - vocabularies:
        assert columns[name].shape == (327_346,), name
        assert columns[name].dtype.itemsize <= 2, name
    for name in vocabularies:
        names, codes = columns[name], columns[name.removesuffix("_names")]
        assert list(names) == sorted(set(names)), name
        assert np.array_equal(np.unique(codes), np.arange(len(names))), name


def test_twelve_fields_have_75953_keys_in_all(examples: data.Examples) -> None:
    """Each field has its known number of keys, 75,953 in all, so no two fields share a key."""
    counts = [len(np.unique(examples.keys[:, column])) for column in range(len(data.FIELDS))]
    assert dict(zip(data.FIELDS, counts, strict=True)) == {
        "carrier": 16,
        "flight": 5_706,
        "tail": 4_037,
        "origin": 3,
        "dest": 104,
        "hour": 19,
        "month": 12,
        "dow": 7,
        "date": 365,
        "route_hour": 2_079,
        "tail_dest": 44_173,
        "origin_date_hour": 19_432,
    }
    assert sum(counts) == len(np.unique(examples.keys)) == 75_953
    assert data.BIAS_KEY not in examples.keys


def test_a_key_says_its_field_and_value(examples: data.Examples) -> None:
    """The keys of the file's first flight (UA 1545, N14228, EWR to IAH, 2013-01-01, 5 o'clock) read back."""
    columns = data.columns()
    key = dict(zip(data.FIELDS, (int(key) for key in examples.keys[0]), strict=True))
    for number, field in enumerate(data.FIELDS, start=1):
        assert key[field] >> data.FIELD_SHIFT == number, field
    value = {field: found & (1 << data.FIELD_SHIFT) - 1 for field, found in key.items()}
    carrier, origin = columns["carrier_names"][value["carrier"]], columns["origin_names"][value["origin"]]
    tail, dest = columns["tailnum_names"][value["tail"]], columns["dest_names"][value["dest"]]
    assert (carrier, tail, origin, dest) == ("UA", "N14228", "EWR", "IAH")
    assert value["flight"] == value["carrier"] << 16 | 1545
    assert (value["hour"], value["month"], value["dow"]) == (5, 1, datetime.date(2013, 1, 1).weekday())
    assert value["date"] == 1 << 8 | 1
    assert value["route_hour"] == (value["origin"] << 8 | value["dest"]) << 8 | 5
    assert value["tail_dest"] == value["tail"] << 8 | value["dest"]
    assert value["origin_date_hour"] == ((value["origin"] << 8 | 1) << 8 | 1) << 8 | 5


def test_the_day_of_the_week_is_that_of_the_calendar() -> None:
    """Every day of 2013 has the weekday that Python's own calendar gives it."""
    dates = [datetime.date(2013, 1, 1) + datetime.timedelta(days=number) for number in range(365)]
    found = data.day_of_week(np.array([date.month for date in dates]), np.array([date.day for date in dates]))
    assert found.tolist() == [date.weekday() for date in dates]


def test_a_label_says_more_than_15_minutes_late(examples: data.Examples) -> None:
    """A label is 1 where arr_delay > 15, which is 23.7 % of the flights."""
    assert examples.labels.dtype == np.float32
    assert np.array_equal(examples.labels == 1, data.columns()["arr_delay"] > 15)
    assert set(np.unique(examples.labels)) == {0.0, 1.0}
    assert round(float(examples.labels.mean(dtype=np.float64)), 3) == 0.237


def test_the_random_split_is_a_fixed_80_to_20(examples: data.Examples) -> None:
    """261,876 training and 65,470 test examples, by RandomState(0).permutation, the same ones every time."""
    training, test = data.split(examples, "random")
    order = np.random.RandomState(0).permutation(327_346)
    assert (len(training), len(test)) == (261_876, 65_470)
    assert np.array_equal(np.concatenate((training.keys, test.keys)), examples.keys[order])
    assert np.array_equal(np.concatenate((training.labels, test.labels)), examples.labels[order])


def test_the_time_split_keeps_every_day_in_one_part(examples: data.Examples) -> None:
    """January to October train, November and December test; no date occurs in both."""
    training, test = data.split(examples, "time")
    assert (int(training.month.max()), int(test.month.min())) == (10, 11)
    assert len(training) + len(test) == len(examples)
    date = data.FIELDS.index("date")
    assert not np.intersect1d(training.keys[:, date], test.keys[:, date]).size


def test_an_unknown_split_is_refused(examples: data.Examples) -> None:
    """The error names the split that was found and those that exist."""
    with pytest.raises(ValueError, match="split is 'weekly', wanted one of random, time"):
        data.split(examples, "weekly")


Read = Callable[[bytes], str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Puts bytes in the place of flights.npz; what `load` says of them, which is one line that names the file."""
    file = tmp_path / "flights.npz"
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)

    def read(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(tb.TablebayError) as raised:
            data.load()
        text = str(raised.value)
        assert "\n" not in text
        assert text.startswith(f"{file}: found a damaged file ("), text
        assert text.endswith("wanted the one that comes with Tablebay; install it again"), text
        return text

    return read


@pytest.mark.parametrize("kept", [0.0, 1e-5, 0.001, 0.5, 0.999999])
def test_a_data_file_cut_short_is_said_to_be_damaged(refusal: Read, kept: float) -> None:
    """Empty, or without its end, where a zip file's list of contents is."""
    content = FOLDER.joinpath("flights.npz").read_bytes()
    assert "(File is not a zip file)" in refusal(content[: int(kept * len(content))])


def test_a_data_file_with_a_changed_byte_is_said_to_be_damaged(refusal: Read) -> None:
    """Wherever the bit lies in a column: the column's checksum is compared before anything is made of it."""
    content = FOLDER.joinpath("flights.npz").read_bytes()
    for seed in range(30):
        damaged = bytearray(content)
        # Not in the headers at both ends, some of whose bytes mean nothing: times, versions.
        chance = random.Random(seed)
        damaged[chance.randrange(200, len(content) - 5000)] ^= 1 << chance.randrange(8)
        try:
            text = refusal(bytes(damaged))
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        assert re.search(
            r"Bad CRC-32 for file '\w+\.npy'|while decompressing|Bad magic|in directory", text
        ), f"seed {seed}: {text}"


def test_a_changed_byte_anywhere_is_refused_or_changes_no_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the zip file's own headers too: TablebayError, or the columns as they were; never another error."""
    small = {name: np.arange(1, 13, dtype=np.int16) for name in data.COLUMNS}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **small)  # type: ignore[arg-type]
    content = buffer.getvalue()
    file = tmp_path / "flights.npz"
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    refused = 0
    positions = range(0, len(content), 3)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        file.write_bytes(damaged)
        said = ""
        try:
            found = data.columns()
        except tb.TablebayError as error:
            said = str(error)
        if said:
            assert "\n" not in said and str(file) in said, f"byte {position}: {said}"
            refused += 1
        else:
            assert all(np.array_equal(found[name], small[name]) for name in small), f"byte {position}"
    assert refused > len(positions) // 2


def test_a_data_file_with_other_columns_is_said_to_be_damaged(refusal: Read) -> None:
    """A sound archive that is not the flights: the column that is missing, or lengths that differ, are named."""
    small = {name: np.arange(1, 13, dtype=np.int16) for name in data.COLUMNS}

    def packed(**changed: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **{**small, **changed})  # type: ignore[arg-type]
        return buffer.getvalue()

    assert "(its columns have lengths [7, 12])" in refusal(packed(dest=small["dest"][:7]))
    assert "unsized" in refusal(packed(hour=np.array(5, np.int16)))
    del small["tailnum"]
    assert "(it has no column 'tailnum')" in refusal(packed())
    assert "allow_pickle=False" in refusal(packed(tailnum=np.array([None] * 12)))


def test_a_data_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a damaged one is."""
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(tb.TablebayError, match=r"flights\.npz: found a damaged file \(.*No such file"):
        data.load()
