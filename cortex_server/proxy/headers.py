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

NOT_TO_CLIENT = frozenset(
    (
        b"access-control-allow-credentials",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    )
)
"""Engine headers that are not forwarded to clients: hop-by-hop headers, those that the gateway sets itself, and cookies
of external upstreams."""

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
