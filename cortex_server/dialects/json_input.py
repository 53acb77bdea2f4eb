"""Reads the JSON of clients; what is wrong with it becomes an error that names the place."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest, MalformedBody, MissingModel
from cortex_common.schema.msgspec_errors import parse_validation_error
from cortex_server.dialects.stream.text import is_text

T = TypeVar("T")


class _Typed(Struct):
    type: str | None = None


_typed = msgspec.json.Decoder(_Typed)


def read(decoder: msgspec.json.Decoder[T], data: bytes | Raw, where: str = "") -> T:
    """Decode a body, or a part of one.

    Args:
        decoder: of the type that is expected.
        data: the JSON.
        where: the path of `data` inside the body, such as "messages.0.content.1".

    Raises:
        MalformedBody: the data is no JSON.
        MissingModel: the body has no `model`.
        BadRequest: a field is missing or of the wrong type; `param` is its path.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _named(error, where) from None
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"The body is not JSON: {error}") from None


def read_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The same for a whole body, which must be text throughout: parts of it are kept undecoded.

    Raises:
        BadRequest: as `read`.
    """
    if not is_text(body):
        raise MalformedBody("The body is not UTF-8")
    return read(decoder, body)


def type_of(data: Raw, where: str) -> str | None:
    """The `type` of an object.

    Raises:
        BadRequest: it is no object, or its type is no text.
    """
    return read(_typed, data, where).type


def _named(error: msgspec.ValidationError, where: str) -> BadRequest:
    what, inner = parse_validation_error(str(error))
    path = ".".join(part for part in (where, inner) if part)
    if not path and what == "Object missing required field model":
        return MissingModel("The body names no model", param="model")
    if not path and what.startswith("Expected object"):
        return MalformedBody(f"The body must be a JSON object: {what}")
    return BadRequest(f"{path}: {what}" if path else what, param=path or None)
