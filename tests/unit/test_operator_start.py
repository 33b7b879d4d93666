"""What starting the operator loads."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_operator_needs_neither_numpy_nor_the_native_core() -> None:
    """Its image may lack both: importing all that `tablebay-operator run` uses loads neither."""
    program = (
        "import json, sys; import tablebay.operator.run; "
        "from tablebay.operator.main import main; print(json.dumps(sorted(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    loaded = json.loads(ended.stdout)
    assert "tablebay.operator.reconcile" in loaded
    unwanted = ("numpy", "tablebay.native", "tablebay.ps_server", "tablebay.examples", "torch", "scipy")
    assert [name for name in loaded if name.startswith(unwanted)] == []
