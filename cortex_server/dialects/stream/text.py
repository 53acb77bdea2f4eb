"""Byte-level rewriting of engine events: the model's name, and characters split between events."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from cortex_server.dialects.json_input import is_utf8

_MODEL_FIELD = re.compile(rb'("model"\s*:\s*)("(?:[^"\\]|\\.)*")')


class ModelNameRewriter:
    """Replaces the model name in events and responses of an engine with the name that the client sent.

    Works on bytes: inside a JSON string a quote is always escaped, so `"model":"` occurs only where a key of that name
    has a string value. If the engine uses the client's name, no byte changes.

    Args:
        client_name: the name that the client sent; None changes nothing.
    """

    __slots__ = ("_client_field", "_engine_field", "_expected_field", "_quoted_name")

    def __init__(self, client_name: str | None) -> None:
        self._quoted_name: bytes | None = None
        self._expected_field = b""
        if client_name is not None:
            self._quoted_name, self._expected_field = _encode_name(client_name)
        self._engine_field = self._client_field = b""  # empty until the first event with a model

    def __call__(self, data: bytes) -> bytes:
        """Return the bytes with the client's name. `data` must not be cut inside the field."""
        if self._quoted_name is None:
            return data
        if not self._engine_field:
            if data.find(self._expected_field) >= 0:  # the usual case, without a regular expression
                self._engine_field = self._client_field = self._expected_field
                return data
            match = _MODEL_FIELD.search(data)
            if match is None:
                return data
            self._engine_field, self._client_field = match[0], match[1] + self._quoted_name
        if self._engine_field == self._client_field:
            return data
        return data.replace(self._engine_field, self._client_field)


@lru_cache(maxsize=256)
def _encode_name(name: str) -> tuple[bytes, bytes]:
    """Return a name in JSON, alone and with its key."""
    quoted = msgspec.json.encode(name)
    return quoted, b'"model":' + quoted


# The beginning of a character of two, three or four bytes, or the first half of a surrogate pair, followed by the quote
# that ends the string. An escape counts only after an even number of backslashes.
_FIRST_PART = re.compile(
    rb"(?:([\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})"
    rb"|(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2}))(?=\")"
)
_SECOND_PART = re.compile(rb"(?<=\")(?:[\x80-\xbf]{1,3}|\\u[dD][c-fC-F][0-9a-fA-F]{2})")


class SplitCharacterBuffer:
    """Rejoins characters that an engine split between the end of one text and the start of the next.

    The parts are bytes of UTF-8, or the escaped halves of a surrogate pair.

    Attributes:
        pending: the first part of a character whose second part is expected; empty if there is none.
    """

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = b""

    def rejoin(self, data: bytes) -> bytes:
        """Return the JSON of an event in whole characters, moving a split character to the later event.

        A first part whose second part never comes is lost.
        """
        first_part, self.pending = self.pending, b""
        # `find`, because `in` tries the bytes as an integer first.
        if not first_part and data.find(b"\\u") < 0 and is_utf8(data):
            return data
        if first_part:
            data = _SECOND_PART.sub(lambda second: first_part + second[0], data, count=1)
        split = _FIRST_PART.search(data)
        if split is not None:
            group = 1 if split[1] else 2
            self.pending = split[group]
            data = data[: split.start(group)] + data[split.end(group) :]
        return data if is_utf8(data) else data.decode("utf-8", "replace").encode()
