"""`tablebay version`."""

from __future__ import annotations

import json
import platform


def show(*, as_json: bool) -> None:
    """Print which Tablebay this is. Raises VersionMismatch when its two halves are of different versions."""
    from tablebay import __version__, native

    content = {
        "version": __version__,
        "commit": native.commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "instruction_set": native.instruction_set(),
    }
    if as_json:
        print(json.dumps(content, indent=2))
        return
    width = max(len(name) for name in content)
    for name, value in content.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
