"""Model names: which model a client's name means, and putting the client's name into the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import MissingModel, ModelNotFound, nearest
from cortex_server.dialects.reading import read

T = TypeVar("T")


class Names:
    """The names under which models are known.

    A name means, in this order: the model of that id; the alias of that name; the first pattern that
    matches it, the longest before the shorter, so that "claude-haiku-*" beats "claude-*".

    Args:
        aliases: alias or pattern (`*`, `?`, `[...]`) to model id.
    """

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._exact = {a: i for a, i in aliases.items() if not _is_pattern(a)}
        patterns = sorted((a for a in aliases if _is_pattern(a)), key=lambda a: (-len(a), a))
        self._patterns = [(pattern, aliases[pattern]) for pattern in patterns]

    def resolve(self, name: str, models: Mapping[str, T]) -> str:
        """The id of the model that a client's name means.

        Args:
            name: as sent.
            models: by id, all that can be served.

        Raises:
            ModelNotFound: nothing has this name; the nearest names are hints.
        """
        if name in models:
            return name
        found = self._exact.get(name)
        if found is None:
            found = next((i for pattern, i in self._patterns if fnmatchcase(name, pattern)), None)
        if found is None or found not in models:
            raise not_found(name, [*models, *self._exact])
        return found


def not_found(name: str, known: Iterable[str]) -> ModelNotFound:
    """The error for a name that means nothing."""
    hints = tuple(f"Did you mean {n!r}?" for n in nearest(name, known))
    return ModelNotFound(f"There is no model {name!r}", param="model", hints=hints)


def _is_pattern(alias: str) -> bool:
    return any(sign in alias for sign in "*?[")


class _Asked(Struct):
    model: str | None = None
    stream: bool | None = None


_asked = msgspec.json.Decoder(_Asked)


def asked(body: bytes) -> tuple[str, bool]:
    """(model, stream) of a JSON body, without building the rest of it.

    Raises:
        MalformedBody: the body is no JSON object.
        MissingModel: it names no model.
        BadRequest: one of the two is of the wrong type.
    """
    found = read(_asked, body)
    if not found.model:
        raise MissingModel("The body names no model", param="model")
    return found.model, bool(found.stream)


_objects = msgspec.json.Decoder(dict[str, Raw])


def with_model(body: bytes, name: str) -> bytes:
    """A request's body with another model name; everything else stays as it came, byte for byte.

    Raises:
        MalformedBody: the body is no JSON object.
    """
    wanted = msgspec.json.encode(name)
    found = read(_objects, body).get("model")
    if found is not None and body.count(bytes(found)) == 1:
        return body.replace(bytes(found), wanted)
    return msgspec.json.encode(read(_objects, body) | {"model": Raw(wanted)})


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
