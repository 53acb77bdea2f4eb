"""Puts the name that the client sent into the answer."""

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
