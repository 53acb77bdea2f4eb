"""One connection from the gateway to an engine: an asyncio.Protocol that rests in its pool between requests.

Nothing here awaits anything. An answer comes to its `UpstreamHandler` as plain calls; what one read of the
socket brought is handed on as one piece.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from cortex_http.head_cache import CachedHead

if TYPE_CHECKING:
    from cortex_server.dataplane.pool import Address, ConnectionPool
    from cortex_server.proxy.stream_fast_path import SizeLines, StreamFastPath

Headers = list[tuple[bytes, bytes]]

_JOIN_BELOW = 64 * 1024
"""Up to this size head and body go out as one piece: copying them costs less than a second system call."""


_OK = 200

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
"""Headers that tell where a body ends."""


class UpstreamHandler(Protocol):
    """Whoever asked. Calls come in this order: head, data any number of times, then end or lost.

    `upstream_read` follows when all that one read of the socket brought has been told, so that it can be passed on with
    one write.
    """

    def upstream_head(self, status: int, headers: Headers) -> None:
        """Status and headers have come; header names are in lower case."""

    def upstream_data(self, data: bytes) -> None:
        """A piece of the body, decoded from its framing."""

    def upstream_read(self) -> None:
        """Nothing more has come for now."""

    def upstream_lane(self, sizes: SizeLines) -> StreamFastPath | None:
        """What may stand in for this connection, so that the calls above come only for chunks that it does not take.

        Args:
            sizes: the lines that the engine wrote before chunks; to be kept up.
        """

    def upstream_end(self) -> None:
        """The answer is whole, and the connection already back in its pool."""

    def upstream_lost(self, reason: str, *, answered: bool) -> None:
        """The connection broke; `answered` when at least one byte of the answer had come."""


class Connection(asyncio.Protocol):
    """One connection; serves one request at a time, then rests in its pool.

    Args:
        pool: where it rests.
        endpoint: where it leads.
    """

    __slots__ = (
        "_chunk_over",
        "_complete",
        "_excess",
        "_framed",
        "_head",
        "_headers",
        "_last",
        "_lasting",
        "_parser",
        "_paused",
        "_pieces",
        "_pool",
        "_receiver",
        "_seen",
        "_status",
        "_told",
        "_transport",
        "endpoint",
        "rested_at",
    )

    def __init__(self, pool: ConnectionPool, endpoint: Address) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: UpstreamHandler | None = None
        self._pieces: list[bytes] = []
        self._paused = False
        self.rested_at = 0.0
        self._seen = False
        self._reset()
        self._last: tuple[CachedHead, Headers] | None = (
            None  # the last answer's head, where it may come again
        )
        self._parser = httptools.HttpResponseParser(self)

    def _reset(self) -> None:
        """Forget what the parser told of the answer before."""
        self._headers: Headers = []
        self._head = False
        self._lasting = False
        self._framed = False
        self._complete = False
        self._excess = False
        self._status = 0
        self._told = False
        self._chunk_over = False

    # -- the asking side ---------------------------------------------------------------------

    def send(self, head: bytes, body: bytes, receiver: UpstreamHandler) -> None:
        """Send a request whose answer goes to `receiver`."""
        assert self._transport is not None
        self._receiver = receiver
        self._seen = False
        if len(body) < _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def abort(self) -> None:
        """Close at once; the receiver hears nothing more. This is how an engine learns to stop."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close a resting connection."""
        if self._transport is not None:
            self._transport.close()

    def pause(self) -> None:
        """Read no more for now: the client does not keep up."""
        if self._transport is not None and self._receiver is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._pool.live += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self._transport = None
        self._pool.live -= 1
        self._pool.forget(self)
        del self._parser  # it knows this connection: no cycle is left to the garbage collector
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._seen and self._head and not self._framed and exc is None:
            # Neither a length nor chunks were announced: the end of the connection is the end of the body.
            receiver.upstream_end()
        else:
            reason = "it closed the connection" if exc is None else str(exc)
            receiver.upstream_lost(reason, answered=self._seen)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        receiver = self._receiver
        if receiver is None:  # nobody asked: whatever this is, it must not become an answer
            self.abort()
            return
        begins, self._seen = not self._seen, True
        if begins:
            if self._last is not None:
                repeat, headers = self._last
                body = repeat.body_of(data)
                if body is not None:
                    self._told_again(receiver, headers, body)
                    return
            self._reset()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as failed:
            self._garbage(f"the engine's answer is not HTTP: {failed}")
            return
        self._last = self._repeatable(data) if begins and self._complete else None
        self._hand_on()
        # A whole chunk where the parser expects one need not pass through it: it then still expects the next. Of that
        # one's line nothing may have been read: after its end the chunk counts as begun.
        if self._chunk_over and self._receiver is receiver and data.endswith(b"\r\n"):
            self._enter(receiver.upstream_lane(self.endpoint.size_lines))

    def _enter(self, lane: StreamFastPath | None) -> None:
        if lane is not None and self._transport is not None:
            lane.take(self._transport, self)

    def _repeatable(self, data: bytes) -> tuple[CachedHead, Headers] | None:
        """The head of an answer that one read brought whole, as the parser found too."""
        if self._status != _OK or self._excess or not self._lasting:
            return None
        repeat = CachedHead.of(data)
        if repeat is None or repeat.size_of(data) != sum(map(len, self._pieces)):
            return None
        return repeat, [h for h in self._headers if h[0] != b"content-length"]

    def _told_again(self, receiver: UpstreamHandler, headers: Headers, body: bytes) -> None:
        """Tell an answer with a head like the last one's; the receiver may abort this connection at any call."""
        receiver.upstream_head(_OK, [*headers, (b"content-length", b"%d" % len(body))])
        if body and self._receiver is not None:
            receiver.upstream_data(body)
        self._finish(lasting=True)

    def _hand_on(self) -> None:
        """Tell the receiver what one read brought; it may abort this connection at any of the calls."""
        if self._head and not self._told and self._receiver is not None:
            self._told = True
            self._receiver.upstream_head(self._status, self._headers)
        pieces = self._pieces
        if pieces and self._receiver is not None:
            self._pieces = []
            self._receiver.upstream_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            self._finish(lasting=self._lasting and not self._excess)
        elif self._receiver is not None:
            self._receiver.upstream_read()

    # -- httptools ---------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._excess = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._excess:
            return
        self._status = self._parser.get_status_code()
        if 100 <= self._status < 200:  # an interim answer: the real one follows
            self._headers = []
            return
        self._head = True
        self._framed = self._status in (204, 304) or any(h[0] in _FRAMING for h in self._headers)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self._excess:
            self._pieces.append(body)

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        """Called by the parser."""
        self._chunk_over = True

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._chunk_over = False
        if self._head and not self._complete:
            self._complete = True
            self._lasting = (
                self._parser.should_keep_alive()
            )  # the parser forgets it after this call

    def _finish(self, *, lasting: bool) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None or self._transport is None:  # it was aborted, and is about to be closed
            return
        if not lasting:
            self.close()
        else:
            if self._paused:
                # By the last piece: whoever comes next would wait for an answer that nobody reads.
                self.resume()
            self._pool.rest(self)
        receiver.upstream_end()

    def _garbage(self, reason: str) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.upstream_lost(reason, answered=True)
