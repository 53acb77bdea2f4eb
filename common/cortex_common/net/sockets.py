"""The sockets that the daemons listen on."""

from __future__ import annotations

import socket
from struct import Struct

from cortex_common.errors import ConfigError

_ASK = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)
"""Seconds of silence before the first question, seconds between questions, and how many may stay unanswered; see
tcp(7). A minute and a half in all: a switch that starts anew breaks nothing off, and nobody waits for a dead host until
the limits on silence, which are made for engines that compute.

The kernel asks only while nothing that was sent waits for its acknowledgement; that it repeats for a quarter of an hour
(tcp_retries2), and `vanished` looks for it. TCP_USER_TIMEOUT would end both, but also a client that lives and does not
read for as long."""

_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})

_INFO = Struct("=2x B 53x I")
"""Of struct tcp_info in linux/tcp.h: how often in a row data was sent again, and milliseconds since the last
acknowledgement."""

_UNACKNOWLEDGED_MS = 90_000


def probe(sock: socket.socket) -> None:
    """Have the kernel ask the other end of a silent connection whether it is still there.

    Args:
        sock: of a connection, or a listening one, whose connections have it from it.
    """
    if sock.family in _INTERNET:
        for level, option, value in _ASK:
            sock.setsockopt(level, option, value)


def vanished(sock: socket.socket) -> bool:
    """Whether the other end has acknowledged nothing for as long as silence lasts before a connection is lost.

    While data is under way the kernel does not ask, but sends it again, for a quarter of an hour. Whoever lives and
    only reads nothing acknowledges that it was asked.

    Args:
        sock: of a connection.
    """
    if sock.family not in _INTERNET:
        return False
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # closed already, of which its owner hears
        return False
    again, since_ms = _INFO.unpack(told)
    return bool(again) and since_ms > _UNACKNOWLEDGED_MS


_BACKLOG = 4096


def listen(host: str, port: int, chosen_by: str, *, reuse_port: bool = False) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Args:
        host: an address or name of this host.
        port: of it.
        chosen_by: which setting, for the error.
        reuse_port: Share the port with other processes that set this too (SO_REUSEPORT).

    Raises:
        ConfigError: it can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=reuse_port
        )
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
