"""Engine errors in OpenAI's format.

An error that is in OpenAI's format passes unchanged, so that clients see the engine's own message and code. One that is
nearly in that format (llama.cpp has an integer as `code`, and no `param`) gets the fields that clients rely on, and
keeps its others. Errors in other formats are converted (mistral.rs sends a bare `{"message"}`, with 500 for a prompt
that is too long). Two kinds are always converted:

- A prompt or `max_tokens` that is too long gets one error code, which clients match on; each engine has its own.
- A client mistake that llama.cpp reports with 500 (an image sent to a model without vision) gets 400, because clients
  would retry a 500.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import (
    BadRequest,
    CortexError,
    MaxTokensTooLarge,
    PromptTooLong,
    envelope,
)
from cortex_server.dialects.engine_errors import error_from_response

_BODY_TOO_LARGE = 413


class _ErrorBody(Struct):
    error: Raw = Raw()


class _ShapedError(Struct):
    """An error that has the fields that clients rely on."""

    message: str
    type: str | None
    param: str | None
    code: str | None


class _ShapedBody(Struct):
    error: _ShapedError


_error_bodies = msgspec.json.Decoder(_ErrorBody)
_shaped_bodies = msgspec.json.Decoder(_ShapedBody)
_decode_error = msgspec.json.Decoder(dict[str, Any]).decode


def engine_error_response(status: int, body: bytes) -> tuple[int, bytes]:
    """Return the HTTP status and body for the client.

    Args:
        status: the engine's HTTP status, 400 or higher.
        body: the engine's body.
    """
    error = error_from_response(status, body)
    is_about_length = isinstance(error, PromptTooLong | MaxTokensTooLarge)
    is_misreported = isinstance(error, BadRequest) and status >= 500
    if is_misreported or (is_about_length and status != _BODY_TOO_LARGE):
        status = error.status
    return status, engine_error_body(error, body)


def engine_error_body(error: CortexError, body: bytes) -> bytes:
    """Return the body of an engine's error in OpenAI's format.

    Args:
        error: the same error, parsed.
        body: the engine's body, which is returned unchanged if it is in that format.
    """
    if isinstance(error, PromptTooLong | MaxTokensTooLarge):
        return encode_engine_error(error)
    if is_openai_error(body):
        return body
    encoded = encode_engine_error(error)
    try:
        raw = _error_bodies.decode(body).error
        fields = _decode_error(raw) if bytes(raw).startswith(b"{") else {}
    except (ValueError, RecursionError):
        return encoded
    own = _decode_error(encoded)["error"]
    kept = {k: v for k, v in fields.items() if k not in own}
    for name in ("type", "param", "code"):
        if isinstance(fields.get(name), str):
            own[name] = fields[name]
    return msgspec.json.encode({"error": own | kept})


def encode_engine_error(error: CortexError) -> bytes:
    """Encode an engine's error in OpenAI's format, without the fields that mark an error as the gateway's."""
    fields = {k: v for k, v in envelope(error)["error"].items() if k not in {"src", "hints"}}
    return msgspec.json.encode({"error": fields})


def is_openai_error(body: bytes) -> bool:
    """Return whether a body is an error with all fields of OpenAI's format."""
    try:
        _shaped_bodies.decode(body)
    except (ValueError, RecursionError):
        return False
    return True
