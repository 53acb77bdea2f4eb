"""The few fields of a request body that the gateway reads, and the few changes that it makes.

msgspec validates a whole JSON document but builds only these fields: less than a microsecond for a usual body, where
json.loads takes ten times as long.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from cortex_common.errors import BadRequest, MalformedBody, MissingModel
from cortex_common.schema.msgspec_errors import parse_validation_error
from cortex_http.multipart import FormError, add_field, find_field


class StreamOptions(msgspec.Struct, frozen=True):
    """OpenAI's stream_options."""

    include_usage: bool | None = None


class BodyFields(msgspec.Struct, frozen=True):
    """The fields that decide where a request goes and how its response is delivered."""

    model: str | msgspec.UnsetType | None = msgspec.UNSET
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_cache_key: msgspec.Raw = msgspec.Raw()
    n: msgspec.Raw = msgspec.Raw()

    @property
    def name(self) -> str:
        """The model's name."""
        assert isinstance(self.model, str)
        return self.model

    @property
    def choices(self) -> int:
        """Number of choices asked for; what is not a number is left to the engine."""
        n = bytes(self.n)
        return max(1, int(n)) if n.isdigit() and len(n) < 4 else 1

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for the usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


_decode_fields = msgspec.json.Decoder(BodyFields).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


_SPELLINGS = [
    "".join(letters)
    for letters in itertools.product(*zip("model", "MODEL", strict=True))
    if "".join(letters) != "model"
]

_decode_strictly = msgspec.json.Decoder(
    msgspec.defstruct(
        "StrictBodyFields",
        [
            (f"spelling_{number}", None, msgspec.field(default=None, name=spelling))
            for number, spelling in enumerate(_SPELLINGS)
        ],
        bases=(BodyFields,),
        frozen=True,
    )
).decode
"""Reads the same fields, and rejects `model` in capitals: Go servers, such as Ollama, read `MODEL` as `model`, so that
another model would be used than the one that was checked."""


def read_fields(body: bytes) -> BodyFields:
    """Read the fields of a JSON body; the model may be missing.

    Raises:
        MalformedBody: It is not a JSON object.
        BadRequest: One of the fields has the wrong type, or `model` is spelled in capitals.
    """
    try:
        fields = _decode_strictly(body)
    except msgspec.ValidationError as failed:
        raise _wrong_type(str(failed)) from failed
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failed:
        if not body.strip():
            raise MalformedBody(
                "the body is empty", hints=["send a JSON object with at least `model`"]
            ) from failed
        raise MalformedBody(f"the body is not valid JSON: {failed}") from failed
    assert isinstance(fields, BodyFields)
    return fields


def read_json(body: bytes, default_model: str | None = None) -> tuple[bytes, BodyFields]:
    """Return a JSON body that names its model, and its fields.

    Args:
        body: The request's body.
        default_model: Model named in the query string, for a body that names none; it is added to the body.

    Raises:
        MissingModel: `model` is missing or empty.
        BadRequest: See `read_fields`.
    """
    fields = read_fields(body)
    if fields.model:
        return body, fields
    if not default_model:
        raise missing_model()
    name = msgspec.Raw(msgspec.json.encode(default_model))
    body = msgspec.json.encode(_decode_raw(body) | {"model": name})
    return body, msgspec.structs.replace(fields, model=default_model)


_KEY = b'"model"'
_ESCAPED_KEY = re.compile(rb"\\u00(?:6[dDfF45cC])")
"""One of the letters of `model`, escaped."""


def require_one_model(body: bytes) -> None:
    """Check that a JSON body has only one `model`: engines differ in which of two they use.

    Raises:
        BadRequest: It has several.
    """
    if body.count(_KEY) < 2 and _ESCAPED_KEY.search(body) is None:
        return
    names: list[str] = []

    def keep_names(pairs: list[tuple[str, object]]) -> None:
        names[:] = [name for name, _ in pairs]  # those of the outermost object come last

    try:
        json.loads(body, object_pairs_hook=keep_names)
    except (ValueError, RecursionError) as failed:
        raise MalformedBody(f"the body is not valid JSON: {failed}") from failed
    if names.count("model") > 1:
        raise BadRequest("the body has several `model` fields", param="model")


def missing_model() -> MissingModel:
    """Return the error for a request that names no model."""
    return MissingModel(
        "the body names no model",
        param="model",
        hints=["add a `model` field; GET /v1/models lists the names"],
    )


def _wrong_type(message: str) -> BadRequest:
    what, field = parse_validation_error(message)
    if field in _SPELLINGS:
        return BadRequest(f"the body has a field `{field}`; write it `model`", param=field)
    if field.split(".")[0] in BodyFields.__struct_fields__:
        return BadRequest(f"`{field}`: {what}", param=field)
    return MalformedBody(f"the body must be a JSON object: {message}")


def with_model(body: bytes, old: str, new: str) -> bytes:
    """Return the same body with another model name, everything else byte for byte.

    The name is replaced in place when it occurs exactly once. A body where that is ambiguous (the key occurs twice, or
    the name has escapes) is encoded again from its fields.
    """
    name = msgspec.json.encode(new)
    written = re.escape(msgspec.json.encode(old))
    found = list(re.finditer(rb'"model"\s*:\s*(' + written + rb")", body))
    if len(found) == 1:
        start, end = found[0].span(1)
        replaced = body[:start] + name + body[end:]
        if _decode_fields(replaced).model == new:
            return replaced
    return msgspec.json.encode(_decode_raw(body) | {"model": msgspec.Raw(name)})


def with_usage(body: bytes) -> bytes:
    """Return the same body, asking for the usage chunk; other stream_options are kept.

    Tokens are counted, limited and shown as engines report them, and without this option most report nothing for a
    stream.
    """
    if b'"stream_options"' not in body:
        return b'{"stream_options":{"include_usage":true},' + body.lstrip()[1:]
    fields = _decode_raw(body)
    options = _decode_options(fields.get("stream_options", b"null")) or {}
    changed = options | {"include_usage": msgspec.Raw(b"true")}
    return msgspec.json.encode(fields | {"stream_options": changed})


def as_stream(body: bytes) -> bytes:
    """Return the same request for a stream with usage, for engines that notice a disconnect only while they stream."""
    changes = {
        "stream": msgspec.Raw(b"true"),
        "stream_options": msgspec.Raw(b'{"include_usage":true}'),
    }
    return msgspec.json.encode(_decode_raw(body) | changes)


class FormRequest(NamedTuple):
    """A multipart/form-data request.

    Attributes:
        body: The form, which names the model.
        fields: What was read from it.
        replace_model: Returns the form with another model name, given the form and both names.
    """

    body: bytes
    fields: BodyFields
    replace_model: Callable[[bytes, str, str], bytes]


def read_form(body: bytes, content_type: bytes, default_model: str | None = None) -> FormRequest:
    """Read the model of a multipart/form-data body; files in it are not looked at.

    Args:
        body: The request's body.
        content_type: Its Content-Type header, which names the boundary.
        default_model: Model named in the query string, for a form that names none; it is added to the form.

    Raises:
        MalformedBody: It is not a form, or engines could read it in different ways.
        MissingModel: The form has no such field, and the query names no model.
    """
    try:
        field = find_field(body, content_type, "model")
        if field is None and default_model:
            body = add_field(body, content_type, "model", default_model)
            field = find_field(body, content_type, "model")
    except FormError as failed:
        raise MalformedBody(f"the form can't be read: {failed}", param="model") from failed
    if field is None or not field.value:
        raise missing_model()
    return FormRequest(
        body, BodyFields(model=field.value), lambda form, _, new: field.replace(form, new)
    )
