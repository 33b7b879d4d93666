"""Kubernetes quantities: `500m`, `1.5`, `2Gi`, `1e3`, as the API server reads them."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40}))"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE]?)|[eE](?P<exponent>[+-]?[0-9]{1,4}))"
)
_SUFFIXES = {
    "": Decimal(1),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("num", start=-3)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_MAX = Decimal(2**63 - 1)


def parse_quantity(value: str | int | float) -> Decimal:
    """The number that a quantity stands for. Raises ValueError with the value found and what is wanted."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"found {str(value)[:60]!r}, wanted a quantity such as 500m, 2 or 1.5Gi")
    if match["exponent"] is not None:
        amount = Decimal(match["number"]).scaleb(int(match["exponent"]))
    else:
        amount = Decimal(match["number"]) * _SUFFIXES[match["suffix"]]
    if amount < 0 or amount > _MAX:
        raise ValueError(f"found {str(value)[:60]!r}, wanted a quantity from 0 to 2^63 - 1")
    return amount
