"""The chart through Helm itself: lint, golden renderings, bad values refused with their path.

`python tests/e2e/chart/check.py` compares, `--write` writes the golden files anew; Helm is $HELM, else `helm`, 3 or 4.
tests/unit/test_chart.py reads the same golden files, so that no rule of theirs needs Helm.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
CHART = HERE.parents[2] / "deploy" / "helm" / "tablebay"
GOLDEN = HERE / "golden"
HASH = GOLDEN / "chart.sha256"
HELM = os.environ.get("HELM", "helm")
# The one that Helm takes for `template` depends on how it was built.
KUBERNETES = ("--kube-version", "1.34.0")
# The definition is not in them: it is a generated file, and checked by itself.
RENDERINGS = {
    "default": ("--set", "crds.install=false"),
    "namespaced": ("--values", str(HERE / "values.yaml")),
    "monitored": (
        "--set=crds.install=false,metrics.enabled=false,metrics.serviceMonitor.enabled=true",
        "--set=metrics.prometheusRule.enabled=true,metrics.prometheusRule.labels.release=monitoring",
        "--set=gang.scheduler=Kueue",
        '--set-json=metrics.from=[{"podSelector":{"matchLabels":{"app":"prometheus"}},"namespaceSelector":{}}]',
    ),
}
BAD = (
    ("--set=image.tag=", "at '/image/tag': ''"),
    ("--set=image.tag=null", "at '/image': missing property 'tag'"),
    ("--set=image=null", "missing property 'image'"),
    ("--set=serverImage.tag=", "at '/serverImage/tag': ''"),
    ("--set=resources=null", "missing property 'resources'"),
    ("--set=metrics.serviceMonitor.interval=soon", "at '/metrics/serviceMonitor/interval'"),
    ("--set-json=metrics.podMonitor.labels.release=1", "at '/metrics/podMonitor/labels/release'"),
    ('--set-json=metrics.from=[{"podSelecter":{}}]', "at '/metrics/from/0'"),
    ("--set-json=metrics.from=[{}]", "at '/metrics/from/0'"),
    ("--set=networkPolicy.enabled=maybe", "at '/networkPolicy/enabled': got string, want boolean"),
    ("--set=unknown=1", "additional properties 'unknown'"),
    ("--set=image.digest=1", "at '/image': additional properties 'digest'"),
    ("--set=resources.claims=1", "at '/resources': additional properties 'claims'"),
    ("--set=crds.install=maybe", "at '/crds/install': got string, want boolean"),
    ("--set=gang.scheduler=Kubernetes", "at '/gang/scheduler'"),
    ("--set=replicas=0", "at '/replicas'"),
    ("--set=resources.limits.memory=lots", "at '/resources/limits/memory'"),
    ("--set=watchNamespaces={A}", "at '/watchNamespaces/0'"),
    ("--set=extraEnv[0].name=POD_NAME", "at '/extraEnv/0/name'"),
    ("--set=tolerations[0].kee=a", "at '/tolerations/0': additional properties 'kee'"),
)


def chart_hash() -> str:
    """The hash of all that a golden file is made of."""
    total = hashlib.sha256()
    paths = [path for path in CHART.rglob("*") if path.is_file() and path.parent.name != "files"]
    for path in (*sorted(paths), HERE / "values.yaml"):
        total.update(f"{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    return helm("template", "tablebay", str(CHART), "--namespace", "ml", *KUBERNETES, *arguments)


def notes() -> str:
    """NOTES.txt, which `helm template` does not show, rendered as a manifest."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cp", "-r", str(CHART), folder], check=True)
        copy = Path(folder) / CHART.name
        text = (copy / "templates" / "NOTES.txt").read_text()
        body = "".join(f"  {line}\n" for line in text.splitlines())
        (copy / "templates" / "zz-notes.yaml").write_text(f"notes: |\n{body}")
        arguments = ("--set=crds.install=false", "--show-only", "templates/zz-notes.yaml")
        ended = helm("template", "tablebay", str(copy), "--namespace", "ml", *KUBERNETES, *arguments)
    if ended.returncode:
        sys.exit(ended.stderr)
    return str(yaml.safe_load(ended.stdout)["notes"])


def _same(text: str) -> list[str]:
    """A rendering less its empty lines, which Helm 4 has between objects and Helm 3 has not."""
    return [line for line in text.splitlines() if line.strip()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the golden files")
    write = parser.parse_args().write
    problems: list[str] = []

    linted = helm("lint", "--strict", str(CHART))
    if linted.returncode:
        problems.append(linted.stdout + linted.stderr)

    found = {}
    for name, arguments in RENDERINGS.items():
        ended = template(*arguments)
        if ended.returncode:
            sys.exit(f"{name}: {ended.stderr}")
        found[GOLDEN / f"{name}.yaml"] = ended.stdout
    found[GOLDEN / "notes.txt"] = notes()
    found[HASH] = chart_hash() + "\n"
    for path, text in found.items():
        if write:
            path.write_text(text)
        elif _same(text) != _same(path.read_text()):
            lines = difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), str(path), "now")
            problems.append("\n".join(lines))

    for keep in (True, False):
        ended = template(f"--set=crds.keep={str(keep).lower()}", "--show-only", "templates/crd.yaml")
        if ended.returncode:
            problems.append(f"crd: {ended.stderr}")
            continue
        crd = yaml.safe_load(ended.stdout)
        generated = yaml.safe_load((CHART / "files" / "trainingjobs.yaml").read_text())
        if crd["spec"] != generated["spec"] or crd["metadata"]["name"] != generated["metadata"]["name"]:
            problems.append("crd: the rendered definition is not the generated one")
        annotations = crd["metadata"]["annotations"]
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        if annotations["tablebay.dev/version"] != chart["appVersion"]:
            problems.append(f"crd: annotations {annotations}")
        if (annotations.get("helm.sh/resource-policy") == "keep") != keep:
            problems.append(f"crd: crds.keep is {keep}, annotations {annotations}")

    for argument, wanted in BAD:
        ended = template(argument)
        if ended.returncode == 0 or wanted not in ended.stderr:
            problems.append(f"{argument}: wanted {wanted!r}, found status {ended.returncode}: {ended.stderr}")
    if template("--kube-version=1.28.0").returncode == 0:
        problems.append("Kubernetes 1.28 is not refused")

    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"chart: {len(RENDERINGS)} renderings, {len(BAD)} bad values, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
