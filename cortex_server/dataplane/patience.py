"""uvicorn's protocol with an end to its patience: slow heads, stalled bodies, huge heads, too many connections.

uvicorn waits for the rest of a request for ever and takes a head of any size, so a few idle sockets of one client could
hold a gateway. A timer for each request would cost a microsecond; here a request leaves the time at which it was last
waited for, and one look a second finds those that take too long.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from cortex_common.config.access import LimitsSection
from cortex_common.errors import BodyTooLarge, CortexError, envelope_bytes
from cortex_server.dataplane.plain import PlainProtocol

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class RequestTimedOut(CortexError):
    """The client took too long to send its request."""

    code = "request_timed_out"
    status = 408


class HeadTooLarge(BodyTooLarge):
    """The request's head is over the limit."""

    code = "head_too_large"
    status = 431


class PatientProtocol(PlainProtocol):
    """See the module."""

    limits: LimitsSection
    """Set on a subclass: uvicorn makes the protocols, so there is no other way in."""

    _since: float | None = None
    _idle_since: float | None = None
    _in_head = True
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client has connected; its first request is waited for from now on."""
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._idle_since = None
        if self._since is None:
            self._since = self.loop.time()
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if (
            self._in_head
            and self._head_bytes
            and self._head_bytes > self.limits.max_header_kb * 1024
        ):
            self._refuse(self._too_large())

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.head_complete()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._since = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.request_complete()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Bytes that are no request; one that was refused already has its answer."""
        if not self._refused:
            super().send_400_response(msg)

    def head_complete(self) -> None:
        """The head is there: its size is known, and the body is waited for.

        Raises:
            HttpParserError: it is too large, and the client has been told.
        """
        limit = self.limits.max_header_kb * 1024
        # What came in one read with the head may be its body, so it is counted only where it could be too large.
        if self._head_bytes > limit and sum(len(n) + len(v) + 4 for n, v in self.headers) > limit:
            self._refuse(self._too_large())
            raise httptools.HttpParserError("the head is too large")
        self._in_head = False
        self._since = self.loop.time()

    def request_complete(self) -> None:
        """The request is whole: nothing is waited for until the next one begins."""
        self._in_head = True
        self._head_bytes = 0
        self._since = None

    def rest(self) -> None:
        """Its answer is whole: the connection waits for the next request.

        What uvicorn does then, but for the timer that it makes for each request: `look` comes by anyway.
        """
        if self.pipeline or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()

    def look(self, now: float) -> None:
        """Called once a second: give a client up that takes too long, or that has had no request for long."""
        if self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()
        if self._since is None or self.transport.is_closing():
            return
        waited = now - self._since
        if self._in_head and waited > self.limits.header_timeout_s:
            self._refuse(RequestTimedOut("the request's head did not come in time"))
        elif not self._in_head and waited > self.limits.body_timeout_s:
            self.transport.abort()

    def _too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"the request's head is larger than {self.limits.max_header_kb} KiB",
            hints=["[limits] max_header_kb in cortex.toml sets the limit"],
        )

    def _refuse(self, error: CortexError) -> None:
        """Answer, where no answer is under way, and close."""
        if self._refused:
            return
        self._refused = True
        current: RequestResponseCycle | None = self.cycle
        if current is not None and not current.response_complete:
            self.transport.abort()
            return
        if self._head_bytes:
            body = envelope_bytes(error)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b"
                % (error.status, _REASONS[error.status], len(body), body)
            )
        self.transport.close()
