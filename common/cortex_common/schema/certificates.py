"""The state of the TLS certificates that a daemon uses, as its API reports it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from cortex_common.clock import Timestamp
from cortex_common.schema.bounds import MAX_UNIX_S

EXPIRY_WARNING_S = 14 * 86400.0
"""Seconds before its expiry at which a certificate is reported; automatic renewal happens earlier than that."""

RENEW_HINT = "replace the file with the renewed certificate; it is read without a restart"
"""What to do about an expiring certificate."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate file that a daemon uses.

    Attributes:
        file: path of the file.
        expires_at: Unix seconds at which the certificate expires; for a file with several authorities, the latest.
        reload_error: why the current content of the file is not used. The content read before it stays in use.
    """

    file: str
    expires_at: Annotated[Timestamp, Field(ge=0, le=MAX_UNIX_S)]
    reload_error: str | None = None

    @property
    def expires(self) -> str:
        """Date and time of expiry in UTC, for people."""
        return datetime.fromtimestamp(self.expires_at, UTC).isoformat(" ", "minutes")

    def has_expired(self, now: float) -> bool:
        """Return whether it has expired at a time in Unix seconds."""
        return self.expires_at <= now

    def expires_soon(self, now: float) -> bool:
        """Return whether it expires within `EXPIRY_WARNING_S`, or has expired."""
        return self.expires_at - now < EXPIRY_WARNING_S

    def problem(self, now: float) -> str | None:
        """Return what an operator should know about it at a time in Unix seconds; None if nothing is wrong."""
        if self.reload_error is not None:
            return f"the current content of {self.file} is not used: {self.reload_error}"
        if not self.expires_soon(now):
            return None
        verb = "expired" if self.has_expired(now) else "expires"
        return f"the certificate in {self.file} {verb} on {self.expires}"
