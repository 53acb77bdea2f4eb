"""Forwarding of one request to a server and of its response back, both as they arrive.

Neither body is collected: a side that can't keep up pauses the other one's reads, and a client that leaves aborts the
server's side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from cortex_http.address import Address
from cortex_http.client import ClientRequest
from cortex_http.downstream import NULL_DOWNSTREAM, Downstream
from cortex_http.headers import FRAMING, HOP_BY_HOP, Headers, content_length, lines
from cortex_http.pool import ConnectError, ConnectionPool
from cortex_http.server_request import ServerRequest
from cortex_http.splice import RawSplice

REPEATABLE_BYTES = 256 * 1024
"""Length of a body up to which a request is kept, so that it can be sent again when an idle connection turns out to be
closed. Longer ones go over a new connection."""

_NOT_TO_CLIENT = HOP_BY_HOP | FRAMING

A = TypeVar("A", bound=Address)


def request_head(
    method: bytes, target: bytes, authority: bytes, header_lines: bytes, length: int | None
) -> bytes:
    """Return the head of a forwarded request.

    Args:
        method: HTTP method.
        target: Path and query at the server.
        authority: Value of the Host header.
        header_lines: Further headers as lines.
        length: Length of the body; None when it is chunked.
    """
    framing = b""
    if length is None:
        framing = b"transfer-encoding: chunked\r\n"
    elif length or method != b"GET":
        framing = b"content-length: %d\r\n" % length
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (
        method,
        target,
        authority,
        framing,
        header_lines,
    )


class Forward(Generic[A]):
    """A request that is being forwarded; both its `RequestHandler` and the `ResponseHandler` of the server's response.

    Args:
        request: The client's side.
        pool: Pool of connections.
        address: Where the request goes.
        head: Its head, see `request_head`.
        on_error: Called when no response can be had, with the reason, which is an exception if no connection could be
            made; it answers with `refuse`.
        on_end: Called once, when the request has ended in whichever way; with the reason if the response broke off.

    Attributes:
        address: Where the request goes.
        uploaded: Whether the request's body has arrived whole.
        finished: Whether it has ended.
    """

    def __init__(
        self,
        request: ServerRequest,
        pool: ConnectionPool[A],
        address: A,
        head: bytes,
        *,
        on_error: Callable[[Forward[A], str | ConnectError], None],
        on_end: Callable[[str | None], None],
    ) -> None:
        self.address = address
        self.uploaded = False
        self.finished = False
        self._client: Downstream = request
        self._chunked = request.length is None
        self._on_error = on_error
        self._on_end = on_end
        self._started = False
        self._responding = False
        self._server: ClientRequest[A] | None = ClientRequest(
            pool,
            address,
            head,
            b"",
            self,
            self._connect_failed,
            repeatable=request.length is not None and request.length <= REPEATABLE_BYTES,
            complete=False,
        )

    def refuse(self, status: int, header_lines: bytes, body: bytes) -> None:
        """Answer with an error instead of the server's response."""
        self._client.respond(status, header_lines, len(body))
        self._client.write(body)
        self._client.end()
        self._finish()

    # -- from the client: `RequestHandler` ----------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Forward a piece of the body."""
        self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if self._server is not None and not self._server.connected:
            self._client.pause_reading()

    def receive_all(self, body: bytes | None) -> None:
        """Forward the whole body, or the end of a chunked one."""
        self.uploaded = True
        if self._server is not None:
            self._server.finish()
        if body is None:
            body = b"0\r\n\r\n" if self._chunked else b""
        if body or not self._started:
            self._send(body)

    def _send(self, data: bytes) -> None:
        if self._server is None:
            return
        self._server.write(data)
        if not self._started:
            self._started = True
            self._server.start()

    def client_gone(self) -> None:
        """Abort the server's side."""
        self._finish()

    def client_blocked(self) -> None:
        """Stop reading the response."""
        if self._server is not None:
            self._server.pause()

    def client_unblocked(self) -> None:
        """Read the response again."""
        if self._server is not None:
            self._server.resume()

    # -- from the server: `ResponseHandler` ---------------------------------------------------

    def request_blocked(self) -> None:
        """Stop reading the request's body."""
        self._client.pause_reading()

    def request_unblocked(self) -> None:
        """Read the request's body again."""
        self._client.resume_reading()

    def response_head(self, status: int, headers: Headers) -> None:
        """Forward the head without hop-by-hop headers."""
        self._responding = True
        kept = [header for header in headers if header[0] not in _NOT_TO_CLIENT]
        self._client.respond(status, lines(kept), content_length(dict(headers)))

    def response_data(self, data: bytes) -> None:
        """Forward a piece of the body."""
        self._client.write(data)

    def response_flush(self) -> None:
        """Send what was forwarded."""
        self._client.flush()

    def response_splice(self) -> RawSplice | None:
        """Forward the chunks that follow as they are, when both sides use chunks."""
        transport = self._client.chunked_transport()
        return None if transport is None else RawSplice(transport, self.address.size_lines)

    def response_end(self) -> None:
        """Finish the response."""
        self._server = None  # its connection is in the pool already, and must not be aborted
        self._client.end()
        self._finish()

    def response_lost(self, reason: str) -> None:
        """Break the response off as the server did, or have the request refused when there is none yet."""
        if self._responding:
            self._client.abort()
            self._finish(reason)
        else:
            self._on_error(self, reason)

    def _connect_failed(self, error: ConnectError) -> None:
        self._on_error(self, error)

    def _finish(self, reason: str | None = None) -> None:
        if not self.finished:
            self.finished = True
            if self._server is not None:
                self._server.abort()
            # Both refer to this: leave no cycle to the garbage collector.
            self._server = None
            self._client = NULL_DOWNSTREAM
            self._on_end(reason)
