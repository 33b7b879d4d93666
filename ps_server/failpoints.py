"""Places where a test has a server killed: native/include/tablebay/failpoints.h."""

from __future__ import annotations

from collections.abc import Callable

from tablebay.native import _core

# Only a core that was built for it has failpoints; in any other the environment is not looked at.
_hit: Callable[[str], None] | None = getattr(_core, "failpoint", None)


def failpoint(name: str) -> None:
    """The process is killed here if a test has it so."""
    if _hit is not None:
        _hit(name)
