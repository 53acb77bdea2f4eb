"""HTTP server protocol: the routes of a handler are served on the transport itself, everything else by an ASGI app.

uvicorn's protocol parses every request. When the head of one of the handler's requests is complete, no ASGI task is
started: a `ServerRequest` is created, and the handler writes to the transport through it, without a task, a queue or an
event per piece. Compared with plain ASGI this halves the cost of a request. Requests of either kind can be pipelined.

Unlike uvicorn's protocol it also

- limits the size of heads, the time that heads and bodies take, and the number of connections. A timer for each request
  would cost a microsecond; here a request notes when it was last waited for, and `check_timeouts`, called once a
  second, finds those that take too long.
- declines every offer to switch to another protocol, as RFC 9110 (7.8) allows. Java's HttpClient offers HTTP/2 (h2c)
  with its first request and sends that request's body either way. httptools takes what follows such a head for the
  other protocol and would lose the body, so the request is parsed again without the offer.

Written against uvicorn 0.32 to 0.54; `incompatibility` says at startup whether what this uses is there.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, runtime_checkable

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cortex_http.head_cache import CachedHead, CachedHeadWithId
from cortex_http.headers import Headers
from cortex_http.server_request import RequestHandler, ServerRequest

_USED = (
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "_get_upgrade",
    "_should_upgrade",
    "_unsupported_upgrade_warning",
)

_MAX_QUEUED = 16
"""Pipelined requests of a connection from which on it is not read."""

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def incompatibility() -> str | None:
    """Return why the installed uvicorn can't be used; None when it can."""
    missing = [name for name in _USED if not callable(getattr(HttpToolsProtocol, name, None))]
    return f"uvicorn's HttpToolsProtocol has no {', '.join(missing)}" if missing else None


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
        """Return the JSON body of a response to a request that the protocol rejects: 408 or 431."""
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
        self._waiting_since: float | None = None
        self._idle_since: float | None = None
        self._in_head = True
        self._head_bytes = 0
        self._rejected = False
        self._read: bytes = b""
        self._declining_upgrade = False

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self.router.limits.max_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse requests, unless the read is one request with the same head as the last one."""
        last, begins = self._last, self._between_messages
        if last is not None and begins and self._idle_since is not None:
            body = last[0].body_of(data)
            if body is not None:
                self._idle_since = None
                self._start(last[1], len(body)).receive_all(body)
                return
        if self._last_with_id is not None and begins and self._idle_since is not None:
            found = self._last_with_id[0].split(data)
            if found is not None:
                self._idle_since = None
                head = cast(IdRouter[H], self.router).with_id(self._last_with_id[1], found[1])
                self._start(head, len(found[0])).receive_all(found[0])
                return
        self._idle_since = None
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()
        if self._in_head:
            self._head_bytes += len(data)
        self._read = data
        super().data_received(data)
        self._read = b""
        if self._in_head and self._head_bytes > self.router.limits.max_header_kb * 1024:
            self._reject(431)
        self._last = self._last_with_id = None
        if begins and self._between_messages:
            self._cache_head(data)

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

    def on_headers_complete(self) -> None:
        """Start one of the router's requests, or leave it to uvicorn."""
        parser = self.parser
        if parser.should_upgrade() and self._get_upgrade() is not None:
            self._declining_upgrade = not self._should_upgrade()
            if self._declining_upgrade:
                return
        self._check_head_size()
        self._in_head = False
        self._waiting_since = self.loop.time()
        peer = self.client[0] if self.client else None
        head = self.router.match(parser.get_method(), self.url, self.headers, peer)
        if head is None:
            self._receiving = None
            self._build_scope()
            super().on_headers_complete()
            return
        # A client of HTTP/1.0 would have to be told that the connection is kept, and waits for its end otherwise.
        http_1_1 = parser.get_http_version() != "1.0"
        length = next((v for n, v in self.headers if n == b"content-length"), b"")
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
        self._waiting_since = self.loop.time()
        if self._receiving is not None:
            self._receiving.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Hand on the end of a request; one that offers an upgrade is parsed again instead."""
        if self._declining_upgrade:
            return
        self._between_messages = True
        self._in_head = True
        self._head_bytes = 0
        self._waiting_since = None
        if self._receiving is not None:
            self._receiving.receive_all()
        else:
            super().on_message_complete()

    # -- uvicorn callbacks -------------------------------------------------------------------

    def _unsupported_upgrade_warning(self) -> None:
        """Parse a request again without its offer to upgrade.

        uvicorn calls this while it handles the parser's HttpParserUpgrade, which says where the head ended.
        """
        if not self._declining_upgrade:  # a CONNECT
            super()._unsupported_upgrade_warning()
            return
        self._declining_upgrade = False
        upgrade = sys.exc_info()[1]
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        rest = self._read[upgrade.args[0] :]
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, unless a response is being sent or the request was rejected already."""
        if self._active is not None and not self._active.response_complete:
            self._active.connection_lost()
            self.transport.abort()
        elif not self._rejected:
            super().send_400_response(msg)

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
        self._idle_since = self.loop.time()

    def resume_reading(self) -> None:
        """Read on, unless many requests are queued already.

        Reading goes on during a response because a closed connection is noticed only then.
        """
        if len(self.pipeline) < _MAX_QUEUED:
            self.flow.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Close the connection if its request takes too long, or if it has been idle for too long."""
        if self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()
        if self._waiting_since is None or self.transport.is_closing():
            return
        if self.flow.read_paused:  # the request is not waited for
            self._waiting_since = now
            return
        waited = now - self._waiting_since
        limits = self.router.limits
        if self._in_head and waited > limits.header_timeout_s:
            self._reject(408)
        elif not self._in_head and waited > limits.body_timeout_s:
            self.transport.abort()

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
            self._waiting_since = self.loop.time()
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

    def _check_head_size(self) -> None:
        """Check the size of a complete head.

        Raises:
            HttpParserError: It is too large; the client has been answered.
        """
        limit = self.router.limits.max_header_kb * 1024
        # What came in one read with the head may be its body, so it is counted only where it could be too large.
        if self._head_bytes > limit and sum(len(n) + len(v) + 4 for n, v in self.headers) > limit:
            self._reject(431)
            raise httptools.HttpParserError("the head is too large")

    def _reject(self, status: int) -> None:
        """Answer, unless a response is being sent, and close."""
        if self._rejected:
            return
        self._rejected = True
        current: RequestResponseCycle | None = self.cycle
        if current is not None and not current.response_complete:
            self.transport.abort()
            return
        if self._head_bytes:
            body = self.router.error_body(status)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b" % (status, _REASONS[status], len(body), body)
            )
        self.transport.close()


def protocol_for(router: Router[H]) -> type[HttpProtocol[H]]:
    """Return the protocol class of a server.

    Raises:
        RuntimeError: The installed uvicorn can't be used.
    """
    if (reason := incompatibility()) is not None:
        raise RuntimeError(reason)
    has_ids = isinstance(router, IdRouter)
    return type("RoutedProtocol", (HttpProtocol,), {"router": router, "_has_ids": has_ids})
