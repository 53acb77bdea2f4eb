"""Listening sockets, TCP keepalive, and detection of peers that disappeared."""

from __future__ import annotations

import socket
from struct import Struct

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)
"""Seconds of silence before the first keepalive probe, seconds between probes, and unanswered probes before the
connection is dropped; see tcp(7). 90 seconds in all: long enough for a rebooting switch, and shorter than the silence
limits, which are sized for engines that compute.

The kernel probes only while no sent data is unacknowledged. It retransmits such data for about 15 minutes
(tcp_retries2), which `is_peer_unresponsive` detects. TCP_USER_TIMEOUT would cover both, but also closes the connection
of a live client that does not read for that long."""

_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})

_TCP_INFO = Struct("=2x B 53x I")
"""Fields of struct tcp_info in linux/tcp.h: tcpi_retransmits (retransmissions in a row) and tcpi_last_ack_recv
(milliseconds since the last acknowledgement)."""

_UNACKNOWLEDGED_S = 90.0

_BACKLOG = 4096


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Open a listening TCP socket; its connections inherit TCP_NODELAY and keepalive.

    Args:
        host: Address or name of this host.
        port: Port number; 0 takes a free one.
        reuse_port: Share the port with other processes that set this too (SO_REUSEPORT).

    Raises:
        OSError: The address can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server(
        (host, port), family=family, backlog=_BACKLOG, reuse_port=reuse_port
    )
    # asyncio sets it only on connections of sockets that it opened itself. Without it, a token that follows the
    # response head waits 40 ms for the acknowledgement of the head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    enable_keepalive(sock)
    return sock


def enable_keepalive(sock: socket.socket) -> None:
    """Have the kernel probe the peer of a silent connection.

    Args:
        sock: A connection, or a listening socket, whose connections inherit the options.
    """
    if sock.family in _INTERNET:
        for level, option, value in _KEEPALIVE:
            sock.setsockopt(level, option, value)


def is_peer_unresponsive(sock: socket.socket, seconds: float = _UNACKNOWLEDGED_S) -> bool:
    """Return whether the peer has not acknowledged sent data for some time, by default 90 seconds.

    A peer that is alive but does not read acknowledges window probes, so it does not count as unresponsive.
    """
    if sock.family not in _INTERNET:
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:  # closed already; its protocol is notified
        return False
    retransmits, since_ack_ms = _TCP_INFO.unpack(info)
    return bool(retransmits) and since_ack_ms > seconds * 1000
