"""Writes the generated modules beside tablebay.proto: ``python client/proto/generate.py [DIRECTORY]`` (make proto)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GENERATED = ("tablebay_pb2.py", "tablebay_pb2.pyi", "tablebay_pb2_grpc.py")


def generate(directory: Path) -> None:
    """Writes GENERATED into `directory`."""
    from grpc_tools import protoc

    # Relative to the folder, so that the descriptor's file name holds no path.
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={HERE}",
            f"--python_out={directory}",
            f"--pyi_out={directory}",
            f"--grpc_python_out={directory}",
            "tablebay.proto",
        ]
    )
    if code != 0:
        raise SystemExit(f"protoc ended with {code}")
    # protoc writes an absolute import, as if its output lay on sys.path.
    services = directory / "tablebay_pb2_grpc.py"
    text = services.read_text()
    found = "import tablebay_pb2 as tablebay__pb2"
    if text.count(found) != 1:
        raise SystemExit(f"{services}: wanted one line {found!r}, found {text.count(found)}")
    services.write_text(
        text.replace(found, "from tablebay.client.proto import tablebay_pb2 as tablebay__pb2")
    )


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
