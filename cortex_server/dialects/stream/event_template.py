"""Recognition of stream events that differ from an earlier one in nothing but their text."""

from __future__ import annotations

import re

from cortex_server.dialects.json_input import is_utf8
from cortex_server.dialects.stream.text import ModelNameRewriter

# Without escaped surrogates: they can be single, and then clients can't read them.
_STRING_CONTENT = re.compile(rb'(?:[^"\\]|\\(?!u[dD][89a-fA-F]).)*', re.DOTALL)


class EventTemplate:
    """The bytes of an event before and after its text, learned from a clean event.

    Args:
        rename_model: puts the client's name of the model into events.
        text_start: matches up to the quote that opens the text.

    Attributes:
        rewrites: the client uses another name for the model than the engine.
    """

    __slots__ = (
        "_client_prefix",
        "_client_suffix",
        "_envelope_size",
        "_prefix",
        "_rename_model",
        "_suffix",
        "_text_at",
        "_text_start",
        "rewrites",
    )

    def __init__(self, rename_model: ModelNameRewriter, text_start: re.Pattern[bytes]) -> None:
        self._rename_model = rename_model
        self._text_start = text_start
        self._prefix = b""  # empty until an event was learned; the other fields are set with it

    def learn(self, event: bytes) -> None:
        """Learn from a clean event, a single one with its blank line."""
        start = self._text_start.search(event)
        if start is None:
            return
        content = _STRING_CONTENT.match(event, start.end())
        assert content is not None  # the pattern also matches an empty string
        if not event.startswith(b'"', content.end()):
            return
        self._prefix, self._suffix = event[: start.end()], event[content.end() :]
        self._text_at = len(self._prefix)
        self._envelope_size = len(self._prefix) + len(self._suffix)
        self._client_prefix = self._rename_model(self._prefix)
        self._client_suffix = self._rename_model(self._suffix)
        self.rewrites = (self._prefix, self._suffix) != (self._client_prefix, self._client_suffix)

    def forget(self) -> None:
        """Forget the learned event."""
        self._prefix = b""

    @property
    def envelope(self) -> tuple[bytes, bytes] | None:
        """The bytes before and after the text of events that pass unchanged; None if there are no such events."""
        return (self._prefix, self._suffix) if self._prefix and not self.rewrites else None

    def match(self, data: bytes) -> bytes | None:
        """Return the JSON text, without quotes, of a single event that fits the template; None if it does not."""
        prefix = self._prefix
        if not prefix:
            return None
        start, size = self._text_at, len(data) - self._envelope_size
        if not (size >= 0 and data.startswith(prefix) and data.endswith(self._suffix)):
            return None
        content = data[start : start + size]
        return content if is_string_content(content) else None

    def count(self, data: bytes) -> int:
        """Return the number of events if all of several complete events fit the template, else 0."""
        prefix = self._prefix
        if not prefix:
            return 0
        *pieces, rest = data.split(self._suffix)
        start = self._text_at
        for piece in pieces:
            if not (piece.startswith(prefix) and is_string_content(piece[start:])):
                return 0
        return 0 if rest else len(pieces)

    def render(self, data: bytes, text: bytes) -> bytes:
        """Return the event for the client, with its name of the model."""
        return self._client_prefix + text + self._client_suffix if self.rewrites else data


def is_string_content(data: bytes) -> bool:
    """Return whether the bytes between two quotes are the content of one JSON string in valid UTF-8."""
    # `find`, because `in` tries the bytes as an integer first, which costs twice the search.
    if (data.find(b'"') >= 0 or data.find(b"\\") >= 0) and _STRING_CONTENT.fullmatch(data) is None:
        return False
    return data.isascii() or is_utf8(data)
