"""Puts the name that the client sent into the answer."""

from __future__ import annotations

import re

import msgspec

_MODEL_FIELD = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')


class Echo:
    """Puts the name that the client sent into the events and answers of an engine.

    Works on bytes: inside a JSON string a quote is always escaped, so `"model":"` stands nowhere but
    where a key of that name has a text.

    Args:
        client_name: what to put there; None leaves everything as it is.
    """

    __slots__ = ("_engine", "_wanted")

    def __init__(self, client_name: str | None) -> None:
        self._wanted = (
            None if client_name is None else b'"model":' + msgspec.json.encode(client_name)
        )
        self._engine: bytes | None = None

    def __call__(self, data: bytes) -> bytes:
        """The same bytes with the client's name. `data` must not be cut inside the field."""
        wanted = self._wanted
        if wanted is None:
            return data
        if self._engine is None:
            match = _MODEL_FIELD.search(data)
            if match is None:
                return data
            self._engine = match[0]
        return data if self._engine == wanted else data.replace(self._engine, wanted)
