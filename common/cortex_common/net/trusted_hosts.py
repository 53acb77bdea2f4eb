"""Protection from web pages: which Host, Origin and Sec-Fetch-Site headers a listener accepts.

A browser on any host that can reach a listener sends requests there on behalf of the pages that it shows. Across
origins it says so in Origin (https://www.rfc-editor.org/rfc/rfc6454) or Sec-Fetch-Site
(https://www.w3.org/TR/fetch-metadata/). A page whose public name resolves to the listener's address (DNS rebinding) is
of the same origin; only Host shows the name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cortex_common.errors import PermissionDenied

_PRIVATE_SUFFIXES = ("local", "internal", "home.arpa", "localdomain")
"""Domains below which no one can register a name publicly."""

_OWN_SITES = frozenset({"none", "same-origin"})
"""Values of Sec-Fetch-Site of requests that no foreign page caused."""

_HOSTS_FILE = Path("/etc/hosts")


@dataclass(frozen=True, slots=True)
class TrustedHosts:
    """The names and pages that a listener trusts. Loopback names and all IP addresses are trusted as Host.

    An IP address in Host is harmless: only a page that was loaded from that address can cause it.

    Attributes:
        section: section of the settings that configures them, for error messages.
        names: names of this host in lower case; "*.example.org" stands for all names below example.org.
        origins: further origins of pages that are trusted; "*" stands for all.
    """

    section: str
    names: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def check_host(self, host: bytes | None) -> None:
        """Check the Host header; a request without one comes from no browser.

        Raises:
            PermissionDenied: it names another host.
        """
        if host is None:
            return
        name = _host_name(host.decode("latin-1"))
        if name is None or not (_is_address(name) or self._is_own_name(name)):
            shown = host.decode("latin-1")[:256]
            raise PermissionDenied(
                f"{shown!r} in the Host header is not a name of this host",
                hints=(f"to use this name, add it to allowed_hosts in [{self.section}]",),
            )

    def check_page(self, host: bytes | None, origin: bytes | None, site: bytes | None) -> None:
        """Check that no foreign web page caused a request.

        Args:
            host: Host header.
            origin: Origin header.
            site: Sec-Fetch-Site header.

        Raises:
            PermissionDenied: a page did that is neither of this host nor configured.
        """
        if (origin is None and site is None) or "*" in self.origins:
            return
        if origin is None:
            assert site is not None
            if site.decode("latin-1").lower() not in _OWN_SITES:
                raise PermissionDenied("requests that web pages of other sites cause are rejected")
            return
        text = origin.decode("latin-1").lower()
        scheme, _, authority = text.partition("://")
        if text in self.origins:
            return
        if scheme in {"http", "https"} and authority:
            name = _host_name(authority)
            if name is not None and self._is_own_name(name):
                return
            if host is not None and authority == host.decode("latin-1").lower():
                self.check_host(host)
                return
        raise PermissionDenied(
            f"requests of web pages from {text[:256]!r} are rejected",
            hints=(f"to allow them, add the origin to allowed_origins in [{self.section}]",)
            if self.section == "gateway"
            else (),
        )

    def _is_own_name(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost") or name in self.names:
            return True
        _, _, parent = name.partition(".")
        return f"*.{parent}" in self.names or _is_loopback(name)


def trusted_hosts(
    section: str,
    *,
    listen: str = "",
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
) -> TrustedHosts:
    """Return what a listener on this host trusts.

    Args:
        section: section of the settings that configures them.
        listen: host that the listener is bound to, such as "gpu1.internal".
        allowed_hosts: configured names.
        allowed_origins: configured origins.
    """
    configured = (name.lower().rstrip(".") for name in allowed_hosts)
    own = () if _is_address(listen) or not listen else (listen.lower(),)
    return TrustedHosts(
        section, frozenset((*own_names(), *own, *configured)), frozenset(allowed_origins)
    )


def own_names() -> frozenset[str]:
    """Return the names of this host in lower case, without asking a name server.

    These are its hostname, the hostname below private domains, and the names of its addresses in /etc/hosts.
    """
    hostname = socket.gethostname().lower().rstrip(".")
    short = hostname.partition(".")[0]
    private = (f"{short}.{suffix}" for suffix in _PRIVATE_SUFFIXES)
    return frozenset(filter(None, (hostname, short, *private, *_names_in_hosts_file())))


def is_this_host(name: str) -> bool:
    """Return whether a name or an IP address, as in a URL, is one of this host."""
    name = name.lower().removeprefix("[").removesuffix("]")
    if _is_address(name):
        return _is_loopback(name) or _can_bind(name)
    return name == "localhost" or name.endswith(".localhost") or name in own_names()


def _names_in_hosts_file() -> Iterator[str]:
    try:
        text = _HOSTS_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split()[:64] or [""]
        if _is_address(address) and (_is_loopback(address) or _can_bind(address)):
            yield from (name.lower() for name in names)


def _can_bind(address: str) -> bool:
    """Return whether an IP address belongs to an interface of this host."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


@lru_cache(maxsize=64)  # each request of a client has the same
def _host_name(authority: str) -> str | None:
    """Return the host of `host:port` in lower case, without brackets; None if it has none."""
    text = authority.lower()
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in name:
            return None
    else:
        name, colon, port = text.partition(":")
        rest = colon + port
        name = name.removesuffix(".")
    if rest and not (rest.startswith(":") and rest[1:].isdecimal()):
        return None
    return name if name and not name.startswith(".") else None


@lru_cache(maxsize=64)  # each request of a client has the same
def _is_address(name: str) -> bool:
    """Return whether a name is an IP address that a page can be loaded from."""
    try:
        return not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


@lru_cache(maxsize=64)  # each request of a client has the same
def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
