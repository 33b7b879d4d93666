"""What a table says about rows that leave by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tablebay.client.options import CONFIG, POLICIES, Named, bad_request

SECONDS_MAX = 2**31 - 1
BUDGET_MAX = 2**53
EVERY_S = 60
EVENTS_KEPT = 65_536
EVENTS_MAX = 2**24

_Whole = Annotated[int, Field(strict=True, ge=0, le=SECONDS_MAX)]
_Number = Annotated[float, Field(strict=True, ge=0.0, le=1e30)]
_FLOATS = ("min_norm", "decay", "min_score", "show_weight", "click_weight")
# What the native core does not ask for: it looks at rows, and ends days, when it is told to.
_OURS = ("every_seconds", "decay_every_seconds")
SHOW_WEIGHT = 0.1
CLICK_WEIGHT = 1.0
_Budget = Annotated[int, Field(strict=True, ge=0, le=BUDGET_MAX)]


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Eviction(Named):
    """Which rows leave: one that any of these rules names. Times are the server's, Unix time in whole seconds.

    ttl_seconds: rows that no push or assignment has named for so long. Pulls do not count, so that reading keeps
        nothing; the making of a row counts.
    min_count: rows that have had fewer pushes than this when they are `grace_seconds` old, or at any later sweep. A
        push is one however often it names the key.
    min_norm: rows whose weights have an L2 norm, sqrt(sum of squares), below this, once they are `grace_seconds` old.
    grace_seconds: since the row was made; with the two above, and perhaps with policy LFU, whose budget it spares.
    max_rows, max_bytes: what the table may have on all of its servers, a row being its own bytes and 8 of the index.
        Each server keeps the share that its shards are of all, and a sweep that finds more there has the rest leave,
        those first that were not seen for the longest (policy LRU), or had the fewest pushes (LFU).
    decay: the table counts shows and clicks of each row (`push`), which a day's end multiplies by this, in (0, 1].
    min_score: rows whose score, show_weight * (shows - clicks) + click_weight * clicks, is below this once a day has
        ended since a push or an assignment named them. With decay.
    max_unseen_days: rows that nothing has named for more days than this.
    decay_every_seconds: days end by the servers' clocks, one each time that Unix time is a multiple of this; 0: by
        `table.decay(epoch)`.
    every_seconds: between two sweeps over the table's rows.
    events_kept: how many of the rows that left last each server can name (`table.evictions`).
    0: not asked. At least one of ttl_seconds, min_count, min_norm, max_rows, max_bytes, decay, min_score and
    max_unseen_days is.
    """

    ttl_seconds: _Whole = Field(default=0, kw_only=True)
    min_count: _Whole = Field(default=0, kw_only=True)
    min_norm: _Number = Field(default=0.0, kw_only=True)
    grace_seconds: _Whole = Field(default=0, kw_only=True)
    max_rows: _Budget = Field(default=0, kw_only=True)
    max_bytes: _Budget = Field(default=0, kw_only=True)
    policy: Literal["LRU", "LFU"] = Field(default="LRU", kw_only=True)
    decay: Annotated[float, Field(strict=True, ge=0.0, le=1.0)] = Field(default=0.0, kw_only=True)
    min_score: _Number = Field(default=0.0, kw_only=True)
    show_weight: _Number = Field(default=SHOW_WEIGHT, kw_only=True)
    click_weight: _Number = Field(default=CLICK_WEIGHT, kw_only=True)
    max_unseen_days: _Whole = Field(default=0, kw_only=True)
    decay_every_seconds: _Whole = Field(default=0, kw_only=True)
    every_seconds: Annotated[int, Field(strict=True, ge=1, le=SECONDS_MAX)] = Field(
        default=EVERY_S, kw_only=True
    )
    events_kept: Annotated[int, Field(strict=True, ge=0, le=EVENTS_MAX)] = Field(
        default=EVENTS_KEPT, kw_only=True
    )

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        budget = self.max_rows or self.max_bytes
        waits = self.min_count or self.min_norm
        if not (self.ttl_seconds or waits or budget or self.counts_shows):
            raise ValueError(
                "found no rule; wanted ttl_seconds, min_count, min_norm, max_rows, max_bytes, decay, min_score or "
                "max_unseen_days"
            )
        if self.min_score and not self.decay:
            raise ValueError("decay is 0.0, wanted more than 0, at most 1, with min_score")
        if (self.show_weight, self.click_weight) != (SHOW_WEIGHT, CLICK_WEIGHT) and not self.min_score:
            raise ValueError("found show_weight or click_weight, wanted min_score with them")
        if self.decay_every_seconds and not self.counts_shows:
            raise ValueError(
                f"decay_every_seconds is {self.decay_every_seconds}, wanted decay, min_score or max_unseen_days with it"
            )
        if self.policy != "LRU" and not budget:
            raise ValueError(f"policy is {self.policy}, wanted max_rows or max_bytes with it")
        may_wait = waits or self.policy == "LFU"
        if (waits and not self.grace_seconds) or (self.grace_seconds and not may_wait):
            raise ValueError(
                f"grace_seconds is {self.grace_seconds}, wanted more than 0 with min_count or min_norm, and 0 "
                "without them and policy LFU"
            )
        return self

    @property
    def counts_shows(self) -> bool:
        """Whether rows have shows and clicks."""
        return bool(self.decay or self.min_score or self.max_unseen_days)

    def rules(self) -> dict[str, float]:
        """What the native core wants."""
        return {name: value for name, value in self.parameters().items() if name not in _OURS}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> Self:
        """The one with these parameters. Raises BadRequest."""
        values: dict[str, Any] = {
            name: int(value) if name not in _FLOATS and float(value).is_integer() else value
            for name, value in parameters.items()
        }
        if values.get("policy") in range(len(POLICIES)):
            values["policy"] = POLICIES[values["policy"]]
        return cls(**values)
