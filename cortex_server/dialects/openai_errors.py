"""An engine's HTTP errors for clients of OpenAI's dialect.

What is in OpenAI's shape passes as it came, so that clients see their engine's own words and codes. The rest
(mistral.rs answers a bare `{"message"}`, with 500 for an over-long prompt) is put into that shape. An over-long
prompt gets OpenAI's code in any case: it is what clients match on, and each engine has another. So does what is the
request's own fault but came with 500 (llama.cpp, of an image that its model can't see): clients would repeat it.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import BadRequest, CortexError, PromptTooLong, envelope
from cortex_server.dialects.engine_errors import from_answer


class _Shape(Struct):
    error: Raw = Raw()


_shapes = msgspec.json.Decoder(_Shape)


def engine_error_body(status: int, body: bytes) -> tuple[int, bytes]:
    """The status and body for the client.

    Args:
        status: the engine's, 400 or more.
        body: the engine's.
    """
    error = from_answer(status, body)
    if isinstance(error, PromptTooLong) or (isinstance(error, BadRequest) and status >= 500):
        return error.status, engine_error(error)
    return status, (body if _is_shaped(body) else engine_error(error))


def engine_error(error: CortexError) -> bytes:
    """An engine's error, as `engine_errors` read it, in OpenAI's shape; it does not claim to be ours."""
    said = {k: v for k, v in envelope(error)["error"].items() if k not in {"src", "hints"}}
    return msgspec.json.encode({"error": said})


def _is_shaped(body: bytes) -> bool:
    try:
        return bytes(_shapes.decode(body).error).startswith(b"{")
    except (ValueError, RecursionError):
        return False
