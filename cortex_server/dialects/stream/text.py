"""Characters that an engine cut in two: the halves stand at the end of one text and the start of the next."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

_MODEL_FIELD = re.compile(rb'("model"\s*:\s*)("(?:[^"\\]|\\.)*")')


@lru_cache(maxsize=256)
def _written(name: str) -> tuple[bytes, bytes]:
    """A name in JSON, alone and with its key."""
    quoted = msgspec.json.encode(name)
    return quoted, b'"model":' + quoted


class Echo:
    """Puts the name that the client sent into the events and answers of an engine.

    Works on bytes: inside a JSON string a quote is always escaped, so `"model":"` stands nowhere but
    where a key of that name has a text. Where the engine's name is the client's, no byte is changed.

    Args:
        client_name: what to put there; None leaves everything as it is.
    """

    __slots__ = ("_engine", "_name", "_same", "_told")

    def __init__(self, client_name: str | None) -> None:
        self._name: bytes | None = None
        self._same = b""
        if client_name is not None:
            self._name, self._same = _written(client_name)
        self._engine = self._told = b""

    def __call__(self, data: bytes) -> bytes:
        """The same bytes with the client's name. `data` must not be cut inside the field."""
        if self._name is None:
            return data
        if not self._engine:
            if data.find(self._same) >= 0:  # the usual case, told without a regular expression
                self._engine = self._told = self._same
                return data
            match = _MODEL_FIELD.search(data)
            if match is None:
                return data
            self._engine, self._told = match[0], match[1] + self._name
        return data if self._engine == self._told else data.replace(self._engine, self._told)


# The beginning of a character of two, three or four bytes, and then the quote that ends the text.
_CUT = re.compile(rb"([\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})(?=\")")
_REST = re.compile(rb"(?<=\")[\x80-\xbf]{1,3}")


class HalfCharacters:
    """Puts the halves together again, in the later of the two events.

    Attributes:
        waiting: a first half that waits for its second; empty when there is none.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = b""

    def mend(self, data: bytes) -> bytes:
        """An event's JSON in whole characters; a half whose other half never comes is lost."""
        half, self.waiting = self.waiting, b""
        if not half and is_text(data):
            return data
        if half:
            data = _REST.sub(lambda rest: half + rest[0], data, count=1)
        cut = _CUT.search(data)
        if cut is not None:
            self.waiting = cut[1]
            data = data[: cut.start()] + data[cut.end() :]
        return data if is_text(data) else data.decode("utf-8", "replace").encode()


def is_text(data: bytes) -> bool:
    """Whether the bytes are whole characters of UTF-8."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
