"""HTTP client: addresses, a pool of kept-alive connections, and requests that survive a stale one."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from cortex_http.connection import Connection, ResponseHandler
from cortex_http.sockets import enable_keepalive

log = logging.getLogger(__name__)


class ConnectError(Exception):
    """No connection could be made.

    Attributes:
        where: Host and port, or the path of the Unix socket.
        reason: What went wrong.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class ConnectTimeout(ConnectError):
    """The server did not accept a connection in time."""


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """Where a server listens. Compared by identity: make one instance for each server.

    Attributes:
        host: Host name or IP address; empty for a Unix socket.
        port: TCP port.
        prefix: Path before the routes, without a trailing slash.
        authority: Value of the Host header.
        tls: TLS settings; None for plain HTTP.
        uds: Path of a Unix socket, instead of host and port.
        size_lines: Size lines of the chunks that this server sent, by the length of the whole chunk; see `splice`.
    """

    host: str
    port: int
    prefix: bytes
    authority: bytes
    tls: ssl.SSLContext | None = None
    uds: str | None = None
    size_lines: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> str:
        """The address as text for messages."""
        return self.uds or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """The parts of a URL that requests can be sent to; see `Address`."""

    host: str
    port: int
    prefix: bytes
    authority: bytes
    https: bool = False
    uds: str | None = None


def parse_url(url: str) -> ParsedUrl:
    """Split http://host:port/prefix, https://..., or http+unix://%2Frun%2Fserver.sock/prefix.

    Raises:
        ValueError: It is none of these.
    """
    parts = urlsplit(url)
    prefix = parts.path.rstrip("/").encode()
    if parts.scheme == "http+unix" and parts.netloc:
        path = parts.netloc.replace("%2F", "/").replace("%2f", "/")
        return ParsedUrl("", 0, prefix, b"localhost", uds=path)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL that requests can be sent to")
    https = parts.scheme == "https"
    port = parts.port or (443 if https else 80)
    return ParsedUrl(parts.hostname, port, prefix, parts.netloc.encode(), https)


A = TypeVar("A", bound=Address)


class ConnectionPool(Generic[A]):
    """Kept-alive connections by address.

    Args:
        connect_timeout_s: Seconds to wait for a new connection.
        idle_s: Seconds after which an unused connection is closed.

    Attributes:
        connect_timeout_s: Seconds to wait for a new connection.
        live: Number of open connections, in use or idle.
    """

    def __init__(self, *, connect_timeout_s: float, idle_s: float = 30.0) -> None:
        self.connect_timeout_s = connect_timeout_s
        self.live = 0
        self._idle_s = idle_s
        self._idle: dict[A, list[Connection[A]]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def take_idle(self, address: A) -> Connection[A] | None:
        """Take an idle connection: the one used last, which is the least likely to have been closed."""
        idle = self._idle.get(address)
        return idle.pop() if idle else None

    async def connect(self, address: A) -> Connection[A]:
        """Open a connection.

        Raises:
            ConnectTimeout: The server did not accept it in time.
            ConnectError: It was refused, or there is no such host.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                if address.uds is not None:
                    _, connection = await loop.create_unix_connection(
                        lambda: Connection(self, address), address.uds
                    )
                else:
                    transport, connection = await loop.create_connection(
                        lambda: Connection(self, address),
                        address.host,
                        address.port,
                        ssl=address.tls,
                    )
                    enable_keepalive(transport.get_extra_info("socket"))
        except TimeoutError as failed:
            reason = f"no connection within {self.connect_timeout_s:g} s"
            raise ConnectTimeout(address.where, reason) from failed
        except OSError as failed:
            raise ConnectError(address.where, str(failed)) from failed
        return connection

    def connection_opened(self, connection: Connection[A]) -> None:  # noqa: ARG002 - part of ConnectionOwner
        """Count an open connection."""
        self.live += 1

    def connection_idle(self, connection: Connection[A]) -> None:
        """Keep a connection for the next request."""
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.address, []).append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def connection_closed(self, connection: Connection[A]) -> None:
        """Forget a closed connection."""
        self.live -= 1
        idle = self._idle.get(connection.address)
        if idle is not None and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.address, None)

    def close(self) -> None:
        """Close all idle connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for idle in list(self._idle.values()):
            for connection in list(idle):
                connection.close()

    def _sweep(self) -> None:
        """Close the connections that have been idle for too long."""
        self._sweeper = None
        oldest = time.monotonic() - self._idle_s
        for idle in list(self._idle.values()):
            for connection in list(idle):
                if connection.idle_since <= oldest:
                    idle.remove(connection)
                    connection.close()
        if any(self._idle.values()):
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)


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
    """

    __slots__ = (
        "_address",
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
        self._address = address
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
        connection = self._pool.take_idle(self._address) if self._repeatable else None
        if connection is not None:
            self._send(connection)
        else:
            self._open()

    @property
    def connected(self) -> bool:
        """Whether the request is being sent; before that, what is written is kept in memory."""
        return self._connection is not None

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
            connection = await self._pool.connect(self._address)
        except ConnectError as failed:
            self._connecting = None
            self._on_failed(failed)
        except Exception as failed:
            log.exception("connect_failed")
            self._connecting = None
            self._on_failed(ConnectError(self._address.where, repr(failed)))
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
