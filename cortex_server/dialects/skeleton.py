"""Recognises the chunks of a stream that differ from an earlier one in nothing but their text.

An engine writes the same bytes around each token. Once a chunk has been found clean, every other that begins
and ends with the same bytes, and has one JSON text between them, is as clean; that is known from two
comparisons instead of a search for each thing that might be wrong.
"""

from __future__ import annotations

import re

from cortex_server.dialects.echo import Echo
from cortex_server.dialects.halves import is_text

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
    """

    __slots__ = ("_changes", "_echo", "_foot", "_head", "_starts", "_told_foot", "_told_head")

    def __init__(self, echo: Echo, starts: re.Pattern[bytes]) -> None:
        self._echo = echo
        self._starts = starts
        self._head = self._told_head = b""
        self._foot = self._told_foot = b""
        self._changes = False

    def learn(self, event: bytes) -> None:
        """Take a clean event, a single one with its blank line, as the example."""
        start = self._starts.search(event)
        if start is None:
            return
        inside = _INSIDE.match(event, start.end())
        assert inside is not None  # the pattern matches nothing, too
        self._head, self._foot = event[: start.end()], event[inside.end() :]
        self._told_head, self._told_foot = self._echo(self._head), self._echo(self._foot)
        self._changes = (self._head, self._foot) != (self._told_head, self._told_foot)

    def forget(self) -> None:
        """The example holds no longer."""
        self._head = b""

    def inside(self, data: bytes) -> bytes | None:
        """The JSON text, without its quotes, of one event like the example; None if it is not like it."""
        head, foot = self._head, self._foot
        if not (head and data.startswith(head) and data.endswith(foot)):
            return None
        inside = data[len(head) : len(data) - len(foot)]
        if (b'"' in inside or b"\\" in inside) and _INSIDE.fullmatch(inside) is None:
            return None
        if len(inside) + len(head) + len(foot) != len(data) or not is_text(inside):
            return None
        return inside

    def told(self, data: bytes, inside: bytes) -> bytes:
        """The event with the client's name for the model."""
        return self._told_head + inside + self._told_foot if self._changes else data
