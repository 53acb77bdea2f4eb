"""The sockets that the daemons listen on."""

from __future__ import annotations

import socket

from cortex_common.errors import ConfigError
from cortex_common.liveness import probe

_BACKLOG = 4096


def listen(host: str, port: int, chosen_by: str) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Args:
        host: an address or name of this host.
        port: of it.
        chosen_by: which setting, for the error.

    Raises:
        ConfigError: it can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as failed:
        raise ConfigError(
            f"can't listen on {host}:{port}: {failed.strerror or failed}",
            hints=(f"{chosen_by} chooses another",),
        ) from failed
    # asyncio does so only for connections of a socket that it made itself. Without it, a body or a token that
    # follows the answer's head waits 40 ms for the acknowledgement of the head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    probe(sock)
    return sock
