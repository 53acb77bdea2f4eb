"""Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

Which status and type a failure gets decides what clients do next. Captured: Claude Code compacts on
"prompt is too long: N tokens > M maximum" and on no other words, waits on 429, repeats on 529, and
prints a hint about the model on 404.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from cortex_common.errors import CortexError, PromptTooLong

_SHAPES: dict[int, tuple[int, str]] = {
    400: (400, "invalid_request_error"),
    401: (401, "authentication_error"),
    402: (402, "billing_error"),
    403: (403, "permission_error"),
    404: (404, "not_found_error"),
    409: (400, "invalid_request_error"),
    413: (413, "request_too_large"),
    429: (429, "rate_limit_error"),
    # An engine that lacks a feature will lack it the next time too; 5xx would be repeated.
    501: (400, "invalid_request_error"),
    503: (529, "overloaded_error"),
    504: (504, "timeout_error"),
}


class _Named(Struct):
    type: str
    message: str


class _ErrorBody(Struct, tag_field="type", tag="error"):
    error: _Named
    request_id: str | None


def error_body(
    error: CortexError, request_id: str | None = None, *, prompt_tokens: int = 0
) -> tuple[int, bytes]:
    """The HTTP status and the body that tell a client of an error.

    Args:
        error: the gateway's own, or an engine's as `engine_errors` read it.
        request_id: as in the `request-id` header.
        prompt_tokens: an estimate, for an engine that says "too long" but not how long.
    """
    status = 402 if error.details.get("upstream_status") == 402 else error.status
    status, kind = _SHAPES.get(status, (status, "api_error"))
    named = _Named(kind, _message(error, prompt_tokens))
    return status, msgspec.json.encode(_ErrorBody(named, request_id))


def _message(error: CortexError, prompt_tokens: int) -> str:
    if isinstance(error, PromptTooLong):
        context = error.details.get("n_ctx")
        if context is not None:
            prompt = error.details.get("n_prompt_tokens") or max(prompt_tokens, context + 1)
            return f"prompt is too long: {prompt} tokens > {context} maximum"
        return f"prompt is too long: {error.message}"
    said = ". ".join(part.rstrip(".") for part in (error.message, *error.hints))
    return said.replace("?. ", "? ")
