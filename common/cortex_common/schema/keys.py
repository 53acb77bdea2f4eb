"""Keys and usage on the wire of the operator API."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from cortex_common.clock import Moment
from cortex_common.config.access import KeyName, KeyTerms
from cortex_common.schema.base import Wire


class CreateKey(KeyTerms):
    """POST /operator/v1/keys."""

    name: KeyName
    """What operators call it."""


class KeyView(KeyTerms):
    """One key, without its secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """What operators call it."""

    origin: Literal["config", "runtime"]
    """Whether it stands in cortex.toml or was made at run time."""

    created: Moment | None = None
    """Unix seconds at which it was made; None for one of cortex.toml."""

    expired: bool = False
    """It has ended."""

    in_flight: int = 0
    """Its requests under way."""


class CreatedKey(Wire):
    """Answer to POST /operator/v1/keys.

    Attributes:
        secret: told this once; only its hash is kept.
    """

    secret: str
    key: KeyView


class UsageRow(Wire):
    """What a key used of a model on a day.

    Attributes:
        day: like 2026-11-23, in UTC.
        key: its name; "anonymous" for requests without one.
        errors: requests that ended in an error; counted in `requests` too.
    """

    day: str
    key: str
    model: str
    requests: int
    errors: int
    tokens_in: int
    tokens_out: int
