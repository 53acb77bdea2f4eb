"""Header rules between client, gateway and engine."""

from __future__ import annotations

import math
import random
import re

from cortex_common.errors import CortexError
from cortex_server.dataplane.upstream import Endpoint, Headers

TO_ENGINE = frozenset(
    (b"accept", b"content-type", b"traceparent", b"tracestate", b"user-agent"),
)
"""What an engine gets of a client's headers. Everything else (credentials, cookies, hop-by-hop headers,
X-Conversation-Id, which makes llama-server ignore a disconnect) stays here."""

NOT_TO_CLIENT = frozenset(
    (
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    )
)
"""Hop-by-hop headers, and those that the gateway sets itself."""

_FUTILE = frozenset({501, 507})
"""What an engine lacks, and what fits nowhere, is the same the next time."""

_ON_REPEATS = frozenset((b"retry-after", b"retry-after-ms"))

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id(headers: Headers) -> bytes:
    """The client's x-request-id if it is a plain token, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return b"req-%024x" % random.getrandbits(96)


def priority(headers: Headers) -> int:
    """The priority that the client asks for; 0 unless it says otherwise."""
    for name, value in headers:
        if name == b"x-cortex-priority" and len(value) < 4 and value.isdigit():
            return int(value)
    return 0


def engine_request(
    endpoint: Endpoint,
    path: str,
    headers: Headers,
    length: int,
    ident: bytes,
    traceparent: bytes | None = None,
) -> bytes:
    """The head of the request that an engine gets; `traceparent` stands in the place of the client's."""
    lines = [
        b"POST %b%b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b"
        % (endpoint.prefix, path.encode(), endpoint.authority, length, ident)
    ]
    lines += [b"%b: %b" % (name, value) for name, value in headers if name in TO_ENGINE]
    if traceparent is not None:
        lines = [line for line in lines if not line.startswith(b"traceparent:")]
        lines.append(b"traceparent: " + traceparent)
    if endpoint.authorization is not None:
        lines.append(b"authorization: " + endpoint.authorization)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def error_headers(error: CortexError) -> Headers:
    """What an error says beside its body: when a repeat makes sense, that none does, or that a key is missing.

    `x-should-retry` is what the official SDKs heed; without it they repeat whatever is 500 or more.
    """
    headers = on_repeats(error.status, [])
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def on_repeats(status: int, headers: Headers) -> Headers:
    """What an answer of this status says on repeating the request, beside what an engine's headers say."""
    futile = [(b"x-should-retry", b"false")] if status in _FUTILE else []
    return [*(h for h in headers if h[0] in _ON_REPEATS), *futile]


def content_length(headers: Headers) -> int | None:
    """The announced length of a body."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


def is_event_stream(headers: Headers) -> bool:
    """Whether an answer is a server-sent event stream."""
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )
