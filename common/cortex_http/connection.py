"""One client connection to a server: an asyncio.Protocol that its pool keeps between requests.

Nothing here awaits anything. The response reaches its `ResponseHandler` as plain calls; what one read of the socket
brought is handed on as one piece.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

import httptools

from cortex_http.head_cache import CachedHead
from cortex_http.headers import FRAMING, Headers
from cortex_http.sockets import is_peer_unresponsive
from cortex_http.splice import ChunkSplice

log = logging.getLogger(__name__)

_JOIN_BELOW = 64 * 1024
"""Bytes of head and body up to which they are written as one piece: copying costs less than a second system call."""

_MAX_OVERHEAD_BYTES = 128 * 1024
"""Bytes of heads, trailers and chunk extensions without a byte of the body between them, from which on a response is
rejected: a server could send them endlessly."""

_OK = 200

_WITHOUT_BODY = frozenset({204, 304})

OnLost = Callable[[str, bool], None]
"""Called when a connection breaks, with the reason and whether the request must not be sent again: at least one byte of
the response had arrived, or the server is gone."""


class ResponseHandler(Protocol):
    """Receives the response to a request.

    Calls come in this order: head, data any number of times, then end or lost. `response_flush` follows when everything
    that one read of the socket brought has been handed over, so that it can be forwarded with one write.
    """

    def response_head(self, status: int, headers: Headers) -> None:
        """Receive status and headers."""

    def response_data(self, data: bytes) -> None:
        """Receive a piece of the body, decoded from its framing."""

    def response_flush(self) -> None:
        """Note that nothing more has arrived for now."""

    def response_splice(self) -> ChunkSplice | None:
        """Return what takes over the reads of the connection at this chunk boundary, if anything."""

    def response_end(self) -> None:
        """Note that the response is complete; the connection is already back in its pool."""

    def response_lost(self, reason: str) -> None:
        """Note that the connection broke, and the request was not repeated."""

    def request_blocked(self) -> None:
        """Note that the server does not read the request's body fast enough."""

    def request_unblocked(self) -> None:
        """Note that the server reads again."""


A = TypeVar("A")


class ConnectionOwner(Protocol[A]):
    """Keeps connections; implemented by the pool."""

    def connection_opened(self, connection: Connection[A]) -> None:
        """Note that a connection was opened."""

    def connection_idle(self, connection: Connection[A]) -> None:
        """Note that a connection can take another request."""

    def connection_closed(self, connection: Connection[A]) -> None:
        """Note that a connection was closed."""


class Connection(asyncio.Protocol, Generic[A]):
    """One connection; serves one request at a time.

    Args:
        owner: Notified when the connection opens, becomes idle and closes.
        address: Address that it leads to.

    Attributes:
        address: Address that it leads to.
        idle_since: Monotonic time of its last request's end; set by the owner.
        request_complete: Whether the request has been sent whole; until then the connection can't be used again.
    """

    __slots__ = (
        "_answered",
        "_chunk_complete",
        "_complete",
        "_framed",
        "_handler",
        "_has_excess",
        "_head_complete",
        "_head_reported",
        "_headers",
        "_keep_alive",
        "_last",
        "_on_lost",
        "_overhead",
        "_owner",
        "_parser",
        "_paused",
        "_pieces",
        "_status",
        "_transport",
        "address",
        "idle_since",
        "request_complete",
    )

    def __init__(self, owner: ConnectionOwner[A], address: A) -> None:
        self.address = address
        self.idle_since = 0.0
        self.request_complete = True
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._handler: ResponseHandler | None = None
        self._on_lost: OnLost | None = None
        self._pieces: list[bytes] = []
        self._paused = False
        self._answered = False  # the server has sent a byte of the response
        self._reset()
        # The last response's head, when it may be recognized again.
        self._last: tuple[CachedHead, Headers] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def _reset(self) -> None:
        """Forget what the parser found in the previous response."""
        self._headers: Headers = []
        self._status = 0
        self._head_complete = False
        self._head_reported = False
        self._framed = False
        self._keep_alive = False
        self._chunk_complete = False
        self._complete = False
        self._has_excess = False  # bytes behind the response
        self._overhead = 0  # bytes since the last one of the body

    # -- sending -----------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes, handler: ResponseHandler, on_lost: OnLost) -> None:
        """Send a request.

        Args:
            head: Request line and headers, the blank line included.
            body: The body, or its beginning; `write` sends more.
            handler: Receives the response.
            on_lost: Called instead of further calls to the handler when the connection breaks.
        """
        assert self._transport is not None
        self._handler = handler
        self._on_lost = on_lost
        self._answered = False
        if len(body) < _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def write(self, data: bytes) -> None:
        """Send more of the request's body."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close immediately; the handler gets no further calls. This is how a server learns to stop."""
        self._handler = self._on_lost = None
        if self._transport is not None:
            self._transport.abort()

    def fail(self, reason: str) -> None:
        """Close immediately, and end the request with an error; it is not sent again."""
        on_lost = self._on_lost
        self.abort()
        if on_lost is not None:
            on_lost(reason, True)

    def close(self) -> None:
        """Close an idle connection."""
        if self._transport is not None:
            self._transport.close()

    def is_unresponsive(self, seconds: float) -> bool:
        """Return whether the server's host has not acknowledged what was sent for so many seconds."""
        return self._transport is not None and is_peer_unresponsive(
            self._transport.get_extra_info("socket"), seconds
        )

    def pause(self) -> None:
        """Stop reading because the client can't keep up."""
        if self._transport is not None and self._handler is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that the connection is open."""
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connection_opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of a response that is delimited by it, or the loss of any other response."""
        self._transport = None
        self._owner.connection_closed(self)
        del self._parser  # it refers to this connection: leave no cycle to the garbage collector
        handler, self._handler = self._handler, None
        on_lost, self._on_lost = self._on_lost, None
        if handler is None or on_lost is None:
            return
        if self._answered and self._head_complete and not self._framed and exc is None:
            # Neither a length nor chunks were announced: the end of the connection is the end of the body.
            _end(handler, on_lost)
        else:
            on_lost("the connection was closed" if exc is None else str(exc), self._answered)

    def pause_writing(self) -> None:
        """Tell the handler that the transport's buffer is full."""
        if self._handler is not None:
            self._handler.request_blocked()

    def resume_writing(self) -> None:
        """Tell the handler that the transport's buffer has been sent."""
        if self._handler is not None:
            self._handler.request_unblocked()

    def data_received(self, data: bytes) -> None:
        """Handle what a read brought; if that fails, the request ends with an error."""
        handler = self._handler
        if (
            handler is None
        ):  # no request is in flight: whatever this is, it must not become a response
            self.abort()
            return
        try:
            self._receive(handler, data)
        except httptools.HttpParserError as failed:
            self.fail(f"the response is not HTTP: {failed}")
        except httptools.HttpParserUpgrade:
            self.fail("the server switched to another protocol, which was not offered")
        except Exception as failed:
            log.exception("response_handling_failed")
            self.fail(f"the response could not be handled: {failed}")

    def _receive(self, handler: ResponseHandler, data: bytes) -> None:
        """Parse what a read brought, unless its head is the same as that of the previous response."""
        begins, self._answered = not self._answered, True
        if begins:
            if self._last is not None:
                cached, headers = self._last
                body = cached.body_of(data)
                if body is not None:
                    self._report_cached(handler, headers, body)
                    return
            self._reset()
        self._parser.feed_data(data)
        if self._pieces:
            self._overhead = 0
        elif not self._complete:
            self._overhead += len(data)
            if self._overhead > _MAX_OVERHEAD_BYTES:
                self.fail(f"more than {_MAX_OVERHEAD_BYTES >> 10} KiB of headers")
                return
        self._last = self._cacheable(data) if begins and self._complete else None
        self._report()
        # A whole chunk where the parser expects one need not pass through it: the parser still expects the next one
        # afterwards. Nothing of the next chunk's size line may have been read: after its end the chunk has started.
        if self._chunk_complete and self._handler is handler and data.endswith(b"\r\n"):
            splice = handler.response_splice()
            if splice is not None and self._transport is not None:
                splice.attach(self._transport, self)

    def _cacheable(self, data: bytes) -> tuple[CachedHead, Headers] | None:
        """Return the head of a response that one read brought whole, if the parser agrees on where it ends."""
        if self._status != _OK or self._has_excess or not self._keep_alive:
            return None
        cached = CachedHead.from_message(data)
        if cached is None or cached.body_length(data) != sum(map(len, self._pieces)):
            return None
        return cached, [h for h in self._headers if h[0] != b"content-length"]

    def _report_cached(self, handler: ResponseHandler, headers: Headers, body: bytes) -> None:
        """Report a response whose head equals the last one; the handler may abort this connection at any call."""
        handler.response_head(_OK, [*headers, (b"content-length", b"%d" % len(body))])
        if body and self._handler is not None:
            handler.response_data(body)
        self._finish(keep_alive=self.request_complete)

    def _report(self) -> None:
        """Report what one read brought; the handler may abort this connection at any of the calls."""
        if self._head_complete and not self._head_reported and self._handler is not None:
            self._head_reported = True
            self._handler.response_head(self._status, self._headers)
        pieces = self._pieces
        if pieces and self._handler is not None:
            self._pieces = []
            self._handler.response_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            self._finish(
                keep_alive=self._keep_alive and not self._has_excess and self.request_complete
            )
        elif self._handler is not None:
            self._handler.response_flush()

    def _finish(self, *, keep_alive: bool) -> None:
        handler, self._handler = self._handler, None
        on_lost, self._on_lost = self._on_lost, None
        if handler is None or on_lost is None or self._transport is None:
            return  # it was aborted, and is about to be closed
        if not self.request_complete:
            self.abort()  # closing would first send the rest, which may never be read
        elif not keep_alive:
            self.close()
        else:
            if self._paused:
                # Paused by the last piece: the next request would wait for a response that is never read.
                self.resume()
            self._owner.connection_idle(self)
        _end(handler, on_lost)

    # -- httptools callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note the start of a message; a second one is excess."""
        self._has_excess = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, but neither trailers nor headers of what follows the response."""
        if not self._head_complete:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Keep the head, unless it is that of an interim response."""
        if self._has_excess:
            return
        self._status = self._parser.get_status_code()
        if 100 <= self._status < 200:  # the final response follows
            self._headers = []
            return
        self._head_complete = True
        self._framed = self._status in _WITHOUT_BODY or any(h[0] in FRAMING for h in self._headers)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self._has_excess:
            self._pieces.append(body)

    def on_chunk_header(self) -> None:
        """Note that a chunk has started."""
        self._chunk_complete = False

    def on_chunk_complete(self) -> None:
        """Note that a chunk is complete."""
        self._chunk_complete = True

    def on_message_complete(self) -> None:
        """Note that the response is complete."""
        self._chunk_complete = False
        if self._head_complete and not self._complete:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()  # reset by the parser after this


def _end(handler: ResponseHandler, on_lost: OnLost) -> None:
    """Report the end of a response; if its handler fails, the request ends with an error."""
    try:
        handler.response_end()
    except Exception as failed:
        log.exception("response_handling_failed")
        on_lost(f"the response could not be handled: {failed}", True)
