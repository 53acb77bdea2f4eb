"""Who may use the gateway and how much of it: the [[keys]], [limits] and [tls] parts of the configuration."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from cortex_common.config.base import Section


class Scope(StrEnum):
    """What a key opens."""

    INFER = "infer"
    OPERATOR = "operator"
    METRICS = "metrics"


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


Moment = Annotated[datetime, AfterValidator(_aware)]
"""A date, or a date and time; in UTC unless it says otherwise."""

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,63}$")]
"""What operators call a key; never the secret."""


class KeyLimits(Section):
    """[keys.limits]: how much a key may use."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests that may begin a minute. Default: no limit."""

    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Tokens a minute, prompts and answers together, counted as requests end. Default: no limit."""

    max_in_flight: Annotated[int, Field(ge=1)] | None = None
    """Requests that may be under way at once. Default: no limit."""


class KeyTerms(Section):
    """What a key may do, wherever it is written down."""

    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = (Scope.INFER,)
    """What it opens: "infer" the inference routes, "operator" the operator API, "metrics" the metrics."""

    models: tuple[str, ...] = ()
    """Models that it may ask for, as names, aliases or patterns like "qwen*". Default: all."""

    limits: KeyLimits = KeyLimits()
    """How much it may use."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Its share beside other keys when requests queue for `max_in_flight` of [limits]."""

    max_priority: Annotated[int, Field(ge=0, le=9)] = 0
    """Highest priority that its requests may ask for with the header X-Cortex-Priority; higher ones leave the
    queue first."""

    expires: Moment | None = None
    """From when on it opens nothing. Default: never."""


class KeyEntry(KeyTerms):
    """[[keys]]: an API key."""

    name: KeyName
    """What operators call it."""

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """SHA-256 of the secret, as `cortex keys create --offline` prints it. The secret itself is in no file."""


class LimitsSection(Section):
    """[limits]: how much the gateway takes on, and how long clients may take."""

    max_in_flight: Annotated[int, Field(ge=1)] = 4096
    """Requests that are worked on at once, those that wait for a load among them."""

    max_queued: Annotated[int, Field(ge=0)] = 1024
    """Requests beyond them that may wait; further ones get 429 at once."""

    queue_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a request waits in that queue before it gets 429."""

    header_timeout_s: Annotated[float, Field(gt=0)] = 15.0
    """Seconds that a client may take to send a request's headers."""

    body_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a byte of a request's body after which the client is given up."""

    max_header_kb: Annotated[int, Field(ge=4, le=1024)] = 64
    """Largest head of a request in KiB; beyond it the connection is closed with 431."""

    max_connections: Annotated[int, Field(ge=1)] = 16384
    """Client connections that may be open; further ones are closed at once."""


class TlsSection(Section):
    """[tls]: serve HTTPS. The files are read again when they change, without a restart."""

    certificate: Path | None = None
    """PEM file with the certificate and those between it and its root. Default: plain HTTP."""

    key: Path | None = None
    """PEM file with its private key. Default: in `certificate`."""

    client_ca: Path | None = None
    """PEM file with certificates of authorities; clients must show a certificate of one of them."""

    @model_validator(mode="after")
    def _certificate_first(self) -> Self:
        if self.certificate is None and (self.key is not None or self.client_ca is not None):
            raise ValueError("key and client_ca need certificate")
        return self
