"""uvicorn servers that are stopped by their owner and check the timeouts of their connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn

from cortex_http.pauses import PauseDetector
from cortex_http.server_protocol import HttpProtocol

log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75
"""Seconds that an idle connection is kept; more than the 60 s of common load balancers, so that they close first."""

_TICK_S = 1.0


class Server(uvicorn.Server):
    """A uvicorn server without signal handling: its owner calls `stop`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Stop accepting connections, let requests in flight finish, then return from `serve`."""
        self.should_exit = True
        self._stop.set()

    def cut(self) -> None:
        """End the requests that `stop` waits for; unlike uvicorn's `force_exit`, the application is still shut down."""
        for connection in tuple(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in tuple(self.server_state.tasks):
            task.cancel()

    async def main_loop(self) -> None:
        """Wait for `stop`, with one tick a second; uvicorn's own wakes ten times a second."""
        time = asyncio.get_running_loop().time
        pauses = PauseDetector(_TICK_S, time)
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _TICK_S)
            self._check_timeouts(time(), pauses.tick())

    def _check_timeouts(self, now: float, paused_s: float) -> None:
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, HttpProtocol):
                try:
                    if paused_s:
                        connection.discount(paused_s)
                    connection.check_timeouts(now)
                except Exception:
                    log.exception("timeout_check_failed")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def create_server(
    app: Any,
    protocol: type[HttpProtocol[Any]],
    *,
    tls: ssl.SSLContext | None,
    drain_s: float,
    lifespan: Literal["on", "off"] = "off",
) -> Server:
    """Create a server.

    Args:
        app: ASGI application for the requests that the protocol's router does not match.
        protocol: See `server_protocol.protocol_for`.
        tls: TLS settings; None for plain HTTP.
        drain_s: Seconds that requests in flight can take once the server is stopped.
        lifespan: Whether to send the application lifespan events.
    """
    config = uvicorn.Config(
        app,
        http=protocol,
        log_config=None,
        access_log=False,
        interface="asgi3",
        lifespan=lifespan,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    config.load()
    config.ssl = tls
    return Server(config)


def freeze_startup_objects() -> None:
    """Exempt the objects that exist now from garbage collection, and collect less often than every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def url_of(sock: socket.socket, *, tls: bool) -> str:
    """Return the base URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    literal = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{literal}:{port}"
