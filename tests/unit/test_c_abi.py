"""tablebay.h: tables from C. By ctypes, as examples/from_c does it, and by a C program where there is a compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optimizer_references import REFERENCES

import tablebay as tb
from tablebay.examples import from_c
from tablebay.examples.from_c import CTable, library

HEADER = Path(__file__).parents[2] / "native" / "include"
ADAGRAD = "Adagrad learning_rate=0.05 initial_accumulator=0.1 epsilon=1e-8"
NORMAL = "Normal mean=0 stddev=0.01"


def test_it_has_the_rows_of_the_sdk(tmp_path: Path) -> None:
    """Pulls, pushes with repeats, saved and loaded: bit for bit those of tb.Table."""
    theirs = tb.Table(8, tb.Adagrad(0.05, 0.1, 1e-8), tb.Normal(0.01), name="users", seed=3)
    random = np.random.default_rng(1)
    with CTable.create("users", 8, ADAGRAD, NORMAL, seed=3) as ours:
        for _ in range(20):
            keys = random.integers(0, 300, 100).astype(np.uint64)
            gradients = random.standard_normal((100, 8)).astype(np.float32)
            assert ours.pull(keys).tobytes() == theirs.pull(keys).tobytes()
            ours.push(keys, gradients)
            theirs.push(keys, gradients)
        assert len(ours) == len(theirs)
        ours.save(tmp_path / "users.table")
    with CTable.load(tmp_path / "users.table", 8) as loaded:
        everyone = np.arange(300, dtype=np.uint64)
        assert len(loaded) == len(theirs)
        assert loaded.pull(everyone, create=False).tobytes() == theirs.pull(everyone, create=False).tobytes()
        loaded.push(everyone, np.ones((300, 8), np.float32))
        theirs.push(everyone, np.ones((300, 8), np.float32))
        assert loaded.pull(everyone).tobytes() == theirs.pull(everyone).tobytes()


@pytest.mark.parametrize("extra", ["", " clock=2", " schedule=1 schedule_steps=50 schedule_to=0.5"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_table_goes_on_as_the_saved_one(dtype: str, extra: str, tmp_path: Path) -> None:
    """Its clock and schedule too, though the last step named none of its rows."""
    parameters = " ".join(f"{name}={value!r}" for name, value in REFERENCES["Adam"].parameters.items())
    random = np.random.default_rng(2)
    keys = np.arange(50, dtype=np.uint64)
    with CTable.create("t", 4, f"Adam {parameters}{extra}", NORMAL, dtype=dtype) as saved:
        for _ in range(10):
            saved.push(keys, random.standard_normal((50, 4)).astype(np.float32))
        saved.push(keys[:0], np.empty((0, 4), np.float32))
        saved.save(tmp_path / "t")
        with CTable.load(tmp_path / "t", 4) as loaded:
            for _ in range(10):
                gradients = random.standard_normal((50, 4)).astype(np.float32)
                saved.push(keys, gradients)
                loaded.push(keys, gradients)
            assert loaded.pull(keys).tobytes() == saved.pull(keys).tobytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("t", 4, "Adagrad learning_rate=0.05", "Zeros"), "Adagrad needs parameter 'initial_accumulator'"),
        (("t", 4, "Adagrad rate", "Zeros"), "optimizer: found 'rate', wanted name=value, each name once"),
        (("t", 4, "SGD learning_rate=1,5", "Zeros"), "learning_rate is '1,5', wanted a number"),
        (("t", 4, "SGD learning_rate=1 learning_rate=2", "Zeros"), "each name once"),
        (("t", 0, ADAGRAD, "Zeros"), "dim is 0"),
        (("", 4, ADAGRAD, "Zeros"), "a table needs a name"),
        (("a\nb", 4, ADAGRAD, "Zeros"), "a name has one line"),
        (("t", 4, ADAGRAD, "Nothing"), "initializer 'Nothing' does not exist"),
    ],
)
def test_what_cannot_be_made_is_said(arguments: Any, words: str) -> None:
    """No table, and the reason in tb_last_error with its kind."""
    with pytest.raises(RuntimeError, match=words) as caught:
        CTable.create(*arguments)
    assert str(caught.value).startswith("BadRequest: ")


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    """The error names table, key and position; null pointers are refused too."""
    with CTable.create("t", 2, ADAGRAD, "Zeros") as table:
        with pytest.raises(RuntimeError, match="NonFinite: table 't': the row for key 7 .position 1."):
            table.push(np.array([6, 7], np.uint64), np.array([[1, 1], [1, np.nan]], np.float32))
        assert len(table) == 0
        assert library().tb_pull(table._handle, None, 3, None, 1) == -1
        assert b"null pointer" in library().tb_last_error()
        assert library().tb_create(None, 1, b"float32", b"Add", b"Zeros", 0) is None
        assert b"name is a null pointer" in library().tb_last_error()


def test_a_damaged_file_is_never_loaded(tmp_path: Path) -> None:
    """Any byte changed, any length less, and bytes behind: refused, each time."""
    path = tmp_path / "t"
    with CTable.create("t", 3, ADAGRAD, NORMAL) as table:
        table.pull(np.arange(20, dtype=np.uint64))
        table.save(path)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["t"]
        with pytest.raises(RuntimeError, match="No such file or directory"):
            table.save(tmp_path / "none" / "t")
    whole = path.read_bytes()
    bad = tmp_path / "bad"
    random = np.random.default_rng(3)
    cases = [whole[:size] for size in random.integers(0, len(whole), 60).tolist()] + [whole + b"x"]
    for place in [*range(80), *random.integers(0, len(whole), 200).tolist()]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(0, 8))
        cases.append(bytes(changed))
    for content in cases:
        bad.write_bytes(content)
        with pytest.raises(RuntimeError, match="CheckpointInvalid|CheckpointMismatch|BadRequest"):
            CTable.load(bad, 3)
    CTable.load(path, 3).close()


def test_pushes_go_on_while_a_table_is_saved(tmp_path: Path) -> None:
    """Each saved file has the rows of one moment: every push adds one to every row of a table of sums."""
    keys = np.arange(5000, dtype=np.uint64)
    with CTable.create("t", 1, "Add", "Zeros") as table:
        table.push(keys, np.zeros((5000, 1), np.float32))
        done = threading.Event()

        def push() -> None:
            while not done.is_set():
                table.push(keys[:1], np.ones((1, 1), np.float32))

        thread = threading.Thread(target=push)
        thread.start()
        try:
            seen = []
            for number in range(5):
                table.save(tmp_path / "t")
                with CTable.load(tmp_path / "t", 1) as loaded:
                    assert len(loaded) == 5000, number
                    seen.append(float(loaded.pull(keys[:1])[0, 0]))
        finally:
            done.set()
            thread.join()
    assert seen == sorted(seen)


def test_errors_are_of_their_own_thread() -> None:
    """One thread's failure is not what another reads."""
    found: list[bytes] = []
    with pytest.raises(RuntimeError, match="dim is 0"):
        CTable.create("t", 0, ADAGRAD, "Zeros")
    thread = threading.Thread(target=lambda: found.append(library().tb_last_error()))
    thread.start()
    thread.join()
    assert found == [b""]


def test_nothing_else_is_shown() -> None:
    """The library exports the functions of the header, and needs no Python."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf")
    path = ctypes.CDLL(library()._name)._name
    text = subprocess.run(
        [readelf, "--dyn-syms", "--wide", path], check=True, capture_output=True, text=True
    ).stdout
    shown = {
        fields[7]
        for fields in (line.split() for line in text.splitlines())
        if len(fields) == 8 and fields[4] == "GLOBAL" and fields[6] != "UND"
    }
    names = ("abi_version", "last_error", "create", "pull", "push", "rows", "save", "load", "free")
    assert shown == {f"tb_{name}" for name in names}
    assert "Py" not in {line.split()[-1][:2] for line in text.splitlines() if "UND" in line and line.split()}
    assert library().tb_abi_version() == 1


PROGRAM = r"""
#include <stdio.h>
#include "tablebay.h"
int main(void) {
  uint64_t keys[2] = {7, 7};
  float rows[4];
  const float gradients[4] = {1, 2, 3, 4};
  tb_table *table = tb_create("t", 2, "float32", "Add", "Zeros", 0);
  if (table == NULL || tb_push(table, keys, 2, gradients) != 0 || tb_pull(table, keys, 2, rows, 0) != 0) {
    fprintf(stderr, "%s\n", tb_last_error());
    return 1;
  }
  printf("%g %g %g %g\n", rows[0], rows[1], rows[2], rows[3]);
  tb_free(table);
  return tb_create("t", 2, "float33", "Add", "Zeros", 0) != NULL;
}
"""


def test_a_c_program_links_it(tmp_path: Path) -> None:
    """With the header as C99 has it, no Python in the process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, program, shared = tmp_path / "p.c", tmp_path / "p", library()._name
    source.write_text(PROGRAM)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{HEADER}"]
    subprocess.run(
        [compiler, *flags, source, shared, f"-Wl,-rpath,{Path(shared).parent}", "-o", program], check=True
    )
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("4 6 4 6\n", 0)


def test_the_example_learns(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with the loss lower than it began, and the same after a load."""
    from_c.main()
    words = capsys.readouterr().out.split()
    assert float(words[words.index("to") + 1].rstrip(",")) < float(words[words.index("from") + 1]) / 2
