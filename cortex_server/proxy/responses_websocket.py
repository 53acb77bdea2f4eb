"""The WebSocket on /v1/responses: each message starts a response, whose events come back as messages.

Responses are computed one after the other. Source: the document of Open Responses (2026-04-24) and OpenAI's guide to
the WebSocket mode. A response with `store` false can be continued on its own connection.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace

import msgspec
from msgspec import Raw
from typing_extensions import override

from cortex_common.errors import BadRequest, Busy, CortexError, envelope_bytes
from cortex_common.sse import SseParser
from cortex_http.downstream import NullDownstream
from cortex_http.headers import lines
from cortex_http.websocket import CloseCode
from cortex_http.websocket_connection import UpgradeRejected, WebSocketConnection
from cortex_server.auth.access_control import INFER
from cortex_server.auth.keys import Key
from cortex_server.dialects.json_input import decode
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.headers import error_headers
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.response.base import JSON_HEAD

_MAX_QUEUED = 16
"""Messages that wait for the response before them."""

_MAX_AGE_S = 3600.0
"""Seconds after which a connection is closed, as OpenAI does, so that forgotten ones do not accumulate."""

_ONLY_IN_HTTP = ("stream", "stream_options", "background")

_objects = msgspec.json.Decoder(dict[str, Raw])
_numbers = itertools.count(1)


class _Error(msgspec.Struct, tag_field="type", tag="error"):
    status: int
    error: Raw


class _Completed(msgspec.Struct, tag_field="type", tag="response.completed"):
    response: Raw
    sequence_number: int = 0


class _ErrorBody(msgspec.Struct):
    error: Raw


_error_bodies = msgspec.json.Decoder(_ErrorBody)


class ConnectionExpired(BadRequest):
    """A WebSocket was open for too long; the client must open another. The code is OpenAI's."""

    code = "websocket_connection_limit_reached"


class ResponsesWebSocket:
    """The messages of one connection; a `WebSocketHandler`.

    Args:
        context: Shared state of the proxy.
        inflight: The requests in flight.
        head: Head of the handshake, which serves as that of each request.
        key: Key of the handshake.
    """

    def __init__(
        self, context: ProxyContext, inflight: set[ProxyRequest], head: RequestHead, key: Key
    ) -> None:
        self.max_size = context.max_body
        self._context = context
        self._inflight = inflight
        self._head = replace(head, connection=next(_numbers))
        self._key = key
        self._queued: deque[bytes] = deque()
        self._active: ProxyRequest | None = None
        self._stopping = False
        self._connection: WebSocketConnection
        self._expiry = context.loop.call_later(_MAX_AGE_S, self._expire)

    def opened(self, connection: WebSocketConnection) -> None:
        """Note that the connection is open."""
        self._connection = connection

    def receive(self, message: bytes) -> None:
        """Start a response, or queue it behind the one that is being computed."""
        if self._active is None:
            self._start(message)
        elif len(self._queued) < _MAX_QUEUED:
            self._queued.append(message)
        else:
            self._send_error(Busy(f"{_MAX_QUEUED} messages wait already"))

    def closed(self) -> None:
        """Cancel what is in flight."""
        self._expiry.cancel()
        self._queued.clear()
        if self._active is not None:
            self._active.client_gone()
        self._context.responses.of(self._key, self._head.connection).forget_connection()

    def stop(self) -> None:
        """Close the connection after the response that is being computed."""
        self._stopping = True
        if self._active is None:
            self._connection.close(CloseCode.GOING_AWAY)

    def blocked(self) -> None:
        """Stop reading from the engine."""
        if self._active is not None:
            self._active.client_blocked()

    def unblocked(self) -> None:
        """Read from the engine again."""
        if self._active is not None:
            self._active.client_unblocked()

    def ended(self) -> None:
        """Continue with the next message: a response has ended."""
        self._active = None
        if self._stopping:
            self.stop()
        elif self._queued:
            self._context.loop.call_soon(self._start_queued)

    def _expire(self) -> None:
        self._send_error(ConnectionExpired(f"the connection is open for {_MAX_AGE_S:.0f} s"))
        self.stop()

    def _start_queued(self) -> None:
        if self._active is None and self._queued:
            self._start(self._queued.popleft())

    def _start(self, message: bytes) -> None:
        try:
            body = _request_body(message)
        except CortexError as error:
            self._send_error(error)
            self.ended()
            return
        client = _EventMessages(self._connection, self)
        request = self._active = ProxyRequest(self._context, self._inflight, client, self._head)
        request.admit(len(body))
        if not request.finished:
            request.receive_all(body)

    def _send_error(self, error: CortexError) -> None:
        self._connection.send(_error_message(error.status, envelope_bytes(error)))


class _EventMessages(NullDownstream):
    """Sends a response's events as messages, and an error response as an error message.

    Args:
        connection: the client's connection.
        handler: learns that the response has ended.
    """

    def __init__(self, connection: WebSocketConnection, handler: ResponsesWebSocket) -> None:
        self._connection = connection
        self._handler = handler
        self._parser = SseParser()
        self._status = 200
        self._is_stream = True
        self._body = b""

    @override
    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        self._status, self._is_stream = status, length is None

    @override
    def write(self, data: bytes) -> None:
        if not self._is_stream:
            self._body += data
            return
        events = self._parser.feed(data)
        for event in events:
            if event.data != b"[DONE]":
                self._connection.send(event.data)
        if not events and data.startswith(b":"):  # keep-alive
            self._connection.ping()

    @override
    def end(self) -> None:
        if not self._is_stream and self._status < 400:
            self._connection.send(msgspec.json.encode(_Completed(Raw(self._body))))
        elif not self._is_stream:
            self._connection.send(_error_message(self._status, self._body))
        self._handler.ended()

    @override
    def truncate(self) -> None:
        self._handler.ended()

    @override
    def abort(self) -> None:
        self._connection.abort()

    @override
    def is_unresponsive(self) -> bool:
        return self._connection.is_unresponsive()


def open_websocket(
    context: ProxyContext, inflight: set[ProxyRequest], head: RequestHead
) -> ResponsesWebSocket:
    """Return the handler of a connection.

    Raises:
        UpgradeRejected: The client has no valid key, or is a web page of another origin.
    """
    try:
        key = context.access_control.authorize(head.credentials, INFER, head.caller)
    except CortexError as error:
        head_lines = JSON_HEAD + lines(error_headers(error))
        raise UpgradeRejected(error.status, head_lines, envelope_bytes(error)) from error
    return ResponsesWebSocket(context, inflight, head, key)


def _request_body(message: bytes) -> bytes:
    """Return the body of the request that a message makes.

    Raises:
        BadRequest: The message is not a `response.create`, or has a field for HTTP.
    """
    fields = decode(_objects, message)
    kind = bytes(fields.pop("type", Raw(b"null")))
    if kind != b'"response.create"':
        raise BadRequest("type: must be response.create", param="type")
    for name in _ONLY_IN_HTTP:
        if name in fields:
            raise BadRequest(f"{name}: not allowed in a WebSocket message", param=name)
    return msgspec.json.encode(fields | {"stream": True})


def _error_message(status: int, body: bytes) -> bytes:
    return msgspec.json.encode(_Error(status, _error_bodies.decode(body).error))
