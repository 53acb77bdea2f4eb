"""HTTP server protocol: the routes of a handler are served on the transport itself, everything else by an ASGI app.

uvicorn's protocol parses every request. When the head of one of the handler's requests is complete, no ASGI task is
started: a `ServerRequest` is created, and the handler writes to the transport through it, without a task, a queue or an
event per piece. Compared with plain ASGI this halves the cost of a request. Requests of either kind can be pipelined.

It also opens WebSockets, on the paths that the router serves. Limits are in `limited_protocol`.

Written against uvicorn 0.32 to 0.54; `incompatibility` says at startup whether what this uses is there.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Generic, TypeVar, cast

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cortex_http.head_cache import CachedHead, CachedHeadWithId
from cortex_http.limited_protocol import LimitedHttpProtocol
from cortex_http.routing import IdRouter, Limits, Router, WebSocketRouter
from cortex_http.server_request import ServerRequest
from cortex_http.websocket_connection import (
    UpgradeRejected,
    WebSocketConnection,
    handshake,
    websocket_key,
)

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


def incompatibility() -> str | None:
    """Return why the installed uvicorn can't be used; None when it can."""
    missing = [name for name in _USED if not callable(getattr(HttpToolsProtocol, name, None))]
    return f"uvicorn's HttpToolsProtocol has no {', '.join(missing)}" if missing else None


H = TypeVar("H")


class HttpProtocol(LimitedHttpProtocol, Generic[H]):
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

    @property
    @override
    def limits(self) -> Limits:
        return self.router.limits

    @override
    def error_body(self, status: int) -> bytes:
        return self.router.error_body(status)

    # -- asyncio.Protocol --------------------------------------------------------------------

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

    @override
    def accept_upgrade(self, rest: bytes) -> bool:
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

    def on_headers_complete(self) -> None:
        """Start one of the router's requests, or leave it to uvicorn."""
        if self._begin_body():
            return
        parser = self.parser
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
        # A client of HTTP/1.0 would need a header that the connection is kept, and waits for its end otherwise.
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
        self._count_body(len(body))
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
        self._end_message()
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

        Reading continues during a response because a closed connection is noticed only then.
        """
        if len(self.pipeline) < _MAX_QUEUED:
            self.flow.resume_reading()

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
