"""Server-sent events: an incremental parser over bytes, and a writer.

Source of the grammar: the WHATWG HTML standard, "Server-sent events", section "Parsing an event stream".
Two leniencies, both for engines seen in the wild: an event cut off at the end of the stream without
its blank line is still handed out by `close`, and a line `error: {...}` (old llama.cpp) is an event
named "error".
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One dispatched event.

    Attributes:
        name: the `event:` field; empty when there was none.
        data: the `data:` lines joined by a line feed, not yet decoded.
    """

    name: str
    data: bytes


class SseParser:
    """Turns the bytes of a stream, however they are cut, into events. There is no limit on a line."""

    __slots__ = ("_after_cr", "_at_start", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[SseEvent]:
        """Return the events that these bytes complete, in order."""
        if self._after_cr or b"\r" in data:
            data = self._line_feeds(data)
        tail = self._tail
        seen = len(tail)
        if not seen and data.startswith(b"data: ") and data.endswith(b"\n\n"):
            self._at_start = False
            if data.count(b"\n") == 2:  # one event, as most reads of a live stream are
                return [SseEvent("", data[6:-2])]
        if seen or self._at_start:
            tail += data
            if self._at_start and not self._skip_bom():
                return []
            if tail.find(b"\n\n", max(0, seen - 1)) < 0:
                return []
            data = bytes(tail)
            tail.clear()
        blocks = data.split(b"\n\n")
        tail += blocks.pop()
        return [event for block in blocks if (event := parse_block(block)) is not None]

    def close(self) -> list[SseEvent]:
        """Return the last event if the stream ended without its blank line, else None."""
        block = bytes(self._tail)
        self._tail.clear()
        event = parse_block(block)
        return [] if event is None else [event]

    def _line_feeds(self, data: bytes) -> bytes:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _skip_bom(self) -> bool:
        """Whether the start of the stream is settled."""
        tail = self._tail
        if len(tail) < len(_BOM) and _BOM.startswith(tail):
            return False
        if tail.startswith(_BOM):
            del tail[: len(_BOM)]
        self._at_start = False
        return True


def parse_block(block: bytes) -> SseEvent | None:
    """Parse the lines between two blank lines; return None when they contain no data, such as comments only.

    Args:
        block: lines that end with a line feed alone.
    """
    if block.startswith(b"data: ") and b"\n" not in block:
        return SseEvent("", block[6:])
    name = ""
    parts: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            parts.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"error" and value:
            name = "error"
            parts.append(value)
    return SseEvent(name, b"\n".join(parts)) if parts else None


def write_data(data: bytes) -> bytes:
    """Encode an event without a name; `data` must be a single line, as compact JSON is."""
    return b"data: " + data + b"\n\n"


def write_event(name: str, data: bytes) -> bytes:
    """Encode a named event; `data` must be a single line, as compact JSON is."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's chat completions."""

COMMENT = b": keep-alive\n\n"
"""Keeps a connection alive that has nothing to say; parsers skip it."""
