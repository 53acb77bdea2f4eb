"""What an answer that is no chat says it used: embeddings, rankings, images, speech, streamed or whole.

Such an answer may have many MB and is not held. Its usage stands near its beginning (llama.cpp) or near its end
(everybody else), so these are what is looked at.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from cortex_server.dialects.chat import Usage

_END = 8192
_USAGE = re.compile(r'"usage"\s*:\s*(?=\{)')

_decode_at = json.JSONDecoder().raw_decode


class _Spent(msgspec.Struct):
    """Either pair of names is OpenAI's; rankings tell their total only."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None


class Ends:
    """The first and the last few KiB of an answer whose pieces pass."""

    def __init__(self) -> None:
        self._first = b""
        self._last = b""

    def feed(self, data: bytes) -> None:
        """The next piece."""
        if len(self._first) < _END:
            self._first += data[: _END - len(self._first)]
        self._last = (self._last + data[-_END:])[-_END:]

    def usage(self) -> Usage | None:
        """What the engine counted, where it said so."""
        return _usage(self._last) or _usage(self._first)


def _usage(part: bytes) -> Usage | None:
    text = part.decode(errors="replace")
    found: Any = None
    for match in _USAGE.finditer(text):
        try:
            found = _decode_at(text, match.end())[0]
        except (ValueError, RecursionError):  # cut by the edge of what was kept, or nonsense
            continue
    try:
        spent = msgspec.convert(found, _Spent)
    except msgspec.ValidationError:
        return None
    completion = spent.completion_tokens or spent.output_tokens or 0
    prompt = spent.prompt_tokens or spent.input_tokens
    return Usage(
        prompt_tokens=max(0, (spent.total_tokens or 0) - completion) if prompt is None else prompt,
        completion_tokens=completion,
    )
