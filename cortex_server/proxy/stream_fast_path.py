"""The shortest way of an event from an engine to its client: one look at its bytes, and one write to a socket.

Most of what a gateway passes on are chunks of one event each, alike but for their text. Once an answer has had such a
chunk, those that follow take this way: around the parser, the answer, the framing and the event loop's transport. Every
call counts here: between two events of one stream others have the processor's caches, so that it costs three to six
times what it costs in a loop.

To write to a descriptor that a transport owns is safe here: asyncio and uvloop tell a protocol that its connection is
lost before they close the descriptor, and with that the request has ended, and its engine's connection is closed.
"""

from __future__ import annotations

import asyncio
import re
from os import write

from cortex_server.dialects.stream.repair import StreamRepair, is_string_content

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,3})\r\n")

SizeLines = dict[int, bytes]
"""The line before a chunk, by the length of line, chunk and line end together, as one engine writes it."""


class StreamFastPath(asyncio.Protocol):
    """Takes the chunks of one answer, from one that was plain text to the first that is not.

    In between it stands in the place of its connection as the protocol of that one's transport.

    Args:
        around: what stands before and after the text of its event.
        repair: counts the events.
        client: where they go. What its socket does not take at once is left to it, and goes first from then on.
        sizes: the lines that the engine wrote before chunks.
    """

    __slots__ = (
        "_client",
        "_client_fd",
        "_client_waits",
        "_connection",
        "_engine",
        "_foot",
        "_head",
        "_repair",
        "_sizes",
    )

    def __init__(
        self,
        around: tuple[bytes, bytes],
        repair: StreamRepair,
        client: asyncio.Transport,
        sizes: SizeLines,
    ) -> None:
        head, foot = around
        self._head = head[:-1]  # without the quote
        self._foot = foot + b"\r\n"
        self._sizes = sizes
        self._repair = repair
        self._client = client
        socket = client.get_extra_info("socket")
        plain = socket is not None and client.get_extra_info("sslcontext") is None
        self._client_fd: int = socket.fileno() if plain else -1
        self._client_waits = client.get_write_buffer_size if plain else _always

    def take(self, engine: asyncio.Transport, connection: asyncio.Protocol) -> None:
        """Stand in for a connection whose parser expects a chunk, until one comes that is not like the others."""
        self._engine, self._connection = engine, connection
        engine.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol: nearly always one chunk of plain text."""
        piece, foot, more = data.partition(self._foot)
        begin, _, text = piece.rpartition(b'"')
        if (
            foot
            and not more
            and begin == self._sizes.get(len(data), b"") + self._head
            and ((text.isascii() and text[-1:] != b"\\") or is_string_content(text))
        ):
            self._repair.events += 1
        elif not self._are_events(data):
            self._engine.set_protocol(self._connection)
            self._connection.data_received(data)
            return
        if self._client_waits():
            self._client.write(data)
            return
        try:
            sent = write(self._client_fd, data)
        except OSError:  # full or broken: the transport finds out which, and knows what to do
            sent = 0
        if sent != len(data):
            self._client.write(data[sent:])

    def _are_events(self, data: bytes) -> bool:
        """Whether these are whole chunks, perhaps several, or of a size that is new; then they are counted."""
        pieces = data.split(self._foot)
        if pieces.pop() or not all(map(self._is_event, pieces)):
            return False
        self._repair.events += len(pieces)
        return True

    def _is_event(self, piece: bytes) -> bool:
        """Whether these bytes, with the foot after them, are a chunk whose event has one text, in any script."""
        line = _SIZE_LINE.match(piece)
        size = len(piece) + len(self._foot)
        if line is None or int(line[1], 16) != size - line.end() - len(b"\r\n"):
            return False
        self._sizes[size] = line[0]
        begin = line[0] + self._head + b'"'
        return piece.startswith(begin) and is_string_content(piece[len(begin) :])

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self._connection.connection_lost(exc)


def _always() -> int:
    """An encrypted client's bytes go by its transport."""
    return 1
