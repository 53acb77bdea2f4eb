"""Server-sent events: an incremental parser over bytes, and a writer.

Source of the grammar: the WHATWG HTML standard, "Server-sent events", section "Parsing an event stream".
Two leniencies, both for engines seen in the wild: an event cut off at the end of the stream without
its blank line is still handed out by `close`, and a line `error: {...}` (old llama.cpp) is an event
named "error".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"

_EVENT_END = re.compile(rb"(?:\n|\r(?!\n))[\r\n]+")
"""A line end of any kind, with the blank lines behind it."""

MAX_EVENT_BYTES = 32 << 20
"""Length of the longest event that is collected: more than an image in base64."""


class EventTooLong(ValueError):
    """An event is longer than can be collected."""


class SseEvent(NamedTuple):
    """One dispatched event.

    Attributes:
        name: the `event:` field; empty when there was none.
        data: the `data:` lines joined by a line feed, not yet decoded.
        id: the `id:` field; empty when there was none.
    """

    name: str
    data: bytes
    id: str = ""


class EventBuffer:
    """Holds back the bytes of an event until it is complete.

    Args:
        max_bytes: length of the longest event that is collected.

    Attributes:
        tail: what is held back.
        has_cr: whether a carriage return has been seen.
    """

    __slots__ = ("_max_bytes", "has_cr", "tail")

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.tail = bytearray()
        self.has_cr = False
        self._max_bytes = max_bytes

    def complete(self, data: bytes) -> bytes:
        """Return what was held back and these bytes, up to the end of the last complete event.

        Raises:
            EventTooLong: an event is longer than can be collected.
        """
        tail = self.tail
        self.has_cr = self.has_cr or data.find(b"\r") >= 0
        if not tail and data.endswith(b"\n\n"):
            return data
        seen = max(0, len(tail) - 2)  # a blank line can begin in what was searched before
        tail += data
        end = self._last_end(seen)
        if not end:
            if len(tail) > self._max_bytes:
                tail.clear()
                raise EventTooLong(f"an event is longer than {self._max_bytes >> 20} MiB")
            return b""
        complete = bytes(tail[:end])
        del tail[:end]
        return complete

    def _last_end(self, start: int) -> int:
        """Return the end of the last blank line behind `start`; 0 if there is none."""
        tail = self.tail
        end = tail.rfind(b"\n\n", start) + 2
        if self.has_cr:
            # Of CR LF CR LF, the last LF can still arrive.
            searched = len(tail) - tail.endswith(b"\n\r")
            at = max(tail.rfind(b"\n\r", start, searched), tail.rfind(b"\r\r", start, searched))
            end = max(end, at + 2 + tail.startswith(b"\n", at + 2) if at >= 0 else 0)
        return end if end > 1 else 0


def split_events(data: bytes) -> list[bytes]:
    """Split complete events, each with its blank line."""
    ends = [0, *(match.end() for match in _EVENT_END.finditer(data))]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


class SseParser:
    """Turns the bytes of a stream, however they are cut, into events.

    Args:
        max_bytes: length of the longest event that is collected.
        on_comment: called with the text of each comment; None to ignore comments.
    """

    __slots__ = ("_at_start", "_buffer", "_on_comment")

    def __init__(
        self,
        max_bytes: int = MAX_EVENT_BYTES,
        on_comment: Callable[[bytes], None] | None = None,
    ) -> None:
        self._buffer = EventBuffer(max_bytes)
        self._at_start = True
        self._on_comment = on_comment

    def feed(self, data: bytes) -> list[SseEvent]:
        """Return the events that these bytes complete, in order.

        Raises:
            EventTooLong: an event is longer than can be collected.
        """
        complete = self._buffer.complete(data)
        return self._parse(complete) if complete else []

    def close(self) -> list[SseEvent]:
        """Return the last event, if the stream ended without its blank line."""
        tail = bytes(self._buffer.tail)
        self._buffer.tail.clear()
        return self._parse(tail)

    def _parse(self, data: bytes) -> list[SseEvent]:
        if self._at_start:
            self._at_start = False
            data = data.removeprefix(_BOM)
        if self._buffer.has_cr:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if data.startswith(b"data: ") and data.endswith(b"\n\n") and data.count(b"\n") == 2:
            return [SseEvent("", data[6:-2])]  # one event, as most reads of a live stream are
        blocks = data.split(b"\n\n")
        if self._on_comment is not None:
            for block in blocks:
                for line in block.split(b"\n"):
                    if line.startswith(b":"):
                        self._on_comment(line[1:].strip())
        return [event for block in blocks if (event := parse_block(block)) is not None]


def parse_block(block: bytes) -> SseEvent | None:
    """Parse the lines between two blank lines; return None when they contain no data, such as comments only.

    Args:
        block: lines that end with a line feed alone.
    """
    if block.startswith(b"data: ") and b"\n" not in block:
        return SseEvent("", block[6:])
    name = ident = ""
    parts: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            parts.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"id":
            ident = value.decode("utf-8", "replace")
        elif field == b"error" and value:
            name = "error"
            parts.append(value)
    return SseEvent(name, b"\n".join(parts), ident) if parts else None


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
