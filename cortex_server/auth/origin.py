"""Whether a request comes from the gateway's own host, by the will of somebody who works there."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

_PASSED_ON = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
"""Headers of a proxy: what it passes on comes from this host's proxy, not from this host."""

TELLING = _PASSED_ON | {b"host", b"origin"}
"""Names of the headers that tell."""

_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa")
"""Ends of names that nobody outside can own."""


def is_own(peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether this host itself asks.

    A web page from elsewhere, opened in a browser on this host, can send requests to it: either across origins, then
    Origin tells, or through a public name that was made to mean 127.0.0.1 (DNS rebinding), then Host tells.

    Args:
        peer: IP address of the other end.
        headers: of the request, names in lower case.
    """
    if not is_loopback(peer):
        return False
    for name, value in headers:
        if name not in TELLING:
            continue
        if name in _PASSED_ON:
            return False
        if name == b"host" and not _is_private(value):
            return False
        if name == b"origin" and not _is_private(value.partition(b"://")[2]):
            return False
    return True


def is_loopback(peer: str | None) -> bool:
    """Whether an IP address is this host's own."""
    return peer is not None and (peer.startswith("127.") or peer in {"::1", "::ffff:127.0.0.1"})


@lru_cache(maxsize=256)
def _is_private(authority: bytes) -> bool:
    """Whether nobody outside can own the name before the port."""
    text = authority.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    if "." not in name and ":" not in name:
        return bool(name)
    if name.endswith(_PRIVATE):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
