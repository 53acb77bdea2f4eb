"""HTTP headers as name/value pairs and as lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Headers = list[tuple[bytes, bytes]]
"""Headers in their order, names in lower case."""

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that concern one connection only and are not forwarded (RFC 9110, 7.6.1)."""

FRAMING = frozenset((b"content-length", b"transfer-encoding"))
"""Headers that say where a body ends."""


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as the lines of a head, each with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def content_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the announced length of a body; None when there is none."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def is_event_stream(headers: Headers) -> bool:
    """Return whether a response is a server-sent event stream."""
    for name, value in headers:
        if name == b"content-type":
            return value.lower().startswith(b"text/event-stream")
    return False
