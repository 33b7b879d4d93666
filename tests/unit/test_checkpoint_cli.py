"""`tablebay checkpoint`: list, inspect, verify, export, and what they say of what is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_world import World

from tablebay.client.cli import main
from tablebay.ps_server.checkpoint.coordinator import _State


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two servers' full checkpoint 1, a delta 2, a fence 3. Not to be changed."""
    root = tmp_path_factory.mktemp("made") / "d"
    world = World(root)
    for key in range(1, 21):
        world.put("user", key, key, 0.1)
    world.put("item", 2**64 - 1, 1, 2, 3)
    assert world.save(state=_State(0, {"model": bytearray(b"abc")})) == ""
    world.put("user", 3, 30, 1e-30)
    world.delete("user", 4)
    world.delete("user", 5)
    world.put("user", 5, 55, 5)
    world.put("user", 50, 50, -0.0)
    assert world.save() == ""
    world.end()
    World(root).end()
    return root


EXPECTED = {
    **{key: [key, 0.1] for key in range(1, 21) if key not in (3, 4, 5)},
    3: [30, 1e-30],
    5: [55, 5],
    50: [50, -0.0],
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main(["checkpoint", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.err == "" if code == 0 else True
    return captured.out if code == 0 else captured.out + captured.err


def test_list_has_a_line_for_each(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fences are no checkpoints, and only in the JSON."""
    lines = run(capsys, "list", made).splitlines()
    assert lines[0] == "job toy"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["NUMBER", "KIND"],
        ["0", "Empty"],
        ["1", "Full"],
        ["2", "Delta"],
    ]
    found = json.loads(run(capsys, "list", made, "-o", "json"))
    assert [one["kind"] for one in found["checkpoints"]] == ["Empty", "Full", "Delta", "Fence"]
    assert [one["rows"] for one in found["checkpoints"]] == [0, 21, 3, 0]


def test_inspect_says_what_a_checkpoint_consists_of(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest, one by number, and one by its manifest's path."""
    text = run(capsys, "inspect", made)
    assert re.search(r"^number +2$", text, re.MULTILINE)
    assert re.search(r"^user +2 +float32 +Adagrad +32$", text, re.MULTILINE)
    assert re.search(r"^0 +1 +512 +1,2 +5 +\d+$", text, re.MULTILINE)
    assert "model (3 bytes)" in text
    assert re.search(r"^kind +Full$", run(capsys, "inspect", made, "--number", 1), re.MULTILINE)
    path = made / "manifests" / "0000000001.json"
    assert json.loads(run(capsys, "inspect", path, "-o", "json")) == json.loads(path.read_text())


def test_verify_reads_all_and_names_damage(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 with each damaged file and byte; the others are read all the same."""
    assert run(capsys, "verify", made).endswith(": whole\n")
    assert "MB/s" in run(capsys, "verify", made, "--time")
    found = json.loads(run(capsys, "verify", made, "--time", "--output=json"))
    assert found["whole"]
    assert found["files"] == 11
    assert found["seconds"] > 0
    copied = tmp_path / "copy"
    _copy(made, copied)
    rows = sorted((copied / "attempts").glob("1-*/*rows*"))
    content = bytearray(rows[0].read_bytes())
    content[120] ^= 1
    rows[0].write_bytes(content)
    rows[1].write_bytes(rows[1].read_bytes()[:-1])
    next((copied / "attempts").glob("1-*/state-*")).write_bytes(b"abd")
    rows[2].unlink()
    text = run(capsys, "verify", copied, code=1)
    assert len([line for line in text.splitlines() if line.startswith("damaged: ")]) == 4
    assert f"{rows[0].name}: at byte 96: found a block whose crc is" in text
    assert text.splitlines()[-1].endswith("4 damaged")
    found = json.loads(run(capsys, "verify", copied, "-ojson", code=1))
    assert not found["whole"]
    assert len(found["problems"]) == 4
    target = tmp_path / "user.tsv"
    assert "at byte" in run(capsys, "export", copied, "--table", "user", "--to", target, code=1)
    assert list(tmp_path.glob("*user*")) == []
    (copied / "manifests" / "0000000001.json").write_text("{")
    assert "damaged: " in run(capsys, "list", copied)


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def test_npz_has_keys_and_weights(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each key once, with its newest weights, and deleted ones not."""
    target = tmp_path / "user.npz"
    assert "20 rows of 'user', checkpoint 2, written to" in run(
        capsys, "export", made, "--table", "user", "--to", target
    )
    with np.load(target) as arrays:
        keys, weights = arrays["keys"], arrays["weights"]
    assert keys.dtype == np.uint64
    assert weights.dtype == np.float32
    assert weights.shape == (20, 2)
    assert {int(key): row.tolist() for key, row in zip(keys, weights, strict=True)} == {
        key: np.array(row, np.float32).tolist() for key, row in EXPECTED.items()
    }
    older = tmp_path / "older.npz"
    run(capsys, "export", made, "--table", "user", "--to", older, "--number", 1)
    with np.load(older) as arrays:
        assert sorted(arrays["keys"].tolist()) == list(range(1, 21))
    item = tmp_path / "item.npz"
    run(capsys, "export", made, "--table", "item", "--to", item)
    with np.load(item) as arrays:
        assert arrays["keys"].tolist() == [2**64 - 1]


def test_tsv_gives_the_floats_back(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By nine digits, -0 and tiny ones included."""
    target = tmp_path / "user.tsv"
    run(capsys, "export", made, "--table", "user", "--to", target)
    lines = dict(line.split("\t", 1) for line in target.read_text().splitlines())
    assert lines["1"] == "1\t0.100000001"
    assert lines["50"] == "50\t-0"
    assert {int(key): [np.float32(one) for one in row.split("\t")] for key, row in lines.items()} == {
        key: [np.float32(one) for one in row] for key, row in EXPECTED.items()
    }


def test_parquet_has_a_list_of_fixed_size(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And keys as they are, above 2^63 too."""
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "user.parquet"
    run(capsys, "export", made, "--table", "user", "--to", target)
    table = parquet.read_table(target)
    assert str(table.schema.field("key").type) == "uint64"
    weights = table.schema.field("weights").type
    assert (str(weights.value_type), weights.list_size) == ("float", 2)
    found = dict(zip(table["key"].to_pylist(), table["weights"].to_pylist(), strict=True))
    assert found == {key: np.array(row, np.float32).tolist() for key, row in EXPECTED.items()}
    target = tmp_path / "item.parquet"
    run(capsys, "export", made, "--table", "item", "--to", target)
    assert parquet.read_table(target)["key"].to_pylist() == [2**64 - 1]


def test_parquet_without_pyarrow_says_how_to_get_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = run(capsys, "export", made, "--table", "user", "--to", tmp_path / "a.parquet", code=1)
    assert "pip install 'tablebay[parquet]'" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (["list"], 2, "Missing argument 'DIR'"),
        (["list", "."], 1, "found no tablebay.json, wanted a directory of checkpoints"),
        (["list", "nowhere"], 1, "nowhere: No such file or directory"),
        (["list", "s3://bucket"], 1, "checkpoints on s3:// are not there yet"),
        (["inspect", "MADE", "--number", "9"], 1, "holds no checkpoint 9, wanted one of 0, 1, 2"),
        (["inspect", "MADE", "--number", "3"], 1, "holds no checkpoint 3"),
        (["verify", "MADE", "--number", "-1"], 2, "--number"),
        (["export", "MADE", "--to", "a.npz"], 2, "Missing option '--table'"),
        (
            ["export", "MADE", "--table", "user", "--to", "a.csv"],
            1,
            "ending '.csv', wanted one of .npz, .tsv",
        ),
        (
            ["export", "MADE", "--table", "usr", "--to", "a.npz"],
            1,
            "no table 'usr', wanted one of user, item",
        ),
        (["export", "MADE", "--table", "user", "--to", "no/a.npz"], 1, "no/a.npz: No such file or directory"),
        (["export", "MADE", "--table", "user", "--to", "there.npz"], 1, "there.npz is there already"),
        (["inspect", "MADE", "--", "x"], 2, "found 'x' after --"),
        ([], 2, "tablebay checkpoint --help"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    code: int,
    wanted: str,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong usage is 2, and what is not there is 1; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_text("mine")
    text = run(capsys, *(str(made) if one == "MADE" else one for one in arguments), code=code)
    assert wanted in text
    assert len(text.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert (tmp_path / "there.npz").read_text() == "mine"
