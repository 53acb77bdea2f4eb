"""Sockets and servers: how the gateway listens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from cortex_common.config.base import split_host_port
from cortex_common.net.sockets import listen
from cortex_server.dataplane.patience import PatientProtocol

log = logging.getLogger("cortex.gateway")

_KEEP_ALIVE_S = 75
"""Seconds that an idle client connection is kept; above the 60 s of common load balancers, so that they close first."""

_LOOK_EVERY_S = 1.0

LAST_S = 2.0
"""Seconds that connections get to close once requests under way have ended, or their time is over."""


class Server(uvicorn.Server):
    """uvicorn, stopped by us: its own signal handling would end the process before we have tidied up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Take no new connections, let requests under way end, then return from `serve`."""
        self.should_exit = True
        self._stop.set()

    async def main_loop(self) -> None:
        """Look once a second, and stop at once; uvicorn's own wakes ten times a second to see whether it is to stop."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LOOK_EVERY_S)
            self._look()

    def _look(self) -> None:
        """Look after the patience of connections."""
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, PatientProtocol):
                try:
                    connection.look(now)
                except Exception:
                    log.exception("look_failed")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def server(app: Any, *, http: Any, tls: ssl.SSLContext | None, last_s: float) -> Server:
    """A server that waits to be run.

    Args:
        app: the ASGI application.
        http: uvicorn's name of a protocol, or a class of ours.
        tls: how to speak TLS; None for plain HTTP.
        last_s: seconds that requests may go on once it is stopped.
    """
    config = uvicorn.Config(
        app,
        http=http,
        log_config=None,
        access_log=False,
        interface="asgi3",
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(last_s)),
    )
    config.load()
    config.ssl = tls
    return Server(config)


def listening(address: str, setting: str, *, reuse_port: bool = False) -> socket.socket:
    """Open a listening socket.

    Args:
        address: host:port; port 0 takes a free one.
        setting: Key of [gateway] that names the address, for the error.
        reuse_port: Share the address with other processes that set this too (SO_REUSEPORT).

    Raises:
        ConfigError: The address can't be listened on.
    """
    chosen_by = f"[gateway] {setting} in cortex.toml, or CORTEX_GATEWAY__{setting.upper()},"
    return listen(*split_host_port(address), chosen_by, reuse_port=reuse_port)


def settle_memory() -> None:
    """What is there at start stays: the collector need not look at it again, nor run every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def url_of(sock: socket.socket, *, tls: bool) -> str:
    """Where a socket can be reached."""
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"
