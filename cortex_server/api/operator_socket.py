"""The operator socket: a Unix socket on which root and the gateway's own user need no key.

The kernel says who connects (SO_PEERCRED in unix(7)), and a proxy in front of the TCP listener can't reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from struct import Struct
from typing import Any

from cortex_common.errors import ConfigError
from cortex_common.log import event
from cortex_common.net.runtime_dir import create_runtime_dir, operator_socket_file
from cortex_http.routing import Router
from cortex_http.server import create_server
from cortex_http.server_protocol import HttpProtocol, protocol_for
from cortex_server.auth.access_control import OPERATOR_SOCKET

log = logging.getLogger("cortex.gateway")

_UCRED = Struct("3i")
"""struct ucred: pid, uid and gid of the process that connected."""


class _OperatorProtocol(HttpProtocol[Any]):
    """A connection over the operator socket."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as HttpProtocol's own
        """Close the connection of any other user, which the permissions of the socket allow only after a mistake."""
        super().connection_made(transport)
        self.client = (OPERATOR_SOCKET, 0)
        if peer_user(transport.get_extra_info("socket")) not in {0, os.geteuid()}:
            transport.abort()


def peer_user(sock: socket.socket) -> int:
    """Return the id of the user whose process connected to a Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    user: int = _UCRED.unpack(credentials)[1]
    return user


@contextlib.asynccontextmanager
async def serving_operators(
    app: Any, router: Router[Any], port: int, environ: Mapping[str, str]
) -> AsyncIterator[None]:
    """Serve the API on the operator socket inside the block. If that is impossible, log it: keys work regardless.

    Args:
        app: ASGI application of the API.
        router: router of the API.
        port: port of the API's TCP listener, which names the socket.
        environ: environment of the process.
    """
    try:
        path = create_runtime_dir(environ) / operator_socket_file(port)
        sock = _listen(path)
    except (ConfigError, OSError) as error:
        hint = "the operator API needs an operator key, also on this host"
        event(log, "operator_socket_failed", logging.WARNING, reason=error, hint=hint)
        yield
        return
    with sock:
        server = create_server(app, protocol_for(router, _OperatorProtocol), tls=None, drain_s=1.0)
        task = asyncio.create_task(server.serve(sockets=[sock]), name="operator socket")
        try:
            event(log, "operator_socket_listening", path=path)
            yield
        finally:
            server.stop()
            await task
            path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    """Listen on a Unix socket, and remove those that gateways on the same port left behind."""
    for other in path.parent.glob(f"{path.name.partition('.')[0]}.*.sock"):
        if not _is_listening(other):
            other.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
