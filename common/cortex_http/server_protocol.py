"""HTTP server protocol: the routes of a handler are served on the transport itself, everything else by an ASGI app.

uvicorn's protocol parses every request. When the head of one of the handler's requests is complete, no ASGI task is
started: a `ServerRequest` is created, and the handler writes to the transport through it, without a task, a queue or an
event per piece. Compared with plain ASGI this halves the cost of a request. Requests of either kind can be pipelined.

Unlike uvicorn's protocol it also

- limits the size of heads and trailers, of the bodies that the ASGI application gets, and the number of connections,
  and the time that heads and bodies take. A timer for each request would cost a microsecond; here a request notes when
  it was last waited for, and `check_timeouts`, called once a second, finds those that take too long.
- opens WebSockets, on the paths that the router serves.
- declines every other offer to switch to another protocol, as RFC 9110 (7.8) allows. Java's HttpClient offers HTTP/2
  (h2c) with its first request and sends that request's body either way. httptools takes what follows such a head for
  the other protocol and would lose the body, so the request is parsed again without the offer.

Written against uvicorn 0.32 to 0.54; `incompatibility` says at startup whether what this uses is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, ClassVar, Generic, TypeVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from cortex_http.head_cache import CachedHead, CachedHeadWithId
from cortex_http.request_times import RequestTimes
from cortex_http.routing import IdRouter, Router, WebSocketRouter, path_of
from cortex_http.server_request import LINGER_S, ServerRequest
from cortex_http.websocket_connection import (
    UpgradeRejected,
    WebSocketConnection,
    handshake,
    websocket_key,
)

log = logging.getLogger(__name__)

_USED = (
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "_get_upgrade",
    "_should_upgrade",
    "_unset_keepalive_if_required",
    "handle_websocket_upgrade",
)

_MAX_QUEUED = 16
"""Pipelined requests of a connection from which on it is not read."""

_MAX_APP_BODY_BYTES = 1 << 20
"""Length of the longest body that the ASGI application gets; large ones belong to the router's requests."""


def incompatibility() -> str | None:
    """Return why the installed uvicorn can't be used; None when it can."""
    missing = [name for name in _USED if not callable(getattr(HttpToolsProtocol, name, None))]
    return f"uvicorn's HttpToolsProtocol has no {', '.join(missing)}" if missing else None


H = TypeVar("H")


class HttpProtocol(HttpToolsProtocol, Generic[H]):
    """One connection of a client; create a subclass with `protocol_for`."""

    router: ClassVar[Router[Any]]
    """Set on a subclass, because uvicorn creates the protocols."""

    _has_ids: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._active: ServerRequest | None = None  # the request that is being answered
        self._receiving: ServerRequest | None = None  # the request whose body the parser is in
        self._queued: deque[ServerRequest] = deque()  # pipelined behind the active one
        # The last request's head, when it may be recognized again.
        self._last: tuple[CachedHead, H] | None = None
        self._last_with_id: tuple[CachedHeadWithId, H] | None = None
        self._between_messages = True
        self._times = RequestTimes(self.loop.time())
        self._in_head = True
        self._head_bytes = 0  # of the head, or of trailers, without the body between them
        self._app_body_bytes = 0
        self._has_body_progress = False  # in this read
        self._rejected = False
        self._declining_upgrade = False

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start waiting for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.router.limits.max_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse requests, unless the read is one request with the same head as the last one."""
        last, begins = self._last, self._between_messages
        if last is not None and begins and self._times.idle_since is not None:
            body = last[0].body_of(data)
            if body is not None:
                self._times.idle_since = None
                self._start(last[1], len(body)).receive_all(body)
                return
        if self._last_with_id is not None and begins and self._times.idle_since is not None:
            found = self._last_with_id[0].split(data)
            if found is not None:
                self._times.idle_since = None
                head = cast(IdRouter[H], self.router).with_id(self._last_with_id[1], found[1])
                self._start(head, len(found[0])).receive_all(found[0])
                return
        if self._rejected:
            return
        self._unset_keepalive_if_required()
        self._times.idle_since = None
        if self._times.waiting_since is None:
            self._times.waiting_since = self.loop.time()
        self._receive(data)
        self._last = self._last_with_id = None
        if begins and self._between_messages:
            self._cache_head(data)

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
                    if self._open_websocket(bytes(rest)):
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

    def _open_websocket(self, rest: bytes) -> bool:
        """Open a WebSocket if the request asks for one that there is; return whether it has been answered.

        Args:
            rest: What follows the request.
        """
        router = self.router
        key = websocket_key(self.parser.get_method(), self.headers)
        current: RequestResponseCycle | None = self.cycle
        is_responding = current is not None and not current.response_complete
        if key is None or is_responding or not isinstance(router, WebSocketRouter):
            return False
        peer = self.client[0] if self.client else None
        try:
            handler = router.match_websocket(self.url, self.headers, peer)
        except UpgradeRejected as rejected:
            self._rejected = True
            self.transport.write(rejected.response)
            self.transport.close()
            return True
        if handler is None:
            return False
        self._rejected = True  # nothing more is parsed as HTTP
        self.connections.discard(self)
        self.transport.write(handshake(key))
        WebSocketConnection(self.transport, handler, self.connections).data_received(rest)
        return True

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

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler of the active request, whether or not others are queued behind it."""
        super().connection_lost(exc)
        if self._active is not None:
            self._active.connection_lost()
        # Requests refer to their connection: leave no cycle to the garbage collector.
        self._active = self._receiving = None
        self._queued.clear()
        self.cycle = None  # type: ignore[assignment]  # as it was at first

    def pause_writing(self) -> None:
        """Tell the handler that the client can't keep up."""
        super().pause_writing()
        if self._active is not None:
            self._active.handler.client_blocked()

    def resume_writing(self) -> None:
        """Tell the handler that the client reads again."""
        super().resume_writing()
        if self._active is not None:
            self._active.handler.client_unblocked()

    # -- httptools callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Reset the state of the request; the ASGI scope is built only where it is used."""
        self._between_messages = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are ignored."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start one of the router's requests, or leave it to uvicorn."""
        parser = self.parser
        if parser.should_upgrade() and self._get_upgrade() is not None:
            self._declining_upgrade = not self._should_upgrade()
            if self._declining_upgrade:
                return
        self._check_head_size()
        self._times.begin_body(self.loop.time())
        self._app_body_bytes = 0
        if not self.url.startswith(b"/"):
            self.url = path_of(self.url)
        peer = self.client[0] if self.client else None
        head = self.router.match(parser.get_method(), self.url, self.headers, peer)
        length = next((v for n, v in self.headers if n == b"content-length"), b"")
        if head is None:
            self._check_app_body(int(length) if length.isdigit() else 0)
        self._in_head = False
        self._head_bytes = 0
        if head is None:
            self._receiving = None
            self._build_scope()
            super().on_headers_complete()
            return
        # A client of HTTP/1.0 would have to be told that the connection is kept, and waits for its end otherwise.
        http_1_1 = parser.get_http_version() != "1.0"
        chunked = any(n == b"transfer-encoding" for n, _ in self.headers)
        self._start(
            head,
            int(length) if length.isdigit() else None if chunked else 0,
            http_1_1=http_1_1,
            keep_alive=http_1_1 and parser.should_keep_alive(),
            expects_continue=http_1_1 and self.expect_100_continue,
        )

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of a request's body."""
        self._times.receive_body(len(body), self.loop.time())
        self._has_body_progress = True
        self._head_bytes = 0
        if self._receiving is not None:
            self._receiving.receive(body)
        elif not self.cycle.response_complete:
            self._app_body_bytes += len(body)
            self._check_app_body(self._app_body_bytes)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Hand on the end of a request; one that offers an upgrade is parsed again instead."""
        if self._declining_upgrade:
            return
        self._between_messages = True
        self._in_head = True
        self._head_bytes = 0
        self._times.waiting_since = None
        if self._receiving is not None:
            self._receiving.receive_all()
        else:
            super().on_message_complete()

    # -- uvicorn callbacks -------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Start the next pipelined request, whichever side serves it."""
        if self.pipeline and isinstance(self.pipeline[-1][0], ServerRequest):
            self.server_state.total_requests += 1
            if self.transport.is_closing():
                return
            self.pipeline.pop()
            # Later, because many small requests that are refused immediately would nest deeply.
            self.loop.call_soon(self._open_queued)
            return
        super().on_response_complete()

    # -- requests ----------------------------------------------------------------------------

    def response_complete(self) -> None:
        """Note that the active request has been answered: the connection waits for the next one.

        This is what uvicorn does then, without the timer that it creates for each request.
        """
        if self.pipeline or self.transport.is_closing():
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._times.idle_since = self.loop.time()

    def resume_reading(self) -> None:
        """Read on, unless many requests are queued already.

        Reading goes on during a response because a closed connection is noticed only then.
        """
        if len(self.pipeline) < _MAX_QUEUED:
            self.flow.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Close the connection if its request takes too long, or if it has been idle for too long."""
        times = self._times
        if times.idle_since is not None and now - times.idle_since > self.timeout_keep_alive:
            self.transport.close()
        if times.waiting_since is None or self.transport.is_closing():
            return
        if self.flow.read_paused:  # the request is not waited for
            times.begin_body(now)
        elif times.is_late(now, self.router.limits, in_head=self._in_head):
            self._reject(408)

    def discount(self, seconds: float) -> None:
        """Count time in which this process stood still against no timeout."""
        self._times.discount(seconds)

    def _start(
        self,
        head: H,
        length: int | None,
        *,
        http_1_1: bool = True,
        keep_alive: bool = True,
        expects_continue: bool = False,
    ) -> ServerRequest:
        request = self._receiving = ServerRequest(
            self,
            length,
            http_1_1=http_1_1,
            keep_alive=keep_alive,
            expects_continue=expects_continue,
        )
        current: RequestResponseCycle | None = self.cycle
        self.cycle = cast(RequestResponseCycle, request)
        request.head = head
        if current is None or current.response_complete:
            self._open(request)
        else:
            self._queued.append(request)
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self._queued) >= _MAX_QUEUED:
                self.flow.pause_reading()
        return request

    def _open(self, request: ServerRequest) -> None:
        self._active = request
        request.open(self.router.handle(request, cast(H, request.head)))

    def _open_queued(self) -> None:
        if not self._queued or self.transport.is_closing():
            return
        request = self._queued.popleft()
        self.flow.resume_reading()
        if not request.complete:
            self._times.begin_body(self.loop.time())
        self._open(request)
        request.deliver_received()

    def _cache_head(self, data: bytes) -> None:
        """Keep the head of the request in a read that holds nothing else, if the parser agrees on where it ends."""
        received = self._receiving
        if received is None or not received.keep_alive or received.expects_continue:
            return
        head = cast(H, received.head)
        if self._has_ids:
            with_id = CachedHeadWithId.from_message(data, cast(IdRouter[H], self.router).id_header)
            found = None if with_id is None else with_id.split(data)
            if with_id is not None and found is not None and len(found[0]) == received.size:
                self._last_with_id = with_id, head
                return
        cached = CachedHead.from_message(data)
        if cached is not None and cached.body_length(data) == received.size:
            self._last = cached, head

    def _build_scope(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers

    @property
    def _max_head_bytes(self) -> int:
        return self.router.limits.max_header_kb * 1024

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
        body = self.router.error_body(status)
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
        """Whether a response has begun, or belongs to an earlier request: another one can't be sent then."""
        current: RequestResponseCycle | ServerRequest | None = self.cycle
        if current is None:
            return False
        if current.response_complete:
            return not self._in_head
        return self._in_head or bool(self.pipeline) or current.response_started


def protocol_for(
    router: Router[H], base: type[HttpProtocol[H]] = HttpProtocol
) -> type[HttpProtocol[H]]:
    """Return the protocol class of a server.

    Args:
        router: Router of its requests.
        base: Class to derive it from.

    Raises:
        RuntimeError: The installed uvicorn can't be used.
    """
    if (reason := incompatibility()) is not None:
        raise RuntimeError(reason)
    has_ids = isinstance(router, IdRouter)
    return type("RoutedProtocol", (base,), {"router": router, "_has_ids": has_ids})
