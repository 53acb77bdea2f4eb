"""TLS from certificate files: the serving side, which follows its files, and the asking side."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cortex_common.clock import Clock, Moment
from cortex_common.config.access import TlsSection
from cortex_common.config.loader import Stamp, stamp_of
from cortex_common.errors import ConfigError
from cortex_common.log import event

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


log = logging.getLogger("cortex.tls")

LOOK_EVERY_S = 5.0
"""How often the files are looked at. A certificate is renewed weeks before it ends, so seconds are plenty."""

_TELL_EVERY_S = 86400.0


class ServerTls:
    """The context of a listening socket, kept in line with its files.

    Args:
        section: which files.

    Raises:
        ConfigError: a file can't be read or does not fit the others.

    Attributes:
        context: for the server; new connections see what was read last.
        certificates: in it.
    """

    def __init__(self, section: TlsSection) -> None:
        self._section = section
        self._stamp = self._looked()
        self.context = _server_context(section)
        self.certificates = in_use(section.certificate, section.client_ca)

    def refresh(self) -> bool:
        """Read the files again if they changed; whether they did, and are right.

        A wrong file changes nothing: it is told once, and connections go on with what was read before.
        """
        stamp = self._looked()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            # Tried apart first: loading into the live context could leave it with a certificate and no key.
            _server_context(self._section)
            _load(self.context, self._section)
            self.certificates = in_use(self._section.certificate, self._section.client_ca)
        except ConfigError as failed:
            refused = failed.message.removeprefix("TLS: ")
            self.certificates = tuple(replace(c, refused=refused) for c in self.certificates)
            event(log, "certificate_refused", logging.ERROR, reason=failed.message)
            return False
        event(log, "certificate_read", file=str(self._section.certificate))
        return True

    async def watch(self) -> None:
        """Follow the files until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.refresh()

    def _looked(self) -> tuple[Stamp, ...]:
        section = self._section
        return tuple(map(stamp_of, (section.certificate, section.key, section.client_ca)))


def server_tls(section: TlsSection) -> ServerTls | None:
    """What a server needs to speak TLS; None where it is to speak plain HTTP.

    Raises:
        ConfigError: see `ServerTls`.
    """
    return None if section.certificate is None else ServerTls(section)


def client_context(
    ca: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """For asking another host.

    Args:
        ca: PEM file of the authorities to trust; None for the system's.
        certificate: PEM file of the own certificate, where the other side asks for one.
        key: of it, where it is in a file of its own.

    Raises:
        ConfigError: a file can't be read or does not fit the others.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as failed:
        raise _unusable(failed, ca, certificate, key) from failed
    return context


async def tell_ends(
    certificates: Callable[[], tuple[Certificate, ...]], clock: Clock, tell: Callable[..., None]
) -> None:
    """Tell of those that end soon: at once, whenever they change, and every day. Runs until cancelled.

    Args:
        certificates: those in use; asked again and again.
        clock: for what is left.
        tell: is told, with the arguments of `logs.event` after its first.
    """
    told: tuple[Certificate, ...] = ()
    told_at = 0.0
    while True:
        found = certificates()
        if found != told or clock.monotonic() - told_at >= _TELL_EVERY_S:
            told, told_at = found, clock.monotonic()
            now = clock.unix()
            for certificate in (c for c in found if c.ends_soon(now)):
                over = certificate.over(now)
                tell(
                    "certificate_ended" if over else "certificate_ends",
                    logging.ERROR if over else logging.WARNING,
                    file=certificate.file,
                    ends=certificate.ends,
                    hint=RENEW,
                )
        await asyncio.sleep(LOOK_EVERY_S)


def _server_context(section: TlsSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, section)
    return context


def _load(context: ssl.SSLContext, section: TlsSection) -> None:
    assert section.certificate is not None
    try:
        context.load_cert_chain(section.certificate, section.key)
        if section.client_ca is not None:
            context.load_verify_locations(section.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as failed:
        raise _unusable(failed, section.certificate, section.key, section.client_ca) from failed


def _unusable(failed: OSError, *files: Path | None) -> ConfigError:
    named = ", ".join(str(f) for f in files if f is not None)
    if isinstance(failed, ssl.SSLError):
        reason = failed.reason or "no certificate and key in PEM"  # OpenSSL says "PEM lib" only
    else:
        reason = failed.strerror or str(failed)
    return ConfigError(f"TLS: {named}: {reason}")
