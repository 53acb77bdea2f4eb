"""Header rules of the gateway: what an engine and what a client gets to see."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping

from cortex_common.errors import CortexError
from cortex_http.headers import Headers
from cortex_server.proxy.engine_address import EngineAddress

TO_ENGINE = frozenset((b"accept", b"content-type", b"tracestate", b"user-agent"))
"""Client headers that are forwarded to engines, beside traceparent. Everything else (credentials, cookies, hop-by-hop
headers, and X-Conversation-Id, which makes llama-server ignore a disconnect) is not."""

TO_CLIENT = frozenset(
    (
        b"cache-control",
        b"content-disposition",
        b"content-language",
        b"content-type",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
    )
)
"""Engine headers that are forwarded to clients, beside those with a prefix of `_TO_CLIENT_PREFIXES`. The others stay
here: an engine or external upstream could set cookies, clear a site's data, pin HTTPS, or pose as this gateway."""

_TO_CLIENT_PREFIXES = (b"openai-", b"x-ratelimit-", b"anthropic-ratelimit-")
"""Prefixes of engine headers that official SDKs offer to programs: versions, times and rate limits."""

_CLIENT_STATUSES = frozenset(
    {
        *(200, 201, 202, 203, 204, 206),
        *(
            400,
            401,
            402,
            403,
            404,
            405,
            406,
            408,
            409,
            410,
            411,
            412,
            413,
            414,
            415,
            416,
            418,
            422,
            423,
            424,
            425,
            429,
        ),
        *(431, 451),
        *(500, 501, 502, 503, 504, 507, 529),
    }
)
"""Engine statuses that clients get unchanged; 529 is Anthropic's "overloaded". A status about the way to the engine,
such as 407 or 511, would make a client log in to a proxy that is not its own."""

_ABOUT_THE_WAY = frozenset({407, 421, 426})
"""Statuses of class 4 for what the gateway did, not its client: proxy login, wrong server, wrong protocol."""

_NOT_RETRYABLE = frozenset({501, 507})
"""Statuses that a repeated request would get again: a missing feature, and a model that fits nowhere."""

_RETRY_HEADERS = frozenset((b"retry-after", b"retry-after-ms"))

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the client's x-request-id if it is a plain token, else a new one."""
    sent = headers.get(b"x-request-id")
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent
    return b"req-%024x" % random.getrandbits(96)


def priority(headers: Mapping[bytes, bytes]) -> int:
    """Return the priority that the client asks for; 0 by default."""
    sent = headers.get(b"x-cortex-priority", b"")
    return int(sent) if len(sent) < 4 and sent.isdigit() else 0


def engine_request_head(
    address: EngineAddress,
    path: str,
    forwarded: bytes,
    length: int,
    request_id: bytes,
    traceparent: bytes | None = None,
) -> bytes:
    """Return the head of the request to an engine.

    Args:
        address: Where the engine listens.
        path: Path of the route.
        forwarded: The client's headers that the engine gets, as lines.
        length: Length of the body.
        request_id: Id of the request.
        traceparent: That of the gateway's span, or the client's when the gateway does not trace.
    """
    head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n%b" % (
        address.targets.get(path) or address.target(path),
        address.authority,
        length,
        forwarded,
    )
    if traceparent is not None:
        head += b"traceparent: %b\r\n" % traceparent
    if address.authorization is not None:
        head += b"authorization: %b\r\n" % address.authorization
    # The last header is the one that differs from the request before: see `cortex_http.head_cache`.
    return head + b"x-request-id: %b\r\n\r\n" % request_id


def client_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of an engine's response that its client gets. The parser has rejected values with CR or LF."""
    return [h for h in headers if h[0] in TO_CLIENT or h[0].startswith(_TO_CLIENT_PREFIXES)]


def client_status(status: int) -> int:
    """Return the status that a client gets for an engine's: unknown ones as 200, 400 or 502, by their class.

    See https://www.rfc-editor.org/rfc/rfc9110#section-15: a client treats an unknown status as the x00 of its class.
    Redirects are not for clients; the caller handles them before.
    """
    if status in _CLIENT_STATUSES:
        return status
    if 200 <= status < 300:
        return 200
    return 400 if 400 <= status < 500 and status not in _ABOUT_THE_WAY else 502


def error_headers(error: CortexError) -> Headers:
    """Return the headers of an error response: when or whether to retry, and that a key is missing.

    The official SDKs obey `x-should-retry`; without it they retry every status from 500 on.
    """
    headers = retry_headers(error.status, [])
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def retry_headers(status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers about retries for a response of this status, given the engine's headers."""
    should_retry = [(b"x-should-retry", b"false")] if status in _NOT_RETRYABLE else []
    return [*(h for h in headers if h[0] in _RETRY_HEADERS), *should_retry]


def cors_headers(allowed: Collection[str], origin: bytes) -> bytes:
    """Return the CORS header lines that let a web page's script read the response; empty for pages that must not.

    Args:
        allowed: Origins of pages that are allowed to; "*" stands for all.
        origin: Origin of the page.
    """
    if "*" in allowed:
        return b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
    if origin.decode("latin-1") not in allowed:
        return b""
    return (
        b"access-control-allow-origin: %b\r\naccess-control-expose-headers: *\r\nvary: origin\r\n"
        % origin
    )
