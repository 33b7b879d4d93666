"""What the parts of the job file's model share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A part of a job file: camelCase in YAML, no field that is not here."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


def wants(words: str) -> dict[str, Any]:
    """Words for the error message of a field whose pattern says little to a reader."""
    return {"x-wanted": words}


_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_LABEL_WORDS = (
    "lower-case letters, digits and '-', with a letter or digit at both ends, at most 63 characters"
)
Label = Annotated[
    str, Field(min_length=1, max_length=63, pattern=_DNS_LABEL, json_schema_extra=wants(_DNS_LABEL_WORDS))
]
SECONDS_MAX = 2**31 - 1

SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=f"^{SUBDOMAIN}$",
        json_schema_extra=wants(
            "the name of an object: lower-case letters, digits, '-' and '.', with a letter or digit "
            "at both ends of each part, at most 253 characters"
        ),
    ),
]
# "" is as good as no name.
MaybeObjectName = Annotated[
    str,
    Field(
        max_length=253,
        pattern=f"^({SUBDOMAIN})?$",
        json_schema_extra=wants(
            "the name of an object (lower-case letters, digits, '-' and '.', at most 253 characters), or ''"
        ),
    ),
]
