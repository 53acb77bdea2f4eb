"""Usage in responses that are not chat completions: embeddings, reranking, images, speech, streamed or not.

Such a response can have many MB and is not buffered. Its usage is near the beginning (llama.cpp) or near the end (all
others), so only these are scanned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import msgspec

from cortex_server.dialects.lenient import Json, convert_counts
from cortex_server.dialects.usage import Usage

_SCANNED_BYTES = 8192
_MAX_TRIES = 8
_USAGE = re.compile(r'"usage"\s*:\s*(?=\{)')
_META = re.compile(r'"meta"\s*:\s*(?=\{)')

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


def _find_usage(data: bytes) -> Usage | None:
    text = data.decode(errors="replace")
    return _last(text, _USAGE, _from_usage) or _last(text, _META, _from_meta)


def _last(
    text: str, start: re.Pattern[str], convert: Callable[[Json], Usage | None]
) -> Usage | None:
    for match in reversed([*start.finditer(text)][-_MAX_TRIES:]):
        try:
            found = convert(_decode_at(text, match.end())[0])
        except (ValueError, RecursionError):  # cut off, or not JSON
            continue
        if found is not None:
            return found
    return None


def _from_usage(fields: Json) -> Usage | None:
    convert_counts(fields)
    usage = msgspec.convert(fields, Usage)
    return usage if usage.is_reported else None


def _from_meta(meta: Json) -> Usage | None:
    """Return the usage in Cohere's `meta`, of rankings and embeddings: what was computed, or else what is billed."""
    for name in ("tokens", "billed_units"):
        fields = meta.get(name)
        if isinstance(fields, dict):
            convert_counts(fields)
            usage = Usage(
                prompt_tokens=fields.get("input_tokens"),
                completion_tokens=fields.get("output_tokens"),
                total_tokens=fields.get("total_tokens"),
            )
            if usage.is_reported:
                return usage
    return None
