"""Access to the gateway: the [[keys]], [limits] and [tls] tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from cortex_common.config.base import Section
from cortex_common.schema.bounds import PositiveSeconds
from cortex_common.schema.keys import KeyName, KeyTerms


class KeyEntry(KeyTerms):
    """[[keys]]: an API key."""

    name: KeyName
    """Display name of the key."""

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """SHA-256 hash of the secret, as printed by `cortex keys create --offline`. The secret itself is never stored in a
    file."""


class LimitsSection(Section):
    """[limits]: limits on concurrent requests, and on slow or oversized clients."""

    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Requests processed at the same time, including those that wait for a model to load."""

    max_queued: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Requests that can wait in the queue once `max_in_flight` is reached; further requests are rejected with 429."""

    queue_timeout_s: PositiveSeconds = 60.0
    """Seconds that a request waits in that queue before it is rejected with 429."""

    header_timeout_s: PositiveSeconds = 15.0
    """Seconds within which a client must send the headers of a request."""

    body_timeout_s: PositiveSeconds = 120.0
    """Seconds without receiving any byte of a request body after which the connection is closed."""

    max_bodies_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Limit on the memory in MiB of all request bodies together, those still arriving included; requests beyond it are
    rejected with 503."""

    min_body_rate_kb: Annotated[int, Field(ge=0, le=1_000_000)] = 16
    """KiB of a request body that must arrive per second on average, after the first `body_timeout_s`; 0 turns this
    off."""

    max_header_kb: Annotated[int, Field(ge=4, le=1024)] = 64
    """Maximum size of request line and headers in KiB. Larger ones are rejected with 431 and the connection is
    closed."""

    stored_responses_mb: Annotated[int, Field(ge=0, le=1_048_576)] = 64
    """Memory for recent responses of the Responses API in MiB, for `previous_response_id` and item references. A key
    sees its own responses only, and gets at most a quarter of the memory and 1000 responses. The least recently used
    ones are forgotten first, all of them when the gateway restarts; other gateways do not have them. 0 stores none."""

    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 16384
    """Maximum number of open client connections; further ones are closed immediately."""


class TlsSection(Section):
    """[tls]: serve HTTPS. The files are reloaded when they change, without a restart."""

    certificate: Path | None = None
    """PEM file with the certificate, followed by any intermediate certificates. Default: serve plain HTTP."""

    key: Path | None = None
    """PEM file with the private key. Default: the key is in `certificate`."""

    client_ca: Path | None = None
    """PEM file with certificate authorities. If set, clients must present a certificate issued by one of them."""

    @model_validator(mode="after")
    def _require_certificate(self) -> Self:
        if self.certificate is None and (self.key is not None or self.client_ca is not None):
            raise ValueError("key and client_ca require certificate")
        return self
