"""Usage in responses that are not chat completions: embeddings, reranking, images, speech, streamed or not.

Such a response can have many MB and is not buffered. Its usage is near the beginning (llama.cpp) or near the end (all
others), so only these are scanned.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from cortex_server.dialects.chat import Usage

_SCANNED_BYTES = 8192
_USAGE = re.compile(r'"usage"\s*:\s*(?=\{)')

_decode_at = json.JSONDecoder().raw_decode


class UsageScanner:
    """Keeps the first and the last few KiB of a response, and finds the usage in them."""

    def __init__(self) -> None:
        self._first = b""
        self._last = b""

    def feed(self, data: bytes) -> None:
        """Add more bytes of the response."""
        if len(self._first) < _SCANNED_BYTES:
            self._first += data[: _SCANNED_BYTES - len(self._first)]
        self._last = (self._last + data[-_SCANNED_BYTES:])[-_SCANNED_BYTES:]

    def usage(self) -> Usage | None:
        """Return the usage that the engine reported, if any."""
        return _find_usage(self._last) or _find_usage(self._first)


class _UsageFields(msgspec.Struct):
    """Both pairs of names are OpenAI's; rerankers report only the total."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None


def _find_usage(data: bytes) -> Usage | None:
    text = data.decode(errors="replace")
    found: Any = None
    for match in _USAGE.finditer(text):
        try:
            found = _decode_at(text, match.end())[0]
        except (ValueError, RecursionError):  # cut off, or not JSON
            continue
    try:
        fields = msgspec.convert(found, _UsageFields)
    except msgspec.ValidationError:
        return None
    completion = fields.completion_tokens or fields.output_tokens or 0
    prompt = fields.prompt_tokens or fields.input_tokens
    return Usage(
        prompt_tokens=max(0, (fields.total_tokens or 0) - completion) if prompt is None else prompt,
        completion_tokens=completion,
    )
