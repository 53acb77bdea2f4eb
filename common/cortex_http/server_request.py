"""One request that is served on its connection's transport."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from cortex_http.headers import Headers, lines
from cortex_http.sockets import is_peer_unresponsive

LINGER_S = 10.0
"""Seconds to keep reading a body that was already answered: closing immediately would reset the connection, and the
client would never see the response."""

_CUT_AFTER_S = 0.5
"""Seconds between the last data of a response that is cut and the cut: Node's fetch drops what it has received but not
yet handed out when the connection is closed, such as the event that says why."""

_DRAIN_BYTES = 64 * 1024
"""Size of an answered request's body up to which the connection is kept: reading it costs less than reconnecting."""

_EARLY_BYTES = 64 * 1024
"""Size of a queued request's body from which on its connection is not read."""

_WITHOUT_BODY = frozenset({204, 304})


class ClientConnection(Protocol):
    """The connection of a request; implemented by `server_protocol.HttpProtocol`.

    Attributes:
        transport: Its transport.
        flow: Flow control of its reads.
        loop: The event loop.
        server_state: State of the uvicorn server.
    """

    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    server_state: ServerState

    def response_complete(self) -> None:
        """Note that the request has been answered."""

    def resume_reading(self) -> None:
        """Read on, unless many requests are queued already."""


class RequestHandler(Protocol):
    """Handles one request; it answers through the `ServerRequest` that it was created with.

    Attributes:
        finished: Whether it takes no further calls.
    """

    finished: bool

    def receive(self, data: bytes) -> None:
        """Receive a piece of the body."""

    def receive_all(self, body: bytes | None) -> None:
        """Note that the request is complete.

        Args:
            body: The whole body, when it did not come in pieces.
        """

    def client_gone(self) -> None:
        """Note that the client closed the connection."""

    def client_blocked(self) -> None:
        """Note that the client does not read the response fast enough."""

    def client_unblocked(self) -> None:
        """Note that the client reads again."""


class NullHandler:
    """Ignores everything: handles a request that is not open yet, or that was answered when it was matched."""

    finished = True

    def receive(self, data: bytes) -> None:
        """Do nothing."""

    def receive_all(self, body: bytes | None) -> None:
        """Do nothing."""

    def client_gone(self) -> None:
        """Do nothing."""

    def client_blocked(self) -> None:
        """Do nothing."""

    def client_unblocked(self) -> None:
        """Do nothing."""


NULL_HANDLER: RequestHandler = NullHandler()


class _NoEvent:
    """Takes the place of the event by which uvicorn wakes an ASGI task."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class _DefaultHeaders:
    """The headers that uvicorn puts into every response, as lines; it makes a new list of them once a second."""

    def __init__(self) -> None:
        self._headers: Headers = []
        self._lines = b""

    def lines(self, headers: Headers) -> bytes:
        """Return the lines of this list."""
        if headers is not self._headers:
            self._headers, self._lines = headers, lines(headers)
        return self._lines


_DEFAULT_HEADERS = _DefaultHeaders()


class ServerRequest:
    """The client's side of one request; takes the place of uvicorn's own cycle and implements `Downstream`.

    Args:
        protocol: Its connection.
        length: Length of its body; None when it is chunked.
        http_1_1: Whether the client uses HTTP/1.1.
        keep_alive: Whether the connection can take another request.
        expects_continue: Whether the client waits for 100 Continue before it sends the body.

    Attributes:
        handler: Its handler, once it is open.
        head: Result of the router's `match`.
        length: Length of its body; None when it is chunked.
        size: Bytes of its body so far.
        complete: Whether it has arrived whole.
    """

    __slots__ = (
        "_buffered",
        "_chunked",
        "_early",
        "_http_1_1",
        "_is_open",
        "_linger_timer",
        "_protocol",
        "complete",
        "disconnected",
        "expects_continue",
        "handler",
        "head",
        "keep_alive",
        "length",
        "message_event",
        "response_complete",
        "response_started",
        "size",
    )

    def __init__(
        self,
        protocol: ClientConnection,
        length: int | None,
        *,
        http_1_1: bool,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.handler: RequestHandler = NULL_HANDLER
        self.head: object = None
        self.length = length
        self.size = 0
        self.complete = False
        self.expects_continue = expects_continue
        self._protocol = protocol
        self._http_1_1 = http_1_1
        self._buffered: list[bytes] = []  # of the response
        self._early: list[bytes] = []  # of the body, before this was open
        self._is_open = False
        self._chunked = False
        self._linger_timer: asyncio.TimerHandle | None = None
        # What uvicorn reads or sets on its own cycles.
        self.response_complete = False
        self.response_started = False
        self.disconnected = False
        self.message_event = _NO_EVENT
        self.keep_alive = keep_alive

    # -- the request -------------------------------------------------------------------------

    def open(self, handler: RequestHandler) -> None:
        """Start handling, now that all earlier requests of the connection have been answered."""
        self.handler = handler
        self._is_open = True
        if self.expects_continue and not self.complete and not handler.finished:
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def receive(self, data: bytes) -> None:
        """Receive a piece of the body."""
        self.size += len(data)
        if not self._is_open:
            self._early.append(data)
            if self.size > _EARLY_BYTES:
                self._protocol.flow.pause_reading()
        elif not self.handler.finished:
            self.handler.receive(data)

    def receive_all(self, body: bytes | None = None) -> None:
        """Note that the request is complete; its body comes with this, or has come in pieces."""
        self.complete = True
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
            if not self.keep_alive:
                self._protocol.transport.close()
        elif self._is_open and not self.handler.finished:
            self.handler.receive_all(body)

    def deliver_received(self) -> None:
        """Hand over what arrived before this was open."""
        early, self._early = self._early, []
        for data in early:
            if not self.handler.finished:
                self.handler.receive(data)
        if self.complete and not self.handler.finished:
            self.handler.receive_all(None)

    def connection_lost(self) -> None:
        """Tell the handler that the connection is closed."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self.response_complete = True
        self.handler.client_gone()

    # -- the response: `Downstream` ----------------------------------------------------------

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """Send the response head."""
        self.response_started = True
        if not self.complete and not self._is_short:
            self.keep_alive = False
        self._chunked = False
        if status in _WITHOUT_BODY:
            framing = b""
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self._http_1_1:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:  # with HTTP/1.0 only the end of the connection can delimit the body
            self.keep_alive, framing = False, b""
        defaults = _DEFAULT_HEADERS.lines(self._protocol.server_state.default_headers)
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        status_line = STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status
        self._buffered = [status_line, defaults, lines, framing, end]

    @property
    def _is_short(self) -> bool:
        """Whether so little of the body is missing that the connection is kept; never if it may not be sent at all."""
        return self.length is not None and self.length <= _DRAIN_BYTES and not self.expects_continue

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._chunked:
            self._buffered += (_size_line(len(data)), data, b"\r\n")
        else:
            self._buffered.append(data)

    def flush(self) -> None:
        """Send what is buffered."""
        buffered = self._buffered
        if buffered:
            self._buffered = []
            self._protocol.transport.write(b"".join(buffered))

    def chunked_transport(self) -> asyncio.Transport | None:
        """Return the transport when it takes raw chunks of the body now."""
        return self._protocol.transport if self._chunked and not self._buffered else None

    def pause_reading(self) -> None:
        """Stop reading the body."""
        self._protocol.flow.pause_reading()

    def resume_reading(self) -> None:
        """Read the body again; the end of the connection is noticed only while it is read."""
        self._protocol.resume_reading()

    def end(self) -> None:
        """Finish the response."""
        if self._chunked:
            self._buffered.append(b"0\r\n\r\n")
        self.flush()
        transport = self._protocol.transport
        self.response_complete = True
        if not self.complete:
            self._linger_timer = self._protocol.loop.call_later(LINGER_S, transport.close)
        elif not self.keep_alive:
            transport.close()
        self._protocol.response_complete()

    def truncate(self) -> None:
        """Send what is buffered and close the connection without the chunk that ends the body."""
        self.flush()
        self.response_complete = True
        self._protocol.flow.pause_reading()
        self._protocol.loop.call_later(_CUT_AFTER_S, self._protocol.transport.close)

    def abort(self) -> None:
        """Close the connection."""
        self.response_complete = True
        self._protocol.transport.abort()

    def is_unresponsive(self) -> bool:
        """Return whether the client's host no longer acknowledges data."""
        transport = self._protocol.transport
        return not transport.is_closing() and is_peer_unresponsive(
            transport.get_extra_info("socket")
        )


@lru_cache(maxsize=1024)
def _size_line(size: int) -> bytes:
    """Return the line before a chunk; the events of a stream have few different sizes."""
    return b"%x\r\n" % size
