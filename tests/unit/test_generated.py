"""Generated files are what their generators write now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def script(path: str) -> ModuleType:
    """The module in the file at `path`, which no wheel holds."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    """client/proto/tablebay_pb2* equal what `make proto` writes."""
    generate = script("client/proto/generate.py")
    generate.generate(tmp_path)
    for name in generate.GENERATED:
        written = (ROOT / "client" / "proto" / name).read_text("utf-8")
        assert written == (tmp_path / name).read_text("utf-8"), f"{name} is stale: make proto"


def test_the_stubs_are_those_of_the_built_core() -> None:
    """native/_core.pyi equals what `make stubs` writes."""
    assert (ROOT / "native" / "_core.pyi").read_text("utf-8") == script("native/stubs.py").stubs(), (
        "native/_core.pyi is stale: make stubs"
    )
