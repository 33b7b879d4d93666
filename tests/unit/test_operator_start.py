"""What starting the operator loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tablebay.operator.main import main


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


@pytest.mark.parametrize("label", ["release", "=monitoring", ".a=b", "a=b c", f"a={'b' * 64}", "A.io/a=b"])
def test_a_label_that_kubernetes_would_refuse_ends_the_operator_at_once(
    label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was found, rather than at the first job."""
    with pytest.raises(SystemExit) as ended:
        main(["run", "--server-image", "a", "--pod-monitor-label", label])
    assert ended.value.code == 2
    assert f"found {label[:80]!r}, wanted NAME=VALUE as a label of Kubernetes" in capsys.readouterr().err


@pytest.mark.parametrize("peers", ["prometheus", "{}", "[1]", "[{}]", '[{"podSelecter": {}}]', "[[]]"])
def test_peers_that_no_network_policy_has_end_the_operator_at_once(
    peers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was found, rather than at the first job."""
    with pytest.raises(SystemExit) as ended:
        main(["run", "--server-image", "a", "--metrics-from", peers])
    assert ended.value.code == 2
    wanted = f"found {peers!r}, wanted a list in JSON of ipBlock, namespaceSelector, podSelector"
    assert wanted in capsys.readouterr().err
