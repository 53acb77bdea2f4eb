"""Engine errors in OpenAI's format.

An error that is already in OpenAI's format passes unchanged, so that clients see the engine's own message and code.
Others are converted (mistral.rs sends a bare `{"message"}`, with 500 for a prompt that is too long). Two kinds are
always converted:

- A prompt that is too long gets OpenAI's error code, which clients match on; each engine has its own.
- A client mistake that llama.cpp reports with 500 (an image sent to a model without vision) gets 400, because clients
  would retry a 500.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest, CortexError, PromptTooLong, envelope
from cortex_server.dialects.engine_errors import error_from_response


class _ErrorBody(Struct):
    error: Raw = Raw()


_error_bodies = msgspec.json.Decoder(_ErrorBody)


def engine_error_response(status: int, body: bytes) -> tuple[int, bytes]:
    """Return the HTTP status and body for the client.

    Args:
        status: the engine's HTTP status, 400 or higher.
        body: the engine's body.
    """
    error = error_from_response(status, body)
    if isinstance(error, PromptTooLong) or (isinstance(error, BadRequest) and status >= 500):
        return error.status, encode_engine_error(error)
    return status, (body if is_openai_error(body) else encode_engine_error(error))


def encode_engine_error(error: CortexError) -> bytes:
    """Encode an engine's error in OpenAI's format, without the fields that mark an error as the gateway's."""
    fields = {k: v for k, v in envelope(error)["error"].items() if k not in {"src", "hints"}}
    return msgspec.json.encode({"error": fields})


def is_openai_error(body: bytes) -> bool:
    """Return whether a body is an error in OpenAI's format."""
    try:
        return bytes(_error_bodies.decode(body).error).startswith(b"{")
    except (ValueError, RecursionError):
        return False
