"""Listening sockets of the daemons, and detection of peers that are gone."""

from __future__ import annotations

import socket
from struct import Struct

from cortex_common.errors import ConfigError

_BACKLOG = 4096

_KEEPALIVE_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
)
"""Seconds of silence before the first probe, seconds between probes, and how many can go unanswered; see tcp(7).

A minute and a half in total: long enough that a restarting switch breaks no connection, and short enough that a dead
host is not waited for until the idle timeouts, which are set for engines that compute.

The kernel only probes while no sent data awaits an acknowledgement. Sent data is retransmitted for a quarter of an hour
(tcp_retries2); `is_peer_unresponsive` detects that case. TCP_USER_TIMEOUT would cover both, but it also closes the
connection of a live client that does not read for that long."""

_INTERNET_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})

_TCP_INFO = Struct("=2x B 53x I")
"""tcpi_retransmits and tcpi_last_ack_recv of struct tcp_info in linux/tcp.h: consecutive retransmissions, and
milliseconds since the last acknowledgement."""

_UNACKNOWLEDGED_MS = 90_000


def listen(host: str, port: int, setting: str, *, reuse_port: bool = False) -> socket.socket:
    """Return a listening socket; port 0 picks a free port.

    Args:
        host: address or name of this host.
        port: port on it.
        setting: the setting that chose the address, for the hint of the error.
        reuse_port: share the port with other processes that also set this (SO_REUSEPORT).

    Raises:
        ConfigError: the address can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=reuse_port
        )
    except OSError as error:
        raise ConfigError(
            f"can't listen on {host}:{port}: {error.strerror or error}",
            hints=(f"set {setting} to another address",),
        ) from error
    # asyncio sets this only for sockets that it created itself. Without it, a body or a token that follows the head of
    # a response is delayed by 40 ms, until the head is acknowledged.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    enable_keepalive(sock)
    return sock


def enable_keepalive(sock: socket.socket) -> None:
    """Have the kernel check that the peer of a silent connection still exists.

    Args:
        sock: a connection, or a listening socket, whose connections inherit the options.
    """
    if sock.family in _INTERNET_FAMILIES:
        for level, option, value in _KEEPALIVE_OPTIONS:
            sock.setsockopt(level, option, value)


def is_peer_unresponsive(sock: socket.socket) -> bool:
    """Return whether sent data has been retransmitted without any acknowledgement for 90 seconds.

    While data is in flight the kernel does not probe, but retransmits for a quarter of an hour. A live peer that merely
    does not read still acknowledges window probes.

    Args:
        sock: a connection.
    """
    if sock.family not in _INTERNET_FAMILIES:
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:  # closed already; its owner is notified of that
        return False
    retransmits, since_ack_ms = _TCP_INFO.unpack(info)
    return bool(retransmits) and since_ack_ms > _UNACKNOWLEDGED_MS
