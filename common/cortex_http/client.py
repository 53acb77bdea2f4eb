"""Requests to servers that survive a stale connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from cortex_http.address import Address
from cortex_http.connection import Connection, ResponseHandler
from cortex_http.pool import ConnectError, ConnectionPool

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Address)


class ClientRequest(Generic[A]):
    """A request to one server, over an idle connection or a new one.

    A server may close an idle connection just as a request is sent over it. If that happens before the first byte of
    the response, the request is sent once more over a new connection.

    Args:
        pool: Pool of connections.
        address: Where the request goes.
        head: Request line and headers, the blank line included.
        body: The body, or what has arrived of it; `write` sends more.
        handler: Receives the response.
        on_failed: Called instead when no connection could be made.
        repeatable: Whether everything that is sent is kept until the response begins. If not, the request goes over a
            new connection, which can't be stale.
        complete: Whether the body is whole; if not, `finish` says when it is.

    Attributes:
        address: Where the request goes.
    """

    __slots__ = (
        "_body",
        "_complete",
        "_connecting",
        "_connection",
        "_handler",
        "_head",
        "_is_new",
        "_on_failed",
        "_paused",
        "_pool",
        "_repeatable",
        "address",
    )

    def __init__(
        self,
        pool: ConnectionPool[A],
        address: A,
        head: bytes,
        body: bytes,
        handler: ResponseHandler,
        on_failed: Callable[[ConnectError], None],
        *,
        repeatable: bool = True,
        complete: bool = True,
    ) -> None:
        self._pool = pool
        self.address = address
        self._head = head
        self._body = body
        self._handler = handler
        self._on_failed = on_failed
        self._repeatable = repeatable
        self._complete = complete
        self._connecting: asyncio.Task[None] | None = None
        self._connection: Connection[A] | None = None
        self._is_new = False
        self._paused = False

    def start(self) -> None:
        """Send the request over an idle connection, or open one first."""
        connection = self._pool.take_idle(self.address) if self._repeatable else None
        if connection is not None:
            self._send(connection)
        else:
            self._open()

    @property
    def connected(self) -> bool:
        """Whether the request is being sent; before that, what is written is kept in memory."""
        return self._connection is not None

    def is_unresponsive(self, seconds: float) -> bool:
        """Return whether the server's host has not acknowledged what was sent for so many seconds."""
        return self._connection is not None and self._connection.is_unresponsive(seconds)

    def write(self, data: bytes) -> None:
        """Send more of the body."""
        if self._repeatable or self._connection is None:
            self._body += data
        if self._connection is not None:
            self._connection.write(data)

    def finish(self) -> None:
        """Note that the body has been written whole."""
        self._complete = True
        if self._connection is not None:
            self._connection.request_complete = True

    def abort(self) -> None:
        """Cancel the request; the server sees its connection close."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def pause(self) -> None:
        """Stop reading the response."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read the response again."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def _lost(self, reason: str, answered: bool) -> None:
        self._connection = None
        if answered or self._is_new:
            self._handler.response_lost(reason)
        else:
            self._open()

    def _open(self) -> None:
        self._is_new = True
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._pool.connect(self.address)
        except ConnectError as failed:
            self._connecting = None
            self._on_failed(failed)
        except Exception as failed:
            log.exception("connect_failed")
            self._connecting = None
            self._on_failed(ConnectError(self.address.where, repr(failed)))
        else:
            self._connecting = None
            self._send(connection)

    def _send(self, connection: Connection[A]) -> None:
        self._connection = connection
        body = self._body
        if not self._repeatable:
            self._body = b""
        connection.request_complete = self._complete
        connection.send(self._head, body, self._handler, self._lost)
        if self._paused:
            connection.pause()
        if self._is_new:
            self._handler.request_unblocked()
