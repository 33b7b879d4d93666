"""What a table says about rows that leave by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tablebay.client.options import CONFIG, Named, bad_request

SECONDS_MAX = 2**31 - 1
EVERY_S = 60

_Whole = Annotated[int, Field(strict=True, ge=0, le=SECONDS_MAX)]


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Eviction(Named):
    """Which rows leave: one that any of these rules names. Times are the server's, Unix time in whole seconds.

    ttl_seconds: rows that no push or assignment has named for so long. Pulls do not count, so that reading keeps
        nothing; the making of a row counts.
    min_count: rows that have had fewer pushes than this when they are `grace_seconds` old, or at any later sweep. A
        push is one however often it names the key.
    min_norm: rows whose weights have an L2 norm, sqrt(sum of squares), below this, once they are `grace_seconds` old.
    grace_seconds: since the row was made; with the two above.
    every_seconds: between two sweeps over the table's rows.
    0: not asked. At least one of ttl_seconds, min_count and min_norm is.
    """

    ttl_seconds: _Whole = Field(default=0, kw_only=True)
    min_count: _Whole = Field(default=0, kw_only=True)
    min_norm: Annotated[float, Field(strict=True, ge=0.0, le=1e30)] = Field(default=0.0, kw_only=True)
    grace_seconds: _Whole = Field(default=0, kw_only=True)
    every_seconds: Annotated[int, Field(strict=True, ge=1, le=SECONDS_MAX)] = Field(
        default=EVERY_S, kw_only=True
    )

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not (self.ttl_seconds or self.min_count or self.min_norm):
            raise ValueError("found no rule; wanted ttl_seconds, min_count or min_norm")
        if bool(self.min_count or self.min_norm) != bool(self.grace_seconds):
            raise ValueError(
                f"grace_seconds is {self.grace_seconds}, wanted more than 0 with min_count or min_norm, and 0 without"
            )
        return self

    def rules(self) -> dict[str, float]:
        """What the native core wants: it looks at rows when it is told to."""
        return {name: value for name, value in self.parameters().items() if name != "every_seconds"}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> Self:
        """The one with these parameters. Raises BadRequest."""
        values: dict[str, Any] = {
            name: int(value) if name != "min_norm" and float(value).is_integer() else value
            for name, value in parameters.items()
        }
        return cls(**values)
