"""The plain face: the inference routes as an ASGI application, for whatever is not diverted.

Used for Expect: 100-continue, pipelined requests, and under any ASGI server. The decisions are those of
`ProxyRequest`; only reading and writing differ from `diverted`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from cortex_http.headers import of_lines
from cortex_http.server_protocol import body_too_large
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.routes import Route

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HIGH, _LOW = 64 * 1024, 16 * 1024
"""Bytes waiting for the client above which the engine is not read, and below which it is again."""


class Paced(Protocol):
    """Whoever sends to a client, and is told when it does not keep up."""

    def client_full(self) -> None:
        """The client does not keep up."""
        ...

    def client_drained(self) -> None:
        """It keeps up again."""
        ...


class Client:
    """The client's side of an `ProxyRequest`: what is owed waits in a queue until the server takes it."""

    def __init__(self) -> None:
        self.exchange: Paced | None = None
        self.over = False
        self._messages: deque[Message] = deque()
        self._waiting = 0
        self._full = False
        self._some = asyncio.Event()

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """See `Downstream`."""
        headers = of_lines(lines)
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes) -> None:
        """See `Downstream`."""
        self._waiting += len(data)
        self._put({"type": "http.response.body", "body": data, "more_body": True})
        if self._waiting > _HIGH and not self._full and self.exchange is not None:
            self._full = True
            self.exchange.client_full()

    def flush(self) -> None:
        """See `Downstream`: nothing is held here."""

    def chunked(self) -> None:
        """See `Downstream`: the server makes its own frames."""

    def end(self) -> None:
        """See `Downstream`."""
        self._put({"type": "http.response.body", "body": b"", "more_body": False})

    def abort(self) -> None:
        """See `Downstream`: the server closes the connection of an answer that its application left unfinished."""
        self.over = True
        self._some.set()

    def vanished(self) -> bool:
        """See `Downstream`: the server keeps its connections to itself."""
        return False

    def _put(self, message: Message) -> None:
        self._messages.append(message)
        self._some.set()

    async def deliver(self, send: Send) -> None:
        """Send until the answer is whole; returns early after `abort`."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                await send(message)
                self._waiting -= len(message.get("body", b""))
                if self._full and self._waiting < _LOW and self.exchange is not None:
                    self._full = False
                    self.exchange.client_drained()
                if message["type"] == "http.response.body" and not message["more_body"]:
                    return
            if self.over:
                return
            self._some.clear()
            await self._some.wait()

    async def watch(self, receive: Receive) -> None:
        """Notice when the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.abort()


class AsgiRoute:
    """One inference route as an ASGI application.

    Args:
        plane: returns the data plane; called for each request, because the app is built before it runs.
        route: which one.
    """

    def __init__(self, context: Callable[[], ProxyContext], route: Route) -> None:
        self._context = context
        self._route = route

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        client = Client()
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        client_at = scope.get("client")
        peer = client_at[0] if client_at else None
        head, announced = RequestHead.of(self._route, scope["query_string"], headers, peer)
        client.exchange = exchange = ProxyRequest(self._context(), client, head)
        try:
            if not exchange.admit() or await self._read(receive, exchange, announced or 0):
                watch = asyncio.create_task(client.watch(receive))
                try:
                    await client.deliver(send)
                finally:
                    watch.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watch
        finally:
            exchange.client_gone()

    async def _read(self, receive: Receive, exchange: ProxyRequest, size: int) -> bool:
        """Read the body, of which so much is announced, and start; false when the client left meanwhile."""
        limit = exchange.context.max_body
        pieces: list[bytes] = []
        while size <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                exchange.start(b"".join(pieces))
                return True
            size = sum(map(len, pieces))
        exchange.refuse(body_too_large(limit))
        return True
