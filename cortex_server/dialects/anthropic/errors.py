"""Errors in Anthropic's format: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

The status and type of an error decide what clients do next. Observed: Claude Code compacts its conversation on "prompt
is too long: N tokens > M maximum" and on no other message, waits on 429, retries on 529, and prints a hint about the
model on 404.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from cortex_common.errors import CortexError, MaxTokensTooLarge, PromptTooLong

_STATUS_AND_TYPE: dict[int, tuple[int, str]] = {
    400: (400, "invalid_request_error"),
    401: (401, "authentication_error"),
    402: (402, "billing_error"),
    403: (403, "permission_error"),
    404: (404, "not_found_error"),
    405: (405, "invalid_request_error"),
    409: (400, "invalid_request_error"),
    413: (413, "request_too_large"),
    429: (429, "rate_limit_error"),
    # Not 5xx, which clients retry: a feature that the engine lacks will still be missing then.
    501: (400, "invalid_request_error"),
    503: (529, "overloaded_error"),
    504: (504, "timeout_error"),
}


_KEPT_STATUSES = {402, 413}
"""Statuses of an engine that clients need although the gateway has no error with them, or has others."""


class _Error(Struct):
    type: str
    message: str


class _ErrorBody(Struct, tag_field="type", tag="error"):
    error: _Error
    request_id: str | None


def error_response(
    error: CortexError, request_id: str | None = None, *, prompt_tokens: int = 0
) -> tuple[int, bytes]:
    """Return the HTTP status and body for an error.

    Args:
        error: an error of the gateway, or an engine's as parsed by `engine_errors`.
        request_id: as in the `request-id` header.
        prompt_tokens: an estimate, for engines that report "too long" without a number.
    """
    upstream_status = error.details.get("upstream_status")
    status = upstream_status if upstream_status in _KEPT_STATUSES else error.status
    status, error_type = _STATUS_AND_TYPE.get(status, (status, "api_error"))
    body = _ErrorBody(_Error(error_type, _message(error, prompt_tokens)), request_id)
    return status, msgspec.json.encode(body)


def _message(error: CortexError, prompt_tokens: int) -> str:
    if isinstance(error, PromptTooLong):
        context = error.details.get("n_ctx")
        if context is not None:
            prompt = error.details.get("n_prompt_tokens") or max(prompt_tokens, context + 1)
            return f"prompt is too long: {prompt} tokens > {context} maximum"
        return f"prompt is too long: {error.message}"
    if isinstance(error, MaxTokensTooLarge) and "max_tokens" in error.details:
        return _completion_message(error.details)
    message = ". ".join(part.rstrip(".") for part in (error.message, *error.hints))
    return message.replace("?. ", "? ")


def _completion_message(details: Mapping[str, int]) -> str:
    """Return Anthropic's message for a `max_tokens` that is too large; Claude Code reacts to the first with less."""
    asked = details["max_tokens"]
    if "n_ctx" in details and "n_prompt_tokens" in details:
        return (
            f"input length and `max_tokens` exceed context limit: {details['n_prompt_tokens']} + {asked} > "
            f"{details['n_ctx']}, decrease input length or `max_tokens` and try again"
        )
    limit = details.get("limit", asked - 1)
    return f"max_tokens: {asked} > {limit}, which is the maximum allowed number of output tokens"
