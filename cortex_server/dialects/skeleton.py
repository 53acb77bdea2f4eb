"""Recognises the chunks of a stream that differ from an earlier one in nothing but their text.

An engine writes the same bytes around each token. Once a chunk has been found clean, every other that begins
and ends with the same bytes, and has one JSON text between them, is as clean; that is known from two
comparisons instead of a search for each thing that might be wrong.
"""

from __future__ import annotations

import re

from cortex_server.dialects.echo import Echo
from cortex_server.dialects.stream.text import is_text

TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning)":"')
"""Before the text of a chunk that carries prose."""

ARGUMENTS = re.compile(rb'"arguments":"')
"""Before the text of a chunk that carries a part of a call."""

_INSIDE = re.compile(rb'(?:[^"\\]|\\.)*')


class Skeleton:
    """The bytes around the text, learned from a clean chunk and replaced when the engine changes them.

    Args:
        echo: how the client's name for the model is put into what passes.
        starts: finds the quote that begins the text.

    Attributes:
        changes: the client calls the model by another name than the engine.
    """

    __slots__ = (
        "_around",
        "_echo",
        "_foot",
        "_head",
        "_start",
        "_starts",
        "_told_foot",
        "_told_head",
        "changes",
    )

    def __init__(self, echo: Echo, starts: re.Pattern[bytes]) -> None:
        self._echo = echo
        self._starts = starts
        self._head = b""  # until an example is known; then all else is known, too

    def learn(self, event: bytes) -> None:
        """Take a clean event, a single one with its blank line, as the example."""
        start = self._starts.search(event)
        if start is None:
            return
        inside = _INSIDE.match(event, start.end())
        assert inside is not None  # the pattern matches nothing, too
        self._head, self._foot = event[: start.end()], event[inside.end() :]
        self._start, self._around = len(self._head), len(self._head) + len(self._foot)
        self._told_head, self._told_foot = self._echo(self._head), self._echo(self._foot)
        self.changes = (self._head, self._foot) != (self._told_head, self._told_foot)

    @property
    def around(self) -> tuple[bytes, bytes] | None:
        """What stands before and after the text of an event that passes unchanged; None where none does."""
        return (self._head, self._foot) if self._head and not self.changes else None

    def forget(self) -> None:
        """The example holds no longer."""
        self._head = b""

    def inside(self, data: bytes) -> bytes | None:
        """The JSON text, without its quotes, of one event like the example; None if it is not like it."""
        head = self._head
        if not head:
            return None
        start, size = self._start, len(data) - self._around
        if not (size >= 0 and data.startswith(head) and data.endswith(self._foot)):
            return None
        inside = data[start : start + size]
        return inside if is_one_text(inside) else None

    def told(self, data: bytes, inside: bytes) -> bytes:
        """The event with the client's name for the model."""
        return self._told_head + inside + self._told_foot if self.changes else data


def is_one_text(inside: bytes) -> bool:
    """Whether what stands between two quotes is one JSON text, in whole characters."""
    # `find`, because `in` first takes the bytes for a number, which costs twice the search.
    if (inside.find(b'"') >= 0 or inside.find(b"\\") >= 0) and _INSIDE.fullmatch(inside) is None:
        return False
    return inside.isascii() or is_text(inside)
