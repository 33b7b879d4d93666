"""Prints what the scenarios of the end-to-end tests have measured: build/e2e/report.json, a line each."""

from __future__ import annotations

import json
from pathlib import Path

REPORT = Path(__file__).resolve().parents[2] / "build" / "e2e" / "report.json"


def main() -> None:
    """One line a scenario: whether it held, how long its test took, its figures by their names."""
    if not REPORT.is_file():
        print("no scenario was run")
        return
    report = json.loads(REPORT.read_text())
    print(f"build/e2e/report.json, of commit {report['commit'][:12]}:")
    for scenario in report["scenarios"]:
        figures = {name: value for name, value in scenario.items() if name not in ("name", "ok", "seconds")}
        words = "".join(f"; {name}: {_short(value)}" for name, value in figures.items())
        held = "" if scenario["ok"] else "FAILED "
        print(f"  {held}{scenario['name']}: {scenario['seconds']:g} s{words}")


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
