"""A client that has the .proto and nothing else of Tablebay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from free_ports import free_data_ports

from tablebay.client.client import connect
from tablebay.client.local_table import Table
from tablebay.client.tables import Adagrad, Normal

PROTO = Path(__file__).parents[2] / "client" / "proto" / "tablebay.proto"
CLIENT = Path(__file__).with_name("stub_client.py")
KEYS = [0, 1, 2**63, 2**64 - 1, *range(1000, 1040)]
DIM = 3
# Runs a file with its own folder on the path, and nothing else of here (-I leaves out the current folder too).
RUN = (
    "import runpy, sys; folder = sys.argv.pop(1); sys.path.insert(0, folder); "
    "runpy.run_path(folder + '/stub_client.py', run_name='__main__')"
)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stubs made now from the .proto, and the client beside them."""
    folder = tmp_path_factory.mktemp("stubs")
    shutil.copy(PROTO, folder)
    shutil.copy(CLIENT, folder)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--grpc_python_out=."]
    subprocess.run([*command, PROTO.name], cwd=folder, check=True, timeout=120)
    return folder


def speak(folder: Path, *arguments: Any) -> Any:
    """What the client prints."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("TABLEBAY_", "PYTHON"))
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN, str(folder), *(json.dumps(argument) for argument in arguments)],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", [1, 2])
def test_stubs_alone_see_the_same_values_as_the_sdk(
    stubs: Path, start_server: Callable[..., Any], count: int
) -> None:
    """Hello, CreateTable, Pull, Push sent twice, Pull: bit for bit the rows of the SDK and of a table in process."""
    ports = free_data_ports(count)
    pattern = ",".join(f"127.0.0.1:{port}" for port in ports)
    for index, port in enumerate(ports):
        start_server("--servers", pattern, "--index", str(index), data_port=port)
    seen = speak(stubs, ports, KEYS, DIM)
    assert seen["loaded"] == []
    assert seen["servers"] == list(range(count))
    assert seen["applied"] == seen["duplicates"] == seen["shards"]
    assert seen["refused"] == ["NOT_FOUND", "NotRegistered"]

    keys = np.array(KEYS, np.uint64)
    spec: dict[str, Any] = {
        "dim": DIM,
        "optimizer": Adagrad(0.05, 0.1, 1e-8),
        "initializer": Normal(0.01),
        "seed": 7,
    }
    table = Table(name="user", **spec)
    before = table.pull(keys)
    table.push(keys, np.array(seen["gradients"], np.float32))
    assert np.array(seen["before"], np.float32).tobytes() == before.tobytes()
    assert np.array(seen["after"], np.float32).tobytes() == table.pull(keys).tobytes()
    with connect(pattern) as client:
        assert client.table("user", **spec).pull(keys).tobytes() == table.pull(keys).tobytes()
        assert len(client.table("user")) == len(KEYS)
