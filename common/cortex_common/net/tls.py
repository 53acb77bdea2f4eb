"""TLS from certificate files: the serving side, which follows its files, and the asking side."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cortex_common.certificates import RENEW, Certificate, in_use
from cortex_common.clock import Clock
from cortex_common.config.access import TlsSection
from cortex_common.errors import ConfigError
from cortex_common.log import event
from cortex_common.stamps import Stamp, stamp_of

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
