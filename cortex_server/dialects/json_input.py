"""Decoding of client JSON, with errors that name the field that is wrong."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest, MalformedBody, MissingModel
from cortex_common.schema.msgspec_errors import parse_validation_error

T = TypeVar("T")


class _TypedObject(Struct):
    type: str | None = None


_typed_objects = msgspec.json.Decoder(_TypedObject)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field (.*)", re.DOTALL)


def decode(decoder: msgspec.json.Decoder[T], data: bytes | Raw, path: str = "") -> T:
    """Decode a request body, or a part of one.

    Args:
        decoder: decodes the expected type.
        data: the JSON.
        path: where `data` is in the body, such as "messages.0.content.1".

    Raises:
        MalformedBody: the data is not JSON.
        MissingModel: the body has no `model`.
        BadRequest: a field is missing or has the wrong type; `param` is its path.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _field_error(error, path) from None
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"The body is not JSON: {error}") from None


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a whole body, checking that all of it is UTF-8: parts of it are kept undecoded.

    Raises:
        BadRequest: as for `decode`.
    """
    if not is_utf8(body):
        raise MalformedBody("The body is not UTF-8")
    return decode(decoder, body)


def object_type(data: Raw, path: str) -> str | None:
    """Return the `type` field of an object, or None if it has none.

    Raises:
        BadRequest: the data is not an object, or its type is not a string.
    """
    return decode(_typed_objects, data, path).type


def is_utf8(data: bytes) -> bool:
    """Return whether the bytes are valid UTF-8."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _field_error(error: msgspec.ValidationError, path: str) -> BadRequest:
    reason, inner_path = parse_validation_error(str(error))
    full_path = ".".join(part for part in (path, inner_path) if part)
    if unknown := _UNKNOWN_FIELD.fullmatch(reason):
        param = f"{full_path}.{unknown[1]}" if full_path else unknown[1]
        return BadRequest(f"{param}: unknown parameter", param=param)
    if not full_path and reason == "Object missing required field model":
        return MissingModel("The body has no model", param="model")
    if not full_path and reason.startswith("Expected object"):
        return MalformedBody(f"The body must be a JSON object: {reason}")
    return BadRequest(f"{full_path}: {reason}" if full_path else reason, param=full_path or None)
