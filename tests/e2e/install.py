"""Installs the chart for the tests: helm install, in a namespace that enforces the restricted standard."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from e2e.kube import ROOT, kubectl, make_namespace, run

RELEASE = "tablebay"
# In how many seconds a Secret is in every pod: the kubelet of our own cluster looks every 5 s or so.
SPREAD_S = 15 if "E2E_CLUSTER" in os.environ else 120


def main() -> int:
    """0 if the operator is ready and Helm had nothing to warn of."""
    system = os.environ["E2E_NAMESPACE"]
    image, _, tag = os.environ["IMAGE"].rpartition(":")
    make_namespace(system)
    ended = run(
        "helm",
        *("upgrade", "--install", RELEASE, str(ROOT / "deploy" / "helm" / "tablebay"), "--namespace", system),
        *("--set", f"image.repository={image}", "--set", f"image.tag={tag}"),
        *("--set", f"certificates.spreadSeconds={SPREAD_S}"),
        *("--wait", "--timeout", "180s"),
        timeout=240,
    )
    print(ended.stdout)
    if ended.returncode == 0 and "warning" not in ended.stderr.lower():
        return 0
    print(ended.stderr, kubectl("-n", system, "get", "pods", "-o", "wide"), file=sys.stderr)
    print(
        run("kubectl", "-n", system, "logs", "-l", "app.kubernetes.io/component=operator").stdout,
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
