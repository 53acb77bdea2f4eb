"""Fast path of a streamed event from an engine to its client: one look at its bytes, and one write to a socket.

Most of what a gateway forwards are chunks of one event each, alike except for their text. Once a response has had such
a chunk, the following ones take this path, which bypasses the parser, the response object, the framing and the event
loop's transport. Every call counts here: between two events of one stream other streams use the processor's caches, so
that a call costs three to six times what it costs in a loop.
"""

from __future__ import annotations

import asyncio
import re
from os import write

from cortex_http.splice import ChunkSplice
from cortex_server.dialects.stream.event_template import is_string_content
from cortex_server.dialects.stream.repair import StreamRepair

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,3})\r\n")


class StreamFastPath(ChunkSplice):
    """Forwards the chunks of one response, from the first that was plain text to the first that is not.

    Args:
        envelope: What precedes and what follows the text of its events.
        repair: Counts the events.
        client: Transport of the client.
        size_lines: Size lines of this engine by the length of the whole chunk; kept up to date.
    """

    __slots__ = ("_foot", "_head", "_repair", "_size_lines")

    def __init__(
        self,
        envelope: tuple[bytes, bytes],
        repair: StreamRepair,
        client: asyncio.Transport,
        size_lines: dict[int, bytes],
    ) -> None:
        super().__init__(client)
        head, foot = envelope
        self._head = head[:-1]  # without the quote
        self._foot = foot + b"\r\n"
        self._size_lines = size_lines
        self._repair = repair

    def data_received(self, data: bytes) -> None:
        """Forward a read; nearly always one chunk of plain text."""
        piece, foot, rest = data.partition(self._foot)
        begin, _, text = piece.rpartition(b'"')
        if (
            foot
            and not rest
            and begin == self._size_lines.get(len(data), b"") + self._head
            and ((text.isascii() and text[-1:] != b"\\") or is_string_content(text))
        ):
            self._repair.events += 1
        elif not self._count_events(data):
            self._detach(data)
            return
        # `_forward`, repeated here because a call costs too much.
        if self._client_buffered():
            self._client.write(data)
            return
        try:
            sent = write(self._client_fd, data)
        except OSError:
            sent = 0
        if sent != len(data):
            self._client.write(data[sent:])

    def _count_events(self, data: bytes) -> bool:
        """Count these chunks if they are whole events, perhaps several or of a new size; return whether they are."""
        pieces = data.split(self._foot)
        if pieces.pop() or not all(map(self._is_event, pieces)):
            return False
        self._repair.events += len(pieces)
        return True

    def _is_event(self, piece: bytes) -> bool:
        """Return whether these bytes, followed by the foot, are a chunk whose event has one text, in any script."""
        line = _SIZE_LINE.match(piece)
        size = len(piece) + len(self._foot)
        if line is None or int(line[1], 16) != size - line.end() - len(b"\r\n"):
            return False
        self._size_lines[size] = line[0]
        begin = line[0] + self._head + b'"'
        return piece.startswith(begin) and is_string_content(piece[len(begin) :])
