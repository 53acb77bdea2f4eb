"""Writes to a socket without the detour through its transport's queue.

uvloop collects what is written and sends it at the end of a turn of its loop; nearly always the socket would have taken
it at once, for less.

To write to a descriptor that a transport owns is safe here: asyncio and uvloop tell a protocol that its connection is
lost before they close the descriptor, and with that whoever wrote to it has ended.
"""

from __future__ import annotations

import asyncio
import os


class Outlet:
    """Where the bytes of one connection leave.

    Args:
        transport: the connection's. What its socket does not take at once is left to it, and goes first from then on.
    """

    __slots__ = ("_fd", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        socket = transport.get_extra_info("socket")
        plain = socket is not None and transport.get_extra_info("sslcontext") is None
        self._fd: int | None = socket.fileno() if plain else None

    def write(self, data: bytes) -> None:
        """Send; never waits."""
        transport, fd = self._transport, self._fd
        if fd is None or transport.get_write_buffer_size():
            transport.write(data)
            return
        try:
            sent = os.write(fd, data)
        except OSError:  # full or broken: the transport finds out which, and knows what to do
            sent = 0
        if sent != len(data):
            transport.write(data[sent:])
