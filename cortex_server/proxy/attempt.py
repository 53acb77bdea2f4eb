"""One try at one instance: a kept or a new connection, and the request sent over it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_http.client import Connection, UpstreamHandler
from cortex_server.dataplane.pool import Address, ConnectionPool
from cortex_server.fleet.routing_table import Endpoint

log = logging.getLogger("cortex.requests")


class Attempt:
    """Starts with `start`; the answer comes to the receiver.

    Args:
        pool: of connections.
        target: the instance.
        endpoint: where it listens.
        head: of the HTTP request.
        body: of the HTTP request.
        receiver: hears what the engine answers.
        failed: called instead when there is no connection to be had.
    """

    __slots__ = (
        "_body",
        "_connecting",
        "_connection",
        "_endpoint",
        "_failed",
        "_fresh",
        "_head",
        "_paused",
        "_pool",
        "_receiver",
        "endpoint",
    )

    def __init__(
        self,
        pool: ConnectionPool,
        endpoint: Endpoint,
        address: Address,
        head: bytes,
        body: bytes,
        receiver: UpstreamHandler,
        failed: Callable[[CortexError], None],
    ) -> None:
        self.endpoint = endpoint
        self._pool = pool
        self._endpoint = address
        self._connecting: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._fresh = False
        self._paused = False
        self._head = head
        self._body = body
        self._receiver = receiver
        self._failed = failed

    def start(self) -> None:
        """Send over a kept connection, or open one first."""
        connection = self._pool.resting(self._endpoint)
        if connection is not None:
            self._send(connection)
        else:
            self._open()

    def replace(self, *, answered: bool) -> bool:
        """Whether a lost connection is being replaced.

        It is when it was a kept one that the engine had closed while the request was on its way: nothing was answered,
        and the instance is not to blame.
        """
        self._connection = None
        if answered or self._fresh:
            return False
        self._open()
        return True

    def abort(self) -> None:
        """Ask no longer; this is how an engine learns to stop."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def pause(self) -> None:
        """Read no more for now."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def _open(self) -> None:
        self._fresh = True
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._pool.connect(self._endpoint)
        except UpstreamFailed as failed:
            self._connecting = None
            self._failed(failed)
        except Exception:
            log.exception("connect_failed")
            self._connecting = None
            self._failed(UpstreamFailed("the gateway could not connect; its log says why"))
        else:
            self._connecting = None
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        self._connection = connection
        connection.send(self._head, self._body, self._receiver)
        if self._paused:
            connection.pause()
