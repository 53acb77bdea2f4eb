"""API keys and usage: the terms of a key, and the wire types of the operator API."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cortex_common.clock import Timestamp
from cortex_common.schema.base import WireModel
from cortex_common.schema.bounds import Name, PositiveCount


class Scope(StrEnum):
    """A part of the API that a key gives access to."""

    INFER = "infer"
    OPERATOR = "operator"
    METRICS = "metrics"


def _with_timezone(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_with_timezone)]
"""A date, or a date and time; in UTC unless it has an offset."""

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,63}$")]
"""The display name of a key; never the secret."""

_TERMS = ConfigDict(
    frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
)


class KeyLimits(BaseModel):
    """[keys.limits]: usage limits of a key."""

    model_config = _TERMS

    requests_per_minute: PositiveCount | None = None
    """Requests per minute. Default: no limit."""

    tokens_per_minute: PositiveCount | None = None
    """Prompt and completion tokens per minute, counted when a request finishes. Default: no limit."""

    max_in_flight: PositiveCount | None = None
    """Requests in flight at the same time. Default: no limit."""


class KeyTerms(BaseModel):
    """What a key permits, whether it is configured or created at run time."""

    model_config = _TERMS

    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = (Scope.INFER,)
    """Parts of the API that the key gives access to: "infer" (inference routes), "operator" (operator API), "metrics"
    (metrics)."""

    models: tuple[Name, ...] = ()
    """Models that the key can use, as names, aliases or patterns like "qwen*". Default: all."""

    limits: KeyLimits = KeyLimits()
    """Usage limits."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Share relative to other keys when requests queue because `max_in_flight` of [limits] is reached."""

    max_priority: Annotated[int, Field(ge=0, le=9)] = 0
    """Highest priority that requests can ask for with the header X-Cortex-Priority. Requests with a higher priority
    leave the queue first."""

    expires: UtcDatetime | None = None
    """Date, or date and time, from which the key is rejected. Default: never."""


class CreateKeyRequest(KeyTerms):
    """POST /operator/v1/keys."""

    name: KeyName
    """Display name of the key."""


class KeyView(KeyTerms):
    """One key, without its secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """Display name of the key."""

    origin: Literal["config", "runtime"]
    """"config" for a key in cortex.toml, "runtime" for one created at run time."""

    created: Timestamp | None = None
    """Unix seconds at which it was created; None for a key in cortex.toml."""

    expired: bool = False
    """Whether it has expired."""

    in_flight: int = 0
    """Its requests in flight."""


class CreatedKey(WireModel):
    """Response to POST /operator/v1/keys.

    Attributes:
        secret: returned only here; the gateway stores its hash.
    """

    secret: str
    key: KeyView


class UsageRow(WireModel):
    """Usage of one model by one key on one day.

    Attributes:
        day: such as 2026-11-23, in UTC.
        key: name of the key; "anonymous" for requests without one.
        errors: requests that ended with an error; included in `requests`.
    """

    day: str
    key: str
    model: str
    requests: int
    errors: int
    tokens_in: int
    tokens_out: int
