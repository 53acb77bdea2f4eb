"""Where servers listen: URLs, and the addresses that connections are made to."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """Where a server listens. Compared by identity: make one instance for each server.

    Attributes:
        host: Host name or IP address; empty for a Unix socket.
        port: TCP port.
        prefix: Path before the routes, without a trailing slash.
        authority: Value of the Host header.
        tls: TLS settings; None for plain HTTP.
        uds: Path of a Unix socket, instead of host and port.
        size_lines: Size lines of the chunks that this server sent, by the length of the whole chunk; see `splice`.
    """

    host: str
    port: int
    prefix: bytes
    authority: bytes
    tls: ssl.SSLContext | None = None
    uds: str | None = None
    size_lines: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> str:
        """The address as text for messages."""
        return self.uds or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """The parts of a URL that requests can be sent to; see `Address`."""

    host: str
    port: int
    prefix: bytes
    authority: bytes
    https: bool = False
    uds: str | None = None


def parse_url(url: str) -> ParsedUrl:
    """Split http://host:port/prefix, https://..., or http+unix://%2Frun%2Fserver.sock/prefix.

    Raises:
        ValueError: It is none of these.
    """
    parts = urlsplit(url)
    prefix = parts.path.rstrip("/").encode()
    if parts.scheme == "http+unix" and parts.netloc:
        path = parts.netloc.replace("%2F", "/").replace("%2f", "/")
        return ParsedUrl("", 0, prefix, b"localhost", uds=path)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL that requests can be sent to")
    https = parts.scheme == "https"
    port = parts.port or (443 if https else 80)
    return ParsedUrl(parts.hostname, port, prefix, parts.netloc.encode(), https)
