"""Decoding of the events of a chat stream into chunks, whatever an engine puts into an event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_server.dialects.chat import ChatCompletion, decode_strictly, parse_completion
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.json_input import is_utf8
from cortex_server.dialects.lenient import UnreadableContent
from cortex_server.dialects.stream.text import SplitCharacterBuffer

T = TypeVar("T")

_KEEP_ALIVE = {
    b"",
    b"null",
    b"{}",
    b"ping",
    b"[ping]",
    b"heartbeat",
    b"[heartbeat]",
    b"keep-alive",
    b"keepalive",
}
"""What some servers send as data to keep a connection open, in lower case."""


class ChunkDecoder:
    """Decodes the events of one stream, rejoining characters that were split between two of them."""

    __slots__ = ("_characters",)

    def __init__(self) -> None:
        self._characters = SplitCharacterBuffer()

    def decode(self, data: bytes) -> Sequence[ChatCompletion]:
        """Return the chunks in the data of an event: usually one, none for a keep-alive.

        Raises:
            UnreadableContent: the data is not JSON, or text or a tool call in it can't be read.
        """
        if not self._characters.pending and is_utf8(data):
            try:
                return (decode_strictly(data),)
            except (ValueError, RecursionError):
                pass
        return decode_lines(data, self._decode_chunk)

    def _decode_chunk(self, data: bytes) -> ChatCompletion:
        return parse_completion(self._characters.rejoin(data))


def decode_lines(data: bytes, decode: Callable[[bytes], T]) -> list[T]:
    """Decode the data of an event, which can have several lines, each with its own JSON.

    Raises:
        UnreadableContent: as `decode` raises it.
    """
    if data.find(b"\n") < 0 or _is_json(data):
        return [] if is_keep_alive(data) else [decode(data)]
    return [decode(line) for line in data.split(b"\n") if not is_keep_alive(line)]


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return True


def is_keep_alive(data: bytes) -> bool:
    """Return whether the data of an event means nothing."""
    return len(data) < 16 and data.strip().lower() in _KEEP_ALIVE


def unreadable_chunk(data: bytes, reason: UnreadableContent) -> CortexError:
    """Return the error for an event that can't be read: text that is not JSON is usually an error message."""
    if data.lstrip().startswith((b"{", b"[", b"data:")):
        return UpstreamFailed(f"The engine sent a chunk that can't be read: {reason}")
    return error_from_event(data)
