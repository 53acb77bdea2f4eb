"""Kept-alive connections to servers, by address."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterable
from typing import Generic, TypeVar

from cortex_http.address import Address
from cortex_http.connection import Connection
from cortex_http.sockets import enable_keepalive

_MAX_IDLE = 256
"""Idle connections that are kept for one address; after a burst of requests the others are closed."""

_SWEEP_INTERVAL_S = 5.0

_LATE_S = 1.0
"""A timer that fires so much later than it should have shows that this process stood still."""

_OWN_FAULTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
)
"""Errors of this host: no descriptors, memory or local ports are left."""


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


class OutOfResources(ConnectError):
    """This host has no descriptors, memory or local ports left for a connection; the server is not to blame."""


A = TypeVar("A", bound=Address)


class ConnectionPool(Generic[A]):
    """Kept-alive connections by address.

    Args:
        connect_timeout_s: Seconds to wait for a new connection.
        idle_s: Seconds after which an unused connection is closed.

    Attributes:
        connect_timeout_s: Seconds to wait for a new connection.
    """

    def __init__(self, *, connect_timeout_s: float, idle_s: float = 30.0) -> None:
        self.connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._open: dict[A, set[Connection[A]]] = {}
        self._idle: dict[A, list[Connection[A]]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def live(self) -> int:
        """Number of open connections, in use or idle."""
        return sum(map(len, self._open.values()))

    def take_idle(self, address: A) -> Connection[A] | None:
        """Take an idle connection: the one used last, which is the least likely to have been closed."""
        idle = self._idle.get(address)
        return idle.pop() if idle else None

    async def connect(self, address: A) -> Connection[A]:
        """Open a connection.

        Raises:
            ConnectTimeout: The server did not accept it in time.
            OutOfResources: This host can't open another connection.
            ConnectError: It was refused, or there is no such host.
        """
        loop = asyncio.get_running_loop()
        while True:
            deadline = loop.time() + self.connect_timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connect(address)
            except TimeoutError as failed:
                if loop.time() - deadline > _LATE_S:
                    continue  # this process stood still, and the server may have accepted meanwhile
                reason = f"no connection within {self.connect_timeout_s:g} s"
                raise ConnectTimeout(address.where, reason) from failed
            except OSError as failed:
                kind = OutOfResources if failed.errno in _OWN_FAULTS else ConnectError
                raise kind(address.where, failed.strerror or str(failed)) from failed
            except MemoryError as failed:
                raise OutOfResources(address.where, "out of memory") from failed
            if self._closed:
                connection.close()
                raise ConnectError(address.where, "this process is stopping")
            return connection

    async def _connect(self, address: A) -> Connection[A]:
        loop = asyncio.get_running_loop()
        if address.uds is not None:
            _, connection = await loop.create_unix_connection(
                lambda: Connection(self, address), address.uds
            )
            return connection
        transport, connection = await loop.create_connection(
            lambda: Connection(self, address), address.host, address.port, ssl=address.tls
        )
        enable_keepalive(transport.get_extra_info("socket"))
        return connection

    def connection_opened(self, connection: Connection[A]) -> None:
        """Keep track of an open connection."""
        self._open.setdefault(connection.address, set()).add(connection)

    def connection_idle(self, connection: Connection[A]) -> None:
        """Keep a connection for the next request, unless there are plenty or the pool is closed."""
        idle = self._idle.setdefault(connection.address, [])
        if self._closed or len(idle) >= _MAX_IDLE:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        idle.append(connection)
        if self._sweeper is None:
            self._sweep_later()

    def connection_closed(self, connection: Connection[A]) -> None:
        """Forget a closed connection."""
        address = connection.address
        _discard(self._open, address, connection)
        idle = self._idle.get(address)
        if idle is not None and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(address, None)

    def drop(self, addresses: Iterable[A], reason: str) -> None:
        """Close all connections to servers that are gone; their requests fail at once and are not sent again.

        Args:
            addresses: Addresses of the servers.
            reason: What to tell the requests in flight.
        """
        for address in addresses:
            self._idle.pop(address, None)
            for connection in tuple(self._open.get(address, ())):
                connection.fail(reason)

    def close(self) -> None:
        """Close all connections, also those that open or become idle later; requests in flight fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connections in list(self._open.values()):
            for connection in list(connections):
                connection.close()

    def _sweep_later(self) -> None:
        interval = min(self._idle_s, _SWEEP_INTERVAL_S)
        self._sweeper = asyncio.get_running_loop().call_later(interval, self._sweep)

    def _sweep(self) -> None:
        """Close the connections that have been idle for too long."""
        self._sweeper = None
        oldest = time.monotonic() - self._idle_s
        for idle in self._idle.values():
            # The one used last is taken first, so that those idle for long are at the beginning.
            fresh = next((i for i, c in enumerate(idle) if c.idle_since > oldest), len(idle))
            for connection in idle[:fresh]:
                connection.close()
            del idle[:fresh]
        if any(self._idle.values()):
            self._sweep_later()


def _discard(open_: dict[A, set[Connection[A]]], address: A, connection: Connection[A]) -> None:
    connections = open_.get(address)
    if connections is not None:
        connections.discard(connection)
        if not connections:
            del open_[address]
