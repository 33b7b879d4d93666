"""The C++ core: tables, wire format, client-side routing. Its interface is ``_core.pyi``."""

from __future__ import annotations

from tablebay import __version__

try:
    from tablebay.native import _core
except ImportError as error:
    raise ImportError(
        f"tablebay.native._core cannot be loaded ({error}): install a wheel for this Python and machine, "
        "or build it from the repository with `make setup`"
    ) from error

# A core of another version would misread what this one writes.
_found = _core.version()
if _found != __version__:
    raise ImportError(
        f"tablebay's Python part has version {__version__} and its native part version {_found}; "
        "they must be equal: install tablebay again, or rebuild it with `make setup`"
    )

commit = _core.commit
instruction_set = _core.instruction_set
instruction_sets = _core.instruction_sets
use_instruction_set = _core.use_instruction_set
version = _core.version

__all__ = ["commit", "instruction_set", "instruction_sets", "use_instruction_set", "version"]
