"""Chunks forwarded from a server's connection to a client's without passing through a parser.

The two transports keep their protocols for everything else. Writing to a descriptor that a transport owns is safe here:
asyncio and uvloop report a lost connection to its protocol before they close the descriptor, and with that the request
ends and the server's connection is closed.
"""

from __future__ import annotations

import asyncio
import re
from os import write

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")

_MAX_CACHED_SIZES = 4096


class ChunkSplice(asyncio.Protocol):
    """Takes the place of a connection as the protocol of its transport, from one chunk boundary to another.

    Subclasses implement `data_received`: they forward whole chunks with `_forward` and give everything else back with
    `_detach`.

    Args:
        client: Transport of the client; it takes chunks as they are.
    """

    __slots__ = ("_client", "_client_buffered", "_client_fd", "_connection", "_server")

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client
        socket = client.get_extra_info("socket")
        plain = socket is not None and client.get_extra_info("sslcontext") is None
        self._client_fd: int = socket.fileno() if plain else -1
        self._client_buffered = client.get_write_buffer_size if plain else _always

    def attach(self, server: asyncio.Transport, connection: asyncio.Protocol) -> None:
        """Take over the reads of a connection whose parser expects a chunk."""
        self._server, self._connection = server, connection
        server.set_protocol(self)

    def _detach(self, data: bytes) -> None:
        """Give the connection back, starting with these bytes."""
        self._server.set_protocol(self._connection)
        self._connection.data_received(data)

    def _forward(self, data: bytes) -> None:
        """Write whole chunks to the client; what its socket does not take is left to its transport."""
        if self._client_buffered():
            self._client.write(data)
            return
        try:
            sent = write(self._client_fd, data)
        except OSError:  # full or broken: the transport finds out which and reacts
            sent = 0
        if sent != len(data):
            self._client.write(data[sent:])

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the loss on."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._connection.resume_writing()


class RawSplice(ChunkSplice):
    """Forwards every whole chunk until the last one.

    Args:
        client: Transport of the client.
        size_lines: Size lines of this server by the length of the whole chunk; kept up to date.
    """

    __slots__ = ("_size_lines",)

    def __init__(self, client: asyncio.Transport, size_lines: dict[int, bytes]) -> None:
        super().__init__(client)
        self._size_lines = size_lines

    def data_received(self, data: bytes) -> None:
        """Forward whole chunks; nearly always one whose size has been seen before."""
        line = self._size_lines.get(len(data))
        if (
            line is not None and data.startswith(line) and data.endswith(b"\r\n")
        ) or self._are_chunks(data):
            self._forward(data)
        else:
            self._detach(data)

    def _are_chunks(self, data: bytes) -> bool:
        """Return whether these bytes are whole chunks, none of them the last one."""
        start = 0
        while start < len(data):
            line = _SIZE_LINE.match(data, start)
            if line is None:
                return False
            size = int(line[1], 16)
            end = line.end() + size + 2
            if not size or not data.startswith(b"\r\n", end - 2):
                return False
            if len(self._size_lines) < _MAX_CACHED_SIZES:
                self._size_lines[end - start] = line[0]
            start = end
        return start == len(data)


def _always() -> int:
    """Report a buffer that is never empty: an encrypted client's bytes go through its transport."""
    return 1
