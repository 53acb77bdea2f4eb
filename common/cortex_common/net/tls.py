"""TLS from certificate files: server contexts that follow their files, client contexts, and expiry dates."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cortex_common.clock import Clock
from cortex_common.config.access import TlsSection
from cortex_common.config.loader import FileStamp, file_stamp
from cortex_common.errors import ConfigError
from cortex_common.log import event
from cortex_common.schema.certificates import RENEW_HINT, Certificate

CHECK_INTERVAL_S = 5.0
"""Seconds between checks of the files. Certificates are renewed weeks before they expire, so seconds are enough."""

PEER_EXPIRED = "certificate has expired"
"""OpenSSL's message for an expired certificate of a peer."""

log = logging.getLogger("cortex.tls")

_REPORT_INTERVAL_S = 86400.0

_PEM = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END ")
"""The block names that OpenSSL accepts for a certificate: PEM_STRING_X509, _OLD and _TRUSTED in openssl/pem.h."""
_EXPLICIT_VERSION = 0xA0
_UTC_TIME = 0x17


class ServerTls:
    """The TLS context of a listening socket, reloaded when its files change.

    Args:
        section: the [tls] settings.

    Raises:
        ConfigError: a file can't be read or does not match the others.

    Attributes:
        context: for the server; new connections use what was read last.
        certificates: the certificates in it.
    """

    def __init__(self, section: TlsSection) -> None:
        self._section = section
        self._stamp = self._file_stamps()
        self.context = _server_context(section)
        self.certificates = read_certificates(section.certificate, section.client_ca)

    def refresh(self) -> bool:
        """Reload the files if they changed, and return whether new ones took effect.

        Invalid files are reported once; connections keep using what was read before.
        """
        stamp = self._file_stamps()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            # Try a separate context first: a failed load could leave the live one with a certificate but no key.
            _server_context(self._section)
            _load_files(self.context, self._section)
            self.certificates = read_certificates(
                self._section.certificate, self._section.client_ca
            )
        except ConfigError as error:
            reason = error.message.removeprefix("TLS: ")
            self.certificates = tuple(replace(c, reload_error=reason) for c in self.certificates)
            event(log, "certificate_rejected", logging.ERROR, reason=error.message)
            return False
        event(log, "certificate_reloaded", file=str(self._section.certificate))
        return True

    async def watch(self) -> None:
        """Follow the files until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self.refresh()

    def _file_stamps(self) -> tuple[FileStamp, ...]:
        section = self._section
        return tuple(map(file_stamp, (section.certificate, section.key, section.client_ca)))


def server_tls(section: TlsSection) -> ServerTls | None:
    """Return the TLS context of a server, or None if it serves plain HTTP.

    Raises:
        ConfigError: a file can't be read or does not match the others.
    """
    return None if section.certificate is None else ServerTls(section)


def client_context(
    ca: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the TLS context for connections to another host.

    Args:
        ca: PEM file of the authorities to trust; None for the system's.
        certificate: PEM file of the client certificate, if the server requires one.
        key: PEM file of its private key, if it is in a separate file.

    Raises:
        ConfigError: a file can't be read or does not match the others.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise _config_error(error, ca, certificate, key) from error
    return context


async def report_expiring_certificates(
    certificates: Callable[[], tuple[Certificate, ...]], clock: Clock, report: Callable[..., None]
) -> None:
    """Report certificates that expire soon: immediately, whenever they change, and daily. Runs until cancelled.

    Args:
        certificates: returns those in use; called every `CHECK_INTERVAL_S`.
        clock: for the time left.
        report: called with the arguments of `cortex_common.log.event` after the logger.
    """
    reported: tuple[Certificate, ...] = ()
    reported_at = 0.0
    while True:
        current = certificates()
        if current != reported or clock.monotonic() - reported_at >= _REPORT_INTERVAL_S:
            reported, reported_at = current, clock.monotonic()
            now = clock.unix()
            for certificate in (c for c in current if c.expires_soon(now)):
                expired = certificate.has_expired(now)
                report(
                    "certificate_expired" if expired else "certificate_expiring",
                    logging.ERROR if expired else logging.WARNING,
                    file=certificate.file,
                    expires=certificate.expires,
                    hint=RENEW_HINT,
                )
        await asyncio.sleep(CHECK_INTERVAL_S)


def read_certificates(own: Path | None, authorities: Path | None) -> tuple[Certificate, ...]:
    """Read when the certificates in files expire. Unreadable files are skipped; loading them reports the error.

    Args:
        own: file of the daemon's own certificate, followed by the intermediate ones.
        authorities: file of trusted authorities. The latest expiry counts, because during a rotation the file holds
            both the old and the new authority.
    """
    mine = [] if own is None else _expiries(own)[:1]
    trusted = [] if authorities is None else [e for e in _expiries(authorities) if e is not None]
    found = [Certificate(str(own), expiry) for expiry in mine if expiry is not None]
    found += [Certificate(str(authorities), expiry) for expiry in sorted(trusted)[-1:]]
    return tuple(found)


def _server_context(section: TlsSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_files(context, section)
    return context


def _load_files(context: ssl.SSLContext, section: TlsSection) -> None:
    assert section.certificate is not None
    try:
        context.load_cert_chain(section.certificate, section.key)
        if section.client_ca is not None:
            context.load_verify_locations(section.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise _config_error(error, section.certificate, section.key, section.client_ca) from error


def _config_error(error: OSError, *files: Path | None) -> ConfigError:
    names = ", ".join(str(f) for f in files if f is not None)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "not a PEM certificate and key"  # OpenSSL only says "PEM lib"
    else:
        reason = error.strerror or str(error)
    return ConfigError(f"TLS: {names}: {reason}")


def _expiries(file: Path) -> list[float | None]:
    """Return the expiry of each certificate in a file, in order; None for one that can't be parsed."""
    try:
        text = file.read_text("ascii", errors="replace")
    except OSError:
        return []
    return [_expiry(block) for block in _PEM.findall(text)]


def _expiry(block: str) -> float | None:
    try:
        return _not_after(base64.b64decode(block))
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """Return the notAfter of a certificate (RFC 5280, 4.1) in Unix seconds.

    The standard library only reports it for the certificate of a connected peer.
    """
    at = _content(der, _content(der, 0)[0])[0]
    # The version, serial number, algorithm and issuer precede the validity, and notBefore precedes notAfter.
    for _ in range(4 if der[at] == _EXPLICIT_VERSION else 3):
        at = _content(der, at)[1]
    at = _content(der, _content(der, at)[0])[1]
    start, end = _content(der, at)
    text = der[start:end].decode("ascii")
    if der[at] == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Return the start and end of the content of the DER element at an offset."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return start, start + length
