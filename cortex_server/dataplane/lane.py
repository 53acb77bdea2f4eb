"""The shortest way of an event from an engine to its client: one look at its bytes, and one write to a socket.

Most of what a gateway passes on are chunks of one event each, alike but for their text. Once an answer has had such a
chunk, and its client's socket can be written to directly, those that follow take this way: around the parser, the
answer, the framing and the event loop's transport. Every call counts here: between two events of one stream others have
the processor's caches, so that it costs three to six times what it costs in a loop.
"""

from __future__ import annotations

import re

from cortex_server.dataplane.outlet import Outlet
from cortex_server.dialects.repair import StreamRepair
from cortex_server.dialects.skeleton import is_one_text

_LENGTHS = 64
"""How many lengths of an event a lane remembers the beginnings of; they are some 200 bytes each."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,4})\r\n")

_QUOTE = 0x22


class Lane:
    """Takes the chunks of one answer, from one that was plain text to the first that is not.

    Args:
        around: what stands before and after the text of its event.
        repair: counts the events.
        outlet: to the client.
    """

    __slots__ = (
        "_beginnings",
        "_foot",
        "_foot_size",
        "_head",
        "_outlet",
        "_repair",
    )

    def __init__(
        self,
        around: tuple[bytes, bytes],
        repair: StreamRepair,
        outlet: Outlet,
    ) -> None:
        self._head, foot = around
        self._foot = foot + b"\r\n"
        self._foot_size = len(foot)
        self._beginnings: dict[int, bytes] = {}
        self._repair = repair
        self._outlet = outlet

    def passes(self, data: bytes) -> bool:
        """Whether what an engine's connection has read is one or more such chunks, which are then on their way."""
        pieces = data.split(self._foot)
        if pieces.pop():
            return False
        for piece in pieces:
            before, _, text = piece.rpartition(b'"')
            begin = self._beginnings.get(len(piece)) or self._beginning(piece)
            if begin is None:
                return False
            plain = before == begin and text.isascii() and text[-1:] != b"\\"
            if not plain and not self._is_event(piece, begin):
                return False
        self._repair.events += len(pieces)
        self._outlet.write(data)
        return True

    def _is_event(self, piece: bytes, begin: bytes) -> bool:
        """Whether a text that is not plain, with quotes or in another script, is one text nevertheless."""
        start = len(begin) + 1
        return piece.startswith(begin) and piece[start - 1] == _QUOTE and is_one_text(piece[start:])

    def _beginning(self, piece: bytes) -> bytes | None:
        """What chunks of this one's length begin with, up to the quote before the text; None if it is no chunk."""
        line = _SIZE_LINE.match(piece)
        if line is None:
            return None
        rest = len(piece) - line.end()
        if rest < len(self._head) or int(line[1], 16) != rest + self._foot_size:
            return None
        if len(self._beginnings) >= _LENGTHS:
            self._beginnings.clear()
        begin = self._beginnings[len(piece)] = line[0] + self._head[:-1]
        return begin
