"""The server's side of a WebSocket connection, after the handshake."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from cortex_http.headers import Headers
from cortex_http.sockets import is_peer_unresponsive
from cortex_http.websocket import (
    CloseCode,
    FrameParser,
    Opcode,
    WebSocketError,
    accept_key,
    write_close,
    write_frame,
)

_CLOSE_S = 5.0
"""Seconds for a client to answer a close frame."""


class UpgradeRejected(Exception):
    """A handshake is rejected with an HTTP response.

    Args:
        status: HTTP status.
        lines: header lines, each with its line end, without the length.
        body: the body.

    Attributes:
        response: the response, after which the connection is closed.
    """

    def __init__(self, status: int, lines: bytes, body: bytes) -> None:
        super().__init__(status)
        framing = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.response = STATUS_LINE[status] + lines + framing + body


class WebSocketHandler(Protocol):
    """Handles the messages of one connection."""

    max_size: int
    """Bytes of the largest message."""

    def opened(self, connection: WebSocketConnection) -> None:
        """Note that the connection is open; messages follow."""

    def receive(self, message: bytes) -> None:
        """Handle a text message."""

    def closed(self) -> None:
        """Note that the connection is closed, by either side."""

    def stop(self) -> None:
        """Note that the server is stopping: close the connection when nothing is in flight."""

    def blocked(self) -> None:
        """Note that the client does not read fast enough."""

    def unblocked(self) -> None:
        """Note that the client reads again."""


def websocket_key(method: bytes, headers: Headers) -> bytes | None:
    """Return the key of a request that asks for a WebSocket of version 13; None for any other."""
    by_name = dict(headers)
    if (
        method != b"GET"
        or by_name.get(b"upgrade", b"").lower() != b"websocket"
        or by_name.get(b"sec-websocket-version") != b"13"
    ):
        return None
    return by_name.get(b"sec-websocket-key")


def handshake(key: bytes) -> bytes:
    """Return the response to a handshake with this key."""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-accept: %b\r\n\r\n" % accept_key(key)
    )


class WebSocketConnection(asyncio.Protocol):
    """One connection. It takes the place of the HTTP protocol on its transport.

    Args:
        transport: its transport, on which the handshake has been answered.
        handler: handles its messages.
        connections: the open connections of the server, which it joins.
    """

    def __init__(
        self, transport: asyncio.Transport, handler: WebSocketHandler, connections: set[Any]
    ) -> None:
        self._transport = transport
        self._handler = handler
        self._connections = connections
        self._parser = FrameParser(handler.max_size)
        self._closing: asyncio.TimerHandle | None = None
        connections.add(self)
        transport.set_protocol(self)
        handler.opened(self)

    # -- asyncio.Protocol --------------------------------------------------------------------

    @override
    def data_received(self, data: bytes) -> None:
        if self._closing is not None and self._transport.is_closing():
            return
        try:
            messages = self._parser.feed(data)
        except WebSocketError as error:
            self.close(error.code, str(error))
            self._transport.close()
            return
        for message in messages:
            self._handle(message.opcode, message.data)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        self._connections.discard(self)
        self._handler.closed()

    @override
    def pause_writing(self) -> None:
        self._handler.blocked()

    @override
    def resume_writing(self) -> None:
        self._handler.unblocked()

    # -- the server --------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Stop, when the handler is idle; uvicorn calls this."""
        self._handler.stop()

    # -- the handler -------------------------------------------------------------------------

    def send(self, text: bytes) -> None:
        """Send a text message."""
        if self._closing is None:
            self._transport.write(write_frame(Opcode.TEXT, text))

    def ping(self) -> None:
        """Send a ping, so that no proxy in between closes a silent connection."""
        if self._closing is None:
            self._transport.write(write_frame(Opcode.PING, b""))

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Close the connection: the client answers, or has a few seconds for it."""
        if self._closing is None:
            self._transport.write(write_close(code, reason))
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(_CLOSE_S, self._transport.abort)

    def abort(self) -> None:
        """Close the connection without a word."""
        self._transport.abort()

    def is_unresponsive(self) -> bool:
        """Return whether the client's host no longer acknowledges data."""
        transport = self._transport
        return not transport.is_closing() and is_peer_unresponsive(
            transport.get_extra_info("socket")
        )

    def _handle(self, opcode: Opcode, data: bytes) -> None:
        if opcode is Opcode.CLOSE:
            self.close(CloseCode.NORMAL)
            self._transport.close()
        elif self._closing is not None:
            return
        elif opcode is Opcode.PING:
            self._transport.write(write_frame(Opcode.PONG, data))
        elif opcode is Opcode.TEXT:
            self._handler.receive(data)
        elif opcode is Opcode.BINARY:
            self.close(CloseCode.UNSUPPORTED_DATA, "messages must be text")
