"""String ids as keys, and Criteo's TSV, of which the lines here are made by hand."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tablebay as tb

LINES = [
    "\t".join(
        ["0", "1", "1", "5", "0", "1382", "4", "15", "2", "181", "1", "2", "", "2"] + ["68fd1e64"] * 26
    ),
    "\t".join(["1", "", "-1", *[""] * 11, *[f"{n:08x}" for n in range(25)], ""]),
    "\t".join(["0", *["7"] * 13, *["68fd1e64"] * 25, "ff"]),
]

WHOLE = ", wanted a whole number of at most 19 digits"


def written(folder: Path, lines: list[str], name: str = "day_0.tsv") -> Path:
    path = folder / name
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def test_a_key_is_the_documented_hash_of_seed_column_and_id() -> None:
    """Pinned numbers, and the rule spelt out with the standard library."""
    digest = hashlib.blake2b("user\0Zoë".encode(), digest_size=8, key=(7).to_bytes(8, "little")).digest()
    assert tb.hash_ids(["Zoë"], "user", seed=7).tolist() == [int.from_bytes(digest, "little", signed=True)]
    assert tb.hash_ids(["68fd1e64", ""], "C1").tolist() == [300730611209684664, 5093130860324651758]
    assert tb.hash_ids([], "C1").shape == (0,)


def test_columns_seeds_and_ids_have_keys_of_their_own() -> None:
    """A hundred thousand ids in two columns and two seeds: no two keys are the same; a table takes them."""
    ids = [f"id{number}" for number in range(100_000)]
    keys = np.concatenate([tb.hash_ids(ids, column, seed) for column in ("a", "b") for seed in (0, 1)])
    assert keys.dtype == np.int64
    assert len(np.unique(keys)) == 400_000
    assert tb.Table(dim=2).pull(keys[:5]).shape == (5, 2)


@pytest.mark.parametrize("name", ["day_0.tsv", "day_0.tsv.gz"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_file_is_read_in_batches_in_its_order(tmp_path: Path, name: str, size: int) -> None:
    """Labels, numbers with NaN for what is missing, and keys, whatever the size of batches."""
    batches = list(tb.read_criteo(written(tmp_path, LINES, name), size))
    assert [len(one.labels) for one in batches] == [min(size, 3 - begin) for begin in range(0, 3, size)]
    labels, numbers, keys = (
        np.concatenate([getattr(one, part) for one in batches]) for part in ("labels", "numbers", "keys")
    )
    assert labels.tolist() == [0, 1, 0]
    assert (labels.dtype, numbers.dtype, keys.dtype) == (np.float32, np.float32, np.int64)
    np.testing.assert_array_equal(numbers[0], [1, 1, 5, 0, 1382, 4, 15, 2, 181, 1, 2, np.nan, 2])
    np.testing.assert_array_equal(numbers[1], [np.nan, -1, *[np.nan] * 11])
    assert keys.shape == (3, 26)
    assert keys[0, :2].tolist() == [int(tb.hash_ids(["68fd1e64"], f"C{n}")[0]) for n in (1, 2)]
    assert keys[1, 25] == tb.hash_ids([""], "C26")[0]
    assert np.array_equal(keys[0, :25], keys[2, :25])
    assert len(np.unique(keys[0])) == 26


def test_another_seed_gives_other_keys(tmp_path: Path) -> None:
    """So that two jobs can be kept apart."""
    path = written(tmp_path, LINES)
    (first,), (second,) = tb.read_criteo(path), tb.read_criteo(path, seed=1)
    assert not (first.keys == second.keys).any()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1\t2", "line 2: found 2 columns, wanted 40"),
        (LINES[0].replace("0", "2", 1), "line 2: label is '2', wanted 0 or 1"),
        (
            LINES[0].replace("1382", "13.5"),
            f"line 2: I5 is '13.5'{WHOLE}, or nothing",
        ),
        ("", "line 2: found 1 columns"),
        (
            LINES[0].replace("1382", "9" * 400),
            f"line 2: I5 is '9{{40}}'{WHOLE}",
        ),
        (
            LINES[0].replace("1382", "1_382"),
            f"line 2: I5 is '1_382'{WHOLE}",
        ),
        (LINES[0].replace("1382", "1 "), f"line 2: I5 is '1 '{WHOLE}"),
        (LINES[0].replace("68fd1e64", "a\0b", 1), "line 2: found a zero byte"),
        (LINES[0].replace("68fd1e64", "x" * 70_000, 1), "line 2: longer than 65,536 bytes"),
        (LINES[0].replace("68fd1e64", "\n", 1), "line 2: found 15 columns, wanted 40"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    """Row 57 of the list of bad inputs: file, line, what was found and what is wanted."""
    with pytest.raises(tb.BadRequest, match=f"day_0.tsv, {says}"):
        list(tb.read_criteo(written(tmp_path, [LINES[0], line])))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """Row 57: with the line, too."""
    path = tmp_path / "day_0.tsv"
    path.write_bytes(
        LINES[0].encode() + b"\n" + LINES[0].encode().replace(b"68fd1e64", b"\xff\xfe", 1) + b"\n"
    )
    with pytest.raises(tb.BadRequest, match="day_0.tsv, line 2: .* can't decode byte 0xff"):
        list(tb.read_criteo(path))


def test_a_byte_order_mark_and_carriage_returns_are_taken(tmp_path: Path) -> None:
    """A file from another system has the same rows."""
    path = tmp_path / "day_0.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{line}\r\n" for line in LINES).encode())
    (there,), (here,) = tb.read_criteo(path), tb.read_criteo(written(tmp_path, LINES, "plain.tsv"))
    assert np.array_equal(there.keys, here.keys)
    assert np.array_equal(there.labels, here.labels)


def test_wrong_lines_are_left_out_up_to_a_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Row 57: each is told, those after the bound end the reading with how many there were, and the others are read."""
    path = written(tmp_path, [LINES[0], "1\t2", LINES[1], LINES[0].replace("0", "abc", 1), LINES[2]])
    (batch,) = tb.read_criteo(path, bad_lines_max=2)
    assert batch.labels.tolist() == [0, 1, 0]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}, line 2: found 2 columns, wanted 40, separated by tabs; left out",
        f"{path}, line 4: label is 'abc', wanted 0 or 1; left out",
    ]
    with pytest.raises(
        tb.BadRequest, match="line 4: label is 'abc', wanted 0 or 1; bad lines: 2, wanted at most 1"
    ):
        list(tb.read_criteo(path, bad_lines_max=1))


@pytest.mark.parametrize("name", ["day_0.tsv", "day_0.tsv.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    """Row 58: it is no data set of no examples."""
    with pytest.raises(tb.BadRequest, match=f"{name}: found no line"):
        list(tb.read_criteo(written(tmp_path, [], name)))


@pytest.mark.parametrize("damage", ["truncated", "checksum", "no gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: str) -> None:
    """Row 58: truncated, with a wrong checksum, and no gzip at all; what is before the damage may have been read."""
    path = written(tmp_path, LINES * 200, "day_0.tsv.gz")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "checksum":
        content[-8] ^= 0xFF  # of the checksum
    else:
        content = bytearray(b"0\t1\n")
    path.write_bytes(content)
    with pytest.raises(tb.BadRequest, match=r"day_0.tsv.gz, after line \d+: damaged"):
        list(tb.read_criteo(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Row 58: missing, or a folder."""
    with pytest.raises(FileNotFoundError, match="none.tsv"):
        list(tb.read_criteo(tmp_path / "none.tsv"))
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        list(tb.read_criteo(tmp_path))


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda: tb.hash_ids("abc", "a"), tb.BadType, "ids: found str"),
        (lambda: tb.hash_ids(["a", 1], "a"), tb.BadType, "ids: found int at position 1"),  # type: ignore[list-item]
        (lambda: tb.hash_ids([], "a", seed=-1), tb.BadRequest, "seed is -1, wanted 0 to"),
        (lambda: tb.hash_ids([], "a\0"), tb.BadRequest, "without a zero byte"),
        (lambda: tb.read_criteo("x", 0), tb.BadRequest, "batch_size is 0"),
        (lambda: tb.read_criteo("x", seed=2**64), tb.BadRequest, "seed is"),
        (lambda: tb.read_criteo("x", bad_lines_max=-1), tb.BadRequest, "bad_lines_max is -1, wanted"),
    ],
)
def test_wrong_arguments_are_named(use: Any, error: type[Exception], says: str) -> None:
    """Before anything is read."""
    with pytest.raises(error, match=says):
        use()
