"""The repository's layout and the rules that every file keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("client", "examples", "native", "operator", "ps_server")
GENERATED = ("_core.pyi", "tablebay_pb2.py", "tablebay_pb2.pyi", "tablebay_pb2_grpc.py")
LINES_MAX = 900
BUILD_FILES = ("CMakeLists.txt", "Dockerfile", "Makefile", "pyproject.toml")

# Each can run code that its input brings.
BANNED_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BANNED_CALLS = {"eval", "exec", "__import__"}
BANNED_ATTRIBUTES = {
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("torch", "load"),
}


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> Iterator[Path]:
    """The repository's own files with these suffixes beneath `folders`, less what a tool wrote."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and path.name not in GENERATED:
                yield path


def banned(tree: ast.AST) -> Iterator[str]:
    """What of `tree` may run code that comes with data, as "line: name"."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = (node.module or "").split(".")[0]
            names = [module] if module in BANNED_MODULES else []
            names += [alias.name for alias in node.names if (module, alias.name) in BANNED_ATTRIBUTES]
        elif isinstance(node, ast.Name) and node.id in BANNED_CALLS:
            names = [node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = (node.value.id, node.attr)
            names = [".".join(name)] if name in BANNED_ATTRIBUTES else []
        for name in names:
            yield f"{node.lineno}: {name}"  # type: ignore[attr-defined]


def test_operator_is_no_package() -> None:
    """operator/ has no __init__.py: from the repository root it would hide the standard library's operator."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_no_module_of_operator_bears_a_name_of_the_standard_library() -> None:
    """A script started from operator/ has that folder first on its path, where such a module would win."""
    names = {path.stem for path in files("operator")} | {
        path.name for path in (ROOT / "operator").iterdir() if path.is_dir()
    }
    assert names
    assert names & sys.stdlib_module_names == set()


def test_no_init_file_beneath_tests() -> None:
    """Tests are no packages: pytest imports each file by its path."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("arguments", [["-c", "import collections"], ["-m", "pytest", "--version"]])
def test_python_starts_from_the_repository_root(arguments: list[str]) -> None:
    """With the root first on sys.path, the standard library still gets its own operator."""
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_the_standard_operator_wins_from_the_repository_root() -> None:
    """`import operator` from the root is the standard library's module."""
    code = "import operator; print(operator.add(1, 2), operator.__name__)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["3", "operator"], ended.stderr


@pytest.mark.parametrize("folder", [*PRODUCT, "bench"])
def test_no_product_code_runs_what_data_says(folder: str) -> None:
    """No pickle, marshal, eval, exec, yaml.load or torch.load in anything that ships or measures."""
    found = {
        f"{path.relative_to(ROOT)}:{what}"
        for path in files(folder)
        for what in banned(ast.parse(path.read_text("utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", ["1: pickle"]),
        ("import yaml\nyaml.load(text)", ["2: yaml.load"]),
        ("from yaml import load", ["1: load"]),
        ("from marshal import loads", ["1: marshal"]),
        ("x = eval", ["1: eval"]),
        ("import yaml\nyaml.safe_load(text)", []),
        ("model.eval()", []),
    ],
)
def test_the_search_for_banned_names_finds_them(code: str, found: list[str]) -> None:
    """The check above sees each way to name a banned thing, and nothing else."""
    assert list(banned(ast.parse(code))) == found


def test_no_build_is_for_one_machine_or_rounds_otherwise() -> None:
    """Nothing is compiled for the builder's own processor, with fused multiply-add, or with fast-math."""
    for name in BUILD_FILES:
        lines = (ROOT / name).read_text("utf-8").splitlines()
        code = "\n".join(line.partition("#")[0] for line in lines)
        assert re.search(r"-m(arch|tune|cpu)=native|-mfma\b|fast-math|-Ofast", code) is None, name
    for path in files("native", "bench", suffixes=(".cc", ".h", ".py")):
        text = path.read_text("utf-8")
        assert re.search(r"-march=native|pragma.*(fast-math|optimize|fp_contract\s*\(\s*on)", text) is None, (
            path
        )


def test_every_instruction_set_is_compiled_without_contraction() -> None:
    """-ffp-contract=off is for every file, and each set has its flags."""
    text = (ROOT / "CMakeLists.txt").read_text("utf-8")
    assert "-ffp-contract=off" in text
    assert "set(instruction_sets baseline)" in text
    assert "list(APPEND instruction_sets avx2 avx512)" in text


def test_the_image_is_built_in_stages_and_runs_as_nobody_in_particular() -> None:
    """The Dockerfile takes ARG BASE, installs the wheel in a stage of its own, and sets a numeric user."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    stages = [line for line in lines if line.startswith("FROM ")]
    assert any(re.fullmatch(r"ARG BASE=\S+", line) for line in lines)
    assert stages == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    last = "\n".join(lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :])
    user = re.search(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    assert int(user[2]) > 0
    assert "COPY --from=build /opt/tablebay /opt/tablebay" in last
    assert "pip install" not in last
    assert "g++" not in last, "the compiler stays in the first stage"


def test_every_test_says_what_is_true() -> None:
    """Each test function has a docstring, and its name is a sentence of more than two words."""
    wanting = []
    for path in files("tests"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                if not ast.get_docstring(node):
                    wanting.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: no docstring")
                if node.name.count("_") < 3:
                    wanting.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: no sentence")
    assert wanting == []


def test_no_file_is_too_long_to_read() -> None:
    """No source file has more than 900 lines."""
    folders = (*PRODUCT, "bench", "docs", "tests")
    suffixes = (".py", ".pyi", ".cc", ".h", ".md", ".proto")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in files(*folders, suffixes=suffixes)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


def test_modules_have_docstrings_and_late_annotations() -> None:
    """Each module says what it is; each that has code uses `from __future__ import annotations`."""
    wanting = []
    for path in files(*PRODUCT, "tests"):
        tree = ast.parse(path.read_text("utf-8"))
        if not ast.get_docstring(tree):
            wanting.append(f"{path.relative_to(ROOT)}: no docstring")
        late = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
        if len(tree.body) > 1 and not late:
            wanting.append(f"{path.relative_to(ROOT)}: no `from __future__ import annotations`")
    assert wanting == []


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"])
def test_the_repository_has_what_a_reader_looks_for(name: str) -> None:
    """Each of these files is there and says something."""
    assert len((ROOT / name).read_text("utf-8").split()) > 30
