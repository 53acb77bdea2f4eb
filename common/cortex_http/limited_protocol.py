"""uvicorn's protocol with limits on what a connection may send and how long that may take.

It parses in a loop and checks the size of heads, trailers and of the bodies for the ASGI application, the number of
connections, and the time that heads and bodies take. A timer for each request would cost a microsecond; here a request
notes when it was last waited for, and `check_timeouts`, called once a second, finds those that take too long. What
exceeds a limit is answered, unless another response is being sent, and the connection is closed.

Offers to switch to another protocol are declined, as RFC 9110 (7.8) allows. Java's HttpClient offers HTTP/2 (h2c) with
its first request and sends that request's body either way. httptools takes what follows such a head for the other
protocol and would lose the body, so the request is parsed again without the offer.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from cortex_http.request_times import RequestTimes
from cortex_http.routing import Limits, path_of
from cortex_http.server_request import LINGER_S, ServerRequest

log = logging.getLogger(__name__)

_MAX_APP_BODY_BYTES = 1 << 20
"""Length of the longest body that the ASGI application gets; large ones belong to the router's requests."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection of a client, with limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._between_messages = True
        self._times = RequestTimes(self.loop.time())
        self._in_head = True
        self._head_bytes = 0  # of the head, or of trailers, without the body between them
        self._app_body_bytes = 0
        self._has_body_progress = False  # in this read
        self._rejected = False
        self._declining_upgrade = False

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """Current limits."""

    @abstractmethod
    def error_body(self, status: int) -> bytes:
        """Return the JSON body of a response to a request that is rejected; see `Router.error_body`."""

    @abstractmethod
    def accept_upgrade(self, rest: bytes) -> bool:
        """Return whether the current request's offer to switch to another protocol was accepted, or refused for good.

        Args:
            rest: What follows the request.
        """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start waiting for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()

    def _receive(self, data: bytes) -> None:
        """Parse what a read brought, and count what is neither a body nor a complete head."""
        in_head, self._has_body_progress = self._in_head, False
        if in_head:
            self._head_bytes += len(data)
        self._parse(data)
        if not in_head and not self._has_body_progress:
            self._head_bytes += len(data)
        if self._head_bytes > self._max_head_bytes and not self._between_messages:
            self._reject(431)

    def _parse(self, data: bytes) -> None:
        """Parse what a read brought: a loop, because each request in it may offer an upgrade."""
        pieces = [memoryview(data)]
        while pieces:
            piece = pieces.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._declining_upgrade:
                    self._declining_upgrade = False
                    rest = piece[upgrade.args[0] :]  # the parser says where the head ended
                    if self.accept_upgrade(bytes(rest)):
                        return
                    # Parse the request again without its offer.
                    pieces += (rest, memoryview(self._head_without_upgrade()))
                    self.parser = self._new_parser()
                elif self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                else:  # a CONNECT
                    self._reject(400)
                    return
            except httptools.HttpParserError as failed:
                self._refuse_bytes(failed)
                return

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        if hasattr(parser, "set_dangerous_leniencies"):  # as uvicorn does with its own
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _refuse_bytes(self, failed: httptools.HttpParserError) -> None:
        """Answer bytes that are no request, or whose handling failed."""
        cause = (
            failed.__context__ if isinstance(failed, httptools.HttpParserCallbackError) else None
        )
        if cause is None or isinstance(cause, httptools.HttpParserError | UnicodeError):
            self._reject(400)
        else:
            log.error("request_handling_failed", exc_info=cause)
            self._reject(500)

    # -- httptools callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Reset the state of the request; the ASGI scope is built only where it is used."""
        self._between_messages = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def _build_scope(self) -> None:
        """Build the ASGI scope of the current request."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are ignored."""
        if self._in_head:
            super().on_header(name, value)

    def _begin_body(self) -> bool:
        """Check a complete head; return whether the request is to be parsed again without its offer to upgrade.

        Raises:
            HttpParserError: The head is too large; the client has been answered.
        """
        if self.parser.should_upgrade() and self._get_upgrade() is not None:
            self._declining_upgrade = not self._should_upgrade()
            if self._declining_upgrade:
                return True
        self._check_head_size()
        self._times.begin_body(self.loop.time())
        self._app_body_bytes = 0
        if not self.url.startswith(b"/"):
            self.url = path_of(self.url)
        return False

    def _count_body(self, size: int) -> None:
        """Note that a piece of a body has arrived."""
        self._times.receive_body(size, self.loop.time())
        self._has_body_progress = True
        self._head_bytes = 0

    def _end_message(self) -> None:
        """Note that a request is complete."""
        self._between_messages = True
        self._in_head = True
        self._head_bytes = 0
        self._times.waiting_since = None

    # -- timeouts ----------------------------------------------------------------------------

    def check_timeouts(self, now: float) -> None:
        """Close the connection if its request takes too long, or if it has been idle for too long."""
        times = self._times
        if times.idle_since is not None and now - times.idle_since > self.timeout_keep_alive:
            self.transport.close()
        if times.waiting_since is None or self.transport.is_closing():
            return
        if self.flow.read_paused:  # the request is not waited for
            times.begin_body(now)
        elif times.is_late(now, self.limits, in_head=self._in_head):
            self._reject(408)

    def discount(self, seconds: float) -> None:
        """Count time in which this process stood still against no timeout."""
        self._times.discount(seconds)

    # -- rejections --------------------------------------------------------------------------

    @property
    def _max_head_bytes(self) -> int:
        return self.limits.max_header_kb * 1024

    def _head_without_upgrade(self) -> bytes:
        """Return the head of the current request without its offer to switch to another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _check_head_size(self) -> None:
        """Check the size of a complete head.

        Raises:
            HttpParserError: It is too large; the client has been answered.
        """
        limit = self._max_head_bytes
        # What came in one read with the head may be its body, so it is counted only where it could be too large.
        if (
            self._head_bytes > limit
            and len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > limit
        ):
            self._reject(431)
            raise httptools.HttpParserError("the head is too large")

    def _check_app_body(self, size: int) -> None:
        """Check the size of a body for the ASGI application.

        Raises:
            HttpParserError: It is too large; the client has been answered.
        """
        if size > _MAX_APP_BODY_BYTES:
            self._reject(413)
            raise httptools.HttpParserError("the body is too large")

    def _reject(self, status: int) -> None:
        """Answer, unless a response is being sent, and close."""
        if self._rejected:
            return
        self._rejected = True
        if self._is_responding or (self._between_messages and not self._head_bytes):
            self.transport.abort()
            return
        body = self.error_body(status)
        self.transport.write(
            STATUS_LINE[status] + b"content-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (len(body), body)
        )
        if status == 408 or not self.transport.can_write_eof():
            self.transport.close()
        else:
            # Closing immediately would reset the connection while the client sends, and it would not see the response.
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(LINGER_S, self.transport.close)

    @property
    def _is_responding(self) -> bool:
        """Whether a response has started, or belongs to an earlier request: another one can't be sent then."""
        current: RequestResponseCycle | ServerRequest | None = self.cycle
        if current is None:
            return False
        if current.response_complete:
            return not self._in_head
        return self._in_head or bool(self.pipeline) or current.response_started
