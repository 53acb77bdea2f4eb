"""Which requests of a connection are served on its transport, and what connections may use."""

from __future__ import annotations

import re
from typing import Protocol, TypeVar, runtime_checkable

from cortex_http.headers import Headers
from cortex_http.server_request import RequestHandler, ServerRequest
from cortex_http.websocket_connection import WebSocketHandler


class Limits(Protocol):
    """What connections may use."""

    @property
    def max_connections(self) -> int:
        """Connections that are open at the same time."""
        ...

    @property
    def max_header_kb(self) -> int:
        """Size of a request's head in KiB."""
        ...

    @property
    def header_timeout_s(self) -> float:
        """Seconds for a request's head to arrive."""
        ...

    @property
    def body_timeout_s(self) -> float:
        """Seconds without a byte of a request's body."""
        ...

    @property
    def min_body_rate_kb(self) -> int:
        """KiB of a request's body that have to arrive in each second, after the first `body_timeout_s`."""
        ...


H = TypeVar("H")


class Router(Protocol[H]):
    """Decides which requests are served on the transport, and handles them."""

    @property
    def limits(self) -> Limits:
        """Current limits."""
        ...

    def match(self, method: bytes, target: bytes, headers: Headers, peer: str | None) -> H | None:
        """Return what the head of a request says; None when the ASGI application serves it.

        The result is kept and used again for a request with the same head but another content length.

        Args:
            method: HTTP method.
            target: Path and query as sent.
            headers: Headers with names in lower case.
            peer: IP address of the client.
        """
        ...

    def handle(self, request: ServerRequest, head: H) -> RequestHandler:
        """Start handling a request; it may be answered before this returns.

        Args:
            request: The client's side.
            head: Result of `match`.
        """
        ...

    def error_body(self, status: int) -> bytes:
        """Return the JSON body of a response to a request that the protocol rejects.

        Args:
            status: 400, 408, 413, 431 or 500.
        """
        ...


@runtime_checkable
class IdRouter(Router[H], Protocol[H]):
    """A router whose clients send requests that differ in the value of their last header only.

    Attributes:
        id_header: Name of that header in lower case.
    """

    id_header: bytes

    def with_id(self, head: H, value: bytes) -> H:
        """Return the result of `match` for the same head with another value of that header."""
        ...


@runtime_checkable
class WebSocketRouter(Protocol):
    """A router that serves WebSockets, too."""

    def match_websocket(
        self, target: bytes, headers: Headers, peer: str | None
    ) -> WebSocketHandler | None:
        """Return what handles a WebSocket; None when this path has none.

        Args:
            target: Path and query as sent.
            headers: Headers with names in lower case.
            peer: IP address of the client.

        Raises:
            UpgradeRejected: The request is answered with an HTTP response.
        """
        ...


class AsgiOnly:
    """A router that leaves every request to the ASGI application.

    Args:
        limits: Limits of connections.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def match(self, method: bytes, target: bytes, headers: Headers, peer: str | None) -> None:
        """Return None."""

    def handle(self, request: ServerRequest, head: None) -> RequestHandler:
        """Raise; no request ever matches."""
        raise NotImplementedError

    def error_body(self, status: int) -> bytes:
        """Return an error without a text."""
        return b'{"error":{"code":"%d"}}' % status


_ORIGIN = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


def path_of(target: bytes) -> bytes:
    """Return the path of a target in absolute form or `*` (RFC 9112, 3.2); others are returned unchanged."""
    if target == b"*":
        return b"/"
    origin = _ORIGIN.match(target)
    if origin is None:
        return target
    path = target[origin.end() :]
    return path if path.startswith(b"/") else b"/" + path
