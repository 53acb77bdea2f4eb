"""The fast face: inference routes handled inside uvicorn's HTTP protocol, everything else left to it.

uvicorn parses the request as always. When the headers of an inference request are complete, we do not start an ASGI
task but an `ProxyRequest`, and write to the transport ourselves: no task, no queue, no event per piece. Measured
against plain ASGI this halves a request's cost. What is not diverted (Expect: 100-continue, a pipelined request, any
other path) takes uvicorn's own way, where `asgi` is the face for the same routes.

Works with uvicorn 0.32 to 0.54; `compatible` says at start whether what we lean on is there.
"""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from cortex_common.config.access import LimitsSection
from cortex_common.errors import BodyTooLarge, CortexError
from cortex_common.log import event
from cortex_common.net.sockets import is_peer_unresponsive
from cortex_http.client import Headers
from cortex_http.head_cache import CachedHead
from cortex_http.headers import lines
from cortex_server.dataplane.patience import PatientProtocol
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.request_head import RequestHead
from cortex_server.proxy.routes import ROUTES

log = logging.getLogger("cortex.gateway")

_LINGER_S = 10.0
"""Seconds to go on reading a body that was already refused: closing at once would reset the connection, and the
client would never see why."""

_READ_ANYWAY = 64 * 1024
"""Bytes of a refused body up to which the connection is kept."""

_USED = (
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "_get_upgrade",
    "_should_upgrade",
    "_unsupported_upgrade_warning",
)


def compatible() -> str | None:
    """Why this uvicorn can't be used with diversion; None when it can."""
    missing = [name for name in _USED if not callable(getattr(HttpToolsProtocol, name, None))]
    return f"uvicorn's HttpToolsProtocol has no {', '.join(missing)}" if missing else None


class _NoEvent:
    """Stands where uvicorn expects the event that would wake an ASGI task."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class _Ours:
    """The headers that uvicorn puts into every answer, as lines; it makes a new list of them once a second."""

    def __init__(self) -> None:
        self._headers: Headers = []
        self._lines = b""

    def lines(self, headers: Headers) -> bytes:
        """Those of the list."""
        if headers is not self._headers:
            self._headers, self._lines = headers, lines(headers)
        return self._lines


_OURS = _Ours()


class Diverted:
    """One diverted request: the client's side of an `ProxyRequest`, in the place of uvicorn's own cycle.

    Args:
        protocol: of its connection.
        plane: what all requests share.
        asking: its head.
        announced: bytes that its body will have, where the head says.
        modern: the client speaks HTTP/1.1.
        keep_alive: its connection may take another request.

    Attributes:
        size: bytes of its body so far.
    """

    __slots__ = (
        "_announced",
        "_body",
        "_chunked",
        "_held",
        "_limit",
        "_lingering",
        "_modern",
        "_protocol",
        "complete",
        "disconnected",
        "exchange",
        "keep_alive",
        "message_event",
        "response_complete",
        "size",
    )

    def __init__(
        self,
        protocol: DivertingProtocol,
        context: ProxyContext,
        head: RequestHead,
        announced: int | None,
        *,
        modern: bool,
        keep_alive: bool,
    ) -> None:
        self._protocol = protocol
        self._body: list[bytes] = []
        self._held: list[bytes] = []
        self.size = 0
        self._modern = modern
        self._chunked = False
        self._lingering: asyncio.TimerHandle | None = None
        self.complete = False
        # What uvicorn reads or sets on its own cycles.
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT
        self.keep_alive = keep_alive
        self.exchange = ProxyRequest(context, self, head)
        self._announced = announced
        self._limit = context.max_body
        if self.exchange.admit() and (self._announced or 0) > self._limit:
            self._too_large()

    # -- the request -------------------------------------------------------------------------

    @property
    def _ends_soon(self) -> bool:
        """Whether so little of the body is to come that reading it costs less than another connection."""
        return self._announced is not None and self._announced <= _READ_ANYWAY

    def _too_large(self) -> None:
        self._body.clear()
        self.exchange.refuse(body_too_large(self._limit))

    def receive(self, data: bytes) -> None:
        """A piece of the request's body."""
        if self.exchange.finished:
            return
        self.size += len(data)
        self._body.append(data)
        if self.size > self._limit:
            self._too_large()

    def received(self, body: bytes | None = None) -> None:
        """The request is whole; its body comes with this, or has come in pieces."""
        self.complete = True
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
            if not self.keep_alive:
                self._protocol.transport.close()
        elif not self.exchange.finished:
            pieces, self._body = self._body, []
            self.exchange.start(b"".join(pieces) if body is None else body)

    def gone(self) -> None:
        """The connection is closed."""
        if self._lingering is not None:
            self._lingering.cancel()
        self.response_complete = True
        self.exchange.client_gone()

    # -- the answer: `Downstream` ------------------------------------------------------------

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """See `Downstream`."""
        if not self.complete and not self._ends_soon:
            self.keep_alive = False
        self._chunked = length is None and self._modern
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:  # to HTTP/1.0 only the end of the connection can tell the end of the body
            self.keep_alive, framing = False, b""
        ours = _OURS.lines(self._protocol.server_state.default_headers)
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._held = [STATUS_LINE[status], ours, lines, framing, end]

    def write(self, data: bytes) -> None:
        """See `Downstream`."""
        if self._chunked:
            self._held += (_size_line(len(data)), data, b"\r\n")
        else:
            self._held.append(data)

    def flush(self) -> None:
        """See `Downstream`."""
        held = self._held
        if held:
            self._held = []
            self._protocol.transport.write(b"".join(held))

    def chunked(self) -> asyncio.Transport | None:
        """See `Downstream`."""
        return self._protocol.transport if self._chunked and not self._held else None

    def end(self) -> None:
        """See `Downstream`."""
        if self._chunked:
            self._held.append(b"0\r\n\r\n")
        self.flush()
        transport = self._protocol.transport
        self.response_complete = True
        if not self.complete:
            self._lingering = self._protocol.loop.call_later(_LINGER_S, transport.close)
        elif not self.keep_alive:
            transport.close()
        self._protocol.rest()

    def abort(self) -> None:
        """See `Downstream`."""
        self.response_complete = True
        self._protocol.transport.abort()

    def vanished(self) -> bool:
        """See `Downstream`."""
        transport = self._protocol.transport
        return not transport.is_closing() and is_peer_unresponsive(
            transport.get_extra_info("socket")
        )


class DivertingProtocol(PatientProtocol):
    """uvicorn's protocol with a branch for the inference routes; see the module."""

    context: ProxyContext
    """Set on a subclass for each gateway: uvicorn makes the protocols, so there is no other way in."""

    @property
    def limits(self) -> LimitsSection:  # type: ignore[override]  # they change while it runs
        """How long and how much it takes."""
        return self.context.limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._diverted: Diverted | None = None
        self._receiving: Diverted | None = None
        self._between = True  # no message has begun
        self._last: tuple[CachedHead, RequestHead] | None = (
            None  # the last head, where it may come again
        )

    def data_received(self, data: bytes) -> None:
        """Bytes of requests; the parser is spared one like the last."""
        last, begins = self._last, self._between
        if last is not None and begins and self._idle_since is not None:
            body = last[0].body_of(data)
            if body is not None:
                self._idle_since = None
                self._divert(last[1], len(body)).received(body)
                return
        super().data_received(data)
        self._last = self._repeatable(data) if begins and self._between else None

    def _repeatable(self, data: bytes) -> tuple[CachedHead, RequestHead] | None:
        """The head of the request that a read brought, if it brought one whole request, as the parser found too."""
        received = self._receiving
        if received is None or not received.keep_alive:
            return None
        repeat = CachedHead.of(data)
        if repeat is None or repeat.size_of(data) != received.size:
            return None
        return repeat, received.exchange.head

    def on_message_begin(self) -> None:
        """Called by the parser. The ASGI scope is only built where it will be used."""
        self._between = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        path, _, query = self.url.partition(b"?")
        route = ROUTES.get(path)
        current: RequestResponseCycle | None = self.cycle
        if (
            route is None
            or (current is not None and not current.response_complete)
            or self.expect_100_continue
            or self.parser.get_method() != b"POST"
            or self.parser.should_upgrade()
        ):
            self._receiving = None
            self._build_scope()
            super().on_headers_complete()
            return
        self.head_complete()
        peer = self.client[0] if self.client else None
        head, length = RequestHead.of(route, query, self.headers, peer)
        # As uvicorn: a client of HTTP/1.0 would have to be told that it may go on, and waits for the end until it is.
        modern = self.parser.get_http_version() != "1.0"
        keep_alive = modern and self.parser.should_keep_alive()
        self._divert(head, length, modern=modern, keep_alive=keep_alive)

    def _divert(
        self,
        head: RequestHead,
        length: int | None,
        *,
        modern: bool = True,
        keep_alive: bool = True,
    ) -> Diverted:
        diverted = self._diverted = self._receiving = Diverted(
            self, self.context, head, length, modern=modern, keep_alive=keep_alive
        )
        self.cycle = cast(RequestResponseCycle, diverted)
        return diverted

    def _build_scope(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if self._receiving is not None:
            self._since = self.loop.time()
            self._receiving.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._between = True
        if self._receiving is not None:
            self.request_complete()
            self._receiving.received()
        else:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Bytes that are no request: in the middle of an answer there is no place for a 400."""
        if self._diverted is not None and not self._diverted.response_complete:
            self._diverted.gone()
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; a diverted request may be under way even when a pipelined one came after it."""
        super().connection_lost(exc)
        if self._diverted is not None:
            self._diverted.gone()
        # The request knows its connection: let go of it, so that no cycle is left to the garbage collector.
        self._diverted = self._receiving = None
        self.cycle = None  # type: ignore[assignment]  # as uvicorn begins

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        super().pause_writing()
        if self._diverted is not None:
            self._diverted.exchange.client_full()

    def resume_writing(self) -> None:
        """The transport's buffer is empty again."""
        super().resume_writing()
        if self._diverted is not None:
            self._diverted.exchange.client_drained()


@lru_cache(maxsize=1024)
def _size_line(size: int) -> bytes:
    """The line before a chunk; the events of a stream are of few different sizes."""
    return b"%x\r\n" % size


def body_too_large(limit: int) -> CortexError:
    """The error for a body over the limit."""
    return BodyTooLarge(
        f"the body is larger than {limit // (1024 * 1024)} MiB",
        hints=["[gateway] max_body_mb in cortex.toml sets the limit"],
        details={"limit_bytes": limit},
    )


def protocol_for(context: ProxyContext) -> type[DivertingProtocol] | str:
    """What uvicorn is to speak HTTP with: the fast face of a data plane, or its own where that is not possible."""
    reason = compatible()
    if reason is not None:
        event(log, "diversion_off", logging.WARNING, reason=reason)
        return "httptools"
    return type("GatewayProtocol", (DivertingProtocol,), {"context": context})
