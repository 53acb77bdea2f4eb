"""When certificates end: read from their files, and told before it happens."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cortex_common.clock import Moment

SOON_S = 14 * 86400.0
"""With less than this left a certificate is told: what renews it by itself does so earlier."""

RENEW = "put the renewed one in its place; it is read without a restart"
"""What to do then."""

EXPIRED = "certificate has expired"
"""What OpenSSL says of a peer's whose end is past."""

_PEM = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END ")
"""All that OpenSSL takes for a certificate: PEM_STRING_X509, its _OLD and its _TRUSTED of openssl/pem.h."""
_EXPLICIT_VERSION = 0xA0
_UTC_TIME = 0x17


@dataclass(frozen=True, slots=True)
class Certificate:
    """A file of certificates that a daemon works with.

    Attributes:
        file: its path.
        ends_at: Unix seconds at which the certificate ends; where the file holds authorities, the last of them.
        refused: why the file is not used as it is now, but as it was before.
    """

    file: str
    ends_at: Moment
    refused: str | None = None

    def trouble(self, now: float) -> str | None:
        """What an operator should know of it, at a moment in Unix seconds; None where all is well."""
        if self.refused is not None:
            return f"the certificate in {self.file} is not used as it is now: {self.refused}"
        if not self.ends_soon(now):
            return None
        verb = "ended" if self.over(now) else "ends"
        return f"the certificate in {self.file} {verb} on {self.ends}"

    def ends_soon(self, now: float) -> bool:
        """Whether it should have been renewed by now."""
        return self.ends_at - now < SOON_S

    @property
    def ends(self) -> str:
        """The date and time of its end, in UTC, for people."""
        return datetime.fromtimestamp(self.ends_at, UTC).isoformat(" ", "minutes")

    def over(self, now: float) -> bool:
        """Whether it has ended."""
        return self.ends_at <= now


def in_use(own: Path | None, authorities: Path | None) -> tuple[Certificate, ...]:
    """When the certificates in files end; nothing of one that can't be read, as whoever is to use it says so.

    Args:
        own: is shown to others; those between it and its root come after it.
        authorities: are trusted. The last to end counts: while one is replaced by another, both stand there.
    """
    mine = [] if own is None else _ends(own)[:1]
    trusted = [] if authorities is None else [end for end in _ends(authorities) if end is not None]
    found = [Certificate(str(own), end) for end in mine if end is not None]
    found += [Certificate(str(authorities), end) for end in sorted(trusted)[-1:]]
    return tuple(found)


def _ends(file: Path) -> list[float | None]:
    """One for each certificate, in their order; None for one that is odd."""
    try:
        text = file.read_text("ascii", errors="replace")
    except OSError:
        return []
    return [_end(block) for block in _PEM.findall(text)]


def _end(block: str) -> float | None:
    try:
        return _not_after(base64.b64decode(block))
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """Unix seconds at which a certificate ends (RFC 5280, 4.1): the standard library tells it only of a peer's."""
    at = _content(der, _content(der, 0)[0])[0]
    # Version, serial number, algorithm and issuer stand before its validity, and its beginning before its end.
    for _ in range(4 if der[at] == _EXPLICIT_VERSION else 3):
        at = _content(der, at)[1]
    at = _content(der, _content(der, at)[0])[1]
    start, end = _content(der, at)
    text = der[start:end].decode("ascii")
    if der[at] == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at a place begins and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return start, start + length
