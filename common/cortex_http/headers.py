"""Header rules between client, gateway and engine."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping

from cortex_common.errors import CortexError
from cortex_http.client import Headers
from cortex_server.dataplane.pool import Address

TO_ENGINE = frozenset((b"accept", b"content-type", b"tracestate", b"user-agent"))
"""What an engine gets of a client's headers, beside a traceparent. Everything else (credentials, cookies, hop-by-hop
headers, X-Conversation-Id, which makes llama-server ignore a disconnect) stays here."""

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
"""Hop-by-hop headers, those that the gateway sets itself, and what a server of others keeps in its clients."""

_FUTILE = frozenset({501, 507})
"""What an engine lacks, and what fits nowhere, is the same the next time."""

_ON_REPEATS = frozenset((b"retry-after", b"retry-after-ms"))

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they stand in a head, each with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def of_lines(lines: bytes) -> Headers:
    """What `lines` made lines of; names come in lower case where they went in so."""
    split = (line.partition(b": ") for line in lines.split(b"\r\n")[:-1])
    return [(name, value) for name, _, value in split]


def request_id(named: Mapping[bytes, bytes]) -> bytes:
    """The client's x-request-id if it is a plain token, else a new one."""
    asked = named.get(b"x-request-id")
    if asked is not None and _REQUEST_ID.fullmatch(asked):
        return asked
    return b"req-%024x" % random.getrandbits(96)


def priority(named: Mapping[bytes, bytes]) -> int:
    """The priority that the client asks for; 0 unless it says otherwise."""
    asked = named.get(b"x-cortex-priority", b"")
    return int(asked) if len(asked) < 4 and asked.isdigit() else 0


def engine_request(
    endpoint: Address,
    path: str,
    passed: bytes,
    length: int,
    ident: bytes,
    traceparent: bytes | None = None,
) -> bytes:
    """The head of the request that an engine gets.

    Args:
        endpoint: where the engine listens.
        path: of its route.
        passed: the lines of the client's headers that it gets.
        length: of the body.
        ident: of the request.
        traceparent: of the gateway's span, or of the client's where nobody here follows the trace.
    """
    head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b" % (
        endpoint.paths.get(path) or endpoint.path(path),
        endpoint.authority,
        length,
        ident,
        passed,
    )
    if traceparent is not None:
        head += b"traceparent: %b\r\n" % traceparent
    if endpoint.authorization is not None:
        head += b"authorization: %b\r\n" % endpoint.authorization
    return head + b"\r\n"


def error_headers(error: CortexError) -> Headers:
    """What an error says beside its body: when a repeat makes sense, that none does, or that a key is missing.

    `x-should-retry` is what the official SDKs heed; without it they repeat whatever is 500 or more.
    """
    headers = retry_headers(error.status, [])
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def retry_headers(status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What an answer of this status says on repeating the request, beside what an engine's headers say."""
    futile = [(b"x-should-retry", b"false")] if status in _FUTILE else []
    return [*(h for h in headers if h[0] in _ON_REPEATS), *futile]


def cors_headers(allowed: Collection[str], origin: bytes) -> bytes:
    """The lines of a head that let the script of a web page read the answer (CORS); none for pages that may not.

    Args:
        allowed: origins of pages that may; an asterisk stands for all.
        origin: of the page.
    """
    if "*" in allowed:
        return b"access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
    if origin.decode("latin-1") not in allowed:
        return b""
    return (
        b"access-control-allow-origin: %b\r\naccess-control-expose-headers: *\r\nvary: origin\r\n"
        % origin
    )


def content_length(named: Mapping[bytes, bytes]) -> int | None:
    """The announced length of a body."""
    told = named.get(b"content-length", b"")
    return int(told) if told.isdigit() else None


def is_event_stream(headers: Headers) -> bool:
    """Whether an answer is a server-sent event stream."""
    for name, value in headers:
        if name == b"content-type":
            return value.lower().startswith(b"text/event-stream")
    return False
