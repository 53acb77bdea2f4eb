"""Passes on what a worker does not serve itself to the control process, over a Unix socket.

The operator API, listings, health and documentation live there. The other end is an ordinary HTTP server on a socket
that nobody else can reach, so what it is told of the client may be believed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from cortex_common.errors import CortexError, Unavailable, envelope_bytes
from cortex_http.client import Connection, Headers
from cortex_http.headers import content_length, error_headers, lines
from cortex_http.server_protocol import body_too_large
from cortex_server.dataplane.asgi import Client, Receive, Send
from cortex_server.dataplane.pool import Address, ConnectionPool
from cortex_server.proxy.response import JSON_HEAD
from cortex_server.proxy.stream_fast_path import SizeLines

CLIENT = b"x-cortex-client"
"""Scheme, address and port of the client, from a worker to the control process alone."""

_HOP_BY_HOP = frozenset(
    {b"connection", b"content-length", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"}
)
_NOT_ON = _HOP_BY_HOP | {b"expect", CLIENT}

App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Relay:
    """The ASGI application of whatever is no inference route.

    Args:
        path: of the control process's socket.
        max_body: returns the largest body in bytes.
        connect_timeout_s: seconds to wait for a connection.
    """

    def __init__(self, path: str, max_body: Callable[[], int], connect_timeout_s: float) -> None:
        self._endpoint = Address("", 0, b"", b"localhost", uds=path)
        self._pool = ConnectionPool(connect_timeout_s=connect_timeout_s)
        self._max_body = max_body

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Relay one request."""
        client = Client()
        passage = client.exchange = _Passage(client, head_only=scope["method"] == "HEAD")
        watch: asyncio.Task[None] | None = None
        try:
            body = await _read(receive, self._max_body())
            if body is None:
                return
            watch = asyncio.create_task(client.watch(receive))
            passage.ask(await self._connection(), _head(scope, len(body)), body)
            await client.deliver(send)
        except CortexError as refused:
            _refuse(client, refused)
            await client.deliver(send)
        finally:
            passage.abort()
            if watch is not None:
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch

    async def _connection(self) -> Connection:
        """A kept connection, or a new one.

        Raises:
            UpstreamFailed: the control process does not listen.
        """
        kept = self._pool.resting(self._endpoint)
        return kept if kept is not None else await self._pool.connect(self._endpoint)

    def close(self) -> None:
        """Close resting connections."""
        self._pool.close()


class _Passage:
    """One request on its way through: the `Receiver` of its answer, and what paces it."""

    def __init__(self, client: Client, *, head_only: bool) -> None:
        self._client = client
        self._head_only = head_only
        self._connection: Connection | None = None
        self._opened = False

    def ask(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Send the request."""
        self._connection = connection
        connection.send(head, body, self)

    def abort(self) -> None:
        """The client is gone, or has all."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def client_full(self) -> None:
        """The client does not keep up."""
        if self._connection is not None:
            self._connection.pause()

    def client_drained(self) -> None:
        """It keeps up again."""
        if self._connection is not None:
            self._connection.resume()

    def upstream_head(self, status: int, headers: Headers) -> None:
        """See `Receiver`."""
        self._opened = True
        kept = [h for h in headers if h[0] not in _HOP_BY_HOP and h[0] != b"date"]
        self._client.respond(status, lines(kept), content_length(dict(headers)))
        if self._head_only:
            # The parser would wait for the body that is announced, and that HEAD never has.
            self.abort()
            self._client.end()

    def upstream_data(self, data: bytes) -> None:
        """See `Receiver`."""
        self._client.write(data)

    def upstream_read(self) -> None:
        """See `Receiver`."""

    def upstream_lane(self, sizes: SizeLines) -> None:
        """See `Receiver`: what passes here is little."""

    def upstream_end(self) -> None:
        """See `Receiver`."""
        self._connection = None
        self._client.end()

    def upstream_lost(self, reason: str, *, answered: bool) -> None:  # noqa: ARG002 - the protocol's
        """See `Receiver`."""
        self._connection = None
        if self._opened:
            self._client.abort()
        else:
            _refuse(self._client, Unavailable(f"the gateway is ending: {reason}", retry_after=5.0))


async def _read(receive: Receive, most: int) -> bytes | None:
    """The whole body; None when the client left meanwhile.

    Raises:
        BodyTooLarge: it is over the limit.
    """
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if sum(map(len, pieces)) > most:
            raise body_too_large(most)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _head(scope: MutableMapping[str, Any], length: int) -> bytes:
    """The request's head as the control process gets it."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope["query_string"]
    host, port = scope.get("client") or ("", 0)
    lines = [
        b"%b %b%b HTTP/1.1" % (scope["method"].encode(), path, b"?" + query if query else b""),
        b"content-length: %d" % length,
        b"%b: %b %b %d" % (CLIENT, scope["scheme"].encode(), host.encode(), port),
    ]
    lines += [b"%b: %b" % h for h in scope["headers"] if h[0].lower() not in _NOT_ON]
    return b"\r\n".join([*lines, b"", b""])


def _refuse(client: Client, error: CortexError) -> None:
    body = envelope_bytes(error)
    client.respond(error.status, JSON_HEAD + lines(error_headers(error)), len(body))
    client.write(body)
    client.end()


class Backstage:
    """The other end: the whole API, with each request's client as the worker saw it.

    Args:
        app: the API.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers: Headers = scope["headers"]
        told = next((value for name, value in headers if name == CLIENT), b"")
        scheme, _, peer = told.decode().partition(" ")
        host, _, port = peer.rpartition(" ")
        scope = {
            **scope,
            "scheme": scheme,
            "client": (host, int(port)) if host else None,
            "headers": [h for h in headers if h[0] != CLIENT],
        }
        await self._app(scope, receive, send)
